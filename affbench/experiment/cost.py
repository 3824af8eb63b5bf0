"""The figure of training cost against routing iterations, batch size and canvas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affbench.experiment.bench import CostPoint
from affbench.report.drawing import COLOURS, INK, dress, literal, new_figure, save_drawing

_NAMES = {"routings": "routing iterations", "batch_size": "batch size", "canvas": "canvas, pixels"}


def cost_figure(points: Sequence[CostPoint], path: Path, title: str) -> Path:
    """Draw training throughput, one panel for each thing that was varied; the data go beside it as CSV.

    Parameters
    ----------
    points
        From `affbench.experiment.bench.cost_curves`.
    path
        The PNG file to write.
    title
        What was measured, and on what.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    varied = list(dict.fromkeys(point.varied for point in points))
    figure = new_figure(3.4 * len(varied), 3.2)
    for axes, name in zip(figure.subplots(1, len(varied), squeeze=False)[0], varied, strict=True):
        curve = [point for point in points if point.varied == name]
        values = [point.value for point in curve]
        medians = [point.images_per_second.median for point in curve]
        below = [point.images_per_second.median - point.images_per_second.low for point in curve]
        above = [point.images_per_second.high - point.images_per_second.median for point in curve]
        axes.errorbar(values, medians, yerr=(below, above), color=COLOURS[0], marker="o", markersize=4, capsize=2)
        dress(axes, "", _NAMES.get(name, name), "images trained on per second")
        axes.set_xticks(values)
        axes.set_ylim(bottom=0)
    figure.suptitle(literal(f"{title}; medians with quartiles"), fontsize=10, color=INK)
    header = ("varied", "value", "images_per_second_median", "lower_quartile", "upper_quartile")
    rows = [
        (point.varied, point.value, speed.median, speed.low, speed.high)
        for point in points
        for speed in (point.images_per_second,)
    ]
    return save_drawing(figure, path, title, "Medians with quartiles.", header, rows).path
