"""Models by name: built-in ones, those of installed packages, any ``package.module:factory`` or ``file.py:factory``.

A factory is a class or function that returns a ``torch.nn.Module``; the options of a model are the parameters of its
factory. Names can be listed without importing torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from affbench.base.errors import AffbenchError, UsageError, nearest, reason
from affbench.models.source import code_hash

if TYPE_CHECKING:
    from torch import nn

ENTRY_POINT_GROUP = "affbench.models"
TIMM = "timm:"  # before the name of a network of timm
_checked: set[str] = set()

_BUILT_IN = {
    "capsnet": "affbench.models.capsnet:CapsNet",
    "cnn": "affbench.models.cnn:CNN",
    "cnn-sabour": "affbench.models.cnn:SabourCNN",
    "aff-capsnet": "affbench.models.aff_capsnet:AffCapsNet",
    "cnn-gap": "affbench.models.cnn:GlobalPoolingCNN",
    "stn-cnn": "affbench.models.stn:SpatialTransformerCNN",
    "cnn-fc": "affbench.models.cnn:ConvNetFC",
    "cnn-avg": "affbench.models.cnn:ConvNetAvg",
    "self-routing": "affbench.models.self_routing:SelfRoutingCapsNet",
    "em-capsnet": "affbench.models.em_capsnet:EMCapsNet",
    "efficient-capsnet": "affbench.models.efficient_capsnet:EfficientCapsNet",
    "group-cnn": "affbench.models.group_cnn:GroupCNN",
}


def model_names() -> tuple[str, ...]:
    """The names :func:`build_model` knows: built-in models first, then those of installed packages."""
    return (*_BUILT_IN, *sorted(entry_points(group=ENTRY_POINT_GROUP).names - _BUILT_IN.keys()))


def model_options(name: str) -> dict[str, Any]:
    """A model's options, without ``canvas``: name to default, `inspect.Parameter.empty` where one has to be given."""
    return {
        option: parameter.default
        for option, parameter in _parameters(model_factory(name)).items()
        if option != "canvas" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def build_model(name: str, /, *, canvas: int = 40, **options: Any) -> nn.Module:
    """Build a freshly initialised model.

    Parameters
    ----------
    name
        One of :func:`model_names`, ``package.module:factory`` or ``file.py:factory``.
    canvas
        Side of the square images, in pixels; given to the factory if it has such a parameter.
    **options
        Options of this model, see :func:`model_options`.

    Returns
    -------
    torch.nn.Module
        ``forward(images)`` takes float32 (B, 1, canvas, canvas) in [0, 1] and returns class scores (B, K).

    Raises
    ------
    UsageError
        If the model or an option is unknown or not acceptable, or a factory fails or returns something else.
    """
    from torch import nn

    factory = model_factory(name)
    known, takes_any = model_options(name), _takes_any(factory)
    if name.startswith(TIMM):
        options = {"in_chans": 1, "num_classes": 10} | options
        if options.get("pretrained"):
            raise UsageError(f"model '{name}' is to be trained on translated digits only: leave out 'pretrained'.")
    for option in options:
        if option not in known and not takes_any:
            hint = nearest(option, known) if known else "it has none"
            raise UsageError(f"model '{name}' has no option '{option}': {hint}")
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise UsageError(f"model '{name}' needs a value for its option '{option}'.")
    try:
        model = _call(factory, canvas, options)
    except AffbenchError:
        raise
    except (Exception, SystemExit) as error:
        if name in _BUILT_IN:
            raise
        raise UsageError(f"model '{name}' cannot be built: {reason(error)}.") from error
    patches = getattr(getattr(model, "patch_embed", None), "patch_size", ()) if name.startswith(TIMM) else ()
    if any(canvas % side for side in patches):
        raise UsageError(f"model '{name}' cuts {canvas}×{canvas} images: give -o patch_size=8, or one that divides.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"model '{name}' must return a torch.nn.Module, not {type(model).__name__}.")
    return model


def check_model(name: str, canvas: int, options: Mapping[str, Any]) -> None:
    """Build a model, once in this process, to see that it can be; a built-in one without the memory."""
    import torch

    asked = f"{name} {canvas} {sorted(options.items())}"
    if asked not in _checked:
        # What others wrote may read files or numbers while it is built, which no meta tensor holds.
        with torch.device("meta") if name in _BUILT_IN else contextlib.nullcontext():
            build_model(name, canvas=canvas, **options)
        _checked.add(asked)


def model_code(name: str) -> str | None:
    """A hash over the source that computes a model (`affbench.models.source`); None where there is none."""
    if name.startswith(TIMM):  # hundreds of modules, which nobody edits
        return hashlib.sha256(f"timm {version('timm')}".encode()).hexdigest()
    factory = inspect.unwrap(model_factory(name))
    module_name = _imported(_target(name).rpartition(":")[0]).__name__
    return code_hash(module_name, getattr(factory, "__module__", None) or "builtins")


def parameter_count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _target(name: str) -> str:
    """Where the factory of a model is: ``package.module:factory`` or ``file.py:factory``."""
    if known := _BUILT_IN.get(name):
        return known
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return entry.value
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM))
    if ":" in name:
        return name
    if name.endswith(".py"):
        raise UsageError(f"model '{name}' names a file and no factory in it: write {name}:factory.")
    raise UsageError(f"unknown model '{name}': {nearest(name, model_names())}")


