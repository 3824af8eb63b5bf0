"""Training: loss, training accuracy and validation accuracy by epoch."""

import math
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from affbench.analysis.results import Results
from affbench.report.drawing import dress, legend, line_look, new_figure, save_drawing
from affbench.report.sections import Section

_MOST_CURVES = 14


def section(results: Results, folder: Path) -> Section | None:
    """A line for each run that trained to the end, a colour for each configuration; None without runs."""
    results = results.whole.trained
    groups = results.groups
    if not groups:
        return None
    shown = groups[:_MOST_CURVES]
    figure = new_figure(9.5, 3.4 + 0.22 * math.ceil(len(shown) / 3))
    loss, train, validation = figure.subplots(1, 3)
    most = max(len(result.run.history) for result in results.results)
    for number, own in enumerate(shown):
        look = line_look(number) | {"markersize": 3, "alpha": 0.9 if len(own.results) == 1 else 0.65}
        if most > 30:
            look["marker"] = None
        ring = {"markerfacecolor": "none", "markeredgecolor": look["color"], "markeredgewidth": 1}
        for run in (result.run for result in own.results):
            epochs = [row.epoch for row in run.history]
            loss.plot(epochs, [row.train_loss for row in run.history], **look)
            known = [math.nan if row.train_accuracy is None else 100 * row.train_accuracy for row in run.history]
            train.plot(epochs, known, **look)
            validation.plot(epochs, [100 * row.validation_accuracy for row in run.history], **look)
            best = run.selected
            validation.plot(best.epoch, 100 * best.validation_accuracy, marker="o", markersize=8, **ring)
    positive = all(row.train_loss > 0 for result in results.results for row in result.run.history)
    loss.set_yscale("log" if positive else "linear")
    titles = (("Training loss", ""), ("Training accuracy", "%"), ("Validation", "%"))
    for axes, (title, unit) in zip((loss, train, validation), titles, strict=True):
        dress(axes, title, "epoch", unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    legend(figure, [own.name for own in shown], len(groups) - len(shown))
    caption = (
        f"One line per run ({len(results.results)} in all). Losses of different models are different functions: "
        "compare their course, not their height. Circles mark the checkpoint that was kept, the one with the highest "
        "validation accuracy. Training accuracy is the mean over an epoch, while the weights changed."
    )
    header = ("model", "run", "seed", "epoch", "train_loss", "train_accuracy", "validation_accuracy")
    rows = (
        (own.name, result.run.name, result.seed, row.epoch, row.train_loss, row.train_accuracy,
         row.validation_accuracy)
        for own in groups for result in own.results for row in result.run.history
    )  # fmt: skip
    return Section(
        "Training", figures=(save_drawing(figure, folder / "training.png", "Training", caption, header, rows),)
    )
