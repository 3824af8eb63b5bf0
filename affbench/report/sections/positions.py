"""Accuracy by position: a map over where the digit lies on the canvas."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from affbench.analysis.answers import BIN_WIDTH, PositionBin, accuracy_by_position, positions, read_answers
from affbench.analysis.results import LabelledRun, Results
from affbench.base.workspace import Workspace
from affbench.data.sets import SetPart
from affbench.report.drawing import Drawing, dress, file_name, heat_map, new_figure, save_drawing
from affbench.report.sections import Section, of_each_model
from affbench.report.sections.mistakes import answered_parts

TELLING = 20  # images of a position whose accuracy says something


def section(results: Results, folder: Path) -> Section:
    """A map for each model and affine set it was tested on; nothing is tested for it."""

    figures, problems = of_each_model(
        results,
        lambda run, place: [position_figure(run, part, place, folder) for part in answered_parts(run, place)],
    )
    return Section("Accuracy by position", figures=figures, problems=problems)


def position_figure(shown: LabelledRun, part: SetPart, workspace: Workspace, folder: Path) -> Drawing:
    """The map of a run, which is tested on the set if it was not before; the number of images stands in brackets."""
    given = read_answers(shown.run, part, workspace)
    record, right = given.record, given.predictions == given.dataset.labels
    bins = accuracy_by_position(right, positions(given.dataset), given.dataset.source_index)
    affine = given.dataset.transforms is not None
    trained = shown.run.config.data.shift if affine else None
    title = f"Accuracy by position, {shown.label} on {record.set}"
    figure = new_figure(8.2, 7.2)
    axes = figure.subplots()
    _map(axes, bins)
    if trained:
        middle, reach = (len(bins) ** 0.5 - 1) / 2, trained / BIN_WIDTH
        box = Rectangle((middle - reach, middle - reach), 2 * reach, 2 * reach, fill=False, edgecolor="#D55E00")
        box.set(linewidth=1.8, linestyle=(0, (5, 3)))
        axes.add_patch(box)
    beside, below = "horizontal position, pixels right of the centre", "vertical position, pixels below the centre"
    dress(axes, "", beside, below, grid=False)
    figure.colorbar(axes.images[0], ax=axes, fraction=0.04, pad=0.02, label="accuracy %").ax.tick_params(labelsize=8)
    where = "translation" if affine else "middle of the box around the ink"
    held = f" The dashed box holds the positions seen in training (shifts up to {trained} pixels)." if trained else ""
    caption = (
        f"{record.split.capitalize()} split, n = {record.n:,}; position: {where}. The 95% intervals are in the CSV; "
        f"positions with fewer than {TELLING} images have no colour.{held}"
    )
    edges = ("vertical_low", "vertical_high", "horizontal_low", "horizontal_high")
    header = (*edges, "n", "n_originals", "correct", "accuracy", "ci95_low", "ci95_high")
    rows = ((*own.vertical, *own.horizontal, *astuple(own)[2:]) for own in bins)
    path = folder / f"positions-{shown.run.name}-{file_name(record.set)}.png"
    return save_drawing(figure, path, title, caption, header, rows)


def _map(axes: Axes, bins: Sequence[PositionBin]) -> None:
    """A square of bins, row by row; few images give extreme shares by chance, so they have no colour."""
    shape = (round(len(bins) ** 0.5), -1)
    shares = np.array([100 * own.accuracy if own.accuracy is not None else np.nan for own in bins])
    coloured = np.where(np.array([own.n for own in bins]) >= TELLING, shares, np.nan)
    known = coloured[~np.isnan(coloured)]
    low, high = (known.min(), known.max()) if len(known) else (0, 100)
    texts = [f"{share:.1f}\n(n {own.n:,})" if own.n else "" for share, own in zip(shares, bins, strict=True)]
    high = high if high > low else low + 1
    heat_map(axes, coloured.reshape(shape), texts=np.reshape(texts, shape), low=low, high=high, cmap="viridis")
    edges = sorted({edge for own in bins for edge in own.vertical})
    places, texts = np.arange(len(edges)) - 0.5, [f"{edge:.3g}".replace("-", "−") for edge in edges]
    axes.set_xticks(places, texts)
    axes.set_yticks(places, texts)
