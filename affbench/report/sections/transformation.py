"""Where models break: accuracy by bins of each factor of the transformation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from affbench.analysis.results import Group, Results
from affbench.base.statistics import seed_summary
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.drawing import Drawing, beginning, dress, file_name, legend, line_look, panels, save_drawing
from affbench.report.sections import Section
from affbench.report.table import Cell, Table, described, shares_table
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


Bins = dict[tuple[float, float], dict[str, list[BinShare]]]
"""By edges and model, the shares of all seeds."""


def _bins(results: Results, name: str) -> tuple[list[Group], dict[str, Bins]]:
    """The models that were tested on a set with transformations, and the bins of each factor that they share."""
    groups = [own for own in results.groups if any(record.by_transformation for record in own.records(name))]
    factors: dict[str, Bins] = {}
    for own in groups:
        for record in own.records(name):
            for factor, shares in (record.by_transformation or {}).items():
                for share in shares:
                    line = factors.setdefault(factor, {}).setdefault((share.low, share.high), {})
                    line.setdefault(own.name, []).append(share)
    return groups, factors


def transformation_table(results: Results, name: str) -> Table | None:
    """Accuracy on one set by bins of each factor of the transformation; None for a set without transformations."""
    groups, factors = _bins(results, name)
    lines = {
        Cell(f"{factor.replace('_', ' ')} {low:.5g} to {high:.5g} {TRANSFORM_UNITS.get(factor, '')}".strip()): models
        for factor, bins in factors.items()
        for (low, high), models in sorted(bins.items())
    }
    return shares_table("By transformation", "Transformation", lines, groups, name) if lines else None


def transformation_figure(results: Results, name: str, path: Path) -> Drawing | None:
    """Accuracy on one set as a curve over each factor of the transformation; None for a set without."""
    groups, factors = _bins(results, name)
    if not factors:
        return None
    figure, curves = factor_panels(factors, [own.name for own in groups])
    caption = (
        f"{described(name, groups)}, in equal bins of each factor; the other factors vary freely. Bands: Wilson's 95% "
        "interval for one seed (images taken as independent), the range over seeds for several."
        f"{beginning(axes.get_ylim()[0] for axes in figure.axes)}"
    )
    header = ("model", "factor", "low", "high", "n", "seeds", "accuracy", "band_low", "band_high")
    return save_drawing(figure, path, f"Accuracy by transformation, {name}", caption, header, curves)


def factor_panels(factors: Mapping[str, Bins], models: Sequence[str]) -> tuple[Figure, list[tuple[Any, ...]]]:
    """A panel for each factor; in it a line for each of the first models over the middle of its bins, with a band.

    The points of all models come with it: model, factor, edges, n, seeds, accuracy and the band.
    """
    shown = models[:_MOST_CURVES]
    figure, grid = panels(len(factors), 3.2, 2.5, 0.7 + 0.2 * math.ceil(len(shown) / 3), sharey=True)
    rows: list[tuple[Any, ...]] = []
    for axes, (factor, bins) in zip(grid, factors.items(), strict=True):
        for number, model in enumerate(models):
            points = [(*edges, *_point(own[model])) for edges, own in sorted(bins.items()) if model in own]
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


def _point(shares: Sequence[BinShare]) -> tuple[int, int, float, float, float]:
    """Of the seeds' shares of one bin: n, seeds, mean accuracy, and the band: for one seed its interval, else range."""
    summary = seed_summary([share.accuracy for share in shares])
    band = shares[0].ci95 if summary.n == 1 else (summary.minimum, summary.maximum)
    return (shares[0].n, summary.n, summary.mean, *band)
