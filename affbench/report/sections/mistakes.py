"""Surest mistakes: the most confidently wrong digits, with their reconstructions where the model draws any."""

import contextlib
from dataclasses import astuple
from pathlib import Path

import numpy as np

from affbench.analysis.answers import most_confident_mistakes, read_answers
from affbench.analysis.capsules import has_capsules, has_decoder, reconstruct
from affbench.analysis.results import LabelledRun, Result, Results
from affbench.base.device import resolve_device
from affbench.base.workspace import Workspace
from affbench.data.sets import SetPart, find_part, find_set
from affbench.data.synthesis import COPIES
from affbench.report.drawing import Band, Drawing, file_name, picture_sheet, save_drawing
from affbench.report.sections import NothingToShowError, Section, of_each_model
from affbench.run.record import is_evaluated, load_model

MOST_ANSWERS = 10_000  # images of a set that pictures look at: a report over many runs has to stay quick
_COLUMNS = 10


def section(results: Results, folder: Path) -> Section:
    """The surest mistakes on the affine sets that runs were tested on; nothing is tested for it."""

    def look(entry: Result, workspace: Workspace) -> list[Drawing]:
        found = []
        for part in answered_parts(entry, workspace):
            with contextlib.suppress(NothingToShowError):
                found.append(mistakes_figure(entry, part, workspace, folder))
        return found

    figures, problems = of_each_model(results, look)
    return Section("Surest mistakes", figures=figures, problems=problems)


def answered_parts(entry: Result, workspace: Workspace) -> list[SetPart]:
    """The affine sets that a run has answered, at most their first `MOST_ANSWERS` images."""
    parts = [
        find_part(record.set, record.split, record.copies or COPIES, min(record.n, MOST_ANSWERS))
        for record in entry.evaluations.values()
        if find_set(record.set).affine
    ]
    return [part for part in parts if is_evaluated(entry.run, part, workspace)]  # else it, or its predictions, are gone


def mistakes_figure(
    shown: LabelledRun, part: SetPart, workspace: Workspace, folder: Path, *, count: int = 20
) -> Drawing:
    """At most `count` mistakes of a run, which is tested on the set if it was not before."""
    given = read_answers(shown.run, part, workspace)
    model = load_model(shown.run, resolve_device(workspace.device))
    wrong = most_confident_mistakes(model, given, count)
    record = given.record
    if not wrong:
        raise NothingToShowError(f"{shown.run.name} classifies all {record.n:,} images of {record.set} correctly.")
    layers = [images := given.dataset.images[[mistake.index for mistake in wrong]]]
    if has_decoder(model):
        for classes in ([m.predicted for m in wrong], [m.label for m in wrong]):
            layers.append(reconstruct(model, images, np.array(classes)))
    names = ["digit", "drawn from the\npredicted class", "drawn from the\ntrue class"][: len(layers)]
    heads = [f"{m.label}, taken for {m.predicted}\n{m.confidence:.2f} to {m.confidence_in_truth:.2f}" for m in wrong]
    rows = [slice(start, start + _COLUMNS) for start in range(0, len(wrong), _COLUMNS)]
    figure = picture_sheet(*(Band([layer[row] for layer in layers], names, heads[row]) for row in rows), size=0.82)
    kind = "length of the class capsule" if has_capsules(model) else "softmax of the scores"
    title = f"Surest mistakes of {shown.label} on {record.set}"
    caption = (
        f"The {len(wrong)} most confident of {record.n - record.correct:,} mistakes ({record.split} split, n = "
        f"{record.n:,}), the surest first. Above each digit its class and what it was taken for, then the confidence "
        f"({kind}) in that to the one in the true class."
    )
    path = folder / f"wrong-{shown.run.name}-{file_name(record.set)}.png"
    header = ("rank", "index", "label", "predicted", "confidence", "confidence_in_true_class")
    listed = ((rank, *astuple(mistake)) for rank, mistake in enumerate(wrong, 1))
    return save_drawing(figure, path, title, caption, header, listed)
