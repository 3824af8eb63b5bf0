"""Claims of earlier work about routing, and what a sweep says about each; seeds are the unit of replication."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from affbench.analysis.results import Result, Results
from affbench.base.statistics import SeedSummary, holm, seed_summary
from affbench.data.sets import find_set

Verdict = Literal["supported", "contradicted", "no evidence against", "no evidence for", "not enough seeds"]
Floats = npt.NDArray[np.float64]

MIN_SEEDS = 3  # fewer say nothing about the spread between seeds
LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """A claim of earlier work; verdict and words for an effect above 0, below 0, and none that a test could find."""

    statement: str
    source: str
    above: tuple[Verdict, str]
    below: tuple[Verdict, str]
    none: tuple[Verdict, str]


_HB = "CapsNet_Project (HB5101)"
_DEPENDS: tuple[Verdict, str] = ("contradicted", "The loss depends on the iterations")
_CONTRIBUTES: tuple[tuple[Verdict, str], ...] = (
    ("contradicted", "Routing helps"),
    ("contradicted", "Routing makes a difference, but for the worse"),
    ("no evidence against", "No difference was found; the clearest"),
)
CONVERGE = Claim(
    "after a sufficient number of epochs losses converge to the same range", _HB, _DEPENDS, _DEPENDS,
    ("no evidence against", "No trend of the loss with the iterations was found"),
)  # fmt: skip
OVERFIT = Claim(
    "more routing iterations tend to overfit", _HB,
    ("supported", "The gap grows with the iterations"),
    ("contradicted", "The gap shrinks with the iterations"),
    ("no evidence for", "No trend of the gap with the iterations was found"),
)  # fmt: skip
GENERALISE = Claim("routing does not contribute to generalisation", "Gu and Tresp, CVPR 2020", *_CONTRIBUTES)
ROBUST = Claim("routing does not contribute to affine robustness", "Gu and Tresp, CVPR 2020", *_CONTRIBUTES)


@dataclass(frozen=True)
class Judgement:
    """What a sweep says about one claim; without enough seeds there is neither an effect nor p."""

    claim: Claim
    set: str  # "" where something of the training was measured
    test: str
    unit: str
    seeds: tuple[int, ...]  # those with a run at each number of iterations
    verdict: Verdict = "not enough seeds"
    sentence: str = ""
    effect: SeedSummary | None = None  # in `unit`
    p: float | None = None  # two-sided, after Holm's correction over all claims


_Measured = tuple[Judgement, str, Floats]
"""A judgement still open, what is measured for it in words, and its values (seeds, iterations)."""
_Tested = tuple[str, Floats, Sequence[float]]
"""What was found, in words, the effect (seeds,), and the p values of the tests behind it."""


def _routings(result: Result) -> int:
    return result.run.config.model.routings or 0


def sweep_runs(results: Results) -> list[Result]:
    """The runs of the largest sweep over routing iterations, by iterations, then seed; none where nothing was swept."""
    sweeps = [[result for own in sweep for result in own.results] for sweep in results.sweeps]
    largest = max(sweeps, key=len, default=[])
    return sorted(largest, key=lambda result: (_routings(result), result.seed))


def judge_claims(runs: Sequence[Result]) -> list[Judgement]:
    """What the runs of one sweep say about each claim, once per set.

    Trends over the iterations: E. B. Page's test for ordered alternatives (J. Am. Stat. Assoc. 58, 1963), seeds as
    blocks, or the paired t test where there are two numbers of iterations; the effect is the mean of the seeds'
    least-squares slopes per doubling. "Does routing contribute": paired t tests of each number of iterations against
    the lowest (1 is uniform coupling); the effect is that with the smallest p value. A test that finds nothing is no
    proof of no effect: the interval says how large a one may have been missed.
    """
    routings = sorted({_routings(run) for run in runs})
    if len(routings) < 2:
        return []
    cells = {(run.seed, _routings(run)): run for run in runs}
    seeds = tuple(sorted({run.seed for run in runs if all((run.seed, own) in cells for own in routings)}))
    names = set.intersection(*(set(run.evaluations) for run in runs))
    table = [[cells[seed, own] for own in routings] for seed in seeds]
    measured = list(_measured(table, routings, seeds, sorted(names, key=lambda name: (find_set(name).affine, name))))
    if len(seeds) < MIN_SEEDS:
        have = f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'} with a run at {_listed(routings)} iterations"
        few = f"Not enough seeds to say: {have}, and it takes {MIN_SEEDS}."
        return [replace(own, sentence=few) for own, _, _ in measured]
    tested = [(_compared if own.set else _trend)(what, values, routings) for own, what, values in measured]
    corrected = iter(holm([p for _, _, found in tested for p in found]))
    return [
        _judged(own, what, seed_summary(effects.tolist()), min(next(corrected) for _ in found))
        for (own, _, _), (what, effects, found) in zip(measured, tested, strict=True)
    ]


def _measured(
    table: Sequence[Sequence[Result]], routings: Sequence[int], seeds: tuple[int, ...], sets: Sequence[str]
) -> Iterator[_Measured]:
    """What each claim is tested on, from runs by seed and iterations."""

    def values(take: Callable[[Result], float]) -> Floats:
        return np.array([[take(run) for run in row] for row in table]).reshape(-1, len(routings))

    trend = f"Page's trend test over {len(routings)} numbers of iterations, seeds as blocks"
    if len(routings) == 2:
        trend = "paired t test over seeds"
    loss = values(lambda result: result.run.history[-1].train_loss)
    # On a logarithmic scale a slope is a relative change, whatever the loss is made of.
    loss, unit = (np.log(loss) * 100, "% per doubling") if (loss > 0).all() else (loss, "per doubling")
    yield Judgement(CONVERGE, "", trend, unit, seeds), "training loss of the last epoch", loss
    gap = values(_gap)
    if not np.isnan(gap).any():
        open_gap = Judgement(OVERFIT, "", trend, "points per doubling", seeds)
        yield open_gap, "training minus validation accuracy, last epoch", gap
    paired = f"paired t tests over seeds of {_listed(routings[1:])} iterations against {routings[0]}"
    for name in sets:
        claim = ROBUST if find_set(name).affine else GENERALISE
        accuracy = values(lambda result: 100 * result.evaluations[name].accuracy)  # noqa: B023 - called at once
        yield Judgement(claim, name, paired, "points", seeds), "test accuracy", accuracy


def _gap(result: Result) -> float:
    """Training minus validation accuracy of the last epoch, in points; NaN where the former is not known."""
    last = result.run.history[-1]
    return math.nan if last.train_accuracy is None else 100 * (last.train_accuracy - last.validation_accuracy)


def _trend(what: str, values: Floats, routings: Sequence[int]) -> _Tested:
    steps = np.log2(routings)
    slopes = (values @ (steps - steps.mean())) / ((steps - steps.mean()) ** 2).sum()
    if len(steps) == 2:
        return what, slopes, [_paired_p(values[:, 1] - values[:, 0])]
    ranks = np.arange(1, len(steps) + 1)
    sides = (stats.page_trend_test(values, predicted_ranks=order).pvalue for order in (ranks, ranks[::-1]))
    return what, slopes, [float(min(1.0, 2 * min(sides)))]


def _compared(what: str, values: Floats, routings: Sequence[int]) -> _Tested:
    """Each number of iterations above the lowest with it; the effect is the one with the smallest p value."""
    differences = values[:, 1:] - values[:, :1]
    tests = [_paired_p(column) for column in differences.T]
    strongest = int(np.argmin(tests))
    minus = f"{what}, {routings[1 + strongest]} iterations minus {routings[0]}"
    return minus, differences[:, strongest], tests


def _paired_p(differences: Floats) -> float:
    """Two-sided p value of the one-sample t test; differences that are all alike leave no doubt either way."""
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _judged(own: Judgement, what: str, effect: SeedSummary, p: float) -> Judgement:
    """The verdict and its sentence."""
    verdict, words = own.claim.none if p >= LEVEL else own.claim.above if effect.mean > 0 else own.claim.below
    where = f" on {own.set}" if own.set else ""
    sentence = (
        f"{words}: {what}{where}, {effect.mean:+.2f} {own.unit} (95% interval {effect.low:+.2f} to {effect.high:+.2f}, "
        f"{len(own.seeds)} seeds, Holm-corrected p {f'= {p:.3f}' if p >= 0.001 else '< 0.001'})."
    )
    return replace(own, verdict=verdict, sentence=sentence, effect=effect, p=p)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
