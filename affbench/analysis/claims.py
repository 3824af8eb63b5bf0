"""Claims of earlier work about routing, and what a sweep over routing iterations says about each.

Seeds are the unit of replication: every test compares the iterations within a seed and asks whether the seeds agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from affbench.analysis.results import Result, Results
from affbench.base.statistics import holm, seed_summary
from affbench.data.sets import find_set
from affbench.run.history import Epoch

Verdict = Literal["supported", "contradicted", "no evidence against", "no evidence for", "not enough seeds"]

MIN_SEEDS = 3  # fewer say nothing about the spread between seeds
LEVEL = 0.05

CONVERGE = "after a sufficient number of epochs losses converge to the same range"
OVERFIT = "more routing iterations tend to overfit"
GENERALISE = "routing does not contribute to generalisation"
ROBUST = "routing does not contribute to affine robustness"
_HB = "CapsNet_Project (HB5101)"
_GU = "Gu and Tresp, CVPR 2020"


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep over routing iterations: loss and gap of its last epoch, and test accuracy by set, 0 to 1.

    `gap` is training minus validation accuracy; None where the training accuracy is not known.
    """

    routings: int
    seed: int
    loss: float
    gap: float | None
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """What a sweep says about one claim.

    `set` is "" where something of the training was measured. The effect is in `unit` with its 95% Student's t interval
    over `seeds`, those with a run at each number of iterations; `p` is two-sided, `p_holm` the same after Holm's
    correction over all claims. They are None without enough seeds.
    """

    statement: str
    source: str
    measure: str
    set: str
    test: str
    unit: str
    routings: tuple[int, ...]
    seeds: tuple[int, ...]
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: Verdict = "not enough seeds"
    sentence: str = ""


def sweep_runs(results: Results) -> list[Result]:
    """The runs of the largest sweep over routing iterations, by iterations, then seed; none where nothing was swept."""
    sweeps = [[run for own in sweep for run in own.results] for sweep in results.sweeps]
    largest = max(sweeps, key=len, default=[])
    return sorted(largest, key=lambda run: (run.config.model.routings or 0, run.config.training.seed))


def sweep_points(results: Results) -> list[SweepPoint]:
    """What the runs of the largest sweep measured."""
    return [_point(run) for run in sweep_runs(results)]


def judge_claims(points: Sequence[SweepPoint]) -> list[Claim]:
    """What a sweep's data say about each claim.

    Trends over the iterations are tested with Page's test for ordered alternatives, seeds as blocks (the paired t
    test where there are two numbers of iterations only); the effect is the mean over seeds of each seed's least-squares
    slope per doubling of the iterations. "Does routing contribute" compares each number of iterations above the lowest
    (1 is uniform coupling) with it, by paired t tests over seeds; the effect shown is that with the smallest p value.
    All p values are two-sided and corrected together after Holm.

    Parameters
    ----------
    points
        Of one sweep, see `sweep_points`.

    One claim per set. Claims of "no effect" are at best not contradicted: a test that finds nothing is no proof, and
    the interval says how large an effect may have been missed.

    E. B. Page, "Ordered hypotheses for multiple treatments: a significance test for linear ranks", J. Am. Stat. Assoc.
    58, 1963. S. Holm, Scand. J. Statist. 6, 1979.
    """
    routings = tuple(sorted({point.routings for point in points}))
    if len(routings) < 2:
        return []
    by_cell = {(point.seed, point.routings): point for point in points}
    seeds = tuple(
        s for s in sorted({point.seed for point in points}) if all((s, routing) in by_cell for routing in routings)
    )
    table = [[by_cell[seed, routing] for routing in routings] for seed in seeds]
    judged: list[_Judged] = [_trend(claim, values) for claim, values in _trends(table, routings, seeds)]
    names = set.intersection(*(set(point.accuracy) for point in points))
    for name in sorted(names, key=lambda other: (find_set(other).affine, other)):
        judged.append(_contribution(name, table, routings, seeds))
    corrected = iter(holm([p for _, tests in judged for p in tests]))
    return [
        _worded(replace(claim, p_holm=min([next(corrected) for _ in tests], default=None))) for claim, tests in judged
    ]


_Judged = tuple[Claim, Sequence[float]]
"""A claim, and the p values of the tests behind it: none without enough seeds."""


def _point(run: Result) -> SweepPoint:
    last: Epoch = run.history[-1]
    gap = None if last.train_accuracy is None else last.train_accuracy - last.validation_accuracy
    accuracy = {name: record.accuracy for name, record in run.evaluations.items()}
    return SweepPoint(run.config.model.routings or 0, run.config.training.seed, last.train_loss, gap, accuracy)


