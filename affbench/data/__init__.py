"""Data: sources and checksums, readers, canvas, synthesis, and the sets by name.

`AffNIST`, the torchvision data set, loads on first use, because it needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affbench.data.torchvision import AffNIST

__all__ = ["AffNIST"]


def __getattr__(name: str) -> Any:
    if name == "AffNIST":
        from affbench.data import torchvision as vision

        return vision.AffNIST
    if name in ("affnist", "synthesis"):
        from importlib import import_module

        return import_module(f"affbench.data.{name}")
    raise AttributeError(f"module 'affbench.data' has no attribute '{name}'")
