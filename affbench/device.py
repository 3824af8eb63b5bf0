"""Which device computes, in which precision, and what it is called."""

from __future__ import annotations

import contextlib
import platform
from typing import Any, Literal

import torch

from affbench.config import Precision
from affbench.errors import DeviceError, UsageError, nearest

Computed = Literal["float32", "bfloat16"]
KINDS = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """The device called `name`.

    Parameters
    ----------
    name
        ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Raises
    ------
    UsageError
        The name is no device.
    DeviceError
        This machine does not have the device.
    """
    kind, _, index = name.partition(":")
    if kind not in KINDS or (index and not index.isdigit()):
        raise UsageError(f"--device {name} is unknown: {nearest(kind, KINDS)}")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind)
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name} asks for CUDA, but torch finds no CUDA device here; use --device auto.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {name} does not exist: there are {torch.cuda.device_count()} CUDA devices.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps asks for Apple's Metal, but torch finds none here; use --device auto.")
    return torch.device(name)


def resolve_precision(asked: Precision, device: torch.device) -> Computed:
    """The precision to compute in: as asked, and for ``"auto"`` bfloat16 where the device computes in it natively."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if device.type == "cpu" and _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; emulated, it is slower than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    named = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    private = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # before torch had get_capabilities
    return named or bool(private and private())


def autocast(device: torch.device, precision: Computed) -> contextlib.AbstractContextManager[Any]:
    """The context a model runs in: bfloat16 for convolutions and fully connected layers, or none at all."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
