"""Equivariance: how class capsules move as the input moves, and which factors explain their variance."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from affbench.analysis.capsules import BINS, GRID, Equivariance, equivariance
from affbench.analysis.results import LabelledRun, Results
from affbench.base.workspace import Workspace
from affbench.data.dataset import TRANSFORM_COLUMNS, TRANSFORM_UNITS
from affbench.data.sets import find_part, find_set
from affbench.report.drawing import Drawing, dress, heat_map, panels, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.capsules import SEARCHED, capsule_model
from affbench.report.table import Cell, Table

_FACTORS = (*TRANSFORM_COLUMNS, "original digit")


def section(results: Results, folder: Path) -> Section:
    """All classes of each capsule network; some thousand images a model are looked at."""

    found, problems = of_each_model(results, lambda entry, place: [equivariance_figure(entry, place, folder)])
    return Section("Equivariance", figures=found, problems=problems)


def equivariance_figure(
    shown: LabelledRun, workspace: Workspace, folder: Path, *, digit: int | None = None, per_class: int | None = None
) -> Drawing:
    """Movements, and shares of variance as a table: of one class (50 digits) by dimension, of all (6) by capsule."""
    run = shown.run
    model = capsule_model(run, workspace)
    name = find_set(run.config.data.train_set).digits
    digits = find_part(name, limit=SEARCHED if (per_class or 0) <= 50 else None).load(workspace.data)
    labels = [digit] if digit is not None else np.unique(digits.labels).tolist()
    each = per_class or (50 if digit is not None else 6)
    found = equivariance(model, digits, labels, per_class=each, canvas=run.canvas)
    of = f"{found.digits} test digits of {name} a class in the middle of the canvas."
    if digit is None:
        which, first, parts, shares = "all classes", "class", list(map(str, labels)), found.explained_whole.T
        changes, what = found.moved, "the mean distance of the true class' capsule"
    else:
        which, first, shares = f"class {digit}", "dimension", found.explained[0]
        parts = [str(dimension) for dimension in range(shares.shape[1])]
        changes = np.abs(found.mean - found.mean[:, :, found.mean.shape[2] // 2, None])[:, 0].swapaxes(1, 2)
        what = "how far the mean of each dimension of its capsule is"
    figure, grid = panels(len(GRID), 3.2, 0.7 + 0.26 * len(parts), 0)
    for axes, (factor, values), change in zip(grid, GRID.items(), changes, strict=True):
        heat_map(axes, change, np.char.mod("%.1f", change), high=float(changes.max()) or 1)
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS[factor], first, grid=False)
        axes.set_xticks(range(0, len(values), 2), [f"{value:g}" for value in values[::2]])
        axes.set_yticks(range(len(parts)), parts)
    caption = f"{of} One factor varies; {what} from that without transformation, on one scale of colours."
    rows = tuple(
        (Cell(part, number), *(Cell(f"{100 * share:.1f}", 100 * share) for share in line))
        for number, (part, line) in enumerate(zip(parts, shares.T.tolist(), strict=True))
    )
    columns = (first.capitalize(), *(f"{factor} %".replace("_", "\n") for factor in _FACTORS))
    about = (
        f"{of} Share of the variance that each factor explains when all six vary at once as in affNIST ({found.drawn} "
        f"images a class; one-way correlation ratio over {BINS} bins, adjusted for chance). What is missing to 100% "
        "are interactions."
    )
    table = Table(f"Variance explained, {which}, {shown.label}", columns, rows, about)
    path = folder / f"equivariance-{run.name}{'' if digit is None else f'-digit{digit}'}.png"
    header = ("part", "class", "factor", "value", "dimension", "mean", "sd", "movement", "share_of_variance")
    return save_drawing(figure, path, f"Equivariance of {which}, {shown.label}", caption, header, _rows(found), table)


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
