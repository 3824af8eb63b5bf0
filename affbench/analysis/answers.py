"""What a run answered on a set, image by image: its most confident mistakes, and accuracy by position on the canvas."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from affbench.analysis.capsules import Floats, batched, class_capsules, has_capsules
from affbench.base.statistics import clustered_interval, wilson_interval
from affbench.base.workspace import Workspace
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.sets import SetPart
from affbench.run.folder import EvaluationRecord, Run
from affbench.run.record import evaluate_run, predictions_path

BIN_WIDTH = 4.0  # pixels: ±2, ±6, …, so that the ±6 of translated training digits fall on edges
_CANDIDATES = 500  # mistakes whose scores are computed again to rank them, where the saved ones are not lengths


@dataclass(frozen=True)
class Answers:
    """What a run answered on N images: classes uint8 (N,), and their scores float32 (N,) on the model's own scale."""

    record: EvaluationRecord
    dataset: Dataset
    predictions: npt.NDArray[np.uint8]
    scores: Floats


@dataclass(frozen=True)
class Mistake:
    """A digit (image `index` of a set) taken for another; confidence is a capsule's length or the softmax of scores."""

    index: int
    label: int
    predicted: int
    confidence: float
    confidence_in_truth: float


@dataclass(frozen=True)
class PositionBin:
    """Accuracy of the digits in one part of the canvas, edges in pixels below and right of its centre; None without."""

    vertical: tuple[float, float]
    horizontal: tuple[float, float]
    n: int
    n_originals: int
    correct: int
    accuracy: float | None
    low: float | None
    high: float | None


def read_answers(run: Run, part: SetPart, workspace: Workspace) -> Answers:
    """What a run answers on a set; from disk where it was tested on these images before, see `evaluate_run`."""
    record = evaluate_run(run, part, workspace)
    dataset = replace(part, limit=record.n).load(workspace.data)
    with h5py.File(predictions_path(run, record.set), "r", locking=False) as file:
        return Answers(record, dataset, file["predictions"][: record.n], file["confidence"][: record.n])


def most_confident_mistakes(model: nn.Module, given: Answers, count: int = 20) -> list[Mistake]:
    """The surest mistakes, at most `count`; as scores may be on any scale, confidence is computed and ranked again."""
    wrong = np.flatnonzero(given.predictions != given.dataset.labels)
    candidates = count if has_capsules(model) else max(count, _CANDIDATES)
    wrong = wrong[np.argsort(-given.scores[wrong], kind="stable")][:candidates]
    if not len(wrong):
        return []
    images = given.dataset.images[wrong]
    if has_capsules(model):
        certainty = torch.linalg.vector_norm(class_capsules(model, images), dim=-1).numpy()
    else:
        certainty = batched(model, images, lambda part: model(part).float().softmax(-1)).numpy()
    labels, predictions = given.dataset.labels[wrong], given.predictions[wrong]
    rows = np.arange(len(wrong))
    sure, true = certainty[rows, predictions], certainty[rows, labels]
    return [
        Mistake(int(wrong[row]), int(labels[row]), int(predictions[row]), float(sure[row]), float(true[row]))
        for row in np.argsort(-sure, kind="stable")[:count]
    ]


def positions(dataset: Dataset) -> Floats:
    """Pixels each digit lies below and right of the centre, (N, 2): its translation, else the middle of its ink."""
    if dataset.transforms is not None:
        columns = [TRANSFORM_COLUMNS.index(name) for name in ("vertical_translation", "horizontal_translation")]
        return dataset.transforms[:, columns]
    found = np.zeros((len(dataset), 2), np.float32)
    for axis in (1, 2):  # rows, then columns
        ink: npt.NDArray[np.bool_] = np.any(dataset.images > 0, axis=3 - axis)  # (N, H) or (N, W)
        first, last = ink.argmax(1), ink.shape[1] - 1 - ink[:, ::-1].argmax(1)
        found[:, axis - 1] = (first + last - (ink.shape[1] - 1)) / 2
    return found


def accuracy_by_position(
    right: npt.NDArray[np.bool_], placed: Floats, source: npt.NDArray[Any] | None = None
) -> list[PositionBin]:
    """Accuracy in squares of the canvas, row by row; intervals resample originals of which a square holds several."""
    source = np.arange(len(right)) if source is None else source
    bins = 1 + 2 * max(0, math.ceil(float(np.abs(placed).max()) / BIN_WIDTH - 0.5))
    edges: list[float] = (BIN_WIDTH * (np.arange(bins + 1) - bins / 2)).tolist()
    place = np.clip(np.searchsorted(edges, placed, side="right") - 1, 0, bins - 1)
    sides = list(enumerate(itertools.pairwise(edges)))
    found = []
    for (row, vertical), (column, horizontal) in itertools.product(sides, sides):
        inside = (place[:, 0] == row) & (place[:, 1] == column)
        hits, n, originals = right[inside], int(inside.sum()), len(np.unique(source[inside]))
        correct = int(hits.sum())
        accuracy, low, high = None, None, None
        if n:
            accuracy = correct / n
            low, high = wilson_interval(accuracy, n)
            if originals < n:
                low, high = clustered_interval(hits, source[inside], resamples=1000)
        found.append(PositionBin(vertical, horizontal, n, originals, correct, accuracy, low, high))
    return found
