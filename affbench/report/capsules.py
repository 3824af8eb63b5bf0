"""Figures of what class capsules hold: reconstructions, perturbed dimensions, equivariance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from affbench.analysis.capsules import Curve, Equivariance, Perturbation
from affbench.data.dataset import TRANSFORM_COLUMNS, TRANSFORM_UNITS, Dataset
from affbench.report.drawing import COLOURS, INK, MARKERS, Drawing, dress, literal, new_figure, save_drawing, show_sheet
from affbench.report.table import Cell, Table

_HIGHLIGHTED = 4  # dimensions with a colour of their own in a panel
_SHORT = {name: name.replace("vertical_", "v. ").replace("horizontal_", "h. ") for name in TRANSFORM_COLUMNS}


def draw_reconstructions(
    digits: Dataset,
    drawn: npt.NDArray[np.uint8],
    predictions: npt.NDArray[np.uint8],
    path: Path,
    *,
    title: str,
    caption: str,
) -> Drawing:
    """Rows of real digits over as many rows of reconstructions, a column per class.

    Parameters
    ----------
    digits
        R·C digits, row by row.
    drawn
        Their reconstructions, uint8 (R·C, H, W).
    predictions
        Predicted classes, uint8 (R·C,).
    path
        The PNG file to write; the CSV lies beside it.
    title, caption
        What it shows.
    """
    classes = np.unique(digits.labels)
    columns = len(classes)
    size = digits.images.shape[1:]
    real, again = (images.reshape(-1, columns, *size) for images in (digits.images, drawn))
    rows = len(real)
    figure = new_figure(0.62 * columns + 1.2, 0.62 * 2 * rows + 0.9)
    figure.suptitle(literal(title), fontsize=10.5, color=INK)
    upper, lower = figure.subplots(2, 1)
    names = [f"class {label}" for label in classes]
    show_sheet(upper, real, [""] * rows, names)
    show_sheet(lower, again, [""] * rows, [""] * columns)
    upper.set_ylabel("real digits", fontsize=10, color=INK)
    lower.set_ylabel("reconstructions", fontsize=10, color=INK)
    errors = ((digits.images.astype(np.float64) - drawn) ** 2).sum((1, 2)) / 255**2
    header = ("row", "column", "label", "predicted", "sum_of_squared_errors")
    table = (
        (i // columns, i % columns, int(digits.labels[i]), int(predictions[i]), errors[i]) for i in range(len(drawn))
    )
    return save_drawing(figure, path, title, caption, header, table)


def draw_perturbation(found: Perturbation, path: Path, *, title: str, caption: str) -> Drawing:
    """What the decoder draws for each change of each dimension: a row per dimension, a column per change."""
    tiles = np.clip(np.rint(255 * found.drawn), 0, 255).astype(np.uint8)
    dimensions, steps = tiles.shape[:2]
    figure = new_figure(0.6 * steps + 1.2, 0.6 * dimensions + 1.0)
    figure.suptitle(literal(title), fontsize=10.5, color=INK)
    axes = figure.subplots()
    show_sheet(axes, tiles, [str(number) for number in range(dimensions)], [_signed(o) for o in found.offsets])
    axes.set_ylabel("dimension of the class capsule", fontsize=10, color=INK)
    axes.set_xlabel("added to the dimension", fontsize=10, color=INK)
    axes.xaxis.set_label_position("top")
    middle = min(range(steps), key=lambda number: abs(found.offsets[number]))
    neutral = found.drawn[:, middle : middle + 1]
    change = ((found.drawn - neutral) ** 2).sum((2, 3))
    header = ("dimension", "added", "sum_of_squared_changes", "mean_intensity")
    rows = (
        (d, offset, float(change[d, s]), float(found.drawn[d, s].mean()))
        for d in range(dimensions)
        for s, offset in enumerate(found.offsets)
    )
    return save_drawing(figure, path, title, caption, header, rows)


def draw_equivariance(found: Equivariance, path: Path, *, title: str, caption: str) -> Drawing:
    """Curves of a class capsule over each factor, and the shares of variance the factors explain as a heat map.

    For one class, a curve per dimension, in colour those that vary most, and shares per dimension; for several classes
    how far the capsule moves, and shares of the whole capsule.
    """
    single = len(found.labels) == 1
    dimensions = found.explained.shape[2]
    figure = new_figure(10, 7.9 if single else 8.6)
    figure.suptitle(literal(title), fontsize=10.5, color=INK)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.55, 1))
    upper, lower = parts
    panels = upper.subplots(2, 3, sharey=True)
    for axes, curve in zip(panels.flat, found.curves, strict=True):
        if single:
            _dimension_curves(axes, curve)
        else:
            _movement_curves(axes, curve, found.labels)
        dress(axes, curve.factor.replace("_", " "), TRANSFORM_UNITS[curve.factor])
    for axes in panels[:, 0]:
        axes.set_ylabel("mean over digits" if single else "mean movement", fontsize=9, color=INK)
    if not single:
        _class_legend(upper, panels[0, 0], found.labels)
    shares = found.explained[0] if single else found.explained_whole.T
    _heat(lower, shares, [str(d) for d in range(dimensions)] if single else [f"class {n}" for n in found.labels])
    lower.axes[0].set_xlabel("dimension of the class capsule" if single else "", fontsize=9, color=INK)
    header = ("part", "class", "factor", "value", "dimension", "mean", "sd", "movement", "share_of_variance")
    return save_drawing(figure, path, title, caption, header, _equivariance_rows(found))


def equivariance_table(found: Equivariance, *, title: str = "Variance explained", caption: str = "") -> Table:
    """Shares of variance in percent: a row per dimension of one class, or per class; a column per factor."""
    if len(found.labels) == 1:
        names, shares, first = [str(d) for d in range(found.explained.shape[2])], found.explained[0].T, "Dimension"
    else:
        names, shares, first = [str(label) for label in found.labels], found.explained_whole, "Class"
    columns = (first, *(f"{name.replace('_', ' ')} %" for name in (*TRANSFORM_COLUMNS, "original digit")))
    rows = tuple(
        (Cell(name, number), *(Cell(f"{100 * share:.1f}", 100 * share) for share in line))
        for number, (name, line) in enumerate(zip(names, shares.tolist(), strict=True))
    )
    return Table(title, columns, rows, caption)


def _dimension_curves(axes: Axes, curve: Curve) -> None:
    mean = curve.mean[0]  # (V, D)
    swing = np.ptp(mean, axis=0)
    marked = sorted(np.argsort(-swing)[:_HIGHLIGHTED].tolist())
    for dimension in range(mean.shape[1]):
        if dimension not in marked:
            axes.plot(curve.values, mean[:, dimension], color="#c4c4c4", linewidth=0.8)
    for number, dimension in enumerate(marked):
        axes.plot(
            curve.values, mean[:, dimension], color=COLOURS[number], marker=MARKERS[number], markersize=3,
            linewidth=1.5, label=str(dimension),
        )  # fmt: skip
    axes.legend(
        fontsize=7, frameon=True, framealpha=0.85, edgecolor="none", title="dimension", title_fontsize=7, ncols=4,
        loc="upper center", handlelength=1.2, columnspacing=0.8, borderpad=0.2,
    )  # fmt: skip
    axes.margins(y=0.22)


def _movement_curves(axes: Axes, curve: Curve, labels: Sequence[int]) -> None:
    for number in range(len(labels)):
        axes.plot(curve.values, curve.moved[number], **_class_look(number))


def _class_look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": "-" if number < len(COLOURS) else (0, (4, 1.5)),
        "marker": MARKERS[(number + 3 * (number // len(MARKERS))) % len(MARKERS)],
        "markersize": 3,
        "linewidth": 1.3,
    }


def _class_legend(figure: Any, axes: Axes, labels: Sequence[int]) -> None:
    figure.legend(
        axes.get_lines(), [f"class {label}" for label in labels], loc="outside lower center", ncols=len(labels),
        fontsize=8, frameon=False, handlelength=2.4, columnspacing=0.9,
    )  # fmt: skip


def _heat(figure: Any, shares: npt.NDArray[np.float64], columns: Sequence[str]) -> None:
    """Shares (F, D or K) as a heat map with a number in every cell."""
    axes = figure.subplots()
    names = [_SHORT[name].replace("_", " ") for name in TRANSFORM_COLUMNS] + ["original digit"]
    most = max(float(shares.max()), 0.05)
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100 * most, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.6 * most else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    dress(axes, "Variance explained, %")
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(names)), names)
    figure.colorbar(picture, ax=axes, fraction=0.025, pad=0.01).ax.tick_params(labelsize=7.5, colors=INK)


def _equivariance_rows(found: Equivariance) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for number, label in enumerate(found.labels):
        for curve in found.curves:
            for v, value in enumerate(curve.values):
                rows.append(
                    ("movement", label, curve.factor, value, None, None, None, float(curve.moved[number, v]), None)
                )
                rows += [
                    ("curve", label, curve.factor, value, d, float(mean), float(sd), None, None)
                    for d, (mean, sd) in enumerate(zip(curve.mean[number, v], curve.sd[number, v], strict=True))
                ]
        for f, factor in enumerate((*TRANSFORM_COLUMNS, "original digit")):
            rows.append(("variance", label, factor, None, "all", None, None, None, found.explained_whole[number, f]))
            rows += [
                ("variance", label, factor, None, d, None, None, None, share)
                for d, share in enumerate(found.explained[number, f])
            ]
    return rows


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.2f}".replace("-", "−")
