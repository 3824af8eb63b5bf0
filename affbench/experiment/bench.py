"""How fast a model trains and evaluates here, and how far that is from the floor its convolutions set.

Everything that is compared is measured in one run, in turns: each round times every candidate once, ratios are formed
within a round, and medians over the rounds are reported with their quartiles. Load from other processes then meets
all candidates alike.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from affbench.base.device import Computed, autocast, device_name, resolve_device, synchronise
from affbench.base.errors import UsageError
from affbench.base.progress import Progress
from affbench.data.batches import Augmentation, TrainingBatches
from affbench.data.dataset import Dataset
from affbench.models import build_model, model_options, parameter_count
from affbench.models.capsnet import CapsNet
from affbench.models.kernels.convolution import Conv2d
from affbench.models.kernels.layout import prepare
from affbench.models.options import whole
from affbench.run.step import WARM_UP, make_step
from affbench.run.trial import try_model

if TYPE_CHECKING:
    from rich.table import Table

TEXTBOOK = Path("benchmarks/textbook.py")
USUAL_BATCH, USUAL_CANVAS = 32, 40  # of a cost curve that varies something else
_FRAME = 28  # pixels of a digit before it is placed
_MEMORY_STEPS = 3

Action = Callable[[], object]


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


@dataclass(frozen=True)
class Speed:
    """What `benchmark_speed` measured; every time is in seconds and for one batch.

    Attributes
    ----------
    model, options, parameters, canvas, batch_size
        What was measured.
    device, device_name, precision, threads, torch_version, repeats
        Where and how.
    train_images_per_second, eval_images_per_second
        Throughput from the median times.
    step, evaluation, floor
        A full training step (forward, backward, optimiser; the batch is there already); a forward pass in inference
        mode; the model's convolutions alone, forward and backward, as torch computes them: directly.
    convolutions
        The same convolutions as the model computes them; None where that is torch's way.
    textbook, routing_1, routing_10
        A full step of the textbook formulation, and of this model with 1 and 10 routing iterations; None where there
        is no such thing.
    textbook_float32
        The textbook step in float32, as public code runs it, where this measurement is in another precision.
    split
        Part of the step to its time, each part measured alone; ``"other"`` is what the parts leave of the step.
        ``"data"`` is the making of a batch, which the step does not hold.
    step_over_floor, step_over_convolutions, textbook_over_step, textbook_float32_over_step, routing_10_over_1
        Ratios within a round.
    peak_memory_bytes
        While training, above the idle process (CPU) or allocated on the device (CUDA); None where it is unknown.
    matrix_flops, copy_bytes
        Measured rates of this device: FLOP/s of a large matrix product in this precision, bytes/s read and written
        by a large copy.
    matrix_fraction
        FLOPs of the convolutions in a step, multiplied directly, over the step's time, as a fraction of
        ``matrix_flops``; above 1 where fewer multiplications yield the same.
    copy_fraction
        Bytes that the capsule layer has to move at least (weight, capsules and their gradients), over its time, as a
        fraction of ``copy_bytes``; None for a model without one.
    """

    model: str
    options: dict[str, Any]
    parameters: int
    canvas: int
    batch_size: int
    device: str
    device_name: str
    precision: Computed
    threads: int
    torch_version: str
    repeats: int
    train_images_per_second: float
    eval_images_per_second: float
    step: Spread
    evaluation: Spread
    floor: Spread | None
    convolutions: Spread | None
    textbook: Spread | None
    textbook_float32: Spread | None
    routing_1: Spread | None
    routing_10: Spread | None
    split: dict[str, float]
    step_over_floor: Spread | None
    step_over_convolutions: Spread | None
    textbook_over_step: Spread | None
    textbook_float32_over_step: Spread | None
    routing_10_over_1: Spread | None
    peak_memory_bytes: int | None
    matrix_flops: float
    copy_bytes: float
    matrix_fraction: float
    copy_fraction: float | None

    def to_dict(self) -> dict[str, Any]:
        """The measurement as a JSON document."""
        return asdict(self)

    def to_rich(self) -> Table:
        """The measurement as a table for the terminal."""
        return speed_table(self)


def benchmark_speed(
    model: str = "capsnet",
    *,
    device: torch.device,
    precision: Computed,
    options: Mapping[str, Any] | None = None,
    routings: int | None = None,
    batch_size: int = 32,
    canvas: int = 40,
    repeats: int = 5,
    textbook: Path | None = None,
    progress: Progress | None = None,
) -> Speed:
    """Measure training and evaluation speed, where the time goes, and three ratios.

    Parameters
    ----------
    model, options
        As for `build_model`.
    device, precision
        Where and in what to compute.
    routings
        Routing iterations, for a model that has such an option; by default what it does.
    batch_size
        Images a step.
    canvas
        Side of the images in pixels, at least 28.
    repeats
        Rounds, after one to warm up; each measures every candidate once.
    textbook
        A Python file with a ``TextbookCapsNet`` to compare a CapsNet with; by default ``benchmarks/textbook.py``
        where that exists, else there is no such comparison.
    progress
        Told about every round.

    Returns
    -------
    Speed

    Raises
    ------
    UsageError
        An option is not acceptable, or the textbook file cannot be used.
    """
    options, progress = dict(options or {}), progress or Progress()
    if routings is not None and "routings" in model_options(model):
        options["routings"] = routings
    batch_size, repeats = whole("batch_size", batch_size), whole("repeats", repeats)
    if whole("canvas", canvas) < _FRAME:
        raise UsageError(f"canvas must be at least {_FRAME} pixels, not {canvas}.")
    torch.manual_seed(0)
    images = torch.rand(batch_size, 1, canvas, canvas, device=device)
    labels = torch.randint(10, (batch_size,), device=device)
    candidate = _Candidate(_network(model, canvas, options, device, precision, progress), images, labels, precision)
    actions: dict[str, Action] = {"step": candidate.step, "evaluation": candidate.evaluate}
    convolutions = _Convolutions(candidate)
    if convolutions:
        actions["floor"] = convolutions.run_library
    if convolutions.faster:
        actions["convolutions"] = convolutions.run
    actions |= _parts(candidate, canvas)
    if isinstance(candidate.model, CapsNet):
        for count in (1, 10):
            other = build_model(model, canvas=canvas, **(options | {"routings": count}))
            actions[f"routing_{count}"] = _Candidate(other, images, labels, precision).step
        reference = _textbook(textbook, options, canvas)
        if reference is not None and _has_room(candidate, progress):
            actions["textbook"] = _Candidate(reference, images, labels, precision).step
            if precision != "float32":
                actions["textbook_float32"] = _Candidate(reference, images, labels, "float32").step
    times = _in_turns(actions, repeats, device, progress)
    spreads = {name: Spread.of(values) for name, values in times.items()}
    progress.note("measuring peak memory and the rates of the device")
    matrix_flops, copy_bytes = _device_rates(device, precision)
    step = spreads["step"].median
    capsules = spreads.get("capsule layer")
    return Speed(
        model=model,
        options=options,
        parameters=parameter_count(candidate.model),
        canvas=canvas,
        batch_size=batch_size,
        device=str(device),
        device_name=device_name(device),
        precision=precision,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        repeats=repeats,
        train_images_per_second=batch_size / step,
        eval_images_per_second=batch_size / spreads["evaluation"].median,
        step=spreads["step"],
        evaluation=spreads["evaluation"],
        floor=spreads.get("floor"),
        convolutions=spreads.get("convolutions"),
        textbook=spreads.get("textbook"),
        textbook_float32=spreads.get("textbook_float32"),
        routing_1=spreads.get("routing_1"),
        routing_10=spreads.get("routing_10"),
        split=_split(spreads),
        step_over_floor=_ratio(times, "step", "floor"),
        step_over_convolutions=_ratio(times, "step", "convolutions"),
        textbook_over_step=_ratio(times, "textbook", "step"),
        textbook_float32_over_step=_ratio(times, "textbook_float32", "step"),
        routing_10_over_1=_ratio(times, "routing_10", "routing_1"),
        peak_memory_bytes=_peak_memory(device, precision, model, options, batch_size, canvas),
        matrix_flops=matrix_flops,
        copy_bytes=copy_bytes,
        matrix_fraction=convolutions.flops / step / matrix_flops,
        copy_fraction=None if capsules is None else _capsule_bytes(candidate) / capsules.median / copy_bytes,
    )


@dataclass(frozen=True)
class CostPoint:
    """One point of a cost curve: what was varied, its value, and the images trained on per second."""

    varied: str
    value: int
    images_per_second: Spread


def cost_curves(
    model: str = "capsnet",
    *,
    device: torch.device,
    precision: Computed,
    options: Mapping[str, Any] | None = None,
    routings: Sequence[int] = (1, 2, 3, 5, 7, 10),
    batch_sizes: Sequence[int] = (16, 32, 64, 128),
    canvases: Sequence[int] = (28, 40, 56),
    repeats: int = 3,
    progress: Progress | None = None,
) -> list[CostPoint]:
    """Training throughput against routing iterations, batch size and canvas, one varied at a time.

    The others stay at batch 32, canvas 40 and the options given; all points are measured in turns. Parameters as in
    `benchmark_speed`; an empty sequence leaves a curve out, and a model without routing has no curve over iterations.
    """
    options, known = dict(options or {}), model_options(model)
    usual = options.get("routings", known.get("routings"))
    cases: list[tuple[str, int, tuple[Any, int, int]]] = []
    if "routings" in known:
        cases += [("routings", count, (count, USUAL_BATCH, USUAL_CANVAS)) for count in routings]
    cases += [("batch_size", size, (usual, size, USUAL_CANVAS)) for size in batch_sizes]
    cases += [("canvas", side, (usual, USUAL_BATCH, side)) for side in canvases]
    steps: dict[str, Action] = {}  # the point where curves meet is measured once
    for count, size, side in dict.fromkeys(settings for _, _, settings in cases):
        own = options if count is None else options | {"routings": count}
        images, labels = torch.rand(size, 1, side, side, device=device), torch.randint(10, (size,), device=device)
        network = _network(model, side, own, device, precision, progress or Progress())
        steps[str((count, size, side))] = _Candidate(network, images, labels, precision).step
    seconds = _in_turns(steps, repeats, device, progress or Progress())
    return [
        CostPoint(varied, value, Spread.of([settings[1] / second for second in seconds[str(settings)]]))
        for varied, value, settings in cases
    ]


def _network(
    name: str, canvas: int, options: Mapping[str, Any], device: torch.device, precision: Computed, progress: Progress
) -> nn.Module:
    """A model that has passed the trial of training, on noise."""
    noise = np.random.default_rng(0).integers(0, 256, (2, canvas, canvas), np.uint8)
    sample = Dataset("noise", "test", noise, np.arange(2, dtype=np.uint8))
    return try_model(
        partial(build_model, name, canvas=canvas, **options), sample, device, precision, 2, progress.note
    )()


class _Candidate:
    """A model with its optimiser and one batch."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, precision: Computed) -> None:
        self.images, self.labels, self.precision, self.device = images, labels, precision, images.device
        self.model = prepare(model, self.device).train()
        self.take = make_step(self.model, 0.001, precision, self.device)
        for _ in range(WARM_UP + 1 if self.device.type == "cuda" else 0):
            self.step()  # until the step is captured, which is what training replays

    def step(self) -> None:
        self.take(self.images, self.labels, 0.001)

    def evaluate(self) -> None:
        self.model.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            self.model(self.images)
        self.model.train()


