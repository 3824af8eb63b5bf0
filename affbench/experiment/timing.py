"""What `affbench bench` times: steps of a model, its parts each by itself, and a textbook model beside it.

Everything that is compared is measured in turns: each round times every candidate once, ratios are formed within a
round, and medians over the rounds are reported with their quartiles. Load from other processes meets all alike.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from affbench.base.device import Computed, autocast, synchronise
from affbench.base.errors import UsageError
from affbench.base.progress import Progress
from affbench.data.batches import Augmentation, TrainingBatches
from affbench.data.dataset import Dataset
from affbench.models import build_model
from affbench.models.capsnet import CapsNet
from affbench.models.kernels.convolution import Conv2d
from affbench.models.kernels.layout import prepare
from affbench.models.options import whole
from affbench.run.step import WARM_UP, make_step
from affbench.run.trial import try_model

TEXTBOOK = Path("benchmarks/textbook.py")
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


class Convolutions:
    """The convolutions of a model, each on the input it meets in the model, and nothing else.

    The first one, whose input is the image, gets no gradient of its input: it needs none in training either.
    """

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []
        self.flops = 0.0  # of forward and backward, multiplied directly
        found = [module for module in candidate.model.modules() if isinstance(module, nn.Conv2d)]
        hooks = [module.register_forward_hook(self._record) for module in found]
        with autocast(candidate.device, candidate.precision):
            candidate.model(candidate.images)
        for hook in hooks:
            hook.remove()

    def _record(self, module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        from_image = not inputs[0].requires_grad
        self._calls.append((module, inputs[0].detach().requires_grad_(not from_image), torch.randn_like(output)))
        self.flops += 2 * output.numel() * module.weight[0].numel() * (2 if from_image else 3)

    def actions(self) -> dict[str, Action]:
        """Forward and backward as torch does it, and as the model does it where that is another way."""
        if not self._calls:
            return {}
        actions: dict[str, Action] = {"floor": partial(self._run, nn.Conv2d.forward)}
        if self._candidate.device.type == "cpu" and any(isinstance(call[0], Conv2d) for call in self._calls):
            actions["convolutions"] = partial(self._run, nn.Module.__call__)
        return actions

    def _run(self, convolve: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        for module, images, grad in self._calls:
            with autocast(self._candidate.device, self._candidate.precision):
                result = convolve(module, images)
            result.backward(grad)
            module.zero_grad(set_to_none=True)
            images.grad = None


def parts(candidate: Candidate, canvas: int) -> dict[str, Action]:
    """The parts of a step beside the convolutions, and the making of a batch, each as something to run by itself."""
    stream = _batches(candidate, canvas)
    candidate.step()
    grads = [parameter.grad for parameter in candidate.model.parameters()]
    candidate.model.zero_grad(set_to_none=True)
    twin = [nn.Parameter(parameter.detach().clone()) for parameter in candidate.model.parameters()]
    optimizer = torch.optim.Adam(twin, fused=candidate.device.type in ("cpu", "cuda"))
    for parameter, grad in zip(twin, grads, strict=True):
        parameter.grad = grad
    actions: dict[str, Action] = {"data": lambda: next(stream), "optimiser": optimizer.step}
    if isinstance(candidate.model, CapsNet):
        actions |= _capsule_parts(candidate, candidate.model)
    return actions


def _batches(candidate: Candidate, canvas: int) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    count = 8 * len(candidate.images)
    images, labels = rng.integers(0, 256, (count, FRAME, FRAME), np.uint8), rng.integers(0, 10, count, np.uint8)
    placement = Augmentation(canvas, (canvas - FRAME) // 2)
    digits = Dataset("random", "train", images, labels)
    batches = TrainingBatches(digits, placement, len(candidate.images), 0, candidate.device)
    return (batch for epoch in range(sys.maxsize) for batch in batches.epoch(epoch))


def _capsule_parts(candidate: Candidate, model: CapsNet) -> dict[str, Action]:
    with torch.no_grad(), autocast(candidate.device, candidate.precision):
        channels = model.primary.network(candidate.images)
        v = model.digits(model.primary.group(channels))
    grad_v = torch.randn_like(v)

    def capsule_layer() -> None:
        leaf = channels.detach().requires_grad_()
        with autocast(candidate.device, candidate.precision):
            result = model.digits(model.primary.group(leaf))
        result.backward(grad_v)
        model.digits.zero_grad(set_to_none=True)

    def decoder_and_loss() -> None:
        leaf = v.detach().requires_grad_()
        with autocast(candidate.device, candidate.precision):
            loss, _ = model.loss_of_capsules(leaf, candidate.images, candidate.labels)
        loss.backward()
        if model.decoder is not None:
            model.decoder.zero_grad(set_to_none=True)

    return {"capsule layer": capsule_layer, "decoder and loss": decoder_and_loss}


def textbook_model(path: Path | None, options: Mapping[str, Any], canvas: int) -> nn.Module | None:
    """The textbook network of the same sizes, from a file that is named explicitly or lies where it usually does."""
    if path is None:
        if not TEXTBOOK.is_file():
            return None
        path = TEXTBOOK
    spec = importlib.util.spec_from_file_location("affbench_textbook", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"the textbook implementation {path} is not a Python file; give another one with --textbook.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        own = {name: value for name, value in options.items() if name != "routing_gradient"}
        network: nn.Module = module.TextbookCapsNet(canvas=canvas, **own)
    except Exception as error:  # the file is the user's: whatever it raises is about the file
        raise UsageError(f"the textbook implementation {path} fails: {type(error).__name__}: {error}") from error
    return network
