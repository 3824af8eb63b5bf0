"""Where models break: accuracy by true class, and what each class is taken for."""

from pathlib import Path

import numpy as np

from affbench.analysis.results import Results
from affbench.report.drawing import INK, Drawing, dress, file_name, heat_map, panels, save_drawing
from affbench.report.sections import Section
from affbench.report.table import Cell, Table, described, shares_table
from affbench.run.folder import ClassShare


def section(results: Results, folder: Path) -> Section:
    """A figure for each set, and accuracy by class as a table under it."""
    figures = (
        confusion_figure(results, name, folder / f"confusion-{number}-{file_name(name)[:60]}.png")
        for number, name in enumerate(results.sets, start=1)
    )
    return Section("Where it breaks: by class", figures=tuple(figures))


def per_class_table(results: Results, name: str) -> Table:
    """Accuracy on one set by true class: a row per class, a column per model."""
    lines: dict[int, dict[str, list[ClassShare]]] = {}
    for own in results.groups:
        for share in (share for record in own.records(name) for share in record.per_class):
            lines.setdefault(share.label, {}).setdefault(own.name, []).append(share)
    ordered = {Cell(str(label), label): models for label, models in sorted(lines.items())}
    return shares_table("By class", "Class", ordered, results, name)


def confusion_figure(results: Results, name: str, path: Path) -> Drawing:
    """Confusion matrices on one set, in percent of the true class, summed over seeds."""
    groups = [own for own in results.groups if own.records(name)]
    counts = [np.sum([record.confusion for record in own.records(name)], axis=0) for own in groups]
    shares = [100 * matrix / np.maximum(1, matrix.sum(1, keepdims=True)) for matrix in counts]
    mistakes = [np.where(np.eye(len(own), dtype=bool), np.nan, own) for own in shares]
    most = max(1.0, *(float(np.nanmax(own)) for own in mistakes))
    figure, grid = panels(len(groups), 2.7, 2.8, 0, columns=4)
    for axes, own, share, mistake in zip(grid, groups, shares, mistakes, strict=True):
        heat_map(axes, mistake, np.where(share >= 0.5, np.char.mod("%d", np.floor(share + 0.5)), ""), high=most)
        dress(axes, own.network + ("" if own.name == own.network else f"\n{own.kept}"), grid=False, width=30)
        axes.set_xticks(range(len(share)))
        axes.set_yticks(range(len(share)))
    figure.supxlabel("predicted class", fontsize=9, color=INK)
    figure.supylabel("true class", fontsize=9, color=INK)
    caption = (
        f"{described(name, groups)}, summed over seeds. Percent of each true class; shares below half a percent are "
        f"left blank. The colour is that of mistakes, the deepest {most:.0f}%, on one scale for all networks."
    )
    header = ("model", "seeds", "true", "predicted", "images")
    rows = (
        (own.name, len(own.records(name)), true, predicted, int(count))
        for own, matrix in zip(groups, counts, strict=True)
        for (true, predicted), count in np.ndenumerate(matrix)
    )
    table = per_class_table(results, name)
    return save_drawing(figure, path, f"Confusion, {name}", caption, header, rows, table)
