"""Where models break: accuracy by true class, and what each class is taken for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from affbench.analysis.results import Group, Results
from affbench.report.drawing import INK, Drawing, dress, file_name, literal, panels, save_drawing
from affbench.report.sections import Section
from affbench.report.table import ABSENT, SHARES, Cell, Table, described, model_heading, share_cell

_MOST_MATRICES = 6


def section(results: Results, folder: Path) -> Section:
    """A table and a figure for each set."""
    figures = (
        confusion_figure(results, name, folder / f"confusion-{number}-{file_name(name)[:60]}.png")
        for number, name in enumerate(results.sets, start=1)
    )
    tables = tuple(per_class_table(results, name) for name in results.sets)
    return Section("Where it breaks: by class", tables, tuple(figures))


def per_class_table(results: Results, name: str) -> Table:
    """Accuracy on one set by true class: a row per class, a column per model."""
    groups = [own for own in results.groups if own.records(name)]
    labels = sorted({share.label for own in groups for record in own.records(name) for share in record.per_class})
    rows = []
    for label in labels:
        cells = [Cell(str(label), label)]
        for own in groups:
            found = [share for record in own.records(name) for share in record.per_class if share.label == label]
            cells.append(share_cell(found) if found else ABSENT)
        rows.append(tuple(cells))
    columns = ("Class", *(model_heading(own, name) for own in groups))
    return Table(f"By class: {described(name, groups)}", columns, tuple(rows), SHARES)


def confusion_figure(results: Results, name: str, path: Path) -> Drawing:
    """Confusion matrices on one set, in percent of the true class, summed over seeds."""
    groups = [own for own in results.groups if own.records(name)]
    shown = groups[:_MOST_MATRICES]
    counts = {own.name: np.sum([record.confusion for record in own.records(name)], axis=0) for own in groups}
    figure, grid = panels(len(shown), 3.4, 3.4, 0)
    for axes, own in zip(grid, shown, strict=True):
        _matrix(axes, own, counts[own.name])
    hidden = f" The first {len(shown)} of {len(groups)} configurations are drawn." if len(shown) < len(groups) else ""
    caption = (
        f"{described(name, groups)}, summed over seeds. Percent of each true class; shares below half a percent are "
        f"left blank.{hidden}"
    )
    header = ("model", "seeds", "true", "predicted", "images")
    rows = (
        (own.name, len(own.records(name)), true, predicted, int(count))
        for own in groups
        for (true, predicted), count in np.ndenumerate(counts[own.name])
    )
    return save_drawing(figure, path, f"Confusion, {name}", caption, header, rows)


def _matrix(axes: Axes, own: Group, counts: npt.NDArray[np.int64]) -> None:
    shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(shares):
        if value >= 0.5:
            colour = "white" if value > 55 else INK
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    dress(axes, "", "predicted", "true", grid=False)
    axes.set_title(literal(own.name, 36), fontsize=9, color=INK, loc="left")
    axes.set_xticks(range(len(shares)))
    axes.set_yticks(range(len(shares)))
