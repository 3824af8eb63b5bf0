"""How fast a model trains and evaluates here, and how far that is from the floor its convolutions set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from affbench.base.device import Computed, device_name, resolve_device
from affbench.base.progress import Progress
from affbench.experiment.timing import (
    Action,
    Candidate,
    Convolutions,
    Spread,
    Times,
    Workload,
    in_turns,
    parts,
    textbook_model,
)
from affbench.models import build_model, parameter_count
from affbench.models.capsnet import CapsNet
from affbench.models.options import whole

if TYPE_CHECKING:
    from rich.table import Table

_MEMORY_STEPS = 3
_RATIOS = {
    "step_over_floor": ("step", "floor"),
    "step_over_convolutions": ("step", "convolutions"),
    "textbook_over_step": ("textbook", "step"),
    "textbook_float32_over_step": ("textbook_float32", "step"),
    "routing_10_over_1": ("routing_10", "routing_1"),
}


@dataclass(frozen=True)
class Speed:
    """What `benchmark_speed` measured; every time is in seconds and for one batch, ratios are within a round."""

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
    train_images_per_second: float  # from the median times
    eval_images_per_second: float
    step: Spread  # a full training step: forward, backward, optimiser; the batch is there already
    evaluation: Spread  # a forward pass in inference mode
    floor: Spread | None  # the convolutions alone, forward and backward, as torch computes them: directly
    convolutions: Spread | None  # the same as the model computes them; None where that is torch's way
    textbook: Spread | None  # a full step of the textbook formulation
    textbook_float32: Spread | None  # the same in float32, as public code runs it, beside another precision
    routing_1: Spread | None  # a full step of this model with 1 and 10 routing iterations
    routing_10: Spread | None
    split: dict[str, float]  # part of the step to its time alone; "other" is the rest, "data" is outside the step
    step_over_floor: Spread | None
    step_over_convolutions: Spread | None
    textbook_over_step: Spread | None
    textbook_float32_over_step: Spread | None
    routing_10_over_1: Spread | None
    peak_memory_bytes: int | None  # in training, above the idle process (CPU) or allocated (CUDA); None if unknown
    matrix_flops: float  # FLOP/s of a large matrix product in this precision here
    copy_bytes: float  # bytes/s read and written by a large copy here
    matrix_fraction: float  # of `matrix_flops` by the convolutions as if multiplied directly: may exceed 1
    copy_fraction: float | None  # of `copy_bytes` by what the capsule layer has to move at least

    def to_dict(self) -> dict[str, Any]:
        """The measurement as a JSON document."""
        return asdict(self)

    def to_rich(self) -> Table:
        """The measurement as a table for the terminal."""
        from rich.table import Table

        caption = (
            f"{self.device_name}, {self.threads} threads, torch {self.torch_version}; medians of {self.repeats} "
            "interleaved rounds, quartiles in brackets"
        )
        title = f"{self.model}, batch {self.batch_size}, {self.canvas}×{self.canvas}, {self.precision}"
        table = Table("measure", "value", title=title, caption=caption)
        table.columns[1].justify = "right"
        for section in (self._throughput(), self._times(), self._quotients(), self._rates()):
            for measure, value in section:
                table.add_row(measure, value)
            table.add_section()
        return table

    def _throughput(self) -> list[tuple[str, str]]:
        rows = [
            ("parameters", f"{self.parameters:,}"),
            ("training", f"{self.train_images_per_second:,.0f} images/s"),
            ("evaluation", f"{self.eval_images_per_second:,.0f} images/s"),
        ]
        if self.peak_memory_bytes is not None:
            rows.append(("peak memory, training", f"{self.peak_memory_bytes / 2**30:.2f} GiB above idle"))
        return rows

    def _times(self) -> list[tuple[str, str]]:
        rows = [("training step", _milliseconds(self.step))]
        for name, seconds in self.split.items():
            where = f"  {name}{' (outside the step)' if name == 'data' else ''}"
            rows.append((where, f"{seconds * 1e3:,.1f} ms ({seconds / self.step.median:.0%})"))
        named = {
            "torch's convolutions alone": self.floor if self.convolutions else None,
            "textbook step": self.textbook,
            "textbook step in float32": self.textbook_float32,
            "step with 1 routing iteration": self.routing_1,
            "step with 10 routing iterations": self.routing_10,
        }
        return rows + [(name, _milliseconds(spread)) for name, spread in named.items() if spread]

    def _quotients(self) -> list[tuple[str, str]]:
        named = {
            "step / torch's convolutions alone": self.step_over_floor,
            "step / its own convolutions alone": self.step_over_convolutions,
            "textbook step / step": self.textbook_over_step,
            "textbook step in float32 / step": self.textbook_float32_over_step,
            "10 routing iterations / 1": self.routing_10_over_1,
        }
        return [(name, f"{s.median:.2f} [{s.low:.2f}, {s.high:.2f}]") for name, s in named.items() if s]

    def _rates(self) -> list[tuple[str, str]]:
        rate = f"{self.matrix_fraction:.0%} of {self.matrix_flops / 1e12:.2f} TFLOP/s"
        rows = [("convolutions' share of the matrix rate", rate)]
        if self.copy_fraction is not None:
            rate = f"{self.copy_fraction:.0%} of {self.copy_bytes / 1e9:,.0f} GB/s"
            rows.append(("capsule layer's share of the copy rate", rate))
        return rows


def _milliseconds(spread: Spread) -> str:
    return f"{spread.median * 1e3:,.1f} [{spread.low * 1e3:,.1f}, {spread.high * 1e3:,.1f}] ms"


def benchmark_speed(
    workload: Workload, *, repeats: int = 5, textbook: Path | None = None, progress: Progress | None = None
) -> Speed:
    """Measure training and evaluation speed, where the time goes, and ratios.

    `textbook` is a Python file with a ``TextbookCapsNet`` to compare a CapsNet with; by default
    ``benchmarks/textbook.py`` where that exists.
    """
    progress = progress or Progress()
    whole("repeats", repeats)
    torch.manual_seed(0)
    device, size = workload.device, workload.batch_size
    candidate = workload.candidate(progress)
    convolutions = Convolutions(candidate)
    actions: dict[str, Action] = {"step": candidate.step, "evaluation": candidate.evaluate}
    actions |= convolutions.actions() | parts(candidate, workload.canvas)
    if isinstance(candidate.model, CapsNet):
        actions |= _other_steps(candidate.model, workload, textbook, progress)
    times = in_turns(actions, repeats, device, progress)
    spreads = {name: Spread.of(values) for name, values in times.items()}
    progress.note("measuring peak memory and the rates of the device")
    matrix_flops, copy_bytes = _device_rates(device, workload.precision)
    step, evaluation = spreads["step"], spreads["evaluation"]
    layer = spreads.get("capsule layer")
    others = ("floor", "convolutions", "textbook", "textbook_float32", "routing_1", "routing_10")
    return Speed(
        model=workload.model,
        options=workload.options,
        parameters=parameter_count(candidate.model),
        canvas=workload.canvas,
        batch_size=size,
        device=str(device),
        device_name=device_name(device),
        precision=workload.precision,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        repeats=repeats,
        train_images_per_second=size / step.median,
        eval_images_per_second=size / evaluation.median,
        step=step,
        evaluation=evaluation,
        split=_split(spreads),
        peak_memory_bytes=_peak_memory(workload),
        matrix_flops=matrix_flops,
        copy_bytes=copy_bytes,
        matrix_fraction=convolutions.flops / step.median / matrix_flops,
        copy_fraction=_capsule_bytes(candidate.model, size) / layer.median / copy_bytes if layer else None,
        **{name: spreads.get(name) for name in others},
        **{name: _ratio(times, *pair) for name, pair in _RATIOS.items()},
    )


def _other_steps(model: CapsNet, workload: Workload, textbook: Path | None, progress: Progress) -> dict[str, Action]:
    """Steps to compare a CapsNet's with: other numbers of routing iterations, and the textbook's."""
    actions: dict[str, Action] = {}
    for count in (1, 10):
        other = build_model(workload.model, canvas=workload.canvas, **(workload.options | {"routings": count}))
        actions[f"routing_{count}"] = Candidate(other, workload).step
    reference = textbook_model(textbook, workload.options, workload.canvas)
    if reference is not None and _has_room(model, workload, progress):
        actions["textbook"] = Candidate(reference, workload).step
        if workload.precision != "float32":
            actions["textbook_float32"] = Candidate(reference, replace(workload, precision="float32")).step
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


def _ratio(times: Times, above: str, below: str) -> Spread | None:
    if above not in times or below not in times:
        return None
    return Spread.of([a / b for a, b in zip(times[above], times[below], strict=True)])


def _split(spreads: Mapping[str, Spread]) -> dict[str, float]:
    convolutions = spreads.get("convolutions", spreads.get("floor"))
    split = {} if convolutions is None else {"convolutions": convolutions.median}
    names = ("capsule layer", "decoder and loss", "optimiser")
    split |= {name: spreads[name].median for name in names if name in spreads}
    split["other"] = max(0.0, spreads["step"].median - sum(split.values()))
    split["data"] = spreads["data"].median
    return split


def _capsule_bytes(model: Any, images: int) -> int:
    """Weight and capsules read forward and backward, their gradients written, all in float32."""
    weight = model.digits.weight
    return 3 * 4 * (int(weight.numel()) + images * int(weight.shape[2] * weight.shape[3]))


def _device_rates(device: torch.device, precision: Computed) -> tuple[float, float]:
    """FLOP/s of a large matrix product and bytes/s of a large copy; the best of several, on random data."""
    side, elements, repeats = (8192, 1 << 28, 20) if device.type == "cuda" else (2048, 1 << 25, 5)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    actions: dict[str, Action] = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = in_turns(actions, repeats, device, Progress())
    return 2 * side**3 / min(times["product"]), 2 * 4 * elements / min(times["copy"])


def _peak_memory(workload: Workload) -> int | None:
    """Peak memory of a few training steps, in a process of their own."""
    request = json.dumps(vars(workload) | {"device": str(workload.device)})
    code = "import sys; from affbench.experiment.bench import _memory_child; _memory_child(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    done = subprocess.run(  # noqa: S603 - this interpreter, this package
        [sys.executable, "-c", code, request], capture_output=True, text=True, env=environment, check=False
    )
    try:
        peak = json.loads(done.stdout)
    except ValueError:
        return None
    return peak if isinstance(peak, int) else None


def _memory_child(request: str) -> None:
    """Train a few steps and print the peak memory in bytes above the idle process, or null where it is unknown."""
    asked = json.loads(request)
    workload = Workload(**(asked | {"device": resolve_device(asked["device"])}))
    device = workload.device
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)  # libraries are loaded at first use
    idle = _resident_peak(device)
    candidate = Candidate(build_model(workload.model, canvas=workload.canvas, **workload.options), workload)
    for _ in range(_MEMORY_STEPS):
        candidate.step()
    peak = _resident_peak(device)
    json.dump(None if peak is None or idle is None else peak - idle, sys.stdout)


def _resident_peak(device: torch.device) -> int | None:
    """Bytes allocated on a CUDA device, or resident in this process, at most so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _kilobytes("self/status", "VmHWM")
