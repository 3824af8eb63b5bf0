"""Equivariance: how class capsules move as the input moves, and which factors explain their variance."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from affbench.analysis.capsules import BINS, GRID, Equivariance, Floats, equivariance
from affbench.analysis.results import LabelledRun, Results
from affbench.base.workspace import Workspace
from affbench.data.dataset import TRANSFORM_COLUMNS, TRANSFORM_UNITS
from affbench.data.sets import find_part, find_set
from affbench.report.drawing import INK, Drawing, dress, heat_map, line_look, new_figure, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.capsules import SEARCHED, capsule_model
from affbench.report.table import Cell, Table

_HIGHLIGHTED = 4  # dimensions with a colour of their own in a panel
_FACTORS = (*TRANSFORM_COLUMNS, "original digit")
_NAMES = [name.replace("_", " ") for name in _FACTORS]


def section(results: Results, folder: Path) -> Section:
    """All classes of each capsule network; some thousand images a model are looked at."""

    found, problems = of_each_model(results, lambda entry, place: [equivariance_figure(entry, place, folder)])
    tables, figures = tuple(table for _, table in found), tuple(drawing for drawing, _ in found)
    return Section("Equivariance", tables, figures, problems=problems)


def equivariance_figure(
    shown: LabelledRun, workspace: Workspace, folder: Path, *, digit: int | None = None, per_class: int | None = None
) -> tuple[Drawing, Table]:
    """Figure and shares of variance: of one class (50 digits) by dimension, of all (6 each) by capsule."""
    run = shown.run
    model = capsule_model(run, workspace)
    name = find_set(run.config.data.train_set).digits
    digits = find_part(name, limit=SEARCHED if (per_class or 0) <= 50 else None).load(workspace.data)
    labels = [digit] if digit is not None else np.unique(digits.labels).tolist()
    each = per_class or (50 if digit is not None else 6)
    found = equivariance(model, digits, labels, per_class=each, canvas=run.canvas)
    which, means = "all classes", "the mean distance of the true class' capsule from its value without transformation"
    first, parts, shares = "Class", [str(label) for label in labels], found.explained_whole.T
    if digit is not None:
        which, means = f"class {digit}", "the mean of each dimension, in colour the four that move most"
        first, parts, shares = "Dimension", [str(d) for d in range(found.explained.shape[2])], found.explained[0]
    caption = (
        f"{found.digits} test digits of {name} a class in the middle of the canvas. Curves: one factor varies, "
        f"{means}. Below: share of the variance that each factor explains when all six vary at once as in affNIST "
        f"({found.drawn} images a class; one-way correlation ratio over {BINS} bins, adjusted for chance). "
        "What is missing to 100% are interactions."
    )
    path = folder / f"equivariance-{run.name}{'' if digit is None else f'-digit{digit}'}.png"
    title = f"Equivariance of {which}, {shown.label}"
    header = ("part", "class", "factor", "value", "dimension", "mean", "sd", "movement", "share_of_variance")
    drawing = save_drawing(_draw(found, parts, shares), path, title, caption, header, _rows(found))
    rows = tuple(
        (Cell(part, number), *(Cell(f"{100 * share:.1f}", 100 * share) for share in line))
        for number, (part, line) in enumerate(zip(parts, shares.T.tolist(), strict=True))
    )
    columns = (first, *(f"{factor} %" for factor in _NAMES))
    return drawing, Table(f"Variance explained, {which}, {shown.label}", columns, rows, caption)


def _draw(found: Equivariance, parts: list[str], shares: npt.NDArray[np.float64]) -> Figure:
    """Curves of class capsules over each factor, and the shares (F, D or K) of variance it explains as a heat map."""
    single = len(found.labels) == 1
    figure = new_figure(10, 7.9 if single else 8.6)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.55, 1))
    upper, lower = halves
    panels = upper.subplots(2, 3, sharey=True)
    for axes, (factor, values), mean, moved in zip(panels.flat, GRID.items(), found.mean, found.moved, strict=True):
        if single:
            _dimension_curves(axes, values, mean[0])
        else:
            for number, own in enumerate(moved):
                axes.plot(values, own, **line_look(number) | {"markersize": 3})
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS[factor])
    for axes in panels[:, 0]:
        axes.set_ylabel("mean over digits" if single else "mean movement")
    if not single:
        names, look = [f"class {part}" for part in parts], {"fontsize": 8, "frameon": False, "handlelength": 2.4}
        lines = panels[0, 0].get_lines()
        upper.legend(lines, names, loc="outside lower center", ncols=len(names), columnspacing=0.9, **look)
    axes = lower.subplots()
    picture = heat_map(axes, 100 * shares, high=100 * max(float(shares.max()), 0.05), aspect="auto")
    dress(axes, "Variance explained, %", "dimension of the class capsule" if single else "class", grid=False)
    axes.set_xticks(range(len(parts)), parts)
    axes.set_yticks(range(len(_NAMES)), _NAMES)
    lower.colorbar(picture, ax=axes, fraction=0.025, pad=0.01).ax.tick_params(labelsize=7.5, colors=INK)
    return figure


def _dimension_curves(axes: Axes, values: Sequence[float], mean: Floats) -> None:
    """A line for each dimension of a capsule (V, D), in colour those that move most."""
    marked = sorted(np.argsort(-np.ptp(mean, axis=0))[:_HIGHLIGHTED].tolist())
    axes.plot(values, np.delete(mean, marked, axis=1), color="#c4c4c4", linewidth=0.8)
    for number, dimension in enumerate(marked):
        look = line_look(number) | {"markersize": 3}
        axes.plot(values, mean[:, dimension], label=str(dimension), **look)
    axes.legend(
        fontsize=7, frameon=True, framealpha=0.85, edgecolor="none", title="dimension", title_fontsize=7, ncols=4,
        loc="upper center", handlelength=1.2, columnspacing=0.8, borderpad=0.2,
    )  # fmt: skip
    axes.margins(y=0.22)


def _rows(found: Equivariance) -> Iterator[tuple[Any, ...]]:
    for number, label in enumerate(found.labels):
        for f, (factor, values) in enumerate(GRID.items()):
            for v, value in enumerate(values):
                place, start = (f, number, v), (label, factor, value)
                yield ("movement", *start, None, None, None, found.moved[place], None)
                for d, (mean, sd) in enumerate(zip(found.mean[place], found.sd[place], strict=True)):
                    yield ("curve", *start, d, mean, sd, None, None)
        for f, factor in enumerate(_FACTORS):
            yield ("variance", label, factor, None, "all", None, None, None, found.explained_whole[number, f])
            for d, share in enumerate(found.explained[number, f]):
                yield ("variance", label, factor, None, d, None, None, None, share)
