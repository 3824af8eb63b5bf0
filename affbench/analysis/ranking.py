"""The ranks of a leaderboard: differences within the noise are ties."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from affbench.analysis.published import Protocol, Published, protocol
from affbench.run.folder import EvaluationRecord, Run

Origin = Literal["reference", "yours", "elsewhere"]


@dataclass(frozen=True)
class Row:
    """One run on one set; the rank is 1 + the number of runs whose whole 95% interval lies above its own."""

    rank: int
    run: str
    model: str
    routings: int | None
    seed: int
    parameters: int | None
    origin: Origin
    n: int
    accuracy: float
    low: float
    high: float
    warning: str | None
    stop_at: float | None  # the validation accuracy that its training ended at; None where it went to the end
    protocol: Protocol


@dataclass(frozen=True)
class Leaderboard:
    """The runs that were tested on one set, the best first, published results on it, and what is left out."""

    set: str
    rows: tuple[Row, ...]
    published: tuple[Published, ...]
    left_out: tuple[str, ...]


def rank(entries: Sequence[tuple[Origin, Run, EvaluationRecord]]) -> tuple[Row, ...]:
    """Runs on one set, the best first; to rank by whole intervals errs towards ties, and needs no predictions."""
    intervals = [record.ci95_clustered or record.ci95 for _, _, record in entries]
    rows = []
    for (origin, run, own), (low, high) in zip(entries, intervals, strict=True):
        place = 1 + sum(other > high for other, _ in intervals)
        found = (own.n, own.accuracy, low, high, own.warning, run.config.training.stop_at, protocol(run.config.data))
        rows.append(Row(place, run.name, own.model, own.routings, own.seed, run.environment.parameters, origin, *found))
    return tuple(sorted(rows, key=lambda row: (row.rank, -row.accuracy, row.run)))
