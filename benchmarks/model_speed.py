"""How fast a model trains and evaluates here, how far that is from the floor its convolutions set, and what it costs.

Everything that is compared is measured in turns: each round times every candidate once, ratios are formed within a
round, and medians over the rounds are reported with their quartiles. Load from other processes meets all alike.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from affbench.base.device import Computed, autocast, device_name, synchronise
from affbench.base.progress import Progress
from affbench.base.workspace import Workspace
from affbench.data.dataset import Dataset
from affbench.models import build_model, model_options, parameter_count
from affbench.models.capsnet import CapsNet
from affbench.models.kernels.convolution import Conv2d
from affbench.models.kernels.layout import prepare
from affbench.report.drawing import dress, line_look, panels, save_drawing
from affbench.report.table import Cell, Table
from affbench.run.folder import list_runs
from affbench.run.step import WARM_UP, make_step
from affbench.run.trial import try_model

TEXTBOOK = Path(__file__).with_name("textbook.py")
_TIMES = {  # what is reported in seconds
    "step": "training step",  # forward, backward, optimiser; the batch is there already
    "evaluation": "evaluation",  # a forward pass in inference mode
    "floor": "torch's convolutions alone",  # forward and backward, multiplied directly
    "convolutions": "its own convolutions alone",  # the same as the model computes them, where that is another way
    "textbook": "textbook step",
    "textbook_float32": "textbook step in float32",  # as public code runs it, beside another precision
    "routing_1": "step with 1 routing iteration",
    "routing_10": "step with 10 routing iterations",
}
_RATIOS = {
    "step_over_floor": ("step", "floor"),
    "step_over_convolutions": ("step", "convolutions"),
    "textbook_over_step": ("textbook", "step"),
    "textbook_float32_over_step": ("textbook_float32", "step"),
    "routing_10_over_1": ("routing_10", "routing_1"),
}
CURVES = {"routings": (1, 2, 3, 5, 7, 10), "batch_size": (16, 32, 64, 128), "canvas": (28, 40, 56)}
_VARIED = {"routings": "routing iterations", "batch_size": "batch size", "canvas": "canvas, pixels"}
SILENT = Progress()

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


def in_turns(
    actions: Mapping[str, Action], rounds: int, device: torch.device, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of every action in every round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
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

    def build(self) -> nn.Module:
        """The model, freshly initialised."""
        return build_model(self.model, canvas=self.canvas, **self.options)

    def tried(self, progress: Progress) -> Candidate:
        """The model, once it has passed the trial of training, with a batch."""
        noise = np.random.default_rng(0).integers(0, 256, (2, self.canvas, self.canvas), np.uint8)
        sample = Dataset("noise", "test", noise, np.arange(2, dtype=np.uint8))
        return Candidate(self, try_model(self.build, sample, self.device, self.precision, 2, progress.note)())


class Candidate:
    """A model with its optimiser and one random batch."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
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


@dataclass(frozen=True, kw_only=True)
class Speed(Workload):
    """What `benchmark_speed` measured; a CapsNet has more times and ratios than other models."""

    parameters: int
    device_name: str
    threads: int
    torch_version: str
    repeats: int
    times: dict[str, Spread]  # seconds for one batch
    ratios: dict[str, Spread]
    peak_memory_bytes: int | None  # in training, above the idle process (CPU) or allocated (CUDA); None if unknown

    def images_per_second(self, what: str) -> float:
        """From the median time of ``"step"`` or ``"evaluation"``."""
        return self.batch_size / self.times[what].median

    def to_dict(self) -> dict[str, Any]:
        """The measurement as a JSON document; what this model has no number for is None."""
        facts = asdict(self) | {"device": str(self.device)}
        facts |= dict.fromkeys((*_TIMES, *_RATIOS)) | facts.pop("times") | facts.pop("ratios")
        rates = {"train_images_per_second": "step", "eval_images_per_second": "evaluation"}
        return facts | {name: self.images_per_second(what) for name, what in rates.items()}

    def table(self, reached: Mapping[str, float] | None = None) -> Table:
        """The measurement as a table, and how long trainings took that `reached` an accuracy."""
        rows = {
            "parameters": f"{self.parameters:,}",
            "training": f"{self.images_per_second('step'):,.0f} images/s",
            "evaluating": f"{self.images_per_second('evaluation'):,.0f} images/s",
        }
        if self.peak_memory_bytes is not None:
            rows["peak memory, training"] = f"{self.peak_memory_bytes / 2**30:.2f} GiB above idle"
        for name, spread in self.times.items():
            low, median, high = (1e3 * seconds for seconds in (spread.low, spread.median, spread.high))
            rows[_TIMES[name]] = f"{median:,.1f} [{low:,.1f}, {high:,.1f}] ms"
        for name, spread in self.ratios.items():
            above, below = (_TIMES[each].removeprefix("training ") for each in _RATIOS[name])
            rows[f"{above} / {below}"] = f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]"
        rows |= {what: f"{seconds:,.0f} s" for what, seconds in (reached or {}).items()}
        title = f"{self.model}, batch {self.batch_size}, {self.canvas}×{self.canvas}, {self.precision}"
        caption = (
            f"{self.device_name}, {self.threads} threads, torch {self.torch_version}; medians of {self.repeats} "
            "interleaved rounds, quartiles in brackets"
        )
        cells = tuple((Cell(measure), Cell(value)) for measure, value in rows.items())
        return Table(title, ("Measure", "Value"), cells, caption)


