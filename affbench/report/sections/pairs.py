"""Pair by pair: the models compared on the same images, matched with matched ones and best with best ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from affbench.analysis.comparison import Comparison, compare
from affbench.analysis.results import Group, Results
from affbench.base.errors import AffbenchError
from affbench.base.statistics import SeedSummary, holm
from affbench.report.sections import Section
from affbench.report.table import ABSENT, Cell, Table, signed, span, whole

MOST_PAIRS = 15  # of a set; with more models, each is compared with the first only
LEVEL = 0.05


@dataclass(frozen=True)
class _Pair:
    """Two models by name, the accuracy they were matched at, what came out, and its p value after correction."""

    first: str
    second: str
    matched: float | None
    found: Comparison
    p: float


def section(results: Results, folder: Path) -> Section:
    """A table per set on which at least two models were tested, and a sentence for each comparison left out."""
    groups = results.groups
    found: list[tuple[Group, Group, Comparison]] = []
    problems = []
    for name in results.sets:
        for first, second in _pairs([own for own in groups if own.records(name)]):
            try:
                comparison = compare(first, second, name)
            except AffbenchError as error:
                problems.append(f"{first.name} and {second.name} are not compared on {name}: {error}")
                continue
            if comparison is not None:
                found.append((first, second, comparison))
    names = {own.name: (results.best_of(own) or own).name for own in groups}
    corrected = holm([comparison.over_digits.p for _, _, comparison in found])
    pairs = [
        _Pair(names[first.name], names[second.name], first.config.training.stop_at, comparison, p)
        for (first, second, comparison), p in zip(found, corrected, strict=True)
    ]
    on_set = [[pair for pair in pairs if pair.found.set == name] for name in results.sets]
    tables = tuple(_table(own, len(pairs)) for own in on_set if own)
    return Section("Pair by pair", tables, problems=tuple(problems))


def _table(pairs: Sequence[_Pair], tests: int) -> Table:
    n, originals = span(pair.found.n for pair in pairs), span(pair.found.n_originals for pair in pairs)
    size = f"n {n}" if n == originals else f"n {n} of {originals} digits"
    caption = (
        f"Difference of accuracy in points on the same images ({size}). Over digits: 95% bootstrap interval over "
        "original digits, each with all its versions and all seeds, for these trained networks. Over seeds: 95% t "
        f"interval of the mean difference. p: exact randomisation test over digits, two-sided, after Holm over {tests} "
        "tests of this page."
    )
    columns = (
        *("Models", "Checkpoints", "Seeds", "Difference,\nover digits", "Interval\nover seeds", "p (Holm)"),
        "What it says",
    )
    return Table(f"Pair by pair: {pairs[0].found.set}", columns, tuple(map(_row, pairs)), caption)


def _row(pair: _Pair) -> tuple[Cell, ...]:
    digits, seeds = pair.found.over_digits, pair.found.over_seeds
    over_seeds = ABSENT
    if seeds.low is not None and seeds.high is not None:
        over_seeds = Cell(f"[{signed(seeds.low)}, {signed(seeds.high)}]", 100 * seeds.low)
    over_digits = f"{signed(digits.difference)}\n[{signed(digits.low)}, {signed(digits.high)}]"
    return (
        Cell(f"{pair.first}\nminus {pair.second}"),
        Cell("best" if pair.matched is None else f"matched at {100 * pair.matched:g}%"),
        whole(seeds.n),
        Cell(over_digits, 100 * digits.difference),
        over_seeds,
        Cell(f"{pair.p:.3f}" if pair.p >= 0.001 else "< 0.001", pair.p),
        Cell(_verdict(pair, seeds)),
    )


def _verdict(pair: _Pair, seeds: SeedSummary) -> str:
    ahead = pair.first if pair.found.over_digits.difference > 0 else pair.second
    if pair.p >= LEVEL:
        return "no difference shown"
    if seeds.low is None or seeds.high is None:
        return f"{ahead} ahead, with this seed"
    if seeds.low <= 0 <= seeds.high:
        return f"{ahead} ahead; other seeds may differ"
    return f"{ahead} ahead"


def _pairs(groups: Sequence[Group]) -> Iterator[tuple[Group, Group]]:
    ends = dict.fromkeys(own.config.training.stop_at for own in groups)
    for end in ends:
        alike = [own for own in groups if own.config.training.stop_at == end]
        pairs = list(itertools.combinations(alike, 2))
        yield from pairs if len(pairs) <= MOST_PAIRS else [(other, alike[0]) for other in alike[1:]]
