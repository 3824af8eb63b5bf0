"""Where models break: accuracy by true class, and what each class is taken for."""

from pathlib import Path

import numpy as np

from affbench.analysis.results import Results
from affbench.report.drawing import Drawing, dress, file_name, heat_map, literal, panels, save_drawing
from affbench.report.sections import Section
from affbench.report.table import Cell, Table, described, shares_table
from affbench.run.folder import ClassShare

_MOST_MATRICES = 6


def section(results: Results, folder: Path) -> Section:
    """A table and a figure for each set."""
    figures = (
        confusion_figure(results, name, folder / f"confusion-{number}-{file_name(name)[:60]}.png")
        for number, name in enumerate(results.sets, start=1)
    )
    return Section(
        "Where it breaks: by class", tuple(per_class_table(results, name) for name in results.sets), tuple(figures)
    )


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
    shown = groups[:_MOST_MATRICES]
    counts = {own.name: np.sum([record.confusion for record in own.records(name)], axis=0) for own in groups}
    figure, grid = panels(len(shown), 3.4, 3.4, 0)
    for axes, own in zip(grid, shown, strict=True):
        matrix = counts[own.name]
        shares = 100 * matrix / np.maximum(1, matrix.sum(1, keepdims=True))
        heat_map(axes, shares)
        dress(axes, literal(own.name, 36), "predicted", "true", grid=False)
        axes.set_xticks(range(len(shares)))
        axes.set_yticks(range(len(shares)))
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
