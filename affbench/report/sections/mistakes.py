"""Surest mistakes: the most confidently wrong digits, with their reconstructions where the model draws any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from affbench.analysis.answers import Mistake, most_confident_mistakes, read_answers
from affbench.analysis.capsules import has_capsules, has_decoder, reconstruct
from affbench.analysis.results import Result, Results
from affbench.base.device import resolve_device
from affbench.base.errors import AffbenchError
from affbench.base.workspace import Workspace
from affbench.data.dataset import Dataset
from affbench.data.sets import SetPart, find_part, find_set
from affbench.data.synthesis import COPIES
from affbench.report.drawing import Drawing, file_name, new_figure, save_drawing, show_sheet
from affbench.report.sections import Section, of_each_model
from affbench.run.folder import Run
from affbench.run.record import is_evaluated, load_model

MOST_ANSWERS = 10_000  # images of a set that pictures look at: a report over many runs has to stay quick
_COLUMNS = 10


class NothingWrongError(AffbenchError):
    """A model without mistakes, of which no picture can be drawn."""


def section(results: Results, folder: Path) -> Section:
    """The surest mistakes on the affine sets that runs were tested on; nothing is tested for it."""

    def look(entry: Result, workspace: Workspace) -> list[Drawing]:
        found = []
        for part in answered_parts(entry, workspace):
            try:
                drawing = mistakes_figure(entry.run, part, workspace, folder)
            except NothingWrongError:
                continue
            found.append(replace(drawing, title=f"Surest mistakes of {entry.title} on {part.name}"))
        return found

    figures, problems = of_each_model(results, look)
    return Section("Surest mistakes", figures=tuple(figures), problems=problems)


def answered_parts(entry: Result, workspace: Workspace) -> list[SetPart]:
    """The affine sets that a run has answered, at most their first `MOST_ANSWERS` images."""
    parts = [
        find_part(record.set, record.split, record.copies or COPIES, min(record.n, MOST_ANSWERS))
        for record in entry.evaluations.values()
        if find_set(record.set).affine
    ]
    return [part for part in parts if is_evaluated(entry.run, part, workspace)]  # else it, or its predictions, are gone


def mistakes_figure(run: Run, part: SetPart, workspace: Workspace, folder: Path, *, count: int = 20) -> Drawing:
    """At most `count` mistakes of a run, which is tested on the set if it was not before; `NothingWrongError`."""
    given = read_answers(run, part, workspace)
    model = load_model(run, resolve_device(workspace.device))
    wrong = most_confident_mistakes(model, given, count)
    if not wrong:
        raise NothingWrongError(f"{run.name} classifies all {given.record.n:,} images of {part.name} correctly.")
    images = given.dataset.images[[mistake.index for mistake in wrong]]
    drawn = []
    if has_decoder(model):
        for classes in ([m.predicted for m in wrong], [m.label for m in wrong]):
            drawn.append(reconstruct(model, images, np.array(classes)))
    record = given.record
    kind = "length of the class capsule" if has_capsules(model) else "softmax of the scores"
    title = f"Most confident mistakes of {run.name} on {record.set}"
    caption = (
        f"The {len(wrong)} most confident of {record.n - record.correct:,} mistakes of {run.name} on {record.set} "
        f"({record.split} split, n = {record.n:,}), the surest first. Above each digit its class and what it was taken "
        f"for, then the confidence ({kind}) in that to the one in the true class."
    )
    path = folder / f"wrong-{run.name}-{file_name(record.set)}.png"
    header = ("rank", "index", "label", "predicted", "confidence", "confidence_in_true_class")
    rows = ((r, m.index, m.label, m.predicted, m.confidence, m.confidence_in_truth) for r, m in enumerate(wrong, 1))
    return save_drawing(_sheet(given.dataset, wrong, drawn, title), path, title, caption, header, rows)


def _sheet(dataset: Dataset, mistakes: Sequence[Mistake], drawn: Sequence[npt.NDArray[np.uint8]], title: str) -> Figure:
    """A sheet of mistakes, ten in a row, each over its reconstructions from the predicted and the true class."""
    bands = [mistakes[start : start + _COLUMNS] for start in range(0, len(mistakes), _COLUMNS)]
    layers = 1 + len(drawn)
    figure = new_figure(0.82 * _COLUMNS + 1.1, (0.82 * layers + 0.62) * len(bands) + 0.5, title)
    grid = figure.subplots(len(bands), 1, squeeze=False)[:, 0]
    names = ["digit", "drawn from the\npredicted class", "drawn from the\ntrue class"][:layers]
    for number, (axes, band) in enumerate(zip(grid, bands, strict=True)):
        tiles = np.zeros((layers, _COLUMNS, dataset.canvas, dataset.canvas), np.uint8)
        for column, mistake in enumerate(band):
            tiles[0, column] = dataset.images[mistake.index]
            for layer, pictures in enumerate(drawn, start=1):
                tiles[layer, column] = pictures[number * _COLUMNS + column]
        texts = [f"{m.label}, taken for {m.predicted}\n{m.confidence:.2f} to {m.confidence_in_truth:.2f}" for m in band]
        show_sheet(axes, tiles, names, texts, size=7)
    return figure
