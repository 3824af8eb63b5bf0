"""Pair by pair: the models compared on the same images, matched with matched ones and best with best ones."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from affbench.analysis.comparison import Comparison, compare
from affbench.analysis.results import Group, Results
from affbench.base.errors import AffbenchError
from affbench.base.statistics import holm
from affbench.report.sections import Section
from affbench.report.table import ABSENT, Cell, Table, counted, signed, span, whole

MOST_PAIRS = 15  # of a set; with more models, each is compared with the first only
LEVEL = 0.05


def section(results: Results, folder: Path) -> Section:
    """A table per set on which at least two models were tested, and a sentence for each comparison left out."""
    return replace(compared(results, _pairs), paragraphs=())


def compared(results: Results, pairs: Callable[[list[Group]], Iterable[tuple[Group, Group]]]) -> Section:
    """The same for `pairs` of the models that were tested on a set; the paragraphs say what came out in a sentence."""
    found: list[tuple[Group, Group, Comparison]] = []
    problems = []
    for name in results.sets:
        for first, second in pairs([own for own in results.groups if own.records(name)]):
            try:
                comparison = compare(first, second, name)
            except AffbenchError as error:
                problems.append(f"{first.name} and {second.name} are not compared on {name}: {error}")
                continue
            if comparison is not None:
                found.append((first, second, comparison))
    corrected = holm([comparison.over_digits.p for _, _, comparison in found])
    rows: dict[str, list[tuple[Cell, ...]]] = {}
    sentences = []
    for (first, second, comparison), p in zip(found, corrected, strict=True):
        kept = "\n".join(dict.fromkeys(own.kept for own in (first, second)))
        row = _row(first.network, second.network, kept, comparison, p)
        digits = comparison.over_digits
        sentences.append(
            f"{comparison.set}: {row[-1].text} ({first.name} minus {second.name}: {signed(digits.difference)} points, "
            f"95% interval over test digits [{signed(digits.low)}, {signed(digits.high)}], "
            f"{counted(comparison.over_seeds.n, 'pair')} of runs)."
        )
        rows.setdefault(comparison.set, []).append(row)
    numbers = ("Difference,\nover digits", "Interval\nover seeds", "p (Holm)")
    columns = ("Models", "Checkpoints", "Seeds", *numbers, "What it says")
    tables = []
    for name, own in rows.items():
        compared = [comparison for _, _, comparison in found if comparison.set == name]
        n, originals = span(other.n for other in compared), span(other.n_originals for other in compared)
        size = f"n {n}" if n == originals else f"n {n} of {originals} digits"
        caption = (
            f"Difference of accuracy in points on the same images ({size}). Over digits: 95% bootstrap interval over "
            "original digits, each with all its versions and all seeds, for these trained networks. Over seeds: 95% t "
            "interval of the mean difference. p: exact randomisation test over digits, two-sided, after Holm over "
            f"{counted(len(found), 'test')}."
        )
        tables.append(Table(f"Pair by pair: {name}", columns, tuple(own), caption))
    return Section("Pair by pair", tuple(tables), paragraphs=tuple(sentences), problems=tuple(problems))


def _row(first: str, second: str, kept: str, found: Comparison, p: float) -> tuple[Cell, ...]:
    """Two models by name, their checkpoints, what came out, and its p value after correction."""
    digits, seeds = found.over_digits, found.over_seeds
    over_digits = f"{signed(digits.difference)}\n[{signed(digits.low)}, {signed(digits.high)}]"
    over_seeds, verdict = ABSENT, f"{first if digits.difference > 0 else second} ahead"
    if seeds.low is None or seeds.high is None:
        verdict += ", with this seed"
    else:
        over_seeds = Cell(f"[{signed(seeds.low)}, {signed(seeds.high)}]", 100 * seeds.low)
        verdict += "; other seeds may differ" if seeds.low <= 0 <= seeds.high else ""
    return (
        Cell(f"{first}\nminus {second}"),
        Cell(kept),
        whole(seeds.n),
        Cell(over_digits, 100 * digits.difference),
        over_seeds,
        Cell(f"{p:.3f}" if p >= 0.001 else "< 0.001", p),
        Cell(verdict if p < LEVEL else "no difference shown"),
    )


def _pairs(groups: Sequence[Group]) -> Iterator[tuple[Group, Group]]:
    ends = dict.fromkeys(own.config.training.stop_at for own in groups)
    for end in ends:
        alike = [own for own in groups if own.config.training.stop_at == end]
        pairs = list(itertools.combinations(alike, 2))
        yield from pairs if len(pairs) <= MOST_PAIRS else [(other, alike[0]) for other in alike[1:]]
