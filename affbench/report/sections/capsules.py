"""What capsules learned: reconstructions, and each dimension of a class capsule changed and drawn."""

from pathlib import Path

import numpy as np
from torch import nn

from affbench.analysis.capsules import OFFSETS, has_capsules, has_decoder, of_class, perturb, reconstruct
from affbench.analysis.results import LabelledRun, Results
from affbench.base.device import resolve_device
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.sets import find_part, find_set, sibling
from affbench.report.drawing import Band, Drawing, picture_sheet, save_drawing
from affbench.report.sections import NothingToShowError, Section, of_each_model
from affbench.run.evaluate import predict
from affbench.run.folder import Run
from affbench.run.record import load_model

ROWS = 5  # of real digits, and as many of reconstructions, as CapsNet-Keras shows
SEARCHED = 2_000  # images of a set, enough to find some of every class


class NoCapsulesError(NothingToShowError, UsageError):
    """A model that does not have the capsules, or the decoder, that a figure is of."""


def section(results: Results, folder: Path) -> Section:
    """Reconstructions and a perturbed capsule of each model that draws."""
    drawn = (reconstruction_figure, perturbation_figure)
    figures, problems = of_each_model(results, lambda run, place: [draw(run, place, folder) for draw in drawn])
    return Section("What capsules learned", figures=figures, problems=problems)


def reconstruction_figure(shown: LabelledRun, workspace: Workspace, folder: Path) -> Drawing:
    """Real test digits over their reconstructions from the capsule of the predicted class, a column per class."""
    run = shown.run
    model = capsule_model(run, workspace, drawing=True)
    digits = find_part(run.config.data.train_set, limit=SEARCHED).load(workspace.data)
    first = [np.flatnonzero(digits.labels == label)[:ROWS] for label in np.unique(digits.labels)]
    digits = digits.rows(np.stack([own for own in first if len(own) == ROWS], axis=1).ravel())  # row by row
    predictions, _ = predict(model, digits)
    drawn = reconstruct(model, digits.images, predictions)
    columns = len(np.unique(digits.labels))
    real, again = (images.reshape(ROWS, columns, *images.shape[1:]) for images in (digits.images, drawn))
    heads, below = [f"class {label}" for label in digits.labels[:columns]], [""] * columns
    figure = picture_sheet(
        Band(list(real), ["real digit"] * ROWS, heads), Band(list(again), ["drawn again"] * ROWS, below)
    )
    title = f"Reconstructions by {shown.label}"
    caption = (
        f"Test digits of {digits.name} over their reconstructions, each from the capsule of the predicted class; "
        f"{int((predictions == digits.labels).sum())} of these {len(digits)} are classified correctly."
    )
    errors = ((digits.images.astype(np.float64) - drawn) ** 2).sum((1, 2)) / 255**2
    header = ("row", "column", "label", "predicted", "sum_of_squared_errors")
    rows = ((*divmod(i, columns), int(digits.labels[i]), int(predictions[i]), errors[i]) for i in range(len(digits)))
    return save_drawing(figure, folder / f"reconstructions-{run.name}.png", title, caption, header, rows)


def perturbation_figure(shown: LabelledRun, workspace: Workspace, folder: Path, *, digit: int = 5) -> Drawing:
    """Each dimension of a capsule changed and drawn, of the first digit of a class in the middle that is right."""
    run = shown.run
    model = capsule_model(run, workspace, drawing=True)
    centred = sibling(find_set(run.config.data.train_set), "padded", "original")
    digits = find_part(centred.name, limit=SEARCHED).load(workspace.data)
    found = of_class(digits, digit, 20)
    predictions, _ = predict(model, digits.rows(found))
    chosen = int(np.argmax(predictions == digit))  # the first of all where none is right
    taken = "classified correctly" if predictions[chosen] == digit else f"taken for {predictions[chosen]}"
    drawn = perturb(model, digits.images[found[chosen]], digit)
    tiles = np.clip(np.rint(255 * drawn), 0, 255).astype(np.uint8)
    heads = ["0" if value == 0 else f"{value:+.2f}".replace("-", "−") for value in OFFSETS]
    figure = picture_sheet(Band(list(tiles), [f"dimension {number}" for number in range(len(tiles))], heads))
    title = f"Dimensions of class {digit}'s capsule, {shown.label}"
    caption = (
        f"Test digit {found[chosen]} of {digits.name}, {taken}: one dimension of the capsule of class {digit} at a "
        "time is changed by the amount above the column and drawn; the middle column is unchanged."
    )
    change = ((drawn - drawn[:, [OFFSETS.index(0)]]) ** 2).sum((2, 3))
    header = ("dimension", "added", "sum_of_squared_changes", "mean_intensity")
    rows = ((d, OFFSETS[s], float(value), float(drawn[d, s].mean())) for (d, s), value in np.ndenumerate(change))
    path = folder / f"perturb-{run.name}-digit{digit}.png"
    return save_drawing(figure, path, title, caption, header, rows)


def capsule_model(run: Run, workspace: Workspace, *, drawing: bool = False) -> nn.Module:
    """The model of a run, which has to have class capsules, and for drawing a decoder."""
    model = load_model(run, resolve_device(workspace.device))
    if has_decoder(model) or (has_capsules(model) and not drawing):
        return model
    lacking = "decoder" if has_capsules(model) else "class capsules"
    raise NoCapsulesError(
        f"run {run.name} is of model '{run.config.model.name}', which has no {lacking}; choose another run with --run."
    )
