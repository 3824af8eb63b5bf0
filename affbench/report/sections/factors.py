"""One factor at a time: accuracy on sets in which a single factor varies, wider than in affNIST."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from affbench.analysis.factors import FACTORS, FactorCurve, factor_curve, one_factor_set
from affbench.analysis.results import LabelledRun, Result, Results
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.transform import AffineRange
from affbench.report.drawing import Drawing, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.transformation import Bins, factor_panels

EXPLAINED_DIGITS = 2_000  # of each one-factor set


def section(results: Results, folder: Path) -> Section | None:
    """The curves of the models for whose images there is a synthetic set; they are measured for it."""

    def look(entry: Result, workspace: Workspace) -> list[tuple[str, list[FactorCurve]]]:
        with contextlib.suppress(UsageError):
            one_factor_set(entry.run.config.data.train_set, "rotation")
            return [(entry.label, [factor_curve(entry.run, own, workspace, limit=EXPLAINED_DIGITS) for own in FACTORS])]
        return []

    found, problems = of_each_model(results, look)
    return Section("One factor at a time", figures=(_draw(dict(found), folder),) if found else (), problems=problems)


def factor_figure(
    runs: Sequence[LabelledRun], factors: Sequence[str], workspace: Workspace, folder: Path, limit: int | None = None
) -> Drawing:
    """Accuracy of runs on sets in which one factor alone varies, of the first digits."""
    return _draw(
        {own.label: [factor_curve(own.run, name, workspace, limit=limit) for name in factors] for own in runs}, folder
    )


def _draw(curves: dict[str, list[FactorCurve]], folder: Path) -> Drawing:
    """A panel per factor and a line per run with its interval as a band, from the curves of each run."""
    every = [found for own in curves.values() for found in own]
    factors: dict[str, Bins] = {}
    for label, own in curves.items():
        for found in own:
            bins = factors.setdefault(found.factor, {})
            for share in found.points:
                bins.setdefault((share.low, share.high), {})[label] = [share]
    figure, _ = factor_panels(factors, list(curves))
    for axes, factor in zip(figure.axes, factors, strict=False):
        if (reach := getattr(AffineRange(), factor)) is not None:
            axes.axvspan(*reach, color="#000000", alpha=0.05, linewidth=0)
    sizes = sorted({sum(point.n for point in found.points) for found in every})
    caption = (
        f"One factor varies, all others are neutral; each digit once, n = {' / '.join(f'{n:,}' for n in sizes)} a set, "
        "in equal bins with 95% Wilson intervals. Shaded: the range of affNIST. Translations keep the whole digit on "
        "the canvas, so only small digits reach the far ends."
    )
    header = ("run", "seed", "factor", "set", "low", "high", "n", "correct", "accuracy", "ci95_low", "ci95_high")
    rows = (
        (c.run, c.seed, c.factor, c.set, p.low, p.high, p.n, p.correct, p.accuracy, *p.ci95)
        for c in every
        for p in c.points
    )
    name = every[0].run if len(curves) == 1 else f"{len(curves)}-runs"
    return save_drawing(figure, folder / f"factors-{name}.png", "Accuracy over one factor alone", caption, header, rows)
