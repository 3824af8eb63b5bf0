"""Learning-rate schedules, when a run is validated, and when it stops.

A new schedule is one entry of `SCHEDULES`: the configuration names it, reports describe it.
"""

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from affbench.base.config import TrainingConfig
from affbench.base.errors import UsageError, nearest
from affbench.run.folder import Epoch


@dataclass(frozen=True)
class Leg:
    """The batches `first` … `last` − 1 of an epoch (from 0), after which `done` epochs are done."""

    epoch: int
    first: int
    last: int
    done: float


@dataclass(frozen=True)
class Course:
    """The course of a run: its settings, and the batches of an epoch."""

    settings: TrainingConfig
    batches: int

    @property
    def validations(self) -> int:
        """Validations of the whole run."""
        return self.settings.epochs * self.settings.validations

    def learning_rate(self, step: int) -> float:
        """Learning rate of an optimiser step, from 0."""
        settings = self.settings
        return SCHEDULES[settings.schedule].rate(settings.learning_rate, step, self.batches, settings.epochs)

    def leg(self, history: Sequence[Epoch]) -> Leg:
        """The part of an epoch that is under way: it ends with the next validation."""
        epoch, part = divmod(len(history), self.settings.validations)
        first, last = (round(self.batches * share / self.settings.validations) for share in (part, part + 1))
        return Leg(epoch, first, last, (len(history) + 1) / self.settings.validations)

    def left(self, history: Sequence[Epoch]) -> datetime.timedelta:
        """Time to the end of a run, judged by the validations that are behind it."""
        mean = sum(row.seconds for row in history) / len(history)
        return datetime.timedelta(seconds=round(mean * (self.validations - len(history))))

    def ended(self, history: Sequence[Epoch]) -> bool:
        """Whether a run is over: after its last epoch, or at the accuracy that it stops at."""
        target = self.settings.stop_at
        return len(history) == self.validations or (target is not None and crossing(history, target) is not None)


@dataclass(frozen=True)
class Schedule:
    """A learning rate, made of the highest, the step (from 0), the batches of an epoch and the epochs; and its name."""

    rate: Callable[[float, int, int, int], float]
    text: str


def _warm(shape: Callable[[float], float]) -> Callable[[float, int, int, int], float]:
    """Rising in a straight line over the first tenth of all steps; then `shape` of what is left, from 1 to 0."""

    def rate(highest: float, step: int, batches: int, epochs: int) -> float:
        steps, warm = batches * epochs, max(1, batches * epochs // 10)
        return highest * ((step + 1) / warm if step < warm else shape((steps - step) / (steps - warm)))

    return rate


SCHEDULES = {
    "paper": Schedule(
        lambda rate, step, batches, epochs: max(rate * 0.96 ** (step / 2000), min(1e-6, rate)),
        "multiplied continuously by 0.96 every 2,000 steps, down to 1e-6 (the schedule of the authors' code)",
    ),
    "keras": Schedule(
        lambda rate, step, batches, epochs: rate * 0.9 ** (step // batches),
        "multiplied by 0.9 after each epoch (the schedule of CapsNet-Keras)",
    ),
    "constant": Schedule(lambda rate, step, batches, epochs: rate, "kept constant"),
    "linear": Schedule(
        _warm(lambda left: left), "raised linearly over the first tenth of the steps, then lowered linearly to zero"
    ),
    "cosine": Schedule(
        _warm(lambda left: 0.5 - 0.5 * math.cos(math.pi * left)),
        "raised linearly over the first tenth of the steps, then lowered to zero along half a cosine",
    ),
}


def check_course(settings: TrainingConfig, images: int) -> None:
    """Refuse what no training on so many images can keep to."""
    if (schedule := settings.schedule) not in SCHEDULES:
        raise UsageError(f"training.schedule = '{schedule}' is unknown: {nearest(schedule, SCHEDULES)}")
    batches = math.ceil(images / settings.batch_size)
    if settings.validations > batches:
        raise UsageError(
            f"training.validations = {settings.validations}, but an epoch of {images:,} images has only "
            f"{batches:,} batches of {settings.batch_size}: no more than {batches:,} validations go into it."
        )


def crossing(history: Sequence[Epoch], validation_accuracy: float) -> float | None:
    """The epoch, interpolated between validations, at which an accuracy was first reached; None if it never was."""
    for before, row in zip([None, *history], history, strict=False):
        if row.validation_accuracy >= validation_accuracy:
            if before is None:
                return row.epoch
            gained = row.validation_accuracy - before.validation_accuracy
            share = (validation_accuracy - before.validation_accuracy) / gained
            return before.epoch + share * (row.epoch - before.epoch)
    return None