class _Convolutions:
    """The convolutions of a model, each on the input it meets in the model, and nothing else.

    The first one, whose input is the image, gets no gradient of its input: it needs none in training either.
    """

    def __init__(self, candidate: _Candidate) -> None:
        self._candidate = candidate
        self._calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []
        self.flops = 0.0
        hooks = [
            module.register_forward_hook(self._record)
            for module in candidate.model.modules()
            if isinstance(module, nn.Conv2d)
        ]
        with autocast(candidate.device, candidate.precision):
            candidate.model(candidate.images)
        for hook in hooks:
            hook.remove()

    def __bool__(self) -> bool:
        return bool(self._calls)

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)  # noqa: S101 - only convolutions carry the hook
        from_image = not inputs[0].requires_grad
        self._calls.append((module, inputs[0].detach().requires_grad_(not from_image), torch.randn_like(output)))
        products = output.numel() * module.weight[0].numel()
        self.flops += 2 * products * (2 if from_image else 3)

    @property
    def faster(self) -> bool:
        """Whether some are computed otherwise than torch does on this device."""
        return self._candidate.device.type == "cpu" and any(isinstance(call[0], Conv2d) for call in self._calls)

    def run(self) -> None:
        """Forward and backward, as the model does it."""
        self._run(nn.Module.__call__)

    def run_library(self) -> None:
        """Forward and backward, as torch does it."""
        self._run(nn.Conv2d.forward)

    def _run(self, convolve: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        for module, images, grad in self._calls:
            with autocast(self._candidate.device, self._candidate.precision):
                result = convolve(module, images)
            result.backward(grad)
            module.zero_grad(set_to_none=True)
            images.grad = None


def _parts(candidate: _Candidate, canvas: int) -> dict[str, Action]:
    """The parts of a step beside the convolutions, each as something to run by itself."""
    model, images, labels = candidate.model, candidate.images, candidate.labels
    rng = np.random.default_rng(0)
    count = 8 * len(images)
    digits = Dataset(
        "random",
        "train",
        rng.integers(0, 256, (count, _FRAME, _FRAME), np.uint8),
        rng.integers(0, 10, count, np.uint8),
    )
    shift = (canvas - _FRAME) // 2
    batches = TrainingBatches(digits, Augmentation(canvas, shift), len(images), 0, candidate.device)
    epochs = iter(range(sys.maxsize))

    def endless() -> Any:
        for epoch in epochs:
            yield from batches.epoch(epoch)

    stream = endless()
    candidate.step()
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    twin = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    optimizer = torch.optim.Adam(twin, fused=candidate.device.type in ("cpu", "cuda"))
    for parameter, grad in zip(twin, grads, strict=True):
        parameter.grad = grad
    parts: dict[str, Action] = {"data": lambda: next(stream), "optimiser": optimizer.step}
    if not isinstance(model, CapsNet):
        return parts
    with torch.no_grad(), autocast(candidate.device, candidate.precision):
        channels = model.primary.network(images)
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
            loss, _ = model.loss_of_capsules(leaf, images, labels)
        loss.backward()
        if model.decoder is not None:
            model.decoder.zero_grad(set_to_none=True)

    return {"capsule layer": capsule_layer, "decoder and loss": decoder_and_loss, **parts}


def _textbook(path: Path | None, options: Mapping[str, Any], canvas: int) -> nn.Module | None:
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


def _has_room(candidate: _Candidate, progress: Progress) -> bool:
    """Whether the textbook steps fit in the memory that is free; the progress is told where they do not."""
    # Weight and gradient are copied for every image, votes are smaller; measured on the CPU.
    needed = 2.25 * 4 * _capsule_weight(candidate).numel() * len(candidate.images)
    needed *= 1 if candidate.precision == "float32" else 1.5  # in bfloat16 and in float32
    free = _free_memory(candidate.device)
    if free is None or needed < 0.9 * free:
        return True
    progress.note(
        f"the textbook step is left out: at batch {len(candidate.images):,} it needs some {needed / 2**30:,.1f} GiB of "
        f"memory, and {free / 2**30:,.1f} GiB are free"
    )
    return False


def _free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; None where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(found[1]) * 1024 if found else None


def _in_turns(
    actions: Mapping[str, Action], rounds: int, device: torch.device, progress: Progress
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in actions}
    with progress.task("measuring", (rounds + 1) * len(actions)) as task:
        for turn in range(rounds + 1):
            for name, action in actions.items():
                synchronise(device)
                start = time.perf_counter()
                action()
                synchronise(device)
                if turn:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
                task.advance(1, name)
    return times


def _ratio(times: Mapping[str, Sequence[float]], above: str, below: str) -> Spread | None:
    if above not in times or below not in times:
        return None
    return Spread.of([a / b for a, b in zip(times[above], times[below], strict=True)])


def _split(spreads: Mapping[str, Spread]) -> dict[str, float]:
    names = ("capsule layer", "decoder and loss", "optimiser")
    convolutions = spreads.get("convolutions", spreads.get("floor"))
    split = {} if convolutions is None else {"convolutions": convolutions.median}
    split |= {name: spreads[name].median for name in names if name in spreads}
    split["other"] = max(0.0, spreads["step"].median - sum(split.values()))
    split["data"] = spreads["data"].median
    return split


def _capsule_weight(candidate: _Candidate) -> Tensor:
    assert isinstance(candidate.model, CapsNet)  # noqa: S101 - only a CapsNet has a capsule layer to time
    return candidate.model.digits.weight


def _capsule_bytes(candidate: _Candidate) -> int:
    """Weight and capsules read forward and backward, their gradients written, all in float32."""
    weight = _capsule_weight(candidate)
    capsules = len(candidate.images) * weight.shape[2] * weight.shape[3]
    return 3 * 4 * (weight.numel() + capsules)


def _device_rates(device: torch.device, precision: Computed) -> tuple[float, float]:
    """FLOP/s of a large matrix product and bytes/s of a large copy; the best of several, on random data."""
    side, elements, repeats = (8192, 1 << 28, 20) if device.type == "cuda" else (2048, 1 << 25, 5)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    actions: dict[str, Action] = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = _in_turns(actions, repeats, device, Progress())
    return 2 * side**3 / min(times["product"]), 2 * 4 * elements / min(times["copy"])


def _peak_memory(
    device: torch.device, precision: Computed, model: str, options: Mapping[str, Any], batch_size: int, canvas: int
) -> int | None:
    """Peak memory of a few training steps, in a process of their own."""
    request = {
        "device": str(device),
        "precision": precision,
        "model": model,
        "options": dict(options),
        "batch_size": batch_size,
        "canvas": canvas,
    }
    code = "import sys; from affbench.experiment.bench import _memory_child; _memory_child(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    done = subprocess.run(  # noqa: S603 - this interpreter, this package
        [sys.executable, "-c", code, json.dumps(request)], capture_output=True, text=True, env=environment, check=False
    )
    try:
        peak = json.loads(done.stdout)
    except ValueError:
        return None
    return peak if isinstance(peak, int) else None


