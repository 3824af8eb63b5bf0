"""Models: CapsNet with dynamic routing and without, CNN baselines, and the registry that builds them by name.

Importing this package does not import torch; the modules that need it, and `Conv2d`, load on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from affbench.models.registry import build_model, model_names, model_options, parameter_count

if TYPE_CHECKING:
    from affbench.models.kernels.convolution import Conv2d

__all__ = ["Conv2d", "build_model", "model_names", "model_options", "parameter_count"]


def __getattr__(name: str) -> Any:
    if name == "Conv2d":
        return import_module("affbench.models.kernels.convolution").Conv2d
    if not name.startswith("_") and find_spec(f"affbench.models.{name}"):
        return import_module(f"affbench.models.{name}")
    raise AttributeError(f"module 'affbench.models' has no attribute '{name}'")
