"""Pictures of a set: a sheet of samples and the distribution of its transformations.

Digits are shown as dark ink on white paper.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    heading = f"{part.name}, {part.split} split"
    sheet, histograms = folder / f"sample-{part.name}.png", folder / f"factors-{part.name}.png"
    if dataset.transforms is None:
        caption = f"Some of the {part.made_size or len(dataset):,} images of {heading}."
        return [replace(sample_sheet(dataset, sheet, heading=heading, caption=caption), title=f"Sample of {part.name}")]
    originals = originals_of(part, data_dir)
    caption = f"Original digits at the left, transformed versions of each beside it ({heading})."
    images = None if originals is None else originals.images
    sample = sample_sheet(dataset, sheet, images, heading=heading, caption=caption)
    return [
        replace(sample, title=f"Sample of {part.name}"),
        replace(factor_histograms(dataset, histograms), title=f"Factors of {part.name}"),
    ]


def sample_sheet(
    dataset: Dataset,
    path: Path,
    originals: npt.NDArray[np.uint8] | None = None,
    *,
    rows: int = 10,
    columns: int = 12,
    heading: str = "",
    caption: str = "",
) -> Drawing:
    """Draw a sheet of samples.

    A plain set: a row for each class. An affine set with its originals uint8 (M, H, W), which ``source_index`` counts
    in: in each row an original at the left and transformed versions of it beside it, each under its transformation.
    """
    if not len(dataset):
        raise DataError(f"{dataset.name} ({dataset.split}) is empty; there is nothing to show.")
    heading = heading or f"{dataset.name}, {dataset.split}: {len(dataset):,} images"
    if originals is not None and dataset.transforms is not None and dataset.source_index is not None:
        figure, shown = _affine_sheet(dataset, originals, rows, columns, heading)
    else:
        figure, shown = _plain_sheet(dataset, rows, columns, heading)
    return save_drawing(figure, path, heading, caption, *_listed(dataset, shown))


def factor_histograms(dataset: Dataset, path: Path) -> Drawing:
    """Draw the distribution of each of the six factors of an affine set."""
    if dataset.transforms is None or not len(dataset):
        raise DataError(f"{dataset.name} ({dataset.split}) has no transformations to draw.")
    heading = f"Transformations of {dataset.name}, {dataset.split}: {len(dataset):,} images"
    figure, grid = panels(6, 3.2, 2.6, 0, title=heading)
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
    caption = (
        f"The six factors of the transformations of {dataset.name}, {dataset.split} split: {len(dataset):,} of its "
        "images."
    )
    return save_drawing(figure, path, heading, caption, ("factor", "from", "to", "images"), rows)


def _listed(dataset: Dataset, shown: list[npt.NDArray[np.intp]]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The images of a sheet, row by row: which of the set, of what class, from which original and how transformed."""
    header: tuple[str, ...] = ("row", "index", "label")
    rows = [(number, int(i), int(dataset.labels[i])) for number, line in enumerate(shown, start=1) for i in line]
    if dataset.source_index is None or dataset.transforms is None:
        return header, rows
    source, transforms = dataset.source_index, dataset.transforms
    header += ("source_index", *TRANSFORM_COLUMNS)
    return header, [(*row, int(source[row[1]]), *map(float, transforms[row[1]])) for row in rows]


def _plain_sheet(dataset: Dataset, rows: int, columns: int, heading: str) -> tuple[Figure, list[npt.NDArray[np.intp]]]:
    classes = np.unique(dataset.labels)[:rows]
    shown = [np.flatnonzero(dataset.labels == label)[:columns] for label in classes]
    tiles = np.zeros((len(classes), columns, dataset.canvas, dataset.canvas), np.uint8)
    for line, chosen in zip(tiles, shown, strict=True):
        line[: len(chosen)] = dataset.images[chosen]
    figure = new_figure(0.62 * columns + 0.5, 0.62 * len(classes) + 0.6, heading)
    show_sheet(figure.subplots(), tiles, [str(label) for label in classes], [""] * columns, size=11)
    return figure, shown


def _affine_sheet(
    dataset: Dataset, originals: npt.NDArray[np.uint8], rows: int, columns: int, heading: str
) -> tuple[Figure, list[npt.NDArray[np.intp]]]:
    transforms, _ = dataset.table
    versions = _versions(dataset, rows, columns - 1)
    beyond = max(versions, default=0)
    if beyond >= len(originals):
        raise DataError(
            f"{dataset.name} points to original {beyond:,}, but there are {len(originals):,}; give the digits of its "
            f"own split."
        )
    figure = new_figure(0.84 * columns + 0.2, 1.24 * len(versions) + 0.8, heading)
    figure.supxlabel(
        "Left: the original. Above each version: rotation in degrees, shear; vertical × horizontal expansion; shift "
        "down, right in pixels.",
        fontsize=8,
        color=INK,
    )
    grid = figure.subplots(len(versions), 1, squeeze=False)[:, 0]
    for axes, (source, indices) in zip(grid, versions.items(), strict=True):
        tiles = np.zeros((1, columns, dataset.canvas, dataset.canvas), np.uint8)
        tiles[0, 0] = _centred(originals[source], dataset.canvas)
        tiles[0, 1 : 1 + len(indices)] = dataset.images[indices]
        captions = [f"original {source}", *(_caption(transforms[index]) for index in indices)]
        show_sheet(axes, tiles, [""], captions + [""] * (columns - len(captions)), size=6.5)
    return figure, list(versions.values())


def _versions(dataset: Dataset, rows: int, most: int) -> dict[int, npt.NDArray[np.intp]]:
    """Originals to show, of different classes first, and where their versions lie in the set."""
    _, source_index = dataset.table
    sources, first = np.unique(source_index, return_index=True)
    labels = dataset.labels[first]
    # The k-th digit of each class comes before the (k + 1)-th of any.
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = labels == label
        turn[members] = np.arange(members.sum())
    order = np.lexsort((labels, turn))[:rows]
    return {int(source): np.flatnonzero(source_index == source)[:most] for source in sources[order]}


def _caption(transform: npt.NDArray[np.float32]) -> str:
    rotation, shear, vertical, horizontal, down, right = (float(value) for value in transform)
    return f"{rotation:+.0f}°  {shear:+.2f}\n{vertical:.2f} × {horizontal:.2f}\n{down:+.1f}, {right:+.1f}"


def _centred(image: npt.NDArray[np.uint8], canvas: int) -> npt.NDArray[np.uint8]:
    """An original in the middle of the canvas, so that it is shown at the scale of its versions."""
    spare = [max(0, canvas - length) for length in image.shape]
    return np.pad(image, [(length // 2, length - length // 2) for length in spare])
