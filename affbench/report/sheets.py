"""Pictures of a set: a sheet of samples and the distribution of its transformations."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from affbench.base.errors import DataError
from affbench.data.dataset import TRANSFORM_COLUMNS, TRANSFORM_UNITS, Dataset
from affbench.data.sets import SetPart, originals_of, sample_of
from affbench.report.drawing import COLOURS, INK, Drawing, dress, new_figure, panels, save_drawing, show_sheet

SHEET_IMAGES = 2_000  # enough of a set to find every class
SHEET_DIGITS, SHEET_COPIES = 200, 12  # of an affine set, enough for the histograms of its factors


def set_drawings(part: SetPart, data_dir: Path, folder: Path) -> list[Drawing]:
    """A sheet of a set, and the histograms of the factors of an affine one."""
    if part.spec.form == "affine":
        dataset = sample_of(replace(part, copies=SHEET_COPIES), SHEET_DIGITS, data_dir)
    else:
        dataset = replace(part, limit=None if part.spec.affine else SHEET_IMAGES).load(data_dir)
    path = folder / f"sample-{part.name}.png"
    if dataset.transforms is None:
        return [sample_sheet(dataset, path)]
    originals = originals_of(part, data_dir)
    sheet = sample_sheet(dataset, path, None if originals is None else originals.images)
    return [sheet, factor_histograms(dataset, folder / f"factors-{part.name}.png")]


def sample_sheet(
    dataset: Dataset,
    path: Path,
    originals: npt.NDArray[np.uint8] | None = None,
    *,
    rows: int = 10,
    columns: int = 12,
) -> Drawing:
    """Draw a sheet of samples.

    A plain set: a row for each class. An affine set with its originals uint8 (M, H, W), which ``source_index`` counts
    in: in each row an original at the left and transformed versions of it beside it, each under its transformation.
    """
    if not len(dataset):
        raise DataError(f"{dataset.name} ({dataset.split}) is empty; there is nothing to show.")
    title, caption = f"Sample of {dataset.name}, {dataset.split} split", "Some of its images, a row for each class."
    affine = dataset.transforms is not None and dataset.source_index is not None
    if originals is None or not affine:
        shown = [np.flatnonzero(dataset.labels == label)[:columns] for label in np.unique(dataset.labels)[:rows]]
        figure = _plain_sheet(dataset, shown, columns, title)
    else:
        shown = _versions(dataset, rows, columns - 1)
        figure = _affine_sheet(dataset, originals, shown, columns, title)
        caption = "Original digits at the left, transformed versions of each beside it."
    header: tuple[str, ...] = ("row", "index", "label")
    listed = [(number, int(i), int(dataset.labels[i])) for number, line in enumerate(shown, start=1) for i in line]
    if not affine:
        return save_drawing(figure, path, title, caption, header, listed)
    transforms, source = dataset.table
    header += ("source_index", *TRANSFORM_COLUMNS)
    whole = [(*row, int(source[row[1]]), *map(float, transforms[row[1]])) for row in listed]
    return save_drawing(figure, path, title, caption, header, whole)


def factor_histograms(dataset: Dataset, path: Path) -> Drawing:
    """Draw the distribution of each of the six factors of an affine set."""
    if dataset.transforms is None or not len(dataset):
        raise DataError(f"{dataset.name} ({dataset.split}) has no transformations to draw.")
    title = f"Factors of {dataset.name}, {dataset.split} split"
    figure, grid = panels(6, 3.2, 2.6, 0, title=title)
    rows = []
    for axes, name, values in zip(grid, TRANSFORM_COLUMNS, dataset.transforms.T, strict=True):
        low, high = float(values.min()), float(values.max())
        if low == high:  # a factor that is switched off
            low, high = low - 0.5, high + 0.5
        if (values == np.rint(values)).all():  # translations: a bin for each whole number
            counts, edges = np.histogram(values, np.arange(math.floor(low), math.ceil(high) + 2) - 0.5)
        else:
            counts, edges = np.histogram(values, bins=40, range=(low, high))
        rows += [(name, *ends, int(n)) for n, *ends in zip(counts, edges[:-1], edges[1:], strict=True)]
        axes.stairs(counts, edges, fill=True, color=COLOURS[0])
        dress(axes, name.replace("_", " "), f"{TRANSFORM_UNITS[name]}; {values.min():.3g} to {values.max():.3g}")
        axes.set_ylim(bottom=0)
    figure.supylabel("images", fontsize=9, color=INK)
    caption = f"The six factors of the transformations of {len(dataset):,} of its images."
    return save_drawing(figure, path, title, caption, ("factor", "from", "to", "images"), rows)


def _plain_sheet(dataset: Dataset, shown: list[npt.NDArray[np.intp]], columns: int, title: str) -> Figure:
    """A row for each class."""
    tiles = np.zeros((len(shown), columns, dataset.canvas, dataset.canvas), np.uint8)
    for line, chosen in zip(tiles, shown, strict=True):
        line[: len(chosen)] = dataset.images[chosen]
    figure = new_figure(0.62 * columns + 0.5, 0.62 * len(shown) + 0.6, title)
    names = [str(dataset.labels[chosen[0]]) for chosen in shown]
    show_sheet(figure.subplots(), tiles, names, [""] * columns, size=11)
    return figure


def _affine_sheet(
    dataset: Dataset, originals: npt.NDArray[np.uint8], shown: list[npt.NDArray[np.intp]], columns: int, title: str
) -> Figure:
    """A row for each original: the digit itself, then versions of it under their transformations."""
    transforms, source_index = dataset.table
    sources = [int(source_index[chosen[0]]) for chosen in shown]
    if max(sources) >= len(originals):
        raise DataError(
            f"{dataset.name} points to original {max(sources):,}, but there are {len(originals):,}; give the digits of "
            "its own split."
        )
    figure = new_figure(0.84 * columns + 0.2, 1.24 * len(shown) + 0.8, title)
    figure.supxlabel(
        "Left: the original. Above each version: rotation in degrees, shear; vertical × horizontal expansion; shift "
        "down, right in pixels.",
        fontsize=8,
        color=INK,
    )
    # An original stands in the middle of the canvas, so that it is shown at the scale of its versions.
    spare = [
        (length // 2, length - length // 2) for length in np.maximum(0, dataset.canvas - np.array(originals.shape[1:]))
    ]
    for axes, source, chosen in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], sources, shown, strict=True):
        tiles = np.zeros((1, columns, dataset.canvas, dataset.canvas), np.uint8)
        tiles[0, 0] = np.pad(originals[source], spare)
        tiles[0, 1 : 1 + len(chosen)] = dataset.images[chosen]
        captions = [f"original {source}"] + [""] * (columns - 1)
        for place, (rotation, shear, vertical, horizontal, down, right) in enumerate(transforms[chosen].tolist(), 1):
            sizes = f"{vertical:.2f} × {horizontal:.2f}"
            captions[place] = f"{rotation:+.0f}°  {shear:+.2f}\n{sizes}\n{down:+.1f}, {right:+.1f}"
        show_sheet(axes, tiles, [""], captions, size=6.5)
    return figure


def _versions(dataset: Dataset, rows: int, most: int) -> list[npt.NDArray[np.intp]]:
    """Where the versions of some originals lie in the set: the first of each class, then the second, and so on."""
    _, source_index = dataset.table
    sources, first = np.unique(source_index, return_index=True)
    labels = dataset.labels[first]
    classes = [sources[labels == label][:rows].tolist() for label in np.unique(labels)]
    order = [source for turn in itertools.zip_longest(*classes) for source in turn if source is not None]
    return [np.flatnonzero(source_index == source)[:most] for source in order[:rows]]
