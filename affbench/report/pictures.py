"""Pictures of sets and models for a report: sample sheets, and real digits over their reconstructions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from affbench import store
from affbench.data import catalogue
from affbench.data.batches import to_float
from affbench.data.dataset import Dataset
from affbench.evaluation import load_model
from affbench.report.page import Picture
from affbench.report.results import LabelledRun
from affbench.report.sheets import factor_histograms, sample_sheet
from affbench.workspace import Workspace

DIGITS_A_CLASS = 2
SHEET_IMAGES = 2_000  # enough of a set to find every class
SHEET_DIGITS, SHEET_COPIES = 200, 12  # of an affine set, enough for the histograms of its factors


def sample_pictures(sets: Iterable[str], data_dir: Path, folder: Path, split: str = "test") -> list[Picture]:
    """A sheet of each set, and the histograms of the factors of affine ones.

    Parameters
    ----------
    sets
        Names of sets that are there.
    data_dir
        Folder of the data.
    folder
        Where the PNG files go.
    split
        Which split of each set.
    """
    pictures = []
    for name in sets:
        spec = catalogue.find_set(name)
        part = catalogue.check_split(spec, split)
        if spec.form == "affine":
            dataset = catalogue.sample_of(spec, part, data_dir, SHEET_DIGITS, SHEET_COPIES)
        else:
            dataset = catalogue.load_dataset(name, part, data_dir, limit=None if spec.affine else SHEET_IMAGES)
        size = catalogue.set_size(spec, part, 1) or len(dataset)
        title = f"{name}, {part} split"
        sheet, histograms = folder / f"sample-{name}.png", folder / f"factors-{name}.png"
        if dataset.transforms is None:
            sample_sheet(dataset, sheet, title=title)
            pictures.append(Picture(f"Sample of {name}", f"Some of the {size:,} images of {title}.", sheet))
            continue
        originals = catalogue.originals_of(name, part, data_dir)
        sample_sheet(dataset, sheet, originals=None if originals is None else originals.images, title=title)
        caption = f"Original digits at the left, transformed versions of each beside it ({title})."
        pictures.append(Picture(f"Sample of {name}", caption, sheet))
        factor_histograms(dataset, histograms)
        caption = f"The six factors of the transformations of {title}: {len(dataset):,} of its images."
        pictures.append(Picture(f"Factors of {name}", caption, histograms))
    return pictures


def reconstruction_picture(entry: LabelledRun, workspace: Workspace, folder: Path) -> Picture | None:
    """Real digits over their reconstructions from the capsule of the true class; None for a model without decoder."""
    options = entry.run.config.model.options
    if not options.get("reconstruction"):
        return None
    model = load_model(entry.run)
    reconstruct = getattr(model, "reconstruct", None)
    if reconstruct is None:
        return None
    name = entry.run.config.data.train_set
    digits = _some_of_each(catalogue.load_dataset(name, "validation", workspace.data, limit=SHEET_IMAGES))
    with torch.inference_mode():
        drawn = reconstruct(to_float(torch.from_numpy(digits.images)), torch.from_numpy(digits.labels).long())
    path = folder / f"reconstructions-{entry.run.name}.png"
    pixels = (drawn[:, 0].float() * 255).round().to(torch.uint8).numpy()
    _reconstruction_sheet(digits.images, pixels, path)
    caption = f"Digits of the validation split of {name} (upper rows) over their reconstructions (lower rows)."
    return Picture(f"Reconstructions by {entry.label}, seed {entry.run.config.training.seed}", caption, path)


def _some_of_each(dataset: Dataset) -> Dataset:
    index = [np.flatnonzero(dataset.labels == label)[:DIGITS_A_CLASS] for label in np.unique(dataset.labels)]
    chosen = np.stack([part for part in index if len(part) == DIGITS_A_CLASS], axis=1).ravel()
    return Dataset(dataset.name, dataset.split, dataset.images[chosen], dataset.labels[chosen])


def _reconstruction_sheet(real: npt.NDArray[np.uint8], drawn: npt.NDArray[np.uint8], path: Path) -> None:
    """Rows of real digits, each row with its reconstructions right below it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(real) // DIGITS_A_CLASS
    figure = Figure(figsize=(0.9 * columns, 0.9 * 2 * DIGITS_A_CLASS), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * DIGITS_A_CLASS, columns, squeeze=False)
    for i, (digit, reconstruction) in enumerate(zip(real, drawn, strict=True)):
        row, column = divmod(i, columns)
        for axis, image in ((axes[2 * row, column], digit), (axes[2 * row + 1, column], reconstruction)):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        if column == 0:
            axes[2 * row, 0].set_ylabel("real", fontsize=8)
            axes[2 * row + 1, 0].set_ylabel("recon-\nstruction", fontsize=8)
    with store.atomic_path(path) as target:
        figure.savefig(target, format="png")