def _memory_child(request_json: str) -> None:
    """Train a few steps and print the peak memory in bytes above the idle process, or null where it is unknown."""
    request = json.loads(request_json)
    device = resolve_device(request["device"])
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)  # libraries are loaded at first use
    idle = _resident_peak(device)
    model = build_model(request["model"], canvas=request["canvas"], **request["options"])
    images = torch.rand(request["batch_size"], 1, request["canvas"], request["canvas"], device=device)
    labels = torch.randint(10, (request["batch_size"],), device=device)
    candidate = _Candidate(model, images, labels, request["precision"])
    for _ in range(_MEMORY_STEPS):
        candidate.step()
    peak = _resident_peak(device)
    json.dump(None if peak is None or idle is None else peak - idle, sys.stdout)


def _resident_peak(device: torch.device) -> int | None:
    """Bytes allocated on a CUDA device, or resident in this process, at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def speed_table(speed: Speed) -> Table:
    """The measurement as a table for the terminal."""
    from rich.table import Table

    caption = (
        f"{speed.device_name}, {speed.threads} threads, torch {speed.torch_version}; medians of {speed.repeats} "
        "interleaved rounds, quartiles in brackets"
    )
    title = f"{speed.model}, batch {speed.batch_size}, {speed.canvas}×{speed.canvas}, {speed.precision}"
    table = Table("measure", "value", title=title, caption=caption)
    table.columns[1].justify = "right"
    table.add_row("parameters", f"{speed.parameters:,}")
    table.add_row("training", f"{speed.train_images_per_second:,.0f} images/s")
    table.add_row("evaluation", f"{speed.eval_images_per_second:,.0f} images/s")
    if speed.peak_memory_bytes is not None:
        table.add_row("peak memory, training", f"{speed.peak_memory_bytes / 2**30:.2f} GiB above idle")
    table.add_section()
    table.add_row("training step", _milliseconds(speed.step))
    for name, seconds in speed.split.items():
        share = f" ({seconds / speed.step.median:.0%})"
        table.add_row(f"  {name}{' (outside the step)' if name == 'data' else ''}", f"{seconds * 1e3:,.1f} ms{share}")
    for name, spread in (
        ("torch's convolutions alone", speed.floor if speed.convolutions else None),
        ("textbook step", speed.textbook),
        ("textbook step in float32", speed.textbook_float32),
        ("step with 1 routing iteration", speed.routing_1),
        ("step with 10 routing iterations", speed.routing_10),
    ):
        if spread is not None:
            table.add_row(name, _milliseconds(spread))
    table.add_section()
    for name, spread in (
        ("step / torch's convolutions alone", speed.step_over_floor),
        ("step / its own convolutions alone", speed.step_over_convolutions),
        ("textbook step / step", speed.textbook_over_step),
        ("textbook step in float32 / step", speed.textbook_float32_over_step),
        ("10 routing iterations / 1", speed.routing_10_over_1),
    ):
        if spread is not None:
            table.add_row(name, f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]")
    table.add_section()
    rate = f"{speed.matrix_fraction:.0%} of {speed.matrix_flops / 1e12:.2f} TFLOP/s"
    table.add_row("convolutions' share of the matrix rate", rate)
    if speed.copy_fraction is not None:
        rate = f"{speed.copy_fraction:.0%} of {speed.copy_bytes / 1e9:,.0f} GB/s"
        table.add_row("capsule layer's share of the copy rate", rate)
    return table


def _milliseconds(spread: Spread) -> str:
    return f"{spread.median * 1e3:,.1f} [{spread.low * 1e3:,.1f}, {spread.high * 1e3:,.1f}] ms"