def _trends(
    table: Sequence[Sequence[SweepPoint]], routings: tuple[int, ...], seeds: tuple[int, ...]
) -> Iterator[tuple[Claim, npt.NDArray[np.float64]]]:
    """The claims about how a measure goes with the iterations, and its values (seeds, iterations)."""
    test = f"Page's trend test over {len(routings)} numbers of iterations, seeds as blocks"
    if len(routings) == 2:
        test = "paired t test over seeds"
    shape = (len(seeds), len(routings))
    losses = np.array([[point.loss for point in row] for row in table]).reshape(shape)
    # On a logarithmic scale a slope is a relative change, whatever the loss is made of.
    relative = (losses > 0).all()
    unit = "% per doubling" if relative else "per doubling"
    measure = "training loss of the last epoch"
    yield Claim(CONVERGE, _HB, measure, "", test, unit, routings, seeds), np.log(losses) * 100 if relative else losses
    if all(point.gap is not None for row in table for point in row):
        gaps = np.array([[100 * (point.gap or 0.0) for point in row] for row in table]).reshape(shape)
        measure = "training minus validation accuracy, last epoch"
        yield Claim(OVERFIT, _HB, measure, "", test, "points per doubling", routings, seeds), gaps


def _trend(claim: Claim, values: npt.NDArray[np.float64]) -> _Judged:
    if len(claim.seeds) < MIN_SEEDS:
        return claim, ()
    steps = np.log2(claim.routings)
    slopes = (values @ (steps - steps.mean())) / ((steps - steps.mean()) ** 2).sum()
    summary = seed_summary(slopes.tolist())
    if len(steps) == 2:
        p = _paired_p(values[:, 1] - values[:, 0])
    else:
        ranks = np.arange(1, len(steps) + 1)
        sides = (stats.page_trend_test(values, predicted_ranks=order).pvalue for order in (ranks, ranks[::-1]))
        p = float(min(1.0, 2 * min(sides)))
    return replace(claim, effect=summary.mean, low=summary.low, high=summary.high, p=p), (p,)


def _contribution(
    name: str, table: Sequence[Sequence[SweepPoint]], routings: tuple[int, ...], seeds: tuple[int, ...]
) -> _Judged:
    """The claim that routing contributes nothing on one set, tested for each number of iterations above the lowest."""
    statement = ROBUST if find_set(name).affine else GENERALISE
    base, others = routings[0], routings[1:]
    test = f"paired t tests over seeds of {_listed(others)} iterations against {base}"
    claim = Claim(statement, _GU, "test accuracy", name, test, "points", routings, seeds)
    if len(seeds) < MIN_SEEDS:
        return claim, ()
    values = np.array([[100 * point.accuracy[name] for point in row] for row in table])
    differences = values[:, 1:] - values[:, :1]
    tests = [_paired_p(column) for column in differences.T]
    strongest = min(range(len(others)), key=tests.__getitem__)
    summary = seed_summary(differences[:, strongest].tolist())
    measure = f"test accuracy, {others[strongest]} iterations minus {base}"
    claim = replace(claim, effect=summary.mean, low=summary.low, high=summary.high, p=tests[strongest])
    return replace(claim, measure=measure), tests


def _paired_p(differences: npt.NDArray[np.float64]) -> float:
    """Two-sided p value of the one-sample t test; differences that are all alike leave no doubt either way."""
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _worded(claim: Claim) -> Claim:
    """The claim with its verdict and sentence."""
    if claim.p_holm is None or claim.effect is None or claim.low is None or claim.high is None:
        have = f"{len(claim.seeds)} seed{'' if len(claim.seeds) == 1 else 's'}"
        sentence = (
            f"Not enough seeds to say: {have} with a run at {_listed(claim.routings)} iterations, and it takes "
            f"{MIN_SEEDS}."
        )
        return replace(claim, verdict="not enough seeds", sentence=sentence)
    found = claim.p_holm < LEVEL
    amount = (
        f"{claim.effect:+.2f} {claim.unit} (95% interval {claim.low:+.2f} to {claim.high:+.2f}, "
        f"{len(claim.seeds)} seeds, Holm-corrected p = {_p(claim.p_holm)})"
    )
    where = f" on {claim.set}" if claim.set else ""
    subject = f"{claim.measure}{where}"
    verdict: Verdict
    if claim.statement == OVERFIT:
        verdict = "no evidence for" if not found else "supported" if claim.effect > 0 else "contradicted"
        tail = {
            "supported": "The gap grows with the iterations",
            "contradicted": "The gap shrinks with the iterations",
            "no evidence for": "No trend of the gap with the iterations was found",
        }[verdict]
        return replace(claim, verdict=verdict, sentence=f"{tail}: {subject}, {amount}.")
    verdict = "contradicted" if found else "no evidence against"
    if claim.statement == CONVERGE:
        tail = "The loss depends on the iterations" if found else "No trend of the loss with the iterations was found"
    elif found:
        tail = "Routing helps" if claim.effect > 0 else "Routing makes a difference, but for the worse"
    else:
        tail = "No difference was found; the clearest"
    return replace(claim, verdict=verdict, sentence=f"{tail}: {subject}, {amount}.")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "below 0.001"


def _listed(counts: Sequence[int]) -> str:
    texts = [str(count) for count in counts]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
