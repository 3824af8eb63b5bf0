"""What a run answered on a set, image by image: its most confident mistakes, and accuracy by position on the canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from affbench.analysis.capsules import class_capsules, has_capsules
from affbench.base.statistics import clustered_interval, wilson_interval
from affbench.base.workspace import Workspace
from affbench.data.batches import to_float
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.sets import SetPart
from affbench.run.evaluate import evaluate_run, evaluating, predictions_path
from affbench.run.folder import EvaluationRecord, Run

BIN_WIDTH = 4.0  # pixels: ±2, ±6, …, so that the ±6 of translated training digits fall on edges
_CANDIDATES = 500  # mistakes whose scores are computed again to rank them, where the saved ones are not lengths


@dataclass(frozen=True)
class Answers:
    """A set, and what a run answered.

    Attributes
    ----------
    record
        Its evaluation.
    dataset
        The images it was tested on, N of them.
    predictions
        uint8 (N,).
    scores
        Score of the predicted class, float32 (N,), on the model's own scale.
    """

    record: EvaluationRecord
    dataset: Dataset
    predictions: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each image is classified correctly."""
        right: npt.NDArray[np.bool_] = self.predictions == self.dataset.labels
        return right


@dataclass(frozen=True)
class Mistake:
    """A digit that was taken for another.

    Attributes
    ----------
    index
        Which image of the set.
    label, predicted
        True and predicted class.
    confidence
        0 to 1: of the predicted class, the length of its capsule or the softmax of the scores.
    confidence_in_truth
        The same of the true class.
    """

    index: int
    label: int
    predicted: int
    confidence: float
    confidence_in_truth: float


@dataclass(frozen=True)
class PositionBin:
    """Accuracy of the images whose digit lies in one part of the canvas.

    Attributes
    ----------
    vertical, horizontal
        Low and high edge in pixels from the centre of the canvas, down and right positive.
    n, n_originals, correct
        Images, different original digits among them, and how many are classified correctly.
    accuracy, low, high
        Share of correct images and its 95% interval, 0 to 1; None without images.
    """

    vertical: tuple[float, float]
    horizontal: tuple[float, float]
    n: int
    n_originals: int
    correct: int
    accuracy: float | None
    low: float | None
    high: float | None


def answers(run: Run, part: SetPart, workspace: Workspace) -> Answers:
    """What a run answers on a set; from disk where it was tested on these images before.

    Parameters, result on disk and errors as for `affbench.run.evaluate.evaluate_run`.
    """
    record = evaluate_run(run, part, workspace)
    dataset = replace(part, limit=record.n).load(workspace.data)
    with h5py.File(predictions_path(run, record.set), "r", locking=False) as file:
        return Answers(record, dataset, file["predictions"][: record.n], file["confidence"][: record.n])


def most_confident_mistakes(model: nn.Module, given: Answers, count: int = 20) -> list[Mistake]:
    """The images a model is surest of and wrong about, the surest first.

    Parameters
    ----------
    model
        The model that gave the answers.
    given
        Its answers.
    count
        How many at most.

    Returns
    -------
    list of Mistake
        Empty where nothing is wrong. Saved scores may be on any scale, so of the wrong images with the highest ones the
        confidence is computed again and decides.
    """
    wrong = np.flatnonzero(~given.right)
    candidates = count if has_capsules(model) else max(count, _CANDIDATES)
    wrong = wrong[np.argsort(-given.scores[wrong], kind="stable")][:candidates]
    if not len(wrong):
        return []
    certainty = _confidence(model, given.dataset.images[wrong])
    labels, predictions = given.dataset.labels[wrong], given.predictions[wrong]
    rows = np.arange(len(wrong))
    sure = certainty[rows, predictions]
    return [
        Mistake(
            int(wrong[row]),
            int(labels[row]),
            int(predictions[row]),
            float(sure[row]),
            float(certainty[row, labels[row]]),
        )
        for row in np.argsort(-sure, kind="stable")[:count]
    ]


def _confidence(model: nn.Module, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """0 to 1 for each class, (N, K): lengths of class capsules, or the softmax of scores."""
    if has_capsules(model):
        lengths: npt.NDArray[np.float32] = torch.linalg.vector_norm(class_capsules(model, images), dim=-1).numpy()
        return lengths
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        parts = [
            model(to_float(part.to(device))).float().softmax(-1).cpu() for part in torch.from_numpy(images).split(256)
        ]
    shares: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return shares


def positions(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Where each digit lies: vertical and horizontal distance from the centre of the canvas, float32 (N, 2), in pixels.

    The translation where the set tells it, else the middle of the box around the ink.
    """
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
    right: npt.NDArray[np.bool_],
    placed: npt.NDArray[np.float32],
    source: npt.NDArray[Any] | None = None,
    width: float = BIN_WIDTH,
) -> list[PositionBin]:
    """Accuracy in equal bins of the position on the canvas.

    Parameters
    ----------
    right
        bool (N,), whether each image is classified correctly.
    placed
        float (N, 2), see `positions`.
    source
        Whole numbers (N,), the original of each image; None where every image is one.
    width
        Height and width of a bin in pixels; one lies in the middle of the canvas, and as many around it as it takes.

    Returns
    -------
    list of PositionBin
        Row by row from the top left, as many rows as columns. The interval is a bootstrap over originals where several
        images of one original lie in a bin, else Wilson's.
    """
    around = max(0, math.ceil(float(np.abs(placed).max()) / width - 0.5))
    bins = 2 * around + 1
    edges = width * (np.arange(bins + 1) - bins / 2)
    place = np.clip(np.searchsorted(edges, placed, side="right") - 1, 0, bins - 1)
    found = []
    for row in range(bins):
        for column in range(bins):
            inside = np.flatnonzero((place[:, 0] == row) & (place[:, 1] == column))
            own = right[inside]
            n, correct = len(inside), int(own.sum())
            originals = n if source is None else len(np.unique(source[inside]))
            low: float | None = None
            high: float | None = None
            if source is not None and originals < n:
                interval = clustered_interval(own, source[inside], resamples=1000)
                low, high = interval.low, interval.high
            elif n:
                low, high = wilson_interval(correct, n)
            found.append(
                PositionBin(
                    vertical=(float(edges[row]), float(edges[row + 1])),
                    horizontal=(float(edges[column]), float(edges[column + 1])),
                    n=n,
                    n_originals=originals,
                    correct=correct,
                    accuracy=correct / n if n else None,
                    low=low,
                    high=high,
                )
            )
    return found
