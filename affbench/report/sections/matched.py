"""Matched accuracy: every model where it first reached an accuracy, above its best."""

from collections.abc import Sequence
from pathlib import Path

from affbench.analysis.results import Group, Results
from affbench.base.statistics import seed_summary
from affbench.report.sections import Section
from affbench.report.table import ABSENT, Cell, accuracy_table


def section(results: Results, folder: Path) -> Section | None:
    """Every model at matched validation accuracy and at its best; None where no run stopped at an accuracy."""
    lines: list[tuple[Group, tuple[Cell, ...]]] = []
    for number, matched in enumerate(results.groups, start=1):
        if matched.config.training.stop_at is None:
            continue
        best, name = results.best_of(matched), Cell(matched.network)
        epochs = [result.run.environment.stop_at_reached_epoch for result in matched.results]
        reached = [epoch for epoch in epochs if epoch is not None]
        how = Cell(f"{matched.kept}\n{len(reached)} of {len(epochs)} seeds reached it")
        lines.append((matched, (name, how, _epochs(reached))))
        if best is not None and best not in map(results.best_of, results.groups[number:]):  # under the last of its own
            kept = [result.run.selected.epoch for result in best.results]
            lines.append((best, (name, Cell(best.kept), _epochs(kept))))
    if not lines:
        return None
    caption = (
        "Matched: the first validation that reached the accuracy ended the training, and its epoch is interpolated "
        "between validations; a seed that never reached it counts with its best. Best: the validation with the highest "
        "accuracy of the whole training. Both are chosen on validation digits alone; brackets as in the summary."
    )
    heads = ("Model", "Checkpoint", "Epoch")
    table = accuracy_table("At matched accuracy and at best", heads, lines, results, caption)
    return Section("Matched accuracy", (table,))


def _epochs(epochs: Sequence[float]) -> Cell:
    if not epochs:
        return ABSENT
    summary = seed_summary(epochs)
    extent = "" if summary.n == 1 else f"\n{summary.minimum:.2f} to {summary.maximum:.2f}"
    return Cell(f"{summary.mean:.2f}{extent}", summary.mean)
