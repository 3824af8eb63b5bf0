"""Pictures of sets and models for a report: sample sheets, and what `affbench.report.gallery` draws of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from affbench.analysis.capsules import has_decoder
from affbench.data import catalogue
from affbench.evaluation import is_evaluated, load_model
from affbench.report.drawing import Drawing
from affbench.report.gallery import (
    NothingWrongError,
    mistakes_figure,
    perturbation_figure,
    position_figure,
    reconstruction_figure,
)
from affbench.report.page import Picture
from affbench.report.results import LabelledRun
from affbench.report.sheets import factor_histograms, sample_sheet
from affbench.workspace import Workspace

MOST_ANSWERS = 10_000  # images of a set that pictures look at: a report over many runs has to stay quick
PERTURBED = 5  # the class whose capsule reports show
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
    """Real test digits over their reconstructions; None for a model without decoder."""
    if not _draws(entry):
        return None
    title = f"Reconstructions by {_named(entry)}"
    return _picture(reconstruction_figure(entry.run, workspace, folder), title)


def model_pictures(entry: LabelledRun, workspace: Workspace, folder: Path) -> list[Picture]:
    """What one run shows of itself: reconstructions, a perturbed capsule, its surest mistakes, accuracy by position.

    Nothing is tested for it: mistakes and positions are of the affine sets the run was tested on, at most
    `MOST_ANSWERS` images of each.

    Parameters
    ----------
    entry
        A finished run.
    workspace
        Folders and device.
    folder
        Where the PNG files and their CSV go.
    """
    pictures = []
    if (picture := reconstruction_picture(entry, workspace, folder)) is not None:
        drawing = perturbation_figure(entry.run, workspace, folder, digit=PERTURBED)
        pictures = [picture, _picture(drawing, f"Dimensions of class {PERTURBED}'s capsule, {_named(entry)}")]
    for record in entry.run.evaluations.values():
        if not catalogue.find_set(record.set).affine:
            continue
        span = {"copies": record.copies or catalogue.COPIES, "limit": min(record.n, MOST_ANSWERS)}
        if not is_evaluated(entry.run, record.set, workspace, **span):
            continue  # the set or the predictions are gone
        with contextlib.suppress(NothingWrongError):
            drawing = mistakes_figure(entry.run, record.set, workspace, folder, **span)
            pictures.append(_picture(drawing, f"Surest mistakes of {_named(entry)} on {record.set}"))
        drawing = position_figure(entry.run, record.set, workspace, folder, **span)
        pictures.append(_picture(drawing, f"Accuracy by position, {_named(entry)} on {record.set}"))
    return pictures


def _draws(entry: LabelledRun) -> bool:
    """Whether the run's model draws digits; looks at the options first, which costs nothing."""
    reconstruction = entry.run.config.model.options.get("reconstruction")
    return bool(reconstruction) and has_decoder(load_model(entry.run))


def _named(entry: LabelledRun) -> str:
    return f"{entry.label}, seed {entry.run.config.training.seed}"


def _picture(drawing: Drawing, title: str) -> Picture:
    return Picture(title, drawing.caption, drawing.path)
