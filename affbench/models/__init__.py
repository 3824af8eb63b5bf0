"""Models: CapsNet with dynamic routing and without, CNN baselines, and the registry that builds them by name.

Importing this package does not import torch; the submodules that need it load on first use.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from affbench.models.registry import build_model, model_names, model_options, parameter_count

__all__ = ["build_model", "model_names", "model_options", "parameter_count"]

_LAZY = ("aff_capsnet", "capsnet", "cnn", "losses", "routing", "stn")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return import_module(f"affbench.models.{name}")
    raise AttributeError(f"module 'affbench.models' has no attribute '{name}'")
