"""Figures of where models fail: confident mistakes, accuracy by position, accuracy over one factor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from affbench.analysis.answers import Mistake, PositionBin
from affbench.analysis.factors import FactorCurve
from affbench.data.dataset import TRANSFORM_UNITS, Dataset
from affbench.data.transform import AffineRange
from affbench.report.drawing import COLOURS, INK, MARKERS, Drawing, dress, literal, new_figure, save_drawing, show_sheet

_COLUMNS = 10
TELLING = 20  # images of a position whose accuracy says something


def draw_mistakes(
    dataset: Dataset,
    mistakes: Sequence[Mistake],
    drawn: Sequence[npt.NDArray[np.uint8]],
    path: Path,
    *,
    title: str,
    caption: str,
) -> Drawing:
    """A sheet of mistakes, ten in a row, each over its reconstructions where there are some.

    Parameters
    ----------
    dataset
        The set they are of.
    mistakes
        At least one, the surest first.
    drawn
        Reconstructions uint8 (M, H, W) from the predicted class' capsule and from the true class'; empty for a model
        without a decoder.
    path, title, caption
        The PNG file to write, and what it shows.
    """
    bands = [mistakes[start : start + _COLUMNS] for start in range(0, len(mistakes), _COLUMNS)]
    layers = 1 + len(drawn)
    side = dataset.canvas
    figure = new_figure(0.82 * _COLUMNS + 1.1, (0.82 * layers + 0.62) * len(bands) + 0.5)
    figure.suptitle(literal(title), fontsize=10.5, color=INK)
    grid = figure.subplots(len(bands), 1, squeeze=False)[:, 0]
    names = ["digit", "drawn from the\npredicted class", "drawn from the\ntrue class"][:layers]
    for number, (axes, band) in enumerate(zip(grid, bands, strict=True)):
        tiles = np.zeros((layers, _COLUMNS, side, side), np.uint8)
        for column, mistake in enumerate(band):
            tiles[0, column] = dataset.images[mistake.index]
            for layer, pictures in enumerate(drawn, start=1):
                tiles[layer, column] = pictures[number * _COLUMNS + column]
        texts = [f"{m.label}, taken for {m.predicted}\n{m.confidence:.2f} to {m.confidence_in_truth:.2f}" for m in band]
        show_sheet(axes, tiles, names, texts, size=7)
    header = ("rank", "index", "label", "predicted", "confidence", "confidence_in_true_class")
    rows = ((r, m.index, m.label, m.predicted, m.confidence, m.confidence_in_truth) for r, m in enumerate(mistakes, 1))
    return save_drawing(figure, path, title, caption, header, rows)


def draw_positions(
    bins: Sequence[PositionBin], path: Path, *, title: str, caption: str, trained: float | None = None
) -> Drawing:
    """Accuracy as a map over the position of the digit on the canvas, the number of images in brackets.

    Parameters
    ----------
    bins
        Row by row, see `affbench.analysis.answers.accuracy_by_position`.
    path, title, caption
        The PNG file to write, and what it shows.
    trained
        How far, in pixels each way, digits were shifted in training: drawn as a dashed box.
    """
    rows = sorted({own.vertical for own in bins})
    columns = sorted({own.horizontal for own in bins})
    shares = np.full((len(rows), len(columns)), np.nan)
    for own in bins:
        if own.accuracy is not None:
            shares[rows.index(own.vertical), columns.index(own.horizontal)] = 100 * own.accuracy
    figure = new_figure(8.2, 7.2)
    axes = figure.subplots()
    # Few images give extreme shares by chance, which would leave the others without contrast.
    telling = [100 * own.accuracy for own in bins if own.accuracy is not None and own.n >= TELLING]
    scale = telling or [100 * own.accuracy for own in bins if own.accuracy is not None]
    low, high = min(scale), max(scale)
    picture = axes.imshow(shares, cmap="viridis", vmin=low, vmax=high if high > low else low + 1)
    for own in bins:
        if own.accuracy is not None:
            place = (columns.index(own.horizontal), rows.index(own.vertical))
            bright = (100 * own.accuracy - low) / max(high - low, 1e-9) > 0.6
            faint = own.n < TELLING
            axes.text(
                *place, f"{100 * own.accuracy:.1f}\n(n {own.n:,})", ha="center", va="center", fontsize=7.5,
                color=INK if bright else "white", fontstyle="italic" if faint else "normal",
            )  # fmt: skip
    if trained:
        side = rows[0][1] - rows[0][0]
        corner = (trained + len(rows) * side / 2) / side - 0.5, (-trained + len(rows) * side / 2) / side - 0.5
        square = Rectangle((corner[1], corner[1]), *[corner[0] - corner[1]] * 2, fill=False, edgecolor="#D55E00")
        square.set(linewidth=1.8, linestyle=(0, (5, 3)))
        axes.add_patch(square)
    dress(axes, title, "horizontal position, pixels right of the centre", "vertical position, pixels below the centre")
    axes.grid(visible=False)
    for axis, edges in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks([number - 0.5 for number in range(len(edges) + 1)])
        axis.set_ticklabels([f"{value:.3g}".replace("-", "−") for value in [e[0] for e in edges] + [edges[-1][1]]])
    figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02, label="accuracy %").ax.tick_params(labelsize=8)
    header = (
        "vertical_low", "vertical_high", "horizontal_low", "horizontal_high", "n", "n_originals", "correct", "accuracy",
        "ci95_low", "ci95_high",
    )  # fmt: skip
    table = (
        (*own.vertical, *own.horizontal, own.n, own.n_originals, own.correct, own.accuracy, own.low, own.high)
        for own in bins
    )
    return save_drawing(figure, path, title, caption, header, table)


def draw_factors(
    curves: Sequence[FactorCurve], path: Path, *, title: str, caption: str, labels: Sequence[str] = ()
) -> Drawing:
    """Accuracy over each factor alone, a panel per factor and a line per run with its interval as a band.

    The legend names the runs, or calls them by `labels`, in the order of their first curves.
    """
    factors = list(dict.fromkeys(curve.factor for curve in curves))
    runs = list(dict.fromkeys(curve.run for curve in curves))
    columns = min(3, len(factors))
    lines = -(-len(factors) // columns)
    figure = new_figure(3.4 * columns, 2.6 * lines + 0.7 + 0.2 * len(runs) / 2)
    figure.suptitle(literal(title), fontsize=10.5, color=INK)
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for axes, factor in zip(panels, factors, strict=False):
        for curve in (own for own in curves if own.factor == factor):
            look = _run_look(runs.index(curve.run))
            x = [(point.low + point.high) / 2 for point in curve.points]
            axes.plot(x, [100 * point.accuracy for point in curve.points], **look)
            low, high = ([100 * point.ci95[end] for point in curve.points] for end in (0, 1))
            axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        dress(axes, factor.replace("_", " "), TRANSFORM_UNITS[factor])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if (reach := getattr(AffineRange(), factor)) is not None:
            axes.axvspan(*reach, color="#000000", alpha=0.05, linewidth=0)
    for axes in panels[len(factors) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy %", fontsize=9, color=INK)
    handles = [Line2D([], [], **_run_look(number)) for number in range(len(runs))]
    figure.legend(
        handles,
        [literal(name, 48) for name in labels or runs],
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    header = ("run", "seed", "factor", "set", "low", "high", "n", "correct", "accuracy", "ci95_low", "ci95_high")
    rows = (
        (c.run, c.seed, c.factor, c.set, p.low, p.high, p.n, p.correct, p.accuracy, *p.ci95)
        for c in curves
        for p in c.points
    )
    return save_drawing(figure, path, title, caption, header, rows)


def _run_look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": "-" if number < len(COLOURS) else (0, (4, 1.5)),
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.4,
    }
