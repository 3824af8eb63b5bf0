"""Where a stage reads and writes, what it computes on, and whom it tells."""

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
