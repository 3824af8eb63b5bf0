"""Training: loss, and error on training and validation digits, by epoch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from affbench.analysis.results import Group, Result, Results
from affbench.report.drawing import Line, draw_lines, save_drawing
from affbench.report.sections import Section

_PANELS = ("training loss", "training error %", "validation error %")


def section(results: Results, folder: Path) -> Section | None:
    """A line for each run that trained to the end, a colour for each network; None without runs."""
    results = results.whole.trained
    if not results.results:
        return None
    lines = [line for own in results.groups for result in own.results for line in _lines(own, result)]
    figure, places, said = draw_lines(lines)
    for panel, column in places.items():
        positive = any((line.points[:, 1] > 0).any() for line in lines if line.panel == panel)
        for axes in column if positive else ():
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.set_yscale("log", nonpositive="clip")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
    caption = (
        f"One line per run ({len(results.results)} in all), on logarithmic scales. Losses of different models are "
        "different functions: compare their course, not their height. Circles mark the checkpoint that was kept, "
        "the one with the lowest validation error. Training error is the mean over an epoch, while the weights "
        f"changed.{said}"
    )
    header = ("model", "run", "seed", "epoch", "train_loss", "train_accuracy", "validation_accuracy")
    rows = (
        (own.name, result.run.name, result.seed, row.epoch, row.train_loss, row.train_accuracy,
         row.validation_accuracy)
        for own in results.groups for result in own.results for row in result.run.history
    )  # fmt: skip
    return Section(
        "Training", figures=(save_drawing(figure, folder / "training.png", "Training", caption, header, rows),)
    )


def _lines(own: Group, result: Result) -> Iterator[Line]:
    best = result.run.selected
    history = [(row.epoch, row.train_loss, row.train_accuracy, row.validation_accuracy) for row in result.run.history]
    epochs, loss, *accuracies = np.array(history, np.float64).T  # not a number where one is None
    for panel, values in zip(_PANELS, (loss, *(100 - 100 * found for found in accuracies)), strict=True):
        points = np.stack([epochs, values, values, values], axis=1)
        ring = (best.epoch, 100 * (1 - best.validation_accuracy)) if panel == _PANELS[-1] else None
        yield Line(panel, "epoch", own.network, own.kept, own.look, points, ring)
