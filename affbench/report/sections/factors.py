"""One factor at a time: accuracy on sets in which a single factor varies, wider than in affNIST."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from affbench.analysis.factors import FACTORS, FactorCurve, factor_curve, one_factor_set
from affbench.analysis.results import Result, Results
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.data.transform import AffineRange
from affbench.report.drawing import Drawing, dress, legend, line_look, panels, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.run.folder import Run

EXPLAINED_DIGITS = 2_000  # of each one-factor set


def section(results: Results, folder: Path) -> Section | None:
    """The curves of the models for whose images there is a synthetic set; they are measured for it."""

    def look(entry: Result, workspace: Workspace) -> list[tuple[str, list[FactorCurve]]]:
        with contextlib.suppress(UsageError):
            one_factor_set(entry.run.config.data.train_set, "rotation")
            return [(entry.title, [factor_curve(entry.run, own, workspace, limit=EXPLAINED_DIGITS) for own in FACTORS])]
        return []

    found, problems = of_each_model(results, look)
    if not found:
        return Section("One factor at a time", problems=problems)
    figure = _draw([curve for _, own in found for curve in own], folder, [title for title, _ in found])
    return Section("One factor at a time", figures=(figure,), problems=problems)


def factor_figure(
    runs: Sequence[Run],
    workspace: Workspace,
    folder: Path,
    *,
    factors: Sequence[str] = tuple(FACTORS),
    limit: int | None = None,
) -> Drawing:
    """Accuracy of runs on sets in which one factor alone varies, of the first digits."""
    curves = [factor_curve(run, factor, workspace, limit=limit) for run in runs for factor in factors]
    return _draw(curves, folder, [run.name for run in runs])


def _draw(curves: Sequence[FactorCurve], folder: Path, labels: Sequence[str]) -> Drawing:
    """A panel per factor and a line per run with its interval as a band; `labels` name the runs in their order."""
    factors = list(dict.fromkeys(curve.factor for curve in curves))
    runs = list(dict.fromkeys(curve.run for curve in curves))
    title = "Accuracy over one factor alone"
    figure, grid = panels(len(factors), 3.4, 2.6, 0.7 + 0.1 * len(runs), sharey=True, title=title)
    for axes, factor in zip(grid, factors, strict=True):
        for curve in (own for own in curves if own.factor == factor):
            look = line_look(runs.index(curve.run))
            x = [(point.low + point.high) / 2 for point in curve.points]
            axes.plot(x, [100 * point.accuracy for point in curve.points], **look)
            low, high = ([100 * point.ci95[end] for point in curve.points] for end in (0, 1))
            axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS[factor])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if (reach := getattr(AffineRange(), factor)) is not None:
            axes.axvspan(*reach, color="#000000", alpha=0.05, linewidth=0)
    for axes in grid[::3]:
        axes.set_ylabel("accuracy %")
    legend(figure, labels)
    sizes = sorted({sum(point.n for point in curve.points) for curve in curves})
    caption = (
        f"One factor varies, all others are neutral; each digit once, n = {' / '.join(f'{n:,}' for n in sizes)} a set, "
        "in equal bins with 95% Wilson intervals. Shaded: the range of affNIST. Translations keep the whole digit on "
        "the canvas, so only small digits reach the far ends."
    )
    header = ("run", "seed", "factor", "set", "low", "high", "n", "correct", "accuracy", "ci95_low", "ci95_high")
    rows = (
        (c.run, c.seed, c.factor, c.set, p.low, p.high, p.n, p.correct, p.accuracy, *p.ci95)
        for c in curves
        for p in c.points
    )
    name = runs[0] if len(runs) == 1 else f"{len(runs)}-runs"
    return save_drawing(figure, folder / f"factors-{name}.png", title, caption, header, rows)
