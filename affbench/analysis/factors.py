"""Accuracy on synthetic sets in which a single factor of the transformation varies, wider than in affNIST."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.base import store
from affbench.base.device import resolve_device
from affbench.base.errors import UsageError
from affbench.base.statistics import wilson_interval
from affbench.base.workspace import Workspace
from affbench.data import sets
from affbench.data.dataset import TRANSFORM_COLUMNS
from affbench.run.evaluate import answer_inputs, load_model, predict
from affbench.run.folder import Run

VERSION = 2  # of this stage: raised whenever the same model and sets would give other curves
BINS = 12
FACTORS: dict[str, dict[str, float]] = {
    "rotation": {"rotation": 60.0},
    "shear": {"shear": 0.6},
    "vertical_expansion": {"expansion": 0.5},
    "horizontal_expansion": {"expansion": 0.5},
    "vertical_translation": {"translation": 12.0},
    "horizontal_translation": {"translation": 12.0},
}
"""Factor to the half-width it is drawn from; translations also keep the whole digit on the canvas."""


@dataclass(frozen=True)
class FactorPoint:
    """Accuracy of the images whose factor lies in [low, high), with its 95% Wilson interval.

    Every original digit occurs once in a one-factor set, so the images of a bin are independent.
    """

    low: float
    high: float
    n: int
    correct: int
    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class FactorCurve:
    """Accuracy of a run over one factor.

    Attributes
    ----------
    run, seed
        Which run.
    factor, set
        The factor, and the name of the set in which it alone varies.
    points
        By rising values; bins without images are left out.
    """

    run: str
    seed: int
    factor: str
    set: str
    points: tuple[FactorPoint, ...]


def one_factor_set(train_set: str, factor: str) -> str:
    """The name of the set in which only `factor` varies, of the digits a run was trained on.

    Raises
    ------
    UsageError
        There is no such factor, or no synthetic set of that size.
    """
    if factor not in FACTORS:
        raise UsageError(f"there is no factor '{factor}'; the factors are {', '.join(TRANSFORM_COLUMNS)}.")
    spec = sets.find_set(train_set)
    family = "mnist" if spec.family in ("affnist", "homnist") else spec.family
    for name in sets.set_names():
        other = sets.find_set(name)
        if other.form == "affine" and other.family == family and other.canvas == spec.canvas:
            return sets.find_set(sets.varied_name(name, only=factor, **FACTORS[factor])).name
    raise UsageError(
        f"there is no synthetic affine set of {spec.canvas}×{spec.canvas} images for models trained on '{train_set}'."
    )


def factor_curve(run: Run, factor: str, workspace: Workspace, *, limit: int | None = None) -> FactorCurve:
    """Accuracy of a run as a curve over one factor; kept in the run's folder and answered from there.

    Parameters
    ----------
    run
        A finished run.
    factor
        One of `FACTORS`.
    workspace
        Folders, device and progress.
    limit
        Use the first `limit` digits only.

    Returns
    -------
    FactorCurve

    Raises
    ------
    UsageError
        There is no such factor, or no set for this model.
    DataError, ArtefactError
        The digits or the checkpoint are missing or damaged.
    """
    name = one_factor_set(run.config.data.train_set, factor)
    part = sets.find_part(name, copies=1, limit=limit)
    inputs = answer_inputs(run, part, workspace.data) | {"limit": limit}

    def make(target: Any) -> None:
        dataset = part.load(workspace.data)
        model = load_model(run, resolve_device(workspace.device))
        predictions, _ = predict(model, dataset, progress=workspace.progress)
        assert dataset.transforms is not None  # noqa: S101 - synthetic sets have them
        values = dataset.transforms[:, TRANSFORM_COLUMNS.index(factor)]
        points = bin_accuracy(values, predictions == dataset.labels)
        target.write_text(json.dumps([asdict(point) for point in points]), encoding="utf-8")

    path = store.derive_file(run.path / "factors" / f"{factor}.json", "factors", VERSION, inputs, make)
    saved = json.loads(path.read_text(encoding="utf-8"))
    points = tuple(FactorPoint(**(point | {"ci95": tuple(point["ci95"])})) for point in saved)
    return FactorCurve(run.name, run.config.training.seed, factor, name, points)


def bin_accuracy(values: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], bins: int = BINS) -> list[FactorPoint]:
    """Accuracy in equal bins over the range of the values, rounded outwards to two digits.

    Parameters
    ----------
    values, right
        (N,): the factor of each image, and whether it is classified correctly.
    bins
        How many; those without images are left out.
    """
    low, high = float(values.min()), float(values.max())
    digits = 1 - int(np.floor(np.log10(max(high - low, 1e-6))))
    scale = 10.0**digits
    edges = np.linspace(np.floor(low * scale + 1e-4) / scale, np.ceil(high * scale - 1e-4) / scale, bins + 1)
    member = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    points = []
    for number in range(bins):
        inside = member == number
        n, correct = int(inside.sum()), int(right[inside].sum())
        if n:
            ends = (float(edges[number]), float(edges[number + 1]))
            points.append(FactorPoint(*ends, n, correct, correct / n, wilson_interval(correct, n)))
    return points
