"""The tables that compare models: at matched validation accuracy against their best, and pair by pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from affbench.analysis.comparison import Comparison, compare
from affbench.analysis.results import Group, Results, settings
from affbench.base.errors import AffbenchError
from affbench.base.statistics import SeedSummary, holm, seed_summary
from affbench.report.table import Cell, Table, accuracy_cell, set_heading, span, validation_cell
from affbench.run.folder import Run

MOST_PAIRS = 15  # of a set; with more models, each is compared with the first only
LEVEL = 0.05


def matched_table(results: Results, *, note: str = "") -> Table | None:
    """Every model at matched validation accuracy and at its best; None where no run stopped at an accuracy.

    Parameters
    ----------
    results
        Runs of any kind.
    note
        As for `affbench.report.table.Table`.
    """
    groups = results.groups
    rows = []
    shown: list[Group] = []
    for matched in groups:
        target = matched.config.training.stop_at
        if target is None:
            continue
        best = _best_of(matched, groups)
        name = matched.name if best is None else best.name
        epochs = [result.environment.get("stop_at_reached_epoch") for result in matched.results]
        reached = [float(epoch) for epoch in epochs if isinstance(epoch, int | float)]
        shown += [matched] if best is None else [matched, best]
        rows.append(
            (
                Cell(name),
                Cell(f"matched at {100 * target:g}%\n{len(reached)} of {len(epochs)} seeds reached it"),
                _epochs(reached),
                *_accuracies(matched, results),
            )
        )
        if best is not None:
            kept = [result.selected.epoch for result in best.results]
            rows.append((Cell(name), Cell("best"), _epochs(kept), *_accuracies(best, results)))
    if not rows:
        return None
    caption = (
        "Matched: the first validation that reached the accuracy ended the training, and its epoch is interpolated "
        "between validations; a seed that never reached it counts with its best. Best: the validation with the highest "
        "accuracy of the whole training. Both are chosen on validation digits alone; brackets as in the summary."
    )
    headings = [set_heading(name, shown) for name in results.sets]
    columns = ("Model", "Checkpoint", "Epoch", "Validation\naccuracy %", *headings)
    return Table("At matched accuracy and at best", columns, tuple(rows), caption, note)


def comparison_tables(results: Results, *, note: str = "") -> tuple[list[Table], list[str]]:
    """The models pair by pair on each set, matched with matched ones and best with best ones.

    Parameters
    ----------
    results
        Runs of any kind.
    note
        As for `affbench.report.table.Table`.

    Returns
    -------
    list of Table, list of str
        A table per set on which at least two models were tested, and a sentence for each comparison left out.
    """
    groups = results.groups
    found: list[tuple[Group, Group, Comparison]] = []
    problems = []
    for name in results.sets:
        for first, second in _pairs([own for own in groups if own.records(name)]):
            try:
                comparison = compare(_runs(first), _runs(second), name)
            except AffbenchError as error:
                problems.append(f"{first.name} and {second.name} are not compared on {name}: {error}")
                continue
            if comparison is not None:
                found.append((first, second, comparison))
    names = {own.name: (_best_of(own, groups) or own).name for own in groups}
    corrected = holm([comparison.over_digits.p for _, _, comparison in found])
    tables = []
    for name in results.sets:
        own = [(*entry, p) for entry, p in zip(found, corrected, strict=True) if entry[2].set == name]
        if own:
            tables.append(_table(name, own, names, len(found), note))
    return tables, problems


def _table(
    name: str,
    found: Sequence[tuple[Group, Group, Comparison, float]],
    names: Mapping[str, str],
    tests: int,
    note: str,
) -> Table:
    rows = []
    for one, other, comparison, p in found:
        first, second, target = names[one.name], names[other.name], one.config.training.stop_at
        digits, seeds = comparison.over_digits, comparison.over_seeds
        over_digits = f"{_signed(digits.difference)}\n[{_signed(digits.low)}, {_signed(digits.high)}]"
        over_seeds = Cell("–")
        if seeds.low is not None and seeds.high is not None:
            over_seeds = Cell(f"[{_signed(seeds.low)}, {_signed(seeds.high)}]", 100 * seeds.low)
        rows.append(
            (
                Cell(f"{first}\nminus {second}"),
                Cell("best" if target is None else f"matched at {100 * target:g}%"),
                Cell(str(seeds.n), seeds.n),
                Cell(over_digits, 100 * digits.difference),
                over_seeds,
                Cell(f"{p:.3f}" if p >= 0.001 else "< 0.001", p),
                Cell(_verdict(first, second, digits.difference, p, seeds)),
            )
        )
    n = span(comparison.n for _, _, comparison, _ in found)
    originals = span(comparison.n_originals for _, _, comparison, _ in found)
    size = f"n {n}" if n == originals else f"n {n} of {originals} digits"
    caption = (
        f"Difference of accuracy in points on the same images ({size}). Over digits: 95% bootstrap interval over "
        "original digits, each with all its versions and all seeds, for these trained networks. Over seeds: 95% t "
        f"interval of the mean difference. p: exact randomisation test over digits, two-sided, after Holm over {tests} "
        "tests of this page."
    )
    columns = (
        "Models",
        "Checkpoints",
        "Seeds",
        "Difference,\nover digits",
        "Interval\nover seeds",
        "p (Holm)",
        "What it says",
    )
    return Table(f"Pair by pair: {name}", columns, tuple(rows), caption, note)


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")


def _verdict(first: str, second: str, difference: float, p: float, seeds: SeedSummary) -> str:
    ahead = first if difference > 0 else second
    if p >= LEVEL:
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


def _runs(group: Group) -> dict[int, Run]:
    return {result.config.training.seed: result.run for result in group.results}


def _best_of(matched: Group, groups: Sequence[Group]) -> Group | None:
    """The same runs trained to the end; None for runs that were, or where there are none."""
    if matched.config.training.stop_at is None:
        return None
    wanted = settings(matched.results[0]) | {"training.stop_at": None}
    return next((own for own in groups if settings(own.results[0]) == wanted), None)


def _epochs(epochs: Sequence[float]) -> Cell:
    if not epochs:
        return Cell("–")
    summary = seed_summary(epochs)
    extent = "" if summary.n == 1 else f"\n{summary.minimum:.2f} to {summary.maximum:.2f}"
    return Cell(f"{summary.mean:.2f}{extent}", summary.mean)


def _accuracies(group: Group, results: Results) -> list[Cell]:
    return [validation_cell(group), *(accuracy_cell(group, name, results.groups) for name in results.sets)]
