"""Where a stage reads and writes, what it computes on, and whom it tells."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from affbench.base.progress import Progress


@dataclass(frozen=True)
class Workspace:
    """What every stage is given beside its configuration; none of it changes a result's key."""

    data: Path
    results: Path
    device: str = "auto"  # as given to --device: "auto", "cpu", "cuda", "cuda:1", "mps"
    progress: Progress = field(default_factory=Progress)
    checkpoint_seconds: float = 60.0  # between two saves, whether an epoch ends or not; an interruption saves as well


def torchrun_rank() -> int | None:
    """Which of the processes that torchrun started this one is, from 0; None for one by itself."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "MASTER_ADDR" not in os.environ or any(not os.environ.get(name, "").isdigit() for name in names):
        return None
    return int(os.environ["RANK"]) if int(os.environ["WORLD_SIZE"]) > 1 else None