def benchmark_speed(
    workload: Workload, *, repeats: int = 5, textbook: Path | None = None, progress: Progress = SILENT
) -> Speed:
    """Measure speeds and ratios; `textbook` is a Python file with a ``TextbookCapsNet`` to compare a CapsNet with."""
    torch.manual_seed(0)
    candidate = workload.tried(progress)
    actions: dict[str, Action] = {"step": candidate.step, "evaluation": candidate.evaluate}
    actions |= _convolutions(candidate)
    if isinstance(candidate.model, CapsNet):
        actions |= _other_steps(candidate.model, workload, textbook, progress)
    rounds = in_turns(actions, repeats, workload.device, progress)
    progress.note("measuring peak memory")
    return Speed(
        **vars(workload),
        parameters=parameter_count(candidate.model),
        device_name=device_name(workload.device),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        repeats=repeats,
        times={name: Spread.of(rounds[name]) for name in _TIMES if name in rounds},
        ratios={
            name: Spread.of([a / b for a, b in zip(rounds[above], rounds[below], strict=True)])
            for name, (above, below) in _RATIOS.items()
            if above in rounds and below in rounds
        },
        peak_memory_bytes=_peak_memory(workload),
    )


def time_to_accuracy(workload: Workload, results_dir: Path) -> dict[str, float]:
    """Seconds of training of finished runs of this model that ended at an accuracy, such as speedruns; in words."""
    options, reached = model_options(workload.model) | workload.options, {}
    for run in list_runs(results_dir):
        model = run.config.model
        if run.finished and (model.name, model.options) == (workload.model, options):
            target, made = run.config.training.stop_at, run.environment
            if target is not None and made.stop_at_reached_epoch is not None:
                what = f"time to {target:.2%} validation accuracy, {run.name}, {made.device_name}"
                reached[what] = run.train_seconds
    return reached


class _Calls(TorchFunctionMode):
    """Notices convolutions by filters that no module of torch's holds, as if one did."""

    def __init__(self, held: list[nn.Conv2d], record: Callable[[nn.Conv2d, tuple[Tensor], Tensor], None]) -> None:
        super().__init__()
        self.held, self.record = held, record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.conv2d:
            self.called(result, *args, **(kwargs or {}))
        return result

    def called(
        self, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *also: Any, **more: Any
    ) -> None:
        """A call of `torch.nn.functional.conv2d`."""
        if any(weight is module.weight for module in self.held):
            return
        groups = input.shape[1] // weight.shape[1]
        kernel = weight.shape[2], weight.shape[3]
        geometry = (input.shape[1], weight.shape[0], kernel, *also[:3])  # the fourth of the others is the groups
        module = nn.Conv2d(*geometry, **more | {"groups": groups, "bias": bias is not None})
        self.record(module.to(weight), (input,), output)


