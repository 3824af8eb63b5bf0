"""Claims of earlier work about routing, and what a sweep over routing iterations says about each.

Seeds are the unit of replication: every test compares the iterations within a seed and asks whether the seeds agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from affbench.base.config import RunConfig
from affbench.base.statistics import holm, seed_summary
from affbench.data import sets
from affbench.run.folder import Epoch, EvaluationRecord

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
    """One run of a sweep over routing iterations.

    Attributes
    ----------
    routings, seed
        Which run.
    loss
        Training loss of the last epoch.
    gap
        Training accuracy minus validation accuracy of the last epoch, −1 to 1; None where the training accuracy is not
        known.
    accuracy
        Set to test accuracy, 0 to 1.
    """

    routings: int
    seed: int
    loss: float
    gap: float | None
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """What a sweep says about one claim.

    Attributes
    ----------
    statement, source
        The claim and who made it.
    measure, set
        What was measured; on which set, "" where it is of the training.
    test
        The statistical test, in words.
    routings, seeds
        Numbers of iterations and the seeds that have a run with each of them.
    effect, low, high
        The effect in `unit` with its 95% Student's t interval over seeds; None without enough seeds.
    unit
        Of the effect.
    p, p_holm
        Two-sided p value, and the same after Holm's correction over all claims; None without enough seeds.
    verdict
        In two words.
    sentence
        In one sentence.
    """

    statement: str
    source: str
    measure: str
    set: str
    test: str
    routings: tuple[int, ...]
    seeds: tuple[int, ...]
    effect: float | None
    low: float | None
    high: float | None
    unit: str
    p: float | None
    p_holm: float | None
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class _Trend:
    """How a measure goes with the iterations: (seeds, iterations) `values`, whose slope is in `unit`."""

    statement: str
    source: str
    measure: str
    set: str
    unit: str
    values: npt.NDArray[np.float64]


class Trained(Protocol):
    """What is looked at of a run: `affbench.run.folder.Run`, or one that has been read."""

    @property
    def config(self) -> RunConfig: ...
    @property
    def history(self) -> Sequence[Epoch]: ...
    @property
    def evaluations(self) -> Mapping[str, EvaluationRecord]: ...
    @property
    def origin(self) -> str: ...


_Run = TypeVar("_Run", bound=Trained)


def sweep_runs(runs: Sequence[_Run]) -> list[_Run]:
    """The runs of a sweep: of those that differ in routing iterations and seed only, the largest group.

    Parameters
    ----------
    runs
        Finished runs of any kind.

    Returns
    -------
    list
        By iterations, then seed; empty where no group has two different numbers of iterations.
    """
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        if run.config.model.routings is not None:
            groups.setdefault(run.config.but_for_routing + run.origin, []).append(run)
    sweeps = [own for own in groups.values() if len({run.config.model.routings for run in own}) > 1]
    largest: list[_Run] = max(sweeps, key=len, default=[])
    return sorted(largest, key=lambda run: (run.config.model.routings or 0, run.config.training.seed))


def sweep_points(runs: Sequence[Trained]) -> list[SweepPoint]:
    """What the runs of a sweep measured, see `sweep_runs`."""
    return [_point(run) for run in sweep_runs(runs)]


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

    Returns
    -------
    list of Claim
        One per claim and set. Claims of "no effect" are at best not contradicted: a test that finds nothing is no
        proof, and the interval says how large an effect may have been missed.

    References
    ----------
    E. B. Page, "Ordered hypotheses for multiple treatments: a significance test for linear ranks", J. Am. Stat. Assoc.
    58, 1963. S. Holm, Scand. J. Statist. 6, 1979.
    """
    routings = sorted({point.routings for point in points})
    if len(routings) < 2:
        return []
    by_cell = {(point.seed, point.routings): point for point in points}
    seeds = [s for s in sorted({point.seed for point in points}) if all((s, r) in by_cell for r in routings)]
    table = [[by_cell[seed, count] for count in routings] for seed in seeds]
    claims = [_trend(entry, routings, seeds) for entry in _trends(table)]
    names = set.intersection(*(set(point.accuracy) for point in points))
    slots = [[number] for number in range(len(claims))]
    p_values = [claim.p for claim in claims]
    for name in sorted(names, key=lambda other: (sets.find_set(other).affine, other)):
        contribution, own = _contribution(name, table, routings, seeds)
        slots.append(list(range(len(p_values), len(p_values) + len(own))))
        p_values += own
        claims.append(contribution)
    known = [p for p in p_values if p is not None]
    adjusted = iter(holm(known))
    corrected = [None if p is None else next(adjusted) for p in p_values]
    judged = []
    for claim, slot in zip(claims, slots, strict=True):
        found = [p for number in slot if (p := corrected[number]) is not None]
        judged.append(_worded(replace(claim, p_holm=min(found) if found else None)))
    return judged


