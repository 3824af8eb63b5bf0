"""Pictures of sets and models for a report: sample sheets, and what `affbench.report.gallery` draws of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from affbench.analysis.capsules import has_capsules, has_decoder, run_entropy
from affbench.analysis.claims import sweep_runs
from affbench.analysis.factors import one_factor_set
from affbench.analysis.results import Result, Results
from affbench.base.errors import AffbenchError, UsageError
from affbench.base.workspace import Workspace
from affbench.data.sets import find_part, find_set, originals_of, sample_of
from affbench.data.synthesis import COPIES
from affbench.report.claims import entropy_table
from affbench.report.drawing import Drawing
from affbench.report.gallery import (
    NothingWrongError,
    equivariance_figure,
    factor_figure,
    mistakes_figure,
    perturbation_figure,
    position_figure,
    reconstruction_figure,
)
from affbench.report.page import Extra, Picture
from affbench.report.sheets import factor_histograms, sample_sheet
from affbench.report.table import Table
from affbench.run.record import is_evaluated, load_model

PICTURED_MODELS = 6  # more would make the page long and slow, and tell little
MOST_ANSWERS = 10_000  # images of a set that pictures look at: a report over many runs has to stay quick
EXPLAINED_DIGITS = 2_000  # of each one-factor set
ENTROPY_IMAGES = 256  # the spread over images is small
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
        part = find_part(name, split, SHEET_COPIES)
        if part.spec.form == "affine":
            dataset = sample_of(part, SHEET_DIGITS, data_dir)
        else:
            dataset = replace(part, limit=None if part.spec.affine else SHEET_IMAGES).load(data_dir)
        size = part.made_size or len(dataset)
        title = f"{name}, {part.split} split"
        sheet, histograms = folder / f"sample-{name}.png", folder / f"factors-{name}.png"
        if dataset.transforms is None:
            sample_sheet(dataset, sheet, title=title)
            pictures.append(_with_data(f"Sample of {name}", f"Some of the {size:,} images of {title}.", sheet))
            continue
        originals = originals_of(part, data_dir)
        sample_sheet(dataset, sheet, originals=None if originals is None else originals.images, title=title)
        caption = f"Original digits at the left, transformed versions of each beside it ({title})."
        pictures.append(_with_data(f"Sample of {name}", caption, sheet))
        factor_histograms(dataset, histograms)
        caption = f"The six factors of the transformations of {title}: {len(dataset):,} of its images."
        pictures.append(_with_data(f"Factors of {name}", caption, histograms))
    return pictures


def samples_of(sets: Iterable[str], data_dir: Path, folder: Path) -> Extra:
    """`sample_pictures` of each set for a report, which says of the others why they are not shown."""
    pictures, problems = [], []
    for name in sets:
        try:
            pictures += sample_pictures([name], data_dir, folder)
        except AffbenchError as error:
            problems.append(f"Samples of {name} are left out: {error}")
    return Extra("Samples of the sets", pictures=tuple(pictures), problems=tuple(problems))


def model_extras(results: Results, workspace: Workspace, folder: Path, *, explain: bool = False) -> list[Extra]:
    """What models show of themselves: surest mistakes, accuracy by position, what capsules draw and how they couple.

    Nothing is tested for it: mistakes and positions are of the affine sets a run was tested on, at most `MOST_ANSWERS`
    images of each. The first run of each of the first `PICTURED_MODELS` configurations that trained to the end is
    shown.

    Parameters
    ----------
    results
        Finished runs, read.
    workspace
        Folders and device.
    folder
        Where the PNG files and their CSV go.
    explain
        Measure more: accuracy over one factor at a time, and equivariance, each on some thousand images a model.
    """
    whole = results.whole
    shown = [replace(own.results[0], label=own.name) for own in whole.groups[:PICTURED_MODELS]]
    failures: list[Picture] = []
    learned: list[Picture] = []
    tables: list[Table] = []
    able, problems = [], []
    for entry in shown:
        try:
            load_model(entry.run)
            failures += _failures(entry, workspace, folder)
            learned += _drawn_capsules(entry, workspace, folder)
            if explain and has_capsules(load_model(entry.run)):
                drawing, table = equivariance_figure(entry.run, workspace, folder)
                learned.append(_picture(drawing, f"Equivariance, {_named(entry)}"))
                tables.append(replace(table, title=f"Variance explained, all classes, {_named(entry)}"))
            able.append(entry)
        except AffbenchError as error:  # such as a model that cannot be imported any more
            problems.append(f"Pictures of {_named(entry)} are left out: {error}")
    extras = [Extra("Surest mistakes and positions", pictures=tuple(failures), problems=tuple(problems))]
    if explain and (factors := _factors(able, workspace, folder)) is not None:
        extras.append(Extra("One factor at a time", pictures=(factors,)))
    extras.append(Extra("What capsules learned", tuple(tables), tuple(learned)))
    try:
        if (entropy := _entropy(whole, workspace)) is not None:
            extras.append(Extra("Coupling entropy", (entropy,)))
    except AffbenchError as error:
        extras.append(Extra("Coupling entropy", problems=(f"Coupling entropies are left out: {error}",)))
    return extras


def _drawn_capsules(entry: Result, workspace: Workspace, folder: Path) -> list[Picture]:
    """Reconstructions and a perturbed capsule; nothing for a model that does not draw."""
    reconstruction = entry.config.model.options.get("reconstruction")  # looking here first costs nothing
    if not reconstruction or not has_decoder(load_model(entry.run)):
        return []
    drawing = reconstruction_figure(entry.run, workspace, folder)
    perturbed = perturbation_figure(entry.run, workspace, folder, digit=PERTURBED)
    return [
        _picture(drawing, f"Reconstructions by {_named(entry)}"),
        _picture(perturbed, f"Dimensions of class {PERTURBED}'s capsule, {_named(entry)}"),
    ]


def _failures(entry: Result, workspace: Workspace, folder: Path) -> list[Picture]:
    """Surest mistakes and accuracy by position, on the affine sets a run was tested on."""
    pictures = []
    for record in entry.evaluations.values():
        if not find_set(record.set).affine:
            continue
        part = find_part(record.set, record.split, record.copies or COPIES, min(record.n, MOST_ANSWERS))
        if not is_evaluated(entry.run, part, workspace):
            continue  # the set or the predictions are gone
        with contextlib.suppress(NothingWrongError):
            drawing = mistakes_figure(entry.run, part, workspace, folder)
            pictures.append(_picture(drawing, f"Surest mistakes of {_named(entry)} on {record.set}"))
        drawing = position_figure(entry.run, part, workspace, folder)
        pictures.append(_picture(drawing, f"Accuracy by position, {_named(entry)} on {record.set}"))
    return pictures


def _factors(shown: Sequence[Result], workspace: Workspace, folder: Path) -> Picture | None:
    """Accuracy over each factor alone, of the models for whose images there is a synthetic set."""
    able = []
    for entry in shown:
        with contextlib.suppress(UsageError):
            one_factor_set(entry.config.data.train_set, "rotation")
            able.append(entry)
    if not able:
        return None
    runs, labels = [entry.run for entry in able], [_named(entry) for entry in able]
    drawing = factor_figure(runs, workspace, folder, limit=EXPLAINED_DIGITS, labels=labels)
    return _picture(drawing, "Accuracy over one factor alone")


def _entropy(results: Results, workspace: Workspace) -> Table | None:
    """Coupling entropy over the largest sweep of routing iterations among the runs."""
    found = []
    for run in sweep_runs(results):
        name = run.config.data.train_set
        with contextlib.suppress(UsageError):  # a model of one's own may have routings and no coupling coefficients
            found.append((run.name, run_entropy(run.run, find_part(name, limit=ENTROPY_IMAGES), workspace)))
    return entropy_table(found, f"{name}, test split, first {ENTROPY_IMAGES} images") if found else None


def _named(entry: Result) -> str:
    return f"{entry.label}, seed {entry.config.training.seed}"


def _picture(drawing: Drawing, title: str) -> Picture:
    return Picture(title, drawing.caption, drawing.path, drawing.data)


def _with_data(title: str, caption: str, path: Path) -> Picture:
    return Picture(title, caption, path, path.with_suffix(".csv"))