def _convolutions(candidate: Candidate) -> dict[str, Action]:
    """The convolutions of a model, each on the input it meets there, and nothing else, as torch and as it does them.

    The first one, whose input is the image, gets no gradient of its input: it needs none in training either.
    """
    calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def record(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        images = inputs[0].detach().requires_grad_(inputs[0].requires_grad)
        calls.append((module, images, torch.randn_like(output)))

    found = [module for module in candidate.model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(record) for module in found]
    with autocast(candidate.device, candidate.precision), _Calls(found, record):
        candidate.model(candidate.images)
    for hook in hooks:
        hook.remove()

    def run(convolve: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        for module, images, grad in calls:
            with autocast(candidate.device, candidate.precision):
                result = convolve(module, images)
            result.backward(grad)
            module.zero_grad(set_to_none=True)
            images.grad = None

    actions: dict[str, Action] = {"floor": partial(run, nn.Conv2d.forward)} if calls else {}
    if candidate.device.type == "cpu" and any(isinstance(call[0], Conv2d) for call in calls):
        actions["convolutions"] = partial(run, nn.Module.__call__)
    return actions


def _other_steps(model: CapsNet, workload: Workload, textbook: Path | None, progress: Progress) -> dict[str, Action]:
    """Steps to compare a CapsNet's with: other numbers of routing iterations, and the textbook's."""
    actions: dict[str, Action] = {}
    for count in (1, 10):
        other = replace(workload, options=workload.options | {"routings": count})
        actions[f"routing_{count}"] = Candidate(other, other.build()).step
    sizes = {name: value for name, value in workload.options.items() if name != "routing_gradient"}
    compared = replace(workload, model=f"{textbook or TEXTBOOK}:TextbookCapsNet", options=sizes)
    reference = compared.build()
    if _has_room(model, workload, progress):
        actions["textbook"] = Candidate(compared, reference).step
        if workload.precision != "float32":
            actions["textbook_float32"] = Candidate(replace(compared, precision="float32"), reference).step
    return actions


def _has_room(model: CapsNet, workload: Workload, progress: Progress) -> bool:
    """Whether the textbook steps fit in the memory that is free; the progress is told where they do not."""
    # Weight and gradient are copied for every image, votes are smaller; measured on the CPU.
    needed = 2.25 * 4 * model.digits.weight.numel() * workload.batch_size
    needed *= 1 if workload.precision == "float32" else 1.5  # in bfloat16 and in float32
    free = _free_memory(workload.device)
    if free is None or needed < 0.9 * free:
        return True
    progress.note(
        f"the textbook step is left out: at batch {workload.batch_size:,} it needs some {needed / 2**30:,.1f} GiB of "
        f"memory, and {free / 2**30:,.1f} GiB are free"
    )
    return False


def _free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; None where that is unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _kilobytes("meminfo", "MemAvailable")


def _kilobytes(file: str, name: str) -> int | None:
    """A size that Linux says, in bytes; None elsewhere."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc", file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _peak_memory(workload: Workload) -> int | None:
    """Peak memory of a few training steps above the idle process, in a process of their own; None if unknown."""
    with contextlib.suppress(Exception), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_train_a_little, workload).result()
    return None


def _train_a_little(workload: Workload) -> int | None:
    device = workload.device
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)  # libraries are loaded at first use
    idle, candidate = _resident_peak(device), Candidate(workload, workload.build())
    for _ in range(3):
        candidate.step()
    peak = _resident_peak(device)
    return None if peak is None or idle is None else peak - idle


def _resident_peak(device: torch.device) -> int | None:
    """Bytes allocated on a CUDA device, or resident in this process, at most so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _kilobytes("self/status", "VmHWM")


@dataclass(frozen=True)
class CostPoint:
    """One point of a cost curve: what was varied, its value, and the images trained on per second."""

    varied: str
    value: int
    images_per_second: Spread


def draw_curves(usual: Workload, workspace: Workspace) -> tuple[Path, list[CostPoint]]:
    """The curves around a usual batch and canvas, and their figure in ``results/bench``."""
    usual = replace(usual, batch_size=32, canvas=40)
    points = cost_curves(usual, progress=workspace.progress)
    title = f"{usual.model} on {device_name(usual.device)}, {usual.precision}; otherwise batch 32, canvas 40"
    return cost_figure(points, workspace.results / "bench" / "cost.png", title), points


def cost_curves(
    usual: Workload, curves: Mapping[str, Sequence[int]] = CURVES, repeats: int = 3, progress: Progress = SILENT
) -> list[CostPoint]:
    """Training throughput with one thing varied at a time, measured in turns, the point where curves meet once."""
    known = model_options(usual.model)
    if "routings" in known:
        usual = replace(usual, options={"routings": known["routings"]} | usual.options)
    points: list[tuple[str, int, Workload]] = []
    for name, values in curves.items():
        for value in values if name != "routings" or name in known else ():
            change: dict[str, Any] = {name: value}
            own = {"options": usual.options | change} if name == "routings" else change
            points.append((name, value, replace(usual, **own)))
    distinct = {repr(workload): workload for _, _, workload in points}
    steps = {key: workload.tried(progress).step for key, workload in distinct.items()}
    seconds = in_turns(steps, repeats, usual.device, progress)
    return [
        CostPoint(name, value, Spread.of([workload.batch_size / second for second in seconds[repr(workload)]]))
        for name, value, workload in points
    ]


def cost_figure(points: Sequence[CostPoint], path: Path, title: str) -> Path:
    """Draw training throughput, one panel for each thing that was varied; the data go beside it as CSV."""
    varied = list(dict.fromkeys(point.varied for point in points))
    figure, grid = panels(len(varied), 3.4, 3.0, 0.2)
    for axes, name in zip(grid, varied, strict=True):
        curve = [point for point in points if point.varied == name]
        values, speeds = [point.value for point in curve], [point.images_per_second for point in curve]
        bars = zip(*((speed.median - speed.low, speed.high - speed.median) for speed in speeds), strict=True)
        axes.errorbar(values, [speed.median for speed in speeds], list(bars), **line_look(0), capsize=2)
        dress(axes, "", _VARIED[name], "images trained on per second")
        axes.set_xticks(values)
        axes.set_ylim(bottom=0)
    header = ("varied", "value", "images_per_second_median", "lower_quartile", "upper_quartile")
    rows = [(p.varied, p.value, *vars(p.images_per_second).values()) for p in points]
    return save_drawing(figure, path, f"{title}; medians with quartiles", "", header, rows).path
