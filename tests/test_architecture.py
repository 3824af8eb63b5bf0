"""The layout that DESIGN promises: imports run one way, and the parts that must stay apart do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "affbench"
MODULES = sorted(PACKAGE.rglob("*.py"))
# From top to bottom; a module may import from its own layer and from those below.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("figure_commands", "data_commands"),
    ("session", "leaderboard", "standing", "pipeline", "status", "maintenance"),
    ("cluster",),
    ("sweep",),
    ("report",),
    ("training", "trial", "bench"),
    ("analysis",),
    ("evaluation", "steps"),
    ("models", "data", "statistics", "device", "runs", "workspace", "distributed", "environment", "randomness"),
    ("store", "config", "progress", "interrupt", "errors"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """The affbench modules that a module imports anywhere, type checking apart."""
    known = {name_of(other) for other in MODULES}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("affbench"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("affbench")}
    return found - {"affbench", name_of(path)}


GRAPH = {name_of(path): imports_of(path) for path in MODULES}


def part_of(module: str) -> str:
    return ([*module.split("."), "__init__"])[1]


def test_every_part_has_its_layer() -> None:
    assert {part_of(name) for name in GRAPH} - {"__init__"} == set(RANK)


@pytest.mark.parametrize("module", [name for name in GRAPH if name != "affbench"])
def test_imports_run_downwards(module: str) -> None:
    upwards = [other for other in GRAPH[module] if RANK[part_of(other)] < RANK[part_of(module)]]
    assert not upwards


def test_no_module_imports_itself_through_others() -> None:
    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(GRAPH[start])
        while pending:
            module = pending.pop()
            if module not in seen:
                seen.add(module)
                pending += GRAPH.get(module, set())
        return seen

    assert [module for module in GRAPH if module in reachable(module)] == []


def test_models_know_nothing_of_data() -> None:
    for module, imported in GRAPH.items():
        if part_of(module) == "models":
            assert not [other for other in imported if part_of(other) in ("data", "evaluation", "training")]


def test_importing_the_package_is_light() -> None:
    code = "import sys, affbench; affbench.__version__; sys.exit(bool({'torch', 'numpy', 'rich'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
