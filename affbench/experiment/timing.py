"""How things are timed that are compared, and a model with all that its training step takes.

Everything that is compared is measured in turns: each round times every candidate once, ratios are formed within a
round, and medians over the rounds are reported with their quartiles. Load from other processes meets all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from affbench.base.device import Computed, autocast, synchronise
from affbench.base.errors import UsageError
from affbench.base.progress import Progress
from affbench.data.dataset import Dataset
from affbench.models import build_model
from affbench.models.kernels.layout import prepare
from affbench.models.options import whole
from affbench.run.step import WARM_UP, make_step
from affbench.run.trial import try_model

FRAME = 28  # pixels of a digit before it is placed

Action = Callable[[], object]
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles of at least one value."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))


def in_turns(actions: Mapping[str, Action], rounds: int, device: torch.device, progress: Progress) -> Times:
    """Seconds of every action in every round, after one round to warm up."""
    times: Times = {name: [] for name in actions}
    with progress.task("measuring", (rounds + 1) * len(actions)) as task:
        for turn in range(rounds + 1):
            for name, action in actions.items():
                synchronise(device)
                start = time.perf_counter()
                action()
                synchronise(device)
                if turn:
                    times[name].append(time.perf_counter() - start)
                task.advance(1, name)
    return times


@dataclass(frozen=True)
class Workload:
    """A model and the shape of its batches, on a device and in a precision."""

    model: str
    options: dict[str, Any]
    device: torch.device
    precision: Computed
    batch_size: int = 32
    canvas: int = 40

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size)
        if whole("canvas", self.canvas) < FRAME:
            raise UsageError(f"canvas must be at least {FRAME} pixels, not {self.canvas}.")

    def candidate(self, progress: Progress) -> Candidate:
        """The model, once it has passed the trial of training, with a batch."""
        noise = np.random.default_rng(0).integers(0, 256, (2, self.canvas, self.canvas), np.uint8)
        sample = Dataset("noise", "test", noise, np.arange(2, dtype=np.uint8))
        build = partial(build_model, self.model, canvas=self.canvas, **self.options)
        return Candidate(try_model(build, sample, self.device, self.precision, 2, progress.note)(), self)


class Candidate:
    """A model with its optimiser and one random batch."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        self.device, self.precision = workload.device, workload.precision
        size, side = workload.batch_size, workload.canvas
        self.images = torch.rand(size, 1, side, side, device=self.device)
        self.labels = torch.randint(10, (size,), device=self.device)
        self.model = prepare(model, self.device).train()
        self.take = make_step(self.model, 0.001, self.precision, self.device)
        for _ in range(WARM_UP + 1 if self.device.type == "cuda" else 0):
            self.step()  # until the step is captured, which is what training replays

    def step(self) -> None:
        """Forward, backward, optimiser."""
        self.take(self.images, self.labels, 0.001)

    def evaluate(self) -> None:
        """Forward in inference mode."""
        self.model.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            self.model(self.images)
        self.model.train()
