"""Which device computes, in which precision, and what it is called."""

import contextlib
import ctypes
import functools
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from affbench.base.config import Precision
from affbench.base.errors import DeviceError, UsageError, nearest

Computed = Literal["float32", "bfloat16"]
KINDS = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA, else MPS, else CPU. A numbered CUDA device becomes the current one."""
    kind, _, index = name.partition(":")
    if kind not in KINDS or (index and not index.isdigit()):
        raise UsageError(f"--device {name} is unknown: {nearest(kind, KINDS)}")
    cuda, mps = torch.cuda, torch.backends.mps
    # Devices may be counted that the driver is too old for.
    found = {"cuda": cuda.device_count() if cuda.is_available() else 0, "mps": int(mps.is_available())}
    if kind == "auto":
        return torch.device(next((each for each, count in found.items() if count), "cpu"))
    if kind in found and int(index or 0) >= found[kind]:
        raise DeviceError(f"--device {name} is not here: torch finds {found[kind]} {kind} devices; use --device auto.")
    device = torch.device(name)
    if kind == "cuda" and index:
        torch.cuda.set_device(device)  # what torch and Triton launch without naming a device goes to the current one
    return device


def resolve_precision(asked: Precision, device: torch.device) -> Computed:
    """The precision to compute in: as asked, and for ``"auto"`` bfloat16 where the device computes in it natively."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if device.type == "cpu" and cpu_bfloat16_rate() > 1 else "float32"


@functools.cache
def cpu_bfloat16_rate() -> float:
    """How many times as fast as float32 the processor multiplies bfloat16, nominally; below 1 where it emulates it."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()

    def has(name: str, before: str) -> bool:  # as it was asked before torch had get_capabilities
        return bool(capabilities.get(name) or getattr(torch.cpu, before, bool)())

    if has("amx_bf16", "_is_amx_tile_supported"):
        return 16.0
    return 2.0 if has("avx512_bf16", "_is_avx512_bf16_supported") else 0.5


@functools.cache
def keep_memory() -> None:
    """Let this process keep the memory that it frees, as torch's allocator does on CUDA; with glibc, else nothing.

    Clearing it anew for every large tensor takes up to an eighth of a training step on a CPU.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or none that could be asked
        library = ctypes.CDLL(None)
        # In glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD.
        library.mallopt(-4, 0)
        library.mallopt(-1, -1)


def autocast(device: torch.device, precision: Computed) -> contextlib.AbstractContextManager[Any]:
    """The context a model runs in: bfloat16 for convolutions and fully connected layers, or none at all."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def fitting(what: str) -> Iterator[None]:
    """Let memory that runs out on the device be one sentence."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(
            f"the device has too little memory for {what}: take a smaller batch (--batch-size, batch_size in Python), "
            "end what else runs on the device, or choose another --device."
        ) from error


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
    told = Path("/proc/cpuinfo")  # on Linux
    named = re.search(r"^model name\s*: (.+)$", told.read_text(), re.MULTILINE) if told.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