def _timm(name: str) -> str:
    """Where timm builds a network."""
    try:
        import timm
    except ImportError:
        raise UsageError(f"model '{TIMM}{name}' needs timm: pip install 'affbench[timm]'.") from None
    if not timm.is_model(name):
        raise UsageError(f"timm has no network '{name}': {nearest(name, timm.list_models())}")
    return f"{timm.model_entrypoint(name).__module__}:{name}"


def model_factory(name: str) -> Callable[..., Any]:
    """The class or function that builds a model; `UsageError` where there is none."""
    module_name, _, attribute = _target(name).rpartition(":")
    try:
        factory: Any = _imported(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        if name in _BUILT_IN:
            raise
        hint = "write package.module:factory or file.py:factory, installed, on PYTHONPATH or in the current folder."
        if isinstance(error, SystemExit):
            hint = 'what runs as a script belongs below `if __name__ == "__main__":`.'
        raise UsageError(f"model '{name}' cannot be imported ({reason(error)}); {hint}") from error
    if not callable(factory) or (not isinstance(factory, type) and hasattr(factory, "state_dict")):
        raise UsageError(
            f"model '{name}' is not callable or is built already: give a class, or a function that builds."
        )
    return factory  # type: ignore[no-any-return]


def _imported(name: str) -> ModuleType:
    """A module by its name, or a Python file by its path; relative to the current folder, as Python itself would."""
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    arguments, sys.argv = sys.argv, [name]  # a module that reads a command line must not find that of affbench
    try:
        return _from_file(name) if name.endswith(".py") else import_module(name)
    finally:
        sys.argv = arguments


def _from_file(name: str) -> ModuleType:
    """A Python file as a module, its folder searched for those beside it; on other machines found through the path."""
    path = next((found for entry in sys.path if (found := Path(entry, name)).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"there is no file {name}")
    path = path.resolve()
    own, known = path.stem, sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() != path:
        own += f"_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # it is called as some package is
    if own in sys.modules:
        return sys.modules[own]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    loader = SourceFileLoader(own, str(path))
    spec = importlib.util.spec_from_file_location(own, path, loader=loader)
    module = sys.modules[own] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[own]
        raise
    return module


def _call(factory: Callable[..., Any], canvas: int, options: Mapping[str, Any]) -> Any:
    """What a factory makes; one that passes on whatever it is given may or may not know ``canvas``."""
    if "canvas" in _parameters(factory):
        return factory(canvas=canvas, **options)
    if _takes_any(factory):
        for side in ("canvas", "img_size"):  # timm's name for it, which its convolutional networks do not know either
            try:
                return factory(**{side: canvas}, **options)
            except TypeError as error:
                if f"'{side}'" not in str(error):
                    raise
    return factory(**options)


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # written in C
        return {}


def _takes_any(factory: Callable[..., Any]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(factory).values())
