"""The course of a training run, a row per validation, and its file ``history.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from affbench.base.errors import ArtefactError


@dataclass(frozen=True)
class Epoch:
    """One row of ``history.csv``.

    Attributes
    ----------
    epoch, step
        Epochs and optimiser steps done; with several validations an epoch, a row for each and fractions of epochs.
    learning_rate
        At the last step of the epoch.
    train_loss, train_accuracy
        Means since the last row, while the weights changed; the accuracy is None for a model whose loss hides its
        scores.
    validation_accuracy
        On the whole validation split.
    seconds, images_per_second
        Training alone, without validation, since the last row.
    """

    epoch: float
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float | None
    validation_accuracy: float
    seconds: float
    images_per_second: float


def history_to_csv(history: Iterable[Epoch]) -> str:
    """The content of ``history.csv``; floats keep every digit, None is an empty cell."""
    names = [field.name for field in fields(Epoch)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in history:
        writer.writerow(["" if (value := getattr(row, name)) is None else value for name in names])
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
