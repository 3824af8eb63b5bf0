"""Pictures of a set: a sheet of samples and the distribution of its transformations."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.dataset import TRANSFORM_COLUMNS, TRANSFORM_UNITS, Dataset
from affbench.data.sets import SetPart, originals_of, sample_of
from affbench.report.drawing import COLOURS, INK, Band, Drawing, dress, panels, picture_sheet, save_drawing

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
    dataset: Dataset, path: Path, originals: npt.NDArray[np.uint8] | None = None, *, rows: int = 10, columns: int = 12
) -> Drawing:
    """Draw a row for each class; of an affine set, whose ``source_index`` counts in `originals` (M, H, W), versions."""
    if not len(dataset):
        raise DataError(f"{dataset.name} ({dataset.split}) is empty; there is nothing to show.")
    header: tuple[str, ...] = ("row", "index", "label")
    table = np.zeros((len(dataset), 0))
    if dataset.transforms is not None:
        header += ("source_index", *TRANSFORM_COLUMNS)
        table = np.column_stack(dataset.table[::-1])
    if originals is None:
        classes = np.unique(dataset.labels)[:rows]
        shown = [np.flatnonzero(dataset.labels == label)[:columns] for label in classes]
        pictures = [dataset.images[chosen] for chosen in shown]
        figure = picture_sheet(Band(pictures, [f"class {label}" for label in classes], [""] * columns))
        caption = "Some of its images, a row for each class."
    else:
        shown = _versions(dataset, rows, columns - 1)
        figure = picture_sheet(*(_band(dataset, originals, chosen) for chosen in shown), size=0.84)
        caption = (
            "Original digits at the left, transformed versions of each beside it. Above each: rotation in degrees, "
            "shear; vertical × horizontal expansion; shift down, right in pixels."
        )
    listed = [(row, int(i), int(dataset.labels[i]), *table[i]) for row, line in enumerate(shown, 1) for i in line]
    title = f"Sample of {dataset.name}, {dataset.split} split"
    return save_drawing(figure, path, title, caption, header, listed)


def factor_histograms(dataset: Dataset, path: Path) -> Drawing:
    """Draw the distribution of each of the six factors of an affine set."""
    figure, grid = panels(6, 3.2, 2.6, 0)
    rows = []
    for axes, name, values in zip(grid, TRANSFORM_COLUMNS, dataset.table[0].T, strict=True):
        whole = (values == np.rint(values)).all()  # translations: a bin for each number
        bins = np.arange(values.min(), values.max() + 2) - 0.5 if whole else 40
        counts, edges = np.histogram(values, bins, range=(float(values.min()), float(values.max())))
        rows += [(name, *ends, int(n)) for n, *ends in zip(counts, edges[:-1], edges[1:], strict=True)]
        axes.stairs(counts, edges, fill=True, color=COLOURS[0])
        dress(axes, name.replace("_", " "), f"{TRANSFORM_UNITS[name]}; {values.min():.3g} to {values.max():.3g}")
        axes.set_ylim(bottom=0)
    figure.supylabel("images", fontsize=9, color=INK)
    title = f"Factors of {dataset.name}, {dataset.split} split"
    caption = f"The six factors of the transformations of {len(dataset):,} of its images."
    return save_drawing(figure, path, title, caption, ("factor", "from", "to", "images"), rows)


def _band(dataset: Dataset, originals: npt.NDArray[np.uint8], chosen: npt.NDArray[np.intp]) -> Band:
    """An original, in the middle of the canvas to be shown at the same scale, and versions of it."""
    transforms, source_index = dataset.table
    source = int(source_index[chosen[0]])
    spare = [dataset.canvas - length for length in originals.shape[1:]]
    original = np.pad(originals[source], [(width // 2, width - width // 2) for width in spare])
    heads = [f"original {source}"]
    for rotation, shear, vertical, horizontal, down, right in transforms[chosen].tolist():
        sizes = f"{vertical:.2f} × {horizontal:.2f}"
        heads.append(f"{rotation:+.0f}°  {shear:+.2f}\n{sizes}\n{down:+.1f}, {right:+.1f}")
    return Band([np.stack([original, *dataset.images[chosen]])], [""], heads)


def _versions(dataset: Dataset, rows: int, most: int) -> list[npt.NDArray[np.intp]]:
    """Where the versions of some originals lie in the set: the first of each class, then the second, and so on."""
    _, source_index = dataset.table
    sources, first = np.unique(source_index, return_index=True)
    labels = dataset.labels[first]
    classes = [sources[labels == label][:rows].tolist() for label in np.unique(labels)]
    order = [source for turn in itertools.zip_longest(*classes) for source in turn if source is not None]
    return [np.flatnonzero(source_index == source)[:most] for source in order[:rows]]
