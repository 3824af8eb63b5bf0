"""Where models break: accuracy by bins of each factor of the transformation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from matplotlib.axes import Axes
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


@dataclass(frozen=True)
class Point:
    """Accuracy in [low, high) of a factor: of n images and so many seeds, with the band to draw around it."""

    low: float
    high: float
    n: int
    seeds: int
    accuracy: float
    band_low: float
    band_high: float


def section(results: Results, folder: Path) -> Section:
    """A table and a figure for each set with transformations."""
    tables = (transformation_table(results, name) for name in results.sets)
    figures = (
        transformation_figure(results, name, folder / f"transformation-{number}-{file_name(name)[:60]}.png")
        for number, name in enumerate(results.sets, start=1)
    )
    return Section("Where it breaks: by transformation", tuple(filter(None, tables)), tuple(filter(None, figures)))


def _shares(results: Results, name: str) -> tuple[list[Group], dict[str, dict[str, list[BinShare]]]]:
    """The models that were tested on a set with transformations; by factor and model, the shares of all seeds."""
    groups = [own for own in results.groups if any(record.by_transformation for record in own.records(name))]
    shares: dict[str, dict[str, list[BinShare]]] = {}
    for own in groups:
        for record in own.records(name):
            for factor, bins in (record.by_transformation or {}).items():
                shares.setdefault(factor, {}).setdefault(own.name, []).extend(share for share in bins if share.n)
    return groups, shares


def transformation_table(results: Results, name: str) -> Table | None:
    """Accuracy on one set by bins of each factor of the transformation; None for a set without transformations."""
    groups, shares = _shares(results, name)
    lines: dict[Cell, dict[str, list[BinShare]]] = {}
    for factor, models in shares.items():
        edges = sorted({(share.low, share.high) for own in models.values() for share in own})
        for low, high in edges:
            cell = Cell(f"{factor.replace('_', ' ')} {low:.3g} to {high:.3g} {TRANSFORM_UNITS.get(factor, '')}".strip())
            line = lines.setdefault(cell, {})
            for model, own in models.items():
                line.setdefault(model, []).extend(share for share in own if (share.low, share.high) == (low, high))
    return shares_table("By transformation", "Transformation", lines, groups, name) if lines else None


def transformation_figure(results: Results, name: str, path: Path) -> Drawing | None:
    """Accuracy on one set as a curve over each factor of the transformation; None for a set without."""
    groups, shares = _shares(results, name)
    if not shares:
        return None
    curves = {factor: {model: curve(own) for model, own in models.items()} for factor, models in shares.items()}
    figure, grid = factor_panels(curves, [own.name for own in groups])
    caption = (
        f"{described(name, groups)}, in equal bins of each factor; the other factors vary freely. Bands: Wilson's 95% "
        "interval for one seed (images taken as independent), the range over seeds for several."
        f"{beginning(axes.get_ylim()[0] for axes in grid)}"
    )
    header = ("model", "factor", "low", "high", "n", "seeds", "accuracy", "band_low", "band_high")
    rows = (
        (model, factor, *astuple(point))
        for factor, models in curves.items()
        for model, points in models.items()
        for point in points
    )
    return save_drawing(figure, path, f"Accuracy by transformation, {name}", caption, header, rows)


def curve(shares: Sequence[BinShare]) -> list[Point]:
    """A point for each bin of the shares of a model, by rising edges."""
    bins: dict[tuple[float, float], list[BinShare]] = {}
    for share in shares:
        bins.setdefault((share.low, share.high), []).append(share)
    points = []
    for edges, own in sorted(bins.items()):
        summary = seed_summary([share.accuracy for share in own])
        band = own[0].ci95 if summary.n == 1 else (summary.minimum, summary.maximum)
        points.append(Point(*edges, own[0].n, summary.n, summary.mean, *band))
    return points


def factor_panels(
    curves: Mapping[str, Mapping[str, Sequence[Point]]], models: Sequence[str], title: str = ""
) -> tuple[Figure, list[Axes]]:
    """A panel for each factor; in it a line for each of the first models over the middle of its bins, with its band."""
    shown = models[:_MOST_CURVES]
    figure, grid = panels(len(curves), 3.2, 2.5, 0.7 + 0.2 * math.ceil(len(shown) / 3), sharey=True, title=title)
    for axes, (factor, lines) in zip(grid, curves.items(), strict=True):
        for number, model in enumerate(shown):
            points, look = lines.get(model, ()), line_look(number)
            x = [(point.low + point.high) / 2 for point in points]
            axes.plot(x, [100 * point.accuracy for point in points], **look)
            low, high = [100 * point.band_low for point in points], [100 * point.band_high for point in points]
            axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS.get(factor, ""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in grid[::3]:
        axes.set_ylabel("accuracy %")
    legend(figure, shown, len(models) - len(shown))
    return figure, grid
