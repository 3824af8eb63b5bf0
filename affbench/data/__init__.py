"""Data: fetching, reading, conversion, synthesis, sets by name; `AffNIST` loads on first use, for it needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affbench.data.torchvision import AffNIST

__all__ = ["AffNIST"]


def __getattr__(name: str) -> Any:
    if name == "AffNIST":
        return import_module("affbench.data.torchvision").AffNIST
    if name in ("affnist", "synthesis"):
        return import_module(f"affbench.data.{name}")
    raise AttributeError(f"module 'affbench.data' has no attribute '{name}'")
