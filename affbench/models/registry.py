"""Models by name: the built-in ones, those of installed packages, and any ``package.module:factory``.

A factory is a class or function that returns a ``torch.nn.Module``; the options of a model are the parameters of its
factory. Names can be listed without importing torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from affbench.errors import AffbenchError, UsageError, nearest
from affbench.models.source import code_hash

if TYPE_CHECKING:
    from torch import nn

ENTRY_POINT_GROUP = "affbench.models"

_BUILT_IN = {
    "capsnet": "affbench.models.capsnet:CapsNet",
    "cnn": "affbench.models.cnn:CNN",
    "cnn-sabour": "affbench.models.cnn:SabourCNN",
    "aff-capsnet": "affbench.models.aff_capsnet:AffCapsNet",
    "cnn-gap": "affbench.models.cnn:GlobalPoolingCNN",
    "stn-cnn": "affbench.models.stn:SpatialTransformerCNN",
}


def model_names() -> tuple[str, ...]:
    """The names :func:`build_model` knows: built-in models first, then those of installed packages."""
    return (*_BUILT_IN, *sorted(_plugins().keys() - _BUILT_IN.keys()))


def model_options(name: str) -> dict[str, Any]:
    """The options of a model and their defaults, in the order its factory declares them.

    Parameters
    ----------
    name
        A model name or ``package.module:factory``.

    Returns
    -------
    dict
        Option name to default; ``inspect.Parameter.empty`` for an option that has to be given. ``canvas``, which
        every model shares, is left out.

    Raises
    ------
    UsageError
        If there is no such model.
    """
    return _options(_factory(name))


def build_model(name: str, *, canvas: int = 40, **options: Any) -> nn.Module:
    """Build a freshly initialised model.

    Parameters
    ----------
    name
        One of :func:`model_names`, or ``package.module:factory``.
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
        If the model or an option is unknown, a value is not acceptable, or a factory cannot be imported, fails, or
        returns something else than a module.
    """
    from torch import nn

    factory = _factory(name)
    parameters = _parameters(factory)
    known = _options(factory)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option not in known and not open_ended:
            hint = nearest(option, known) if known else "it has none"
            raise UsageError(f"model '{name}' has no option '{option}': {hint}")
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise UsageError(f"model '{name}' needs a value for its option '{option}'.")
    if "canvas" in parameters or open_ended:
        options["canvas"] = canvas
    try:
        model = factory(**options)
    except AffbenchError:
        raise
    except Exception as error:
        if name in _BUILT_IN:
            raise
        raise UsageError(f"model '{name}' cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model '{name}' must return a torch.nn.Module, not {type(model).__name__}.")
    return model


def model_code(name: str) -> str | None:
    """A hash over the source that computes a model (`affbench.models.source`); None where there is none.

    Raises
    ------
    UsageError
        If there is no such model.
    """
    factory = inspect.unwrap(_factory(name))
    return code_hash(_target(name).partition(":")[0], getattr(factory, "__module__", None) or "builtins")


def parameter_count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _target(name: str) -> str:
    """Where the factory of a model is: ``package.module:factory``."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name in (plugins := _plugins()):
        return plugins[name].value
    if ":" in name:
        return name
    raise UsageError(f"unknown model '{name}': {nearest(name, model_names())}")


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = _target(name).partition(":")
    try:
        factory: Any = import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # a user's module may raise anything while it is imported
        if name in _BUILT_IN:
            raise
        raise UsageError(
            f"model '{name}' cannot be imported ({type(error).__name__}: {error}); "
            "write it as package.module:factory and see that the package is installed or on PYTHONPATH."
        ) from error
    if not callable(factory):
        raise UsageError(f"model '{name}' is not callable: it must be a class or function that returns a module.")
    return factory  # type: ignore[no-any-return]


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(factory).parameters)


def _options(factory: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in _parameters(factory).items()
        if name != "canvas" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
