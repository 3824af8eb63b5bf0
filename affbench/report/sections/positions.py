"""Accuracy by position: maps over where the digit lies on the canvas, of all networks on one scale."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.patches import Rectangle

from affbench.analysis.answers import BIN_WIDTH, PositionBin, accuracy_by_position, positions, read_answers
from affbench.analysis.results import LabelledRun, Result, Results
from affbench.base.workspace import Workspace
from affbench.data.sets import SetPart
from affbench.report.drawing import COLOURS, GRID, INK, Drawing, dress, file_name, heat_map, panels, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.mistakes import answered_parts
from affbench.report.table import span
from affbench.run.folder import EvaluationRecord

TELLING = 20  # images of a position whose accuracy says something
Map = tuple[LabelledRun, EvaluationRecord, list[PositionBin]]
"""What a run answered on a set, in squares of the canvas, row by row."""


def section(results: Results, folder: Path) -> Section:
    """The maps of the first models for each affine set they were tested on; nothing is tested for it."""

    def look(entry: Result, workspace: Workspace) -> list[Map]:
        return [position_map(entry, part, workspace) for part in answered_parts(entry, workspace)]

    found, problems = of_each_model(results, look)
    sets = dict.fromkeys(record.set for _, record, _ in found)
    figures = (position_figure([own for own in found if own[1].set == name], folder) for name in sets)
    return Section("Accuracy by position", figures=tuple(figures), problems=problems)


def position_map(shown: LabelledRun, part: SetPart, workspace: Workspace) -> Map:
    """The map of a run, which is tested on the set if it was not before."""
    given = read_answers(shown.run, part, workspace)
    right = given.predictions == given.dataset.labels
    return shown, given.record, accuracy_by_position(right, positions(given.dataset), given.dataset.source_index)


def position_figure(maps: Sequence[Map], folder: Path) -> Drawing:
    """The maps of runs on one set: one scale, one extent; few images give extreme shares by chance and no colour."""
    record = maps[0][1]
    affine = record.by_transformation is not None
    shares = [_square([np.nan if own.accuracy is None else 100 * own.accuracy for own in bins]) for *_, bins in maps]
    telling = [_square([float(own.n) for own in bins]) >= TELLING for *_, bins in maps]
    known = np.concatenate([own[enough] for own, enough in zip(shares, telling, strict=True)])
    low, high = (known.min(), known.max()) if len(known) else (0.0, 100.0)
    largest = max(shares, key=len)
    held = (np.flatnonzero(~np.isnan(largest).all(axis)) for axis in (1, 0))
    down, right = (len(largest) / 2 - min(own[0], len(largest) - 1 - own[-1]) for own in held)
    figure, grid = panels(len(maps), 3.4, 3.4 * down / right, 0.6, columns=2 if len(maps) == 4 else 3)
    figure.set_layout_engine("compressed")
    for axes, (shown, *_), share, enough in zip(grid, maps, shares, telling, strict=True):
        texts = np.where(enough, np.char.mod("%.0f", share), "")
        cells = heat_map(axes, np.where(enough, share, np.nan), texts, low=low, high=max(high, low + 1), cmap="viridis")
        few = np.ma.masked_where(enough | np.isnan(share), share)
        middle = (len(share) - 1) / 2
        edges = np.arange(len(share) + 1) - 0.5
        axes.pcolor(edges, edges, few, hatch="////", facecolor="none", edgecolor=GRID, linewidth=0)
        if trained := shown.run.config.data.shift if affine else None:
            side, corner = 2 * trained / BIN_WIDTH, middle - trained / BIN_WIDTH
            box = Rectangle(
                (corner, corner), side, side, fill=False, edgecolor=COLOURS[1], linewidth=1.8, linestyle="--"
            )
            axes.add_patch(box)
        dress(axes, shown.label, "pixels right of the centre", "pixels below the centre", grid=False, width=32)
        numbers = [f"{BIN_WIDTH * (edge - middle):.3g}".replace("-", "−") for edge in edges]
        axes.set_xticks(edges[1::2], numbers[1::2])
        axes.set_yticks(edges[1::2], numbers[1::2])
        axes.set_xlim(middle - right, middle + right)
        axes.set_ylim(middle + down, middle - down)
    bar = figure.colorbar(cells, ax=grid, fraction=0.03, pad=0.02, shrink=0.8)
    bar.set_label("accuracy %", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    n = span(own.n for _, own, _ in maps)
    caption = (
        f"{record.set}, {record.split}, n = {n}; position: {'translation' if affine else 'middle of the ink'}. One "
        "scale and one extent for all networks. Intervals and numbers of images are in the data; positions with fewer "
        f"than {TELLING} images are hatched, those without any are blank."
        f"{' The dashed box holds the positions seen in training.' if trained else ''}"
    )
    edges_of = ("vertical_low", "vertical_high", "horizontal_low", "horizontal_high")
    header = ("run", *edges_of, "n", "n_originals", "correct", "accuracy", "ci95_low", "ci95_high")
    rows = (
        (shown.run.name, *own.vertical, *own.horizontal, *astuple(own)[2:]) for shown, _, bins in maps for own in bins
    )
    name = maps[0][0].run.name if len(maps) == 1 else f"{len(maps)}-runs"
    path = folder / f"positions-{name}-{file_name(record.set)}.png"
    return save_drawing(figure, path, f"Accuracy by position, {record.set}", caption, header, rows)


def _square(values: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.reshape(np.array(values, np.float64), (round(len(values) ** 0.5), -1))
