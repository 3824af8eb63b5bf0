"""What a run was made with: versions, machine, commit."""

import platform
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affbench.base.device import device_name
from affbench.base.version import __version__


def describe(device: torch.device) -> dict[str, Any]:
    """Versions and machine, as they stand in ``environment.json``."""
    return {
        "peak_memory_bytes": _peak_memory(device),
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "affbench": __version__,
        "git_commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
        "platform": platform.platform(),
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache  # the code that runs is the code that was there when the process started
def _commit() -> str | None:
    """Commit of the checkout that affbench runs from, with "+" for uncommitted changes; None when it is installed."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
