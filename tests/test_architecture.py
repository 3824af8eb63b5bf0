"""The map in CONTRIBUTING: floors, imports that run downwards and in no circle, and how large anything may become."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "affbench"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (("cli",), ("experiment",), ("report",), ("analysis",), ("run",), ("models", "data"), ("base",))
"""From top to bottom; a module imports from its own floor and those below, `models` and `data` not from each other."""
RANK = {name: rank for rank, floor in enumerate(FLOORS) for name in floor}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, types: bool) -> set[str]:
    """The affbench modules that a module imports anywhere, with or without those that only type checkers import."""
    known = {name_of(other) for other in MODULES}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("affbench"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("affbench")}
    return found - {"affbench", name_of(path)}


GRAPH = {name_of(path): imports_of(path, types=False) for path in MODULES}
GRAPH_OF_TYPES = {name_of(path): imports_of(path, types=True) for path in MODULES}


def part_of(module: str) -> str:
    return ([*module.split("."), "__init__"])[1]


def test_every_module_has_its_floor() -> None:
    assert {part_of(name) for name in GRAPH} - {"__init__", "__main__"} == set(RANK)


@pytest.mark.parametrize("module", [name for name in GRAPH if name not in ("affbench", "affbench.__main__")])
def test_imports_run_downwards(module: str) -> None:
    mine = part_of(module)
    wrong = [
        other
        for other in GRAPH_OF_TYPES[module]
        if RANK[part_of(other)] < RANK[mine] or (RANK[part_of(other)] == RANK[mine] and part_of(other) != mine)
    ]
    assert not wrong


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


def test_one_call_alone_reaches_from_the_package_into_benchmarks() -> None:
    own = {path.stem for path in (PACKAGE.parent / "benchmarks").glob("*.py")} | {"benchmarks"}
    found = [
        (name_of(path), node.module)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in own
    ]
    assert found == [("affbench.cli.train", "model_speed")]


def test_importing_the_package_is_light() -> None:
    code = "import sys, affbench; affbench.__version__; sys.exit(bool({'torch', 'numpy', 'rich'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


MOST_LINES = {"file": 450, "function": 60, "class": 200, "package": 15_350}  # the package is to come down to 14,000


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Lines from the first to the last, its own docstring apart."""
    first = node.body[0]
    docstring = 0 if ast.get_docstring(node) is None else (first.end_lineno or 0) - first.lineno + 1
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_nothing_grows_beyond_what_a_small_team_keeps_up() -> None:
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in MODULES}
    sizes = {("file", name): len(text.splitlines()) for name, text in texts.items()}
    sizes["package", "affbench"] = sum(sizes.values())
    for name, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes["function", f"{name}:{node.name}:{node.lineno}"] = lines_of(node)
            elif isinstance(node, ast.ClassDef):
                sizes["class", f"{name}:{node.name}"] = lines_of(node)
    assert {what: size for what, size in sizes.items() if size > MOST_LINES[what[0]]} == {}
