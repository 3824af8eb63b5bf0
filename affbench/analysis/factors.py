"""Accuracy on synthetic sets in which a single factor of the transformation varies, wider than in affNIST."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from affbench.base.errors import UsageError, nearest
from affbench.base.workspace import Workspace
from affbench.data import sets
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.run.evaluate import bin_shares, predict
from affbench.run.folder import BinShare, Run
from affbench.run.record import measured

BINS = 12
FACTORS = dict(zip(TRANSFORM_COLUMNS, (60.0, 0.6, 0.5, 0.5, 12.0, 12.0), strict=True))
"""Factor to the half-width it is drawn from; translations also keep the whole digit on the canvas."""


@dataclass(frozen=True)
class FactorCurve:
    """Accuracy of a run in equal bins of a factor, on a set of independent images in which it alone varies."""

    run: str
    seed: int
    factor: str
    set: str
    points: tuple[BinShare, ...]


def one_factor_set(train_set: str, factor: str) -> str:
    """The name of the set in which only `factor` varies, of the digits a run was trained on; UsageError for none."""
    if factor not in FACTORS:
        raise UsageError(f"there is no factor '{factor}': {nearest(factor, TRANSFORM_COLUMNS)}")
    affine = sets.sibling(sets.find_set(train_set), "affine")
    reach = {factor.rpartition("_")[2]: FACTORS[factor]}
    return sets.find_set(sets.varied_name(affine.name, only=factor, **reach)).name


def factor_curve(run: Run, factor: str, workspace: Workspace, *, limit: int | None = None) -> FactorCurve:
    """Accuracy of a run over one of `FACTORS`, on the first digits; kept in its folder and answered from there."""

    def measure(model: nn.Module, dataset: Dataset) -> list[dict[str, Any]]:
        predictions, _ = predict(model, dataset, progress=workspace.progress)
        values = dataset.table[0][:, TRANSFORM_COLUMNS.index(factor)]
        return [share.model_dump() for share in bin_shares(values, predictions == dataset.labels, BINS)]

    part = sets.find_part(one_factor_set(run.config.data.train_set, factor), copies=1, limit=limit)
    points = (BinShare(**point) for point in measured("factors", factor, run, part, workspace, measure))
    return FactorCurve(run.name, run.config.training.seed, factor, part.name, tuple(points))
