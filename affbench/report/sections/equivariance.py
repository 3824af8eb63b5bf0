"""Equivariance: how class capsules move as the input moves, and which factors explain their variance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from affbench.analysis.capsules import BINS, Curve, Equivariance, equivariance, has_capsules
from affbench.analysis.results import Result, Results
from affbench.base.workspace import Workspace
from affbench.data.dataset import TRANSFORM_COLUMNS, TRANSFORM_UNITS
from affbench.data.sets import find_part
from affbench.report.drawing import INK, Drawing, dress, line_look, new_figure, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.capsules import SEARCHED, capsule_model, check_digit, original_set
from affbench.report.table import Cell, Table
from affbench.run.folder import Run
from affbench.run.record import load_model, model_canvas

_HIGHLIGHTED = 4  # dimensions with a colour of their own in a panel
_NAMES = [name.replace("_", " ") for name in (*TRANSFORM_COLUMNS, "original digit")]


def section(results: Results, folder: Path) -> Section:
    """All classes of each capsule network; some thousand images a model are looked at."""

    def look(entry: Result, workspace: Workspace) -> list[tuple[Drawing, Table]]:
        if not has_capsules(load_model(entry.run)):
            return []
        drawing, table = equivariance_figure(entry.run, workspace, folder)
        title = f"Variance explained, all classes, {entry.title}"
        return [(replace(drawing, title=f"Equivariance, {entry.title}"), replace(table, title=title))]

    found, problems = of_each_model(results, look)
    tables, figures = tuple(table for _, table in found), tuple(drawing for drawing, _ in found)
    return Section("Equivariance", tables, figures, problems=problems)


def equivariance_figure(
    run: Run, workspace: Workspace, folder: Path, *, digit: int | None = None, per_class: int | None = None
) -> tuple[Drawing, Table]:
    """Figure and shares of variance of one class, dimension by dimension, or of all, each capsule as a whole.

    Test digits of each class are 50 for one class and 6 for all, unless it is said how many.
    """
    if digit is not None:
        check_digit(digit)
    model = capsule_model(run, workspace)
    name = original_set(run)
    digits = find_part(name, limit=SEARCHED if (per_class or 0) <= 50 else None).load(workspace.data)
    labels = [digit] if digit is not None else np.unique(digits.labels).tolist()
    each = per_class or (50 if digit is not None else 6)
    found = equivariance(model, digits, labels, per_class=each, canvas=model_canvas(run))
    which, means = f"class {digit}", "the mean of each dimension, in colour the four that move most"
    if digit is None:
        which = "all classes"
        means = "the mean distance of the true class' capsule from its value without transformation"
    caption = (
        f"{found.digits} test digits of {name} a class in the middle of the canvas. Curves: one factor varies, "
        f"{means}. Below: share of the variance that each factor explains when all six vary at once as in affNIST "
        f"({found.drawn} images a class; one-way correlation ratio over {BINS} bins, adjusted for chance). "
        "What is missing to 100% are interactions."
    )
    path = folder / f"equivariance-{run.name}{'' if digit is None else f'-digit{digit}'}.png"
    drawing = _draw(found, path, f"Equivariance of {which}, {run.name}", caption)
    return drawing, _table(found, f"Variance explained, {which}, {run.name}", caption)


def _table(found: Equivariance, title: str, caption: str) -> Table:
    """Shares of variance in percent: a row per dimension of one class, or per class; a column per factor."""
    names, shares, first = [str(label) for label in found.labels], found.explained_whole, "Class"
    if len(found.labels) == 1:
        names, shares, first = [str(d) for d in range(found.explained.shape[2])], found.explained[0].T, "Dimension"
    rows = tuple(
        (Cell(name, number), *(Cell(f"{100 * share:.1f}", 100 * share) for share in line))
        for number, (name, line) in enumerate(zip(names, shares.tolist(), strict=True))
    )
    return Table(title, (first, *(f"{name} %" for name in _NAMES)), rows, caption)


def _draw(found: Equivariance, path: Path, title: str, caption: str) -> Drawing:
    """Curves of a class capsule over each factor, and the shares of variance the factors explain as a heat map."""
    single = len(found.labels) == 1
    figure = new_figure(10, 7.9 if single else 8.6, title)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.55, 1))
    upper, lower = halves
    panels = upper.subplots(2, 3, sharey=True)
    for axes, curve in zip(panels.flat, found.curves, strict=True):
        if single:
            _dimension_curves(axes, curve)
        else:
            for number in range(len(found.labels)):
                axes.plot(curve.values, curve.moved[number], **line_look(number) | {"markersize": 3})
        dress(axes, curve.factor.replace("_", " "), TRANSFORM_UNITS[curve.factor])
    for axes in panels[:, 0]:
        axes.set_ylabel("mean over digits" if single else "mean movement")
    names = [f"class {label}" for label in found.labels]
    if single:
        _heat(lower, found.explained[0], [str(d) for d in range(found.explained.shape[2])])
        lower.axes[0].set_xlabel("dimension of the class capsule")
    else:
        look: dict[str, Any] = {"fontsize": 8, "frameon": False, "handlelength": 2.4, "columnspacing": 0.9}
        upper.legend(panels[0, 0].get_lines(), names, loc="outside lower center", ncols=len(names), **look)
        _heat(lower, found.explained_whole.T, names)
    header = ("part", "class", "factor", "value", "dimension", "mean", "sd", "movement", "share_of_variance")
    return save_drawing(figure, path, title, caption, header, _rows(found))


def _dimension_curves(axes: Axes, curve: Curve) -> None:
    mean = curve.mean[0]  # (V, D)
    marked = sorted(np.argsort(-np.ptp(mean, axis=0))[:_HIGHLIGHTED].tolist())
    for dimension in range(mean.shape[1]):
        if dimension not in marked:
            axes.plot(curve.values, mean[:, dimension], color="#c4c4c4", linewidth=0.8)
    for number, dimension in enumerate(marked):
        look = line_look(number) | {"markersize": 3}
        axes.plot(curve.values, mean[:, dimension], label=str(dimension), **look)
    axes.legend(
        fontsize=7, frameon=True, framealpha=0.85, edgecolor="none", title="dimension", title_fontsize=7, ncols=4,
        loc="upper center", handlelength=1.2, columnspacing=0.8, borderpad=0.2,
    )  # fmt: skip
    axes.margins(y=0.22)


def _heat(figure: SubFigure, shares: npt.NDArray[np.float64], columns: Sequence[str]) -> None:
    """Shares (F, D or K) as a heat map with a number in every cell."""
    axes = figure.subplots()
    most = max(float(shares.max()), 0.05)
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100 * most, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.6 * most else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    dress(axes, "Variance explained, %", grid=False)
    axes.set_xticks(range(len(columns)), list(columns))
    short = [name.replace("vertical", "v.").replace("horizontal", "h.") for name in _NAMES]
    axes.set_yticks(range(len(short)), short)
    figure.colorbar(picture, ax=axes, fraction=0.025, pad=0.01).ax.tick_params(labelsize=7.5, colors=INK)


def _rows(found: Equivariance) -> Iterator[tuple[Any, ...]]:
    for number, label in enumerate(found.labels):
        for curve in found.curves:
            for v, value in enumerate(curve.values):
                start = (label, curve.factor, value)
                yield ("movement", *start, None, None, None, float(curve.moved[number, v]), None)
                for d, (mean, sd) in enumerate(zip(curve.mean[number, v], curve.sd[number, v], strict=True)):
                    yield ("curve", *start, d, float(mean), float(sd), None, None)
        for f, factor in enumerate((*TRANSFORM_COLUMNS, "original digit")):
            yield ("variance", label, factor, None, "all", None, None, None, found.explained_whole[number, f])
            for d, share in enumerate(found.explained[number, f]):
                yield ("variance", label, factor, None, d, None, None, None, share)
