"""The pictures of trained runs, from a run to a file: what ``affbench figure`` draws and reports show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from affbench.analysis import answers as answering
from affbench.analysis import capsules as looking
from affbench.analysis.factors import FACTORS, factor_curve
from affbench.base.device import resolve_device
from affbench.base.errors import AffbenchError, UsageError
from affbench.base.workspace import Workspace
from affbench.data.dataset import Dataset
from affbench.data.sets import SetPart, find_part, find_set, set_names
from affbench.report.capsules import draw_equivariance, draw_perturbation, draw_reconstructions, equivariance_table
from affbench.report.drawing import Drawing
from affbench.report.failures import TELLING, draw_factors, draw_mistakes, draw_positions
from affbench.report.table import Table
from affbench.run.evaluate import predict
from affbench.run.folder import Run
from affbench.run.record import load_model, model_canvas

ROWS = 5  # of real digits, and as many of reconstructions, as CapsNet-Keras shows
_SEARCHED = 2_000  # images of a set, enough to find some of every class


class NothingWrongError(AffbenchError):
    """A model without mistakes, of which no picture can be drawn."""


def reconstruction_figure(run: Run, workspace: Workspace, folder: Path, *, rows: int = ROWS) -> Drawing:
    """Real test digits over their reconstructions from the capsule of the predicted class, a column per class.

    Parameters
    ----------
    run
        A finished run of a model with class capsules and a decoder.
    workspace
        Folders and device.
    folder
        Where the PNG and its CSV go.
    rows
        Digits of each class.

    Returns
    -------
    Drawing

    Raises
    ------
    UsageError
        The model has no class capsules or no decoder.
    DataError, ArtefactError
        The set or the checkpoint is missing or damaged.
    """
    model = _capsule_model(run, workspace, decoder=True)
    digits = _some_of_each(_load(run.config.data.train_set, workspace, _SEARCHED), rows)
    predictions, _ = predict(model, digits)
    drawn = looking.reconstruct(model, digits.images, predictions)
    caption = (
        f"Test digits of {digits.name} over their reconstructions by {run.name}, each from the capsule of the class it "
        f"predicts; {int((predictions == digits.labels).sum())} of these {len(digits)} are classified correctly."
    )
    title = f"Reconstructions by {run.name}"
    path = folder / f"reconstructions-{run.name}.png"
    return draw_reconstructions(digits, drawn, predictions, path, title=title, caption=caption)


def perturbation_figure(run: Run, workspace: Workspace, folder: Path, *, digit: int) -> Drawing:
    """Each dimension of a digit's class capsule changed by −0.25 to 0.25 in steps of 0.05, and drawn.

    Parameters
    ----------
    run
        A finished run of a model with class capsules and a decoder.
    workspace
        Folders and device.
    folder
        Where the PNG and its CSV go.
    digit
        The class, 0 to 9; its first test digit in the middle of the canvas that is classified correctly is taken.

    Returns
    -------
    Drawing

    Raises
    ------
    UsageError
        The model has no class capsules or no decoder, or there is no such class.
    DataError, ArtefactError
        The set or the checkpoint is missing or damaged.
    """
    _check_digit(digit)
    model = _capsule_model(run, workspace, decoder=True)
    digits = _load(_centred_set(run), workspace, _SEARCHED)
    found = np.flatnonzero(digits.labels == digit)[:20]
    if not len(found):
        raise UsageError(f"there is no digit of class {digit} among the first {len(digits):,} of '{digits.name}'.")
    subset = Dataset(digits.name, digits.split, digits.images[found], digits.labels[found])
    predictions, _ = predict(model, subset)
    right = np.flatnonzero(predictions == digit)
    chosen = int(right[0]) if len(right) else 0
    taken = "classified correctly" if len(right) else f"taken for {predictions[chosen]}"
    result = looking.perturb(model, subset.images[chosen], digit)
    title = f"Dimensions of class {digit}'s capsule, {run.name}"
    caption = (
        f"Test digit {found[chosen]} of {digits.name}, {taken} by {run.name}: one dimension of the capsule of class "
        f"{digit} at a time is changed by the amount above the column and drawn; the middle column is unchanged."
    )
    path = folder / f"perturb-{run.name}-digit{digit}.png"
    return draw_perturbation(result, path, title=title, caption=caption)


def equivariance_figure(
    run: Run, workspace: Workspace, folder: Path, *, digit: int | None = None, per_class: int | None = None
) -> tuple[Drawing, Table]:
    """How class capsules move as the input rotates, shears, scales and shifts, and what explains their variance.

    Parameters
    ----------
    run
        A finished run of a model with class capsules.
    workspace
        Folders and device.
    folder
        Where the PNG and its CSV go.
    digit
        One class, dimension by dimension; all classes, each capsule as a whole, when None.
    per_class
        Test digits of each class; 50 for one class, 6 for all when None.

    Returns
    -------
    Drawing, Table
        The figure, and its shares of variance.

    Raises
    ------
    UsageError
        The model has no class capsules, or there is no such class.
    DataError, ArtefactError
        The set or the checkpoint is missing or damaged.
    """
    if digit is not None:
        _check_digit(digit)
    model = _capsule_model(run, workspace, decoder=False)
    family = _family(run)
    limit = _SEARCHED if (per_class or 0) <= 50 else None
    digits = _load(family, workspace, limit)
    labels = [digit] if digit is not None else np.unique(digits.labels).tolist()
    found = looking.equivariance(
        model, digits, labels, per_class=per_class or (50 if digit is not None else 6), canvas=model_canvas(run)
    )
    which = "all classes" if digit is None else f"class {digit}"
    title = f"Equivariance of {which}, {run.name}"
    means = (
        "the mean distance of the true class' capsule from its value without transformation"
        if digit is None
        else "the mean of each dimension, in colour the four that move most"
    )
    caption = (
        f"{found.digits} test digits of {family} a class in the middle of the canvas. Curves: one factor varies, "
        f"{means}. Below: share of the variance that each factor explains when all six vary at once as in affNIST "
        f"({found.drawn} images a class; one-way correlation ratio over {looking.BINS} bins, adjusted for chance). "
        "What is missing to 100% are interactions."
    )
    name = f"equivariance-{run.name}" + ("" if digit is None else f"-digit{digit}")
    drawing = draw_equivariance(found, folder / f"{name}.png", title=title, caption=caption)
    return drawing, equivariance_table(found, title=f"Variance explained, {which}, {run.name}", caption=caption)


def mistakes_figure(run: Run, part: SetPart, workspace: Workspace, folder: Path, *, count: int = 20) -> Drawing:
    """The most confidently wrong digits of a run on a set, with their reconstructions where it draws any.

    Parameters
    ----------
    run
        A finished run.
    part
        Which images; the run is tested on them if it was not before.
    workspace
        Folders, device and progress.
    folder
        Where the PNG and its CSV go.
    count
        Digits to show at most.

    Returns
    -------
    Drawing

    Raises
    ------
    NothingWrongError
        Every image is classified correctly.
    UsageError, DataError, ArtefactError
        As `affbench.run.record.evaluate_run`.
    """
    given = answering.read_answers(run, part, workspace)
    model = load_model(run, resolve_device(workspace.device))
    wrong = answering.most_confident_mistakes(model, given, count)
    if not wrong:
        raise NothingWrongError(f"{run.name} classifies all {given.record.n:,} images of {part.name} correctly.")
    images = given.dataset.images[[mistake.index for mistake in wrong]]
    drawn = []
    if looking.has_decoder(model):
        for classes in ([m.predicted for m in wrong], [m.label for m in wrong]):
            drawn.append(looking.reconstruct(model, images, np.array(classes)))
    record = given.record
    kind = "length of the class capsule" if looking.has_capsules(model) else "softmax of the scores"
    caption = (
        f"The {len(wrong)} most confident of {record.n - record.correct:,} mistakes of {run.name} on {record.set} "
        f"({record.split} split, n = {record.n:,}), the surest first. Above each digit its class and what it was taken "
        f"for, then the confidence ({kind}) in that to the one in the true class."
    )
    title = f"Most confident mistakes of {run.name} on {record.set}"
    path = folder / f"wrong-{run.name}-{_slug(record.set)}.png"
    return draw_mistakes(given.dataset, wrong, drawn, path, title=title, caption=caption)


def position_figure(run: Run, part: SetPart, workspace: Workspace, folder: Path) -> Drawing:
    """Accuracy of a run on a set as a map over the position of the digit; parameters as for `mistakes_figure`.

    Raises
    ------
    UsageError, DataError, ArtefactError
        As `affbench.run.record.evaluate_run`.
    """
    given = answering.read_answers(run, part, workspace)
    placed = answering.positions(given.dataset)
    bins = answering.accuracy_by_position(given.right, placed, given.dataset.source_index)
    record = given.record
    affine = given.dataset.transforms is not None
    where = "translation" if affine else "middle of the box around the ink"
    trained = run.config.data.shift if affine else None
    box = f" The dashed box holds the positions seen in training (shifts up to {trained} pixels)." if trained else ""
    caption = (
        f"{run.name} on {record.set} ({record.split} split, n = {record.n:,}); position: {where}. The 95% intervals "
        f"are in the CSV; positions with fewer than {TELLING} images, in italics, do not set the colours.{box}"
    )
    title = f"Accuracy by position, {run.name} on {record.set}"
    path = folder / f"positions-{run.name}-{_slug(record.set)}.png"
    return draw_positions(bins, path, title=title, caption=caption, trained=trained)


def factor_figure(
    runs: Sequence[Run],
    workspace: Workspace,
    folder: Path,
    *,
    factors: Sequence[str] = tuple(FACTORS),
    limit: int | None = None,
    labels: Sequence[str] = (),
) -> Drawing:
    """Accuracy of runs on sets in which one factor alone varies, wider than in affNIST.

    Parameters
    ----------
    runs
        Finished runs, at least one.
    workspace
        Folders, device and progress.
    folder
        Where the PNG and its CSV go.
    factors
        Names of `affbench.analysis.factors.FACTORS`.
    limit
        Test on the first `limit` digits only.
    labels
        What the legend calls the runs; their names when empty.

    Returns
    -------
    Drawing

    Raises
    ------
    UsageError
        There is no such factor, or no one-factor set for a model.
    DataError, ArtefactError
        The digits or a checkpoint are missing or damaged.
    """
    if not runs:
        raise UsageError("accuracy over factors takes at least one run.")
    curves = [factor_curve(run, factor, workspace, limit=limit) for run in runs for factor in factors]
    sizes = sorted({sum(point.n for point in curve.points) for curve in curves})
    caption = (
        f"One factor varies, all others are neutral; each digit once, n = {' / '.join(f'{n:,}' for n in sizes)} a set, "
        "in equal bins with 95% Wilson intervals. Shaded: the range of affNIST. Translations keep the whole digit on "
        "the canvas, so only small digits reach the far ends."
    )
    name = runs[0].name if len(runs) == 1 else f"{len(runs)}-runs"
    path = folder / f"factors-{name}.png"
    return draw_factors(curves, path, title="Accuracy over one factor alone", caption=caption, labels=labels)


def _capsule_model(run: Run, workspace: Workspace, *, decoder: bool) -> nn.Module:
    model = load_model(run, resolve_device(workspace.device))
    lacking = "class capsules" if not looking.has_capsules(model) else "decoder" if decoder else ""
    if lacking == "class capsules" or (lacking and not looking.has_decoder(model)):
        raise UsageError(
            f"run {run.name} is of model '{run.config.model.name}', which has no {lacking}; choose the run of a "
            f"capsule network{' with a decoder' if decoder else ''} with --run."
        )
    return model


def _load(name: str, workspace: Workspace, limit: int | None) -> Dataset:
    return find_part(name, limit=limit).load(workspace.data)


def _some_of_each(dataset: Dataset, rows: int) -> Dataset:
    """The first `rows` digits of each class that has as many, row by row."""
    index = [np.flatnonzero(dataset.labels == label)[:rows] for label in np.unique(dataset.labels)]
    chosen = np.stack([part for part in index if len(part) == rows], axis=1).ravel()
    return Dataset(dataset.name, dataset.split, dataset.images[chosen], dataset.labels[chosen])


def _family(run: Run) -> str:
    """The set of original digits that a run's training set was made from."""
    return find_set(run.config.data.train_set).digits


def _centred_set(run: Run) -> str:
    """The set of these digits in the middle of the canvas."""
    canvas, family = model_canvas(run), _family(run)
    for name in set_names():
        spec = find_set(name)
        if spec.family == family and spec.canvas == canvas and spec.form in ("padded", "original"):
            return name
    raise UsageError(f"there is no set of {canvas}×{canvas} images with centred digits for run {run.name}.")


def _check_digit(digit: int) -> None:
    if not 0 <= digit <= 9:
        raise UsageError(f"--digit {digit} is no class; classes are 0 to 9.")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
