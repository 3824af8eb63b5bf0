"""The course of a training run, a row per validation, and its file ``history.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from affbench.base.errors import ArtefactError


@dataclass(frozen=True)
class Epoch:
    """One row of ``history.csv``: a validation; with several an epoch, `epoch` counts in fractions."""

    epoch: float  # done, as are optimiser steps
    step: int
    learning_rate: float  # of the last step
    train_loss: float  # means since the last row, while the weights changed
    train_accuracy: float | None  # None for a model whose loss hides its scores
    validation_accuracy: float
    seconds: float  # of training alone, since the last row
    images_per_second: float


def history_to_csv(history: Iterable[Epoch]) -> str:
    """The content of ``history.csv``; floats keep every digit, None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, history))
    return text.getvalue()


def history_from_csv(path: Path) -> list[Epoch]:
    """Read ``history.csv``; an `ArtefactError` where it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Epoch(**{k: int(v) if k == "step" else float(v) if v else None for k, v in row.items()})  # type: ignore[arg-type]
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ArtefactError(f"{path} cannot be read as a training history ({error}).") from error
