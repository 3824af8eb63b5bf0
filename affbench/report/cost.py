"""The figure of training cost against routing iterations, batch size and canvas."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from affbench import store
from affbench.bench import CostPoint

_NAMES = {"routings": "routing iterations", "batch_size": "batch size", "canvas": "canvas, pixels"}


def cost_figure(points: Sequence[CostPoint], path: Path, title: str) -> Path:
    """Draw training throughput, one panel for each thing that was varied; the data go beside it as CSV.

    Parameters
    ----------
    points
        From `affbench.bench.cost_curves`.
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    varied = list(dict.fromkeys(point.varied for point in points))
    figure = Figure(figsize=(3.4 * len(varied), 3.2), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(varied), squeeze=False)[0], varied, strict=True):
        curve = [point for point in points if point.varied == name]
        values = [point.value for point in curve]
        medians = [point.images_per_second.median for point in curve]
        below = [point.images_per_second.median - point.images_per_second.low for point in curve]
        above = [point.images_per_second.high - point.images_per_second.median for point in curve]
        axes.errorbar(values, medians, yerr=(below, above), marker="o", markersize=4, linewidth=1.5, capsize=2)
        axes.set_xticks(values)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(_NAMES.get(name, name), fontsize=9)
        axes.set_ylabel("images trained on per second", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(f"{title}; medians with quartiles", fontsize=10)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("varied", "value", "images_per_second_median", "lower_quartile", "upper_quartile"))
    for point in points:
        speed = point.images_per_second
        writer.writerow((point.varied, point.value, speed.median, speed.low, speed.high))
    store.write_text(path.with_suffix(".csv"), table.getvalue())
    with store.atomic_path(path) as target:
        figure.savefig(target, format="png")
    return path
