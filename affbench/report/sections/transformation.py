"""Where models break: accuracy by bins of each factor of the transformation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from affbench.analysis.results import Group, Results
from affbench.base.statistics import seed_summary
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.report.drawing import (
    Drawing,
    beginning,
    dress,
    file_name,
    legend,
    line_look,
    panels,
    save_drawing,
)
from affbench.report.sections import Section
from affbench.report.table import ABSENT, SHARES, Cell, Table, described, model_heading, share_cell
from affbench.run.folder import BinShare, Share

_MOST_CURVES = 14


def section(results: Results, folder: Path) -> Section:
    """A table and a figure for each set with transformations."""
    tables = (transformation_table(results, name) for name in results.sets)
    figures = (
        transformation_figure(results, name, folder / f"transformation-{number}-{file_name(name)[:60]}.png")
        for number, name in enumerate(results.sets, start=1)
    )
    return Section(
        "Where it breaks: by transformation",
        tuple(table for table in tables if table),
        tuple(figure for figure in figures if figure),
    )


def _affine(results: Results, name: str) -> list[Group]:
    return [own for own in results.groups if any(record.by_transformation for record in own.records(name))]


def transformation_table(results: Results, name: str) -> Table | None:
    """Accuracy on one set by bins of each factor of the transformation; None for a set without transformations."""
    groups = _affine(results, name)
    bins: dict[tuple[str, float, float], dict[str, list[Share]]] = {}
    for own in groups:
        for record in own.records(name):
            for factor, shares in (record.by_transformation or {}).items():
                for share in (share for share in shares if share.n):
                    edges = float(f"{share.low:.3g}"), float(f"{share.high:.3g}")
                    bins.setdefault((factor, *edges), {}).setdefault(own.name, []).append(share)
    if not bins:
        return None
    factors = list(dict.fromkeys(factor for factor, _, _ in bins))
    rows = tuple(
        (
            Cell(f"{factor.replace('_', ' ')} {low:g} to {high:g} {TRANSFORM_UNITS.get(factor, '')}".strip()),
            *(share_cell(cells[own.name]) if own.name in cells else ABSENT for own in groups),
        )
        for (factor, low, high), cells in sorted(
            bins.items(), key=lambda item: (factors.index(item[0][0]), *item[0][1:])
        )
    )
    columns = ("Transformation", *(model_heading(own, name) for own in groups))
    return Table(f"By transformation: {described(name, groups)}", columns, rows, SHARES)


def transformation_figure(results: Results, name: str, path: Path) -> Drawing | None:
    """Accuracy on one set as a curve over each factor of the transformation; None for a set without."""
    groups = _affine(results, name)
    if not groups:
        return None
    shown = groups[:_MOST_CURVES]
    factors = list(dict.fromkeys(f for own in groups for r in own.records(name) for f in r.by_transformation or {}))
    figure, grid = panels(len(factors), 3.2, 2.5, 0.5 + 0.2 * math.ceil(len(shown) / 3), sharey=True)
    rows: list[tuple[Any, ...]] = []
    for axes, factor in zip(grid, factors, strict=True):
        for number, own in enumerate(groups):
            curve = _curve(own, name, factor)
            rows += [(own.name, factor, *point) for point in curve]
            if number < len(shown) and curve:
                look = line_look(number)
                x = [(low + high) / 2 for low, high, *_ in curve]
                mean, low, high = ([100 * point[place] for point in curve] for place in (4, 5, 6))
                axes.plot(x, mean, **look)
                axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS.get(factor, ""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in grid[::3]:
        axes.set_ylabel("accuracy %")
    legend(figure, [own.name for own in shown], len(groups) - len(shown))
    caption = (
        f"{described(name, groups)}, in equal bins of each factor; the other factors vary freely. Bands: Wilson's 95% "
        "interval for one seed (images taken as independent), the range over seeds for several."
        f"{beginning(axes.get_ylim()[0] for axes in grid)}"
    )
    header = ("model", "factor", "low", "high", "n", "seeds", "accuracy", "band_low", "band_high")
    return save_drawing(figure, path, f"Accuracy by transformation, {name}", caption, header, rows)


def _curve(own: Group, name: str, factor: str) -> list[tuple[float, float, int, int, float, float, float]]:
    """(low, high, n, seeds, mean accuracy, band low, band high) of every bin, by rising edges."""
    bins: dict[tuple[float, float], list[BinShare]] = {}
    for record in own.records(name):
        for share in (record.by_transformation or {}).get(factor, ()):
            bins.setdefault((share.low, share.high), []).append(share)
    points = []
    for (low, high), shares in sorted(bins.items()):
        summary = seed_summary([share.accuracy for share in shares])
        band = shares[0].ci95 if summary.n == 1 else (summary.minimum, summary.maximum)
        points.append((low, high, shares[0].n, summary.n, summary.mean, *band))
    return points
