"""Training cost against routing iterations, batch size and canvas: the measurement and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from affbench.base.device import device_name
from affbench.base.progress import Progress
from affbench.base.workspace import Workspace
from affbench.experiment.bench import Spread, Workload, in_turns
from affbench.models import model_options
from affbench.report.drawing import dress, line_look, panels, save_drawing

CURVES = {"routings": (1, 2, 3, 5, 7, 10), "batch_size": (16, 32, 64, 128), "canvas": (28, 40, 56)}
_NAMES = {"routings": "routing iterations", "batch_size": "batch size", "canvas": "canvas, pixels"}


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
    where = f"{usual.model} on {device_name(usual.device)}, {usual.precision}"
    title = f"{where}; otherwise batch {usual.batch_size}, canvas {usual.canvas}"
    return cost_figure(points, workspace.results / "bench" / "cost.png", title), points


def cost_curves(
    usual: Workload,
    *,
    curves: Mapping[str, Sequence[int]] = CURVES,
    repeats: int = 3,
    progress: Progress | None = None,
) -> list[CostPoint]:
    """Training throughput with one thing varied at a time; a model without routing has no curve over iterations.

    All points are measured in turns, the one where curves meet once.
    """
    known, progress = model_options(usual.model), progress or Progress()
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
        dress(axes, "", _NAMES[name], "images trained on per second")
        axes.set_xticks(values)
        axes.set_ylim(bottom=0)
    header = ("varied", "value", "images_per_second_median", "lower_quartile", "upper_quartile")
    rows = [(p.varied, p.value, *vars(p.images_per_second).values()) for p in points]
    return save_drawing(figure, path, f"{title}; medians with quartiles", "", header, rows).path
