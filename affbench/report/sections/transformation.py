"""Where models break: accuracy by bins of each factor of the transformation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from affbench.analysis.results import Results
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.drawing import Drawing, beginning, dress, file_name, legend, line_look, panels, save_drawing
from affbench.report.sections import Section
from affbench.report.table import Cell, Table, described, over_seeds, shares_table
from affbench.run.folder import BinShare

_MOST_CURVES = 14


def section(results: Results, folder: Path) -> Section:
    """A table and a figure for each set with transformations."""
    tables = (transformation_table(results, name) for name in results.sets)
    figures = (
        transformation_figure(results, name, folder / f"transformation-{number}-{file_name(name)[:60]}.png")
        for number, name in enumerate(results.sets, start=1)
    )
    return Section("Where it breaks: by transformation", tuple(filter(None, tables)), tuple(filter(None, figures)))


Located = tuple[str, str, BinShare]
"""A model, a factor, and the model's share in one of its bins."""


def _located(results: Results, name: str) -> list[Located]:
    """The shares of all models on a set; none where it is without transformations."""
    return [
        (own.name, factor, share)
        for own in results.groups
        for record in own.records(name)
        for factor, shares in (record.by_transformation or {}).items()
        for share in shares
    ]


def transformation_table(results: Results, name: str) -> Table | None:
    """Accuracy on one set by bins of each factor of the transformation; None for a set without transformations."""
    found = _located(results, name)
    factors = list(dict.fromkeys(factor for _, factor, _ in found))
    lines: dict[Cell, dict[str, list[BinShare]]] = {}
    for model, factor, own in sorted(found, key=lambda one: (factors.index(one[1]), one[2].low, one[2].high)):
        unit = TRANSFORM_UNITS.get(factor, "")
        label = Cell(f"{factor.replace('_', ' ')} {own.low:.5g} to {own.high:.5g} {unit}".strip())
        lines.setdefault(label, {}).setdefault(model, []).append(own)
    return shares_table("By transformation", "Transformation", lines, results, name) if lines else None


def transformation_figure(results: Results, name: str, path: Path) -> Drawing | None:
    """Accuracy on one set as a curve over each factor of the transformation; None for a set without."""
    found = _located(results, name)
    if not found:
        return None
    figure, curves = factor_panels(found)
    caption = (
        f"{described(name, results.groups)}, in equal bins of each factor; the other factors vary freely. Bands: "
        "Wilson's 95% interval for one seed (images taken as independent), the range over seeds for several."
        f"{beginning(axes.get_ylim()[0] for axes in figure.axes)}"
    )
    header = ("model", "factor", "low", "high", "n", "seeds", "accuracy", "band_low", "band_high")
    return save_drawing(figure, path, f"Accuracy by transformation, {name}", caption, header, curves)


def factor_panels(found: Sequence[Located]) -> tuple[Figure, list[tuple[Any, ...]]]:
    """A panel a factor, a line with its band for each of the first models, and the points of all as rows."""
    models, factors = (list(dict.fromkeys(names)) for names in zip(*(own[:2] for own in found), strict=True))
    shown = models[:_MOST_CURVES]
    figure, grid = panels(len(factors), 3.2, 2.5, 0.7 + 0.2 * math.ceil(len(shown) / 3), sharey=True)
    rows: list[tuple[Any, ...]] = []
    for axes, factor in zip(grid, factors, strict=True):
        for number, model in enumerate(models):
            bins: dict[tuple[float, float], list[BinShare]] = {}
            for share in (share for *own, share in found if own == [model, factor]):
                bins.setdefault((share.low, share.high), []).append(share)
            points = []
            for edges, shares in sorted(bins.items()):
                summary, band = over_seeds(shares)
                points.append((*edges, shares[0].n, summary.n, summary.mean, *band))
            rows += [(model, factor, *point) for point in points]
            if number < len(shown):
                look, columns = line_look(number), np.array(points, np.float64).reshape(-1, 7).T
                x = (columns[0] + columns[1]) / 2
                axes.plot(x, 100 * columns[4], **look)
                axes.fill_between(x, 100 * columns[5], 100 * columns[6], color=look["color"], alpha=0.15, linewidth=0)
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS.get(factor, ""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in grid[::3]:
        axes.set_ylabel("accuracy %")
    legend(figure, shown, len(models) - len(shown))
    return figure, rows
