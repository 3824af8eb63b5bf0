"""Accuracy by position: a map over where the digit lies on the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from affbench.analysis.answers import PositionBin, accuracy_by_position, positions, read_answers
from affbench.analysis.results import Result, Results
from affbench.base.workspace import Workspace
from affbench.data.sets import SetPart
from affbench.report.drawing import INK, Drawing, dress, file_name, new_figure, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.mistakes import answered_parts
from affbench.run.folder import Run

TELLING = 20  # images of a position whose accuracy says something


def section(results: Results, folder: Path) -> Section:
    """A map for each model and affine set it was tested on; nothing is tested for it."""

    def look(entry: Result, workspace: Workspace) -> list[Drawing]:
        return [
            replace(
                position_figure(entry.run, part, workspace, folder),
                title=f"Accuracy by position, {entry.title} on {part.name}",
            )
            for part in answered_parts(entry, workspace)
        ]

    figures, problems = of_each_model(results, look)
    return Section("Accuracy by position", figures=tuple(figures), problems=problems)


def position_figure(run: Run, part: SetPart, workspace: Workspace, folder: Path) -> Drawing:
    """The map of a run, which is tested on the set if it was not before; the number of images stands in brackets."""
    given = read_answers(run, part, workspace)
    bins = accuracy_by_position(given.right, positions(given.dataset), given.dataset.source_index)
    record = given.record
    affine = given.dataset.transforms is not None
    trained = run.config.data.shift if affine else None
    title = f"Accuracy by position, {run.name} on {record.set}"
    figure = new_figure(8.2, 7.2)
    axes = figure.subplots()
    _map(axes, bins)
    if trained:
        _box(axes, bins, trained)
    dress(
        axes,
        title,
        "horizontal position, pixels right of the centre",
        "vertical position, pixels below the centre",
        grid=False,
    )
    figure.colorbar(axes.images[0], ax=axes, fraction=0.04, pad=0.02, label="accuracy %").ax.tick_params(labelsize=8)
    where = "translation" if affine else "middle of the box around the ink"
    box = f" The dashed box holds the positions seen in training (shifts up to {trained} pixels)." if trained else ""
    caption = (
        f"{run.name} on {record.set} ({record.split} split, n = {record.n:,}); position: {where}. The 95% intervals "
        f"are in the CSV; positions with fewer than {TELLING} images, in italics, do not set the colours.{box}"
    )
    header = (
        *("vertical_low", "vertical_high", "horizontal_low", "horizontal_high", "n", "n_originals", "correct"),
        *("accuracy", "ci95_low", "ci95_high"),
    )
    rows = (
        (*own.vertical, *own.horizontal, own.n, own.n_originals, own.correct, own.accuracy, own.low, own.high)
        for own in bins
    )
    path = folder / f"positions-{run.name}-{file_name(record.set)}.png"
    return save_drawing(figure, path, title, caption, header, rows)


def _map(axes: Axes, bins: Sequence[PositionBin]) -> None:
    rows, columns = sorted({own.vertical for own in bins}), sorted({own.horizontal for own in bins})
    shares = np.full((len(rows), len(columns)), np.nan)
    known = [(own, 100 * own.accuracy) for own in bins if own.accuracy is not None]
    # Few images give extreme shares by chance, which would leave the others without contrast.
    scale = [share for own, share in known if own.n >= TELLING] or [share for _, share in known]
    low, high = min(scale), max(scale)
    for own, share in known:
        row, column = rows.index(own.vertical), columns.index(own.horizontal)
        shares[row, column] = share
        bright = (share - low) / max(high - low, 1e-9) > 0.6
        axes.text(
            column, row, f"{share:.1f}\n(n {own.n:,})", ha="center", va="center", fontsize=7.5,
            color=INK if bright else "white", fontstyle="italic" if own.n < TELLING else "normal",
        )  # fmt: skip
    axes.imshow(shares, cmap="viridis", vmin=low, vmax=high if high > low else low + 1)
    for axis, edges in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks([number - 0.5 for number in range(len(edges) + 1)])
        axis.set_ticklabels([f"{value:.3g}".replace("-", "−") for value in [e[0] for e in edges] + [edges[-1][1]]])


def _box(axes: Axes, bins: Sequence[PositionBin], trained: float) -> None:
    """How far digits were shifted in training, in pixels each way."""
    low, high = bins[0].vertical
    middle = (len({own.vertical for own in bins}) - 1) / 2
    reach = trained / (high - low)
    square = Rectangle((middle - reach, middle - reach), 2 * reach, 2 * reach, fill=False, edgecolor="#D55E00")
    square.set(linewidth=1.8, linestyle=(0, (5, 3)))
    axes.add_patch(square)
