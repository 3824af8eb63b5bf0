"""What computes a model: one hash over the source of its modules, comments, docstrings and layout apart."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

_HERE = "affbench.models"
_seen: dict[str, tuple[ModuleSpec, str, tuple[str, ...]]] = {}  # what was imported: source, and imported names


def code_hash(*modules: str) -> str | None:
    """One hash over the code of modules and of what they import, directly or not; None where there is no source.

    The same in every version of Python. Of what is imported, modules of the same packages count, modules of
    `affbench.models`, and whatever is not installed; none of them is imported here.
    """
    tops = {name.partition(".")[0] for name in modules}
    found: dict[str, str] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in found and (spec := _spec(name)) is not None and _counts(name, spec, tops):
            found[name], imported = _read(name, spec)
            pending += imported
    if not found:
        return None
    return hashlib.sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)).encode()).hexdigest()


def _spec(name: str) -> ModuleSpec | None:
    """Where a module's source lies; of an imported one, the specification it was imported by."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded if isinstance(loaded, ModuleSpec) else None
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(name)
        package = _spec(parent)
        paths = None if package is None else package.submodule_search_locations
        return None if paths is None else PathFinder.find_spec(name, list(paths))
    except (ImportError, ValueError, AttributeError):  # such as __main__, or a broken finder
        return None


def _counts(name: str, spec: ModuleSpec, tops: set[str]) -> bool:
    top = name.partition(".")[0]
    if not spec.has_location or spec.origin is None or top in sys.stdlib_module_names:
        return False
    if top == "affbench":  # the registry computes nothing
        return f"{name}.".startswith(f"{_HERE}.") and name != f"{_HERE}.registry"
    return top in tops or not _installed(spec)


def _installed(spec: ModuleSpec) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(str(spec.origin)).parts)


def _read(name: str, spec: ModuleSpec) -> tuple[str, tuple[str, ...]]:
    """The source of a module as it was when first asked for, since that is what runs; and what it imports."""
    known = _seen.get(name)
    if known is not None and known[0] is spec:
        return known[1], known[2]
    content = Path(str(spec.origin)).read_bytes()
    text, imported = hashlib.sha256(content).hexdigest(), tuple[str, ...]()
    if str(spec.origin).endswith(".py"):
        tree = ast.parse(content)
        imported = tuple(_imports(tree, name if spec.submodule_search_locations is not None else spec.parent or ""))
        if name.startswith(_HERE) or not _installed(spec):  # what others installed is not edited, and may be large
            text = hashlib.sha256(_shape(tree).encode()).hexdigest()
    _seen[name] = (spec, text, imported)
    return text, imported


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join(filter(None, [*parts, node.module]))
            inside = [f"{base}.{alias.name}" for alias in node.names]
            yield from inside
            if not all(_spec(name) for name in inside):  # a name of the module itself
                yield base


def _shape(node: Any) -> str:
    """A syntax tree as text, without docstrings and positions; `ast.dump` differs between versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_shape, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = node.body[ast.get_docstring(node, clean=False) is not None :]
    given = (f"{key}={_shape(value)}" for key, value in fields.items() if value is not None and value != [])
    return f"{type(node).__name__}({','.join(given)})"
