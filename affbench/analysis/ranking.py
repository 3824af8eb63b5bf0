"""The ranks of a leaderboard: differences within the noise are ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from affbench.analysis.published import Published
from affbench.run.folder import EvaluationRecord, Run

Origin = Literal["reference", "yours"]


@dataclass(frozen=True)
class Row:
    """One run on one set: share of correct images, 0 to 1, with its 95% interval (originals resampled, else Wilson's).

    `rank` is 1 + the number of runs whose whole interval lies above this one's; `origin` says whether it is committed.
    """

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


@dataclass(frozen=True)
class Leaderboard:
    """The runs that were tested on one set, the best first, published results on it, and what is left out."""

    set: str
    rows: tuple[Row, ...]
    published: tuple[Published, ...]
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return asdict(self)


def rank(entries: Sequence[tuple[Origin, Run, EvaluationRecord]]) -> tuple[Row, ...]:
    """Runs on one set, the best first.

    Two runs share a rank unless the 95% interval of one lies wholly above that of the other. That asks more than a test
    of their difference would, all the more as models err on the same images, so it errs towards ties; it needs no
    predictions, and so works for committed runs as well.
    """
    intervals = [record.accuracy_ci95_clustered or record.accuracy_ci95 for _, _, record in entries]
    rows = []
    for (origin, run, record), (low, high) in zip(entries, intervals, strict=True):
        parameters = run.environment.get("parameters")
        rows.append(
            Row(
                rank=1 + sum(other > high for other, _ in intervals),
                run=run.name,
                model=record.model,
                routings=record.routings,
                seed=record.seed,
                parameters=parameters if isinstance(parameters, int) else None,
                origin=origin,
                n=record.n,
                accuracy=record.accuracy,
                low=low,
                high=high,
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.rank, -row.accuracy, row.run)))