def _point(run: Trained) -> SweepPoint:
    last: Epoch = run.history[-1]
    gap = None if last.train_accuracy is None else last.train_accuracy - last.validation_accuracy
    accuracy = {name: record.accuracy for name, record in run.evaluations.items()}
    return SweepPoint(run.config.model.routings or 0, run.config.training.seed, last.train_loss, gap, accuracy)


def _trends(table: Sequence[Sequence[SweepPoint]]) -> list[_Trend]:
    shape = (len(table), len(table[0]) if table else 0)
    losses = np.array([[point.loss for point in row] for row in table]).reshape(shape)
    # On a logarithmic scale a slope is a relative change, whatever the loss is made of.
    relative = np.log(losses) * 100 if (losses > 0).all() else losses
    unit = "% per doubling" if (losses > 0).all() else "per doubling"
    trends = [_Trend(CONVERGE, _HB, "training loss of the last epoch", "", unit, relative)]
    if all(point.gap is not None for row in table for point in row):
        gaps = np.array([[100 * (point.gap or 0.0) for point in row] for row in table]).reshape(shape)
        measure = "training minus validation accuracy, last epoch"
        trends.append(_Trend(OVERFIT, _HB, measure, "", "points per doubling", gaps))
    return trends


def _trend(entry: _Trend, routings: Sequence[int], seeds: Sequence[int]) -> Claim:
    test = f"Page's trend test over {len(routings)} numbers of iterations, seeds as blocks"
    if len(routings) == 2:
        test = "paired t test over seeds"
    claim = _open(entry.statement, entry.source, entry.measure, entry.set, test, entry.unit, routings, seeds)
    if len(seeds) < MIN_SEEDS:
        return claim
    steps = np.log2(routings)
    slopes = (entry.values @ (steps - steps.mean())) / ((steps - steps.mean()) ** 2).sum()
    summary = seed_summary(slopes.tolist())
    if len(routings) == 2:
        p = _paired_p(entry.values[:, 1] - entry.values[:, 0])
    else:
        ranks = np.arange(1, len(routings) + 1)
        p = min(
            1.0,
            2
            * min(stats.page_trend_test(entry.values, predicted_ranks=order).pvalue for order in (ranks, ranks[::-1])),
        )
    return replace(claim, effect=summary.mean, low=summary.low, high=summary.high, p=float(p))


def _contribution(
    name: str, table: Sequence[Sequence[SweepPoint]], routings: Sequence[int], seeds: Sequence[int]
) -> tuple[Claim, list[float | None]]:
    """The claim that routing contributes nothing on one set, and the p value of each number of iterations."""
    statement = ROBUST if sets.find_set(name).affine else GENERALISE
    base, others = routings[0], routings[1:]
    test = f"paired t tests over seeds of {_listed(others)} iterations against {base}"
    claim = _open(statement, _GU, "test accuracy", name, test, "points", routings, seeds)
    if len(seeds) < MIN_SEEDS:
        return claim, [None]
    values = np.array([[100 * point.accuracy[name] for point in row] for row in table])
    differences = values[:, 1:] - values[:, :1]
    p_values: list[float | None] = [_paired_p(column) for column in differences.T]
    strongest = min(range(len(others)), key=lambda number: p_values[number] or 0.0)
    summary = seed_summary(differences[:, strongest].tolist())
    measure = f"test accuracy, {others[strongest]} iterations minus {base}"
    claim = replace(
        claim, measure=measure, effect=summary.mean, low=summary.low, high=summary.high, p=p_values[strongest]
    )
    return claim, p_values


def _open(
    statement: str,
    source: str,
    measure: str,
    name: str,
    test: str,
    unit: str,
    routings: Sequence[int],
    seeds: Sequence[int],
) -> Claim:
    """A claim before anything is known about it."""
    return Claim(
        statement, source, measure, name, test, tuple(routings), tuple(seeds),
        None, None, None, unit, None, None, "not enough seeds", "",
    )  # fmt: skip


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
