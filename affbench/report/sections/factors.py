"""One factor at a time: accuracy on sets in which a single factor varies, wider than in affNIST."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from affbench.analysis.factors import FACTORS, FactorCurve, factor_curve, one_factor_set
from affbench.analysis.results import LabelledRun, Result, Results
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.transform import AffineRange
from affbench.report.drawing import GRID, Drawing, Line, draw_lines, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.transformation import factor_lines

EXPLAINED_DIGITS = 2_000  # of each one-factor set
Measured = tuple[str, tuple[int, int], FactorCurve]
"""A label, its look, and what was measured."""


def section(results: Results, folder: Path) -> Section | None:
    """The curves of the models for whose images there is a synthetic set; they are measured for it."""

    def look(entry: Result, workspace: Workspace) -> list[Measured]:
        with contextlib.suppress(UsageError):
            one_factor_set(entry.run.config.data.train_set, "rotation")
            curves = (factor_curve(entry.run, own, workspace, limit=EXPLAINED_DIGITS) for own in FACTORS)
            return [(entry.label, entry.look, curve) for curve in curves]
        return []

    found, problems = of_each_model(results, look)
    return Section("One factor at a time", figures=(_draw(found, folder),) if found else (), problems=problems)


def factor_figure(
    runs: Sequence[LabelledRun], factors: Sequence[str], workspace: Workspace, folder: Path, limit: int | None = None
) -> Drawing:
    """Accuracy of runs on sets in which one factor alone varies, of the first digits."""
    found = [
        (own.label, (number, 0), factor_curve(own.run, name, workspace, limit=limit))
        for number, own in enumerate(runs)
        for name in factors
    ]
    return _draw(found, folder)


def _draw(found: Sequence[Measured], folder: Path) -> Drawing:
    """A panel per factor and a line per run with its interval as a band, from the labelled curves of each run."""
    lines = list[Line]()
    for label, look, curve in found:
        lines += factor_lines(label, "", look, {(curve.factor, own.low, own.high): [own] for own in curve.points})
    figure, places, said = draw_lines(lines, "accuracy %")
    for panel, axes in places.items():
        if (reach := getattr(AffineRange(), panel.replace(" ", "_"))) is not None:
            for own in axes:
                own.axvspan(*reach, color=GRID, alpha=0.4, linewidth=0, zorder=0)
    curves = [curve for _, _, curve in found]
    sizes = sorted({sum(point.n for point in curve.points) for curve in curves})
    caption = (
        f"One factor varies, all others are neutral; each digit once, n = {' / '.join(f'{n:,}' for n in sizes)} a set, "
        "in equal bins with 95% Wilson intervals. Shaded: the range of affNIST. Translations keep the whole digit on "
        f"the canvas, so only small digits reach the far ends.{said}"
    )
    header = ("run", "seed", "factor", "set", "low", "high", "n", "correct", "accuracy", "ci95_low", "ci95_high")
    rows = (
        (c.run, c.seed, c.factor, c.set, p.low, p.high, p.n, p.correct, p.accuracy, *p.ci95)
        for c in curves
        for p in c.points
    )
    labels = {label for label, _, _ in found}
    name = curves[0].run if len(labels) == 1 else f"{len(labels)}-runs"
    return save_drawing(figure, folder / f"factors-{name}.png", "Accuracy over one factor alone", caption, header, rows)
