"""What capsules learned: reconstructions, and each dimension of a class capsule changed and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from affbench.analysis.capsules import OFFSETS, Floats, has_capsules, has_decoder, of_class, perturb, reconstruct
from affbench.analysis.results import Result, Results
from affbench.base.device import resolve_device
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.dataset import Dataset
from affbench.data.sets import find_part, find_set, set_names
from affbench.report.drawing import INK, Drawing, new_figure, save_drawing, show_sheet
from affbench.report.sections import Section, of_each_model
from affbench.run.evaluate import predict
from affbench.run.folder import Run
from affbench.run.record import load_model, model_canvas

ROWS = 5  # of real digits, and as many of reconstructions, as CapsNet-Keras shows
PERTURBED = 5  # the class whose capsule reports show
SEARCHED = 2_000  # images of a set, enough to find some of every class


def section(results: Results, folder: Path) -> Section:
    """Reconstructions and a perturbed capsule of each model that draws."""

    def look(entry: Result, workspace: Workspace) -> list[Drawing]:
        if not has_decoder(load_model(entry.run)):  # a model that cannot be loaded any more is named
            return []
        drawn = reconstruction_figure(entry.run, workspace, folder)
        perturbed = perturbation_figure(entry.run, workspace, folder, digit=PERTURBED)
        return [
            replace(drawn, title=f"Reconstructions by {entry.title}"),
            replace(perturbed, title=f"Dimensions of class {PERTURBED}'s capsule, {entry.title}"),
        ]

    figures, problems = of_each_model(results, look)
    return Section("What capsules learned", figures=tuple(figures), problems=problems)


def reconstruction_figure(run: Run, workspace: Workspace, folder: Path) -> Drawing:
    """Real test digits over their reconstructions from the capsule of the predicted class, a column per class."""
    model = capsule_model(run, workspace, drawing=True)
    digits = _some_of_each(find_part(run.config.data.train_set, limit=SEARCHED).load(workspace.data))
    predictions, _ = predict(model, digits)
    drawn = reconstruct(model, digits.images, predictions)
    classes = np.unique(digits.labels)
    columns = len(classes)
    title = f"Reconstructions by {run.name}"
    real, again = (images.reshape(-1, columns, *images.shape[1:]) for images in (digits.images, drawn))
    figure = new_figure(0.62 * columns + 1.2, 0.62 * 2 * len(real) + 0.9, title)
    names = ([f"class {label}" for label in classes], [""] * columns)
    kinds = ("real digits", "reconstructions")
    for axes, tiles, heads, kind in zip(figure.subplots(2, 1), (real, again), names, kinds, strict=True):
        show_sheet(axes, tiles, [""] * len(tiles), heads)
        axes.set_ylabel(kind, fontsize=10, color=INK)
    caption = (
        f"Test digits of {digits.name} over their reconstructions by {run.name}, each from the capsule of the class it "
        f"predicts; {int((predictions == digits.labels).sum())} of these {len(digits)} are classified correctly."
    )
    errors = ((digits.images.astype(np.float64) - drawn) ** 2).sum((1, 2)) / 255**2
    header = ("row", "column", "label", "predicted", "sum_of_squared_errors")
    rows = (
        (i // columns, i % columns, int(digits.labels[i]), int(predictions[i]), errors[i]) for i in range(len(drawn))
    )
    return save_drawing(figure, folder / f"reconstructions-{run.name}.png", title, caption, header, rows)


def perturbation_figure(run: Run, workspace: Workspace, folder: Path, *, digit: int) -> Drawing:
    """Each dimension of a digit's class capsule changed by −0.25 to 0.25 in steps of 0.05, and drawn.

    Of the class, the first test digit in the middle of the canvas that is classified correctly is taken.
    """
    check_digit(digit)
    model = capsule_model(run, workspace, drawing=True)
    digits = find_part(_centred_set(run), limit=SEARCHED).load(workspace.data)
    found = of_class(digits, digit, 20)
    subset = Dataset(digits.name, digits.split, digits.images[found], digits.labels[found])
    predictions, _ = predict(model, subset)
    right = np.flatnonzero(predictions == digit)
    chosen = int(right[0]) if len(right) else 0
    taken = "classified correctly" if len(right) else f"taken for {predictions[chosen]}"
    title = f"Dimensions of class {digit}'s capsule, {run.name}"
    caption = (
        f"Test digit {found[chosen]} of {digits.name}, {taken} by {run.name}: one dimension of the capsule of class "
        f"{digit} at a time is changed by the amount above the column and drawn; the middle column is unchanged."
    )
    path = folder / f"perturb-{run.name}-digit{digit}.png"
    return _draw_perturbation(perturb(model, subset.images[chosen], digit), path, title, caption)


def _draw_perturbation(drawn: Floats, path: Path, title: str, caption: str) -> Drawing:
    """A row per dimension, a column per change."""
    tiles = np.clip(np.rint(255 * drawn), 0, 255).astype(np.uint8)
    dimensions, steps = tiles.shape[:2]
    figure = new_figure(0.6 * steps + 1.2, 0.6 * dimensions + 1.0, title)
    axes = figure.subplots()
    heads = ["0" if value == 0 else f"{value:+.2f}".replace("-", "−") for value in OFFSETS]
    show_sheet(axes, tiles, [str(number) for number in range(dimensions)], heads)
    axes.set_ylabel("dimension of the class capsule", fontsize=10, color=INK)
    axes.set_xlabel("added to the dimension", fontsize=10, color=INK)
    axes.xaxis.set_label_position("top")
    change = ((drawn - drawn[:, [OFFSETS.index(0)]]) ** 2).sum((2, 3))
    header = ("dimension", "added", "sum_of_squared_changes", "mean_intensity")
    rows = (
        (d, offset, float(change[d, s]), float(drawn[d, s].mean()))
        for d in range(dimensions)
        for s, offset in enumerate(OFFSETS)
    )
    return save_drawing(figure, path, title, caption, header, rows)


def capsule_model(run: Run, workspace: Workspace, *, drawing: bool = False) -> nn.Module:
    """The model of a run, which has to have class capsules, and for drawing a decoder."""
    model = load_model(run, resolve_device(workspace.device))
    if not has_capsules(model):
        lacking, such = "class capsules", ""
    elif drawing and not has_decoder(model):
        lacking, such = "decoder", " with a decoder"
    else:
        return model
    raise UsageError(
        f"run {run.name} is of model '{run.config.model.name}', which has no {lacking}; choose the run of a capsule "
        f"network{such} with --run."
    )


def check_digit(digit: int) -> None:
    """`UsageError` where there is no such class."""
    if not 0 <= digit <= 9:
        raise UsageError(f"--digit {digit} is no class; classes are 0 to 9.")


def original_set(run: Run) -> str:
    """The set of original digits that a run's training set was made from."""
    return find_set(run.config.data.train_set).digits


def _centred_set(run: Run) -> str:
    """The set of these digits in the middle of the canvas."""
    canvas, family = model_canvas(run), original_set(run)
    for spec in map(find_set, set_names()):
        if spec.family == family and spec.canvas == canvas and spec.form in ("padded", "original"):
            return spec.name
    raise UsageError(f"there is no set of {canvas}×{canvas} images with centred digits for run {run.name}.")


def _some_of_each(dataset: Dataset) -> Dataset:
    """The first `ROWS` digits of each class that has as many, row by row."""
    index = [np.flatnonzero(dataset.labels == label)[:ROWS] for label in np.unique(dataset.labels)]
    chosen = np.stack([own for own in index if len(own) == ROWS], axis=1).ravel()
    return Dataset(dataset.name, dataset.split, dataset.images[chosen], dataset.labels[chosen])
