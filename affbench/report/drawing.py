"""How figures look, and how they are saved: a PNG with its numbers as CSV beside it.

Drawn through matplotlib's objects, never its global state; the colours are told apart with any colour vision.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from affbench.base.store import atomic_path, write_text

# M. Okabe and K. Ito, "Color universal design", 2008, without the yellow that white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, GRID = "#222222", "#d9d9d9"
DPI = 130


@dataclass(frozen=True)
class Drawing:
    """A figure on disk.

    Attributes
    ----------
    title, caption
        What it shows; set, split, n and interval of its numbers.
    path, data
        The PNG, and the CSV of its numbers.
    """

    title: str
    caption: str
    path: Path
    data: Path


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of a size in inches, with a canvas of its own."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Titles, sizes and a light grid."""
    axes.set_title(literal(title), fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def literal(text: str, width: int = 90) -> str:
    """Text that matplotlib takes neither for mathematics nor for an entry to hide, shortened in the middle."""
    text = " ".join(text.split())
    if len(text) > width:
        text = f"{text[: width - 16]}…{text[-15:]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def sheet(tiles: npt.NDArray[np.uint8], gap: int = 2) -> npt.NDArray[np.uint8]:
    """Pictures (R, C, H, W) in a grid, `gap` pixels apart: uint8 (R·(H + gap) − gap, C·(W + gap) − gap).

    One picture is drawn many times faster than one axes for each.
    """
    rows, columns, height, width = tiles.shape
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap)))
    whole = padded.transpose(0, 2, 1, 3).reshape(rows * (height + gap), columns * (width + gap))
    return whole[: len(whole) - gap, : whole.shape[1] - gap]


def show_sheet(
    axes: Axes,
    tiles: npt.NDArray[np.uint8],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    gap: int = 2,
    size: float = 8.5,
) -> None:
    """Draw pictures (R, C, H, W) as dark ink on white, in a grid with a name for every row and column.

    Parameters
    ----------
    axes
        Where.
    tiles
        uint8 (R, C, H, W), 0 background to 255 ink.
    rows, columns
        Names; "" for none.
    gap
        Pixels between the pictures.
    size
        Of the names, in points.
    """
    height, width = tiles.shape[2] + gap, tiles.shape[3] + gap
    axes.imshow(sheet(tiles, gap), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    for number in range(1, tiles.shape[0]):
        axes.axhline(number * height - 0.5 - gap / 2, color=GRID, linewidth=0.6)
    for number in range(1, tiles.shape[1]):
        axes.axvline(number * width - 0.5 - gap / 2, color=GRID, linewidth=0.6)
    axes.set_yticks([(number + 0.5) * height - 1 for number in range(len(rows))], list(rows))
    axes.set_xticks([(number + 0.5) * width - 1 for number in range(len(columns))], list(columns))
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=size, length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(GRID)


def save_drawing(
    figure: Figure, path: Path, title: str, caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Drawing:
    """Write the figure as PNG and its numbers as CSV beside it; None is an empty cell.

    Raises
    ------
    StorageError
        A file cannot be written.
    """
    data = write_data(path, header, rows)
    save_png(figure, path, title)
    return Drawing(title, caption, path, data)


def save_png(figure: Figure, path: Path, title: str) -> None:
    """Write a figure, whatever a matplotlibrc says: for its text LaTeX would have to be installed."""
    for text in figure.findobj(Text):
        text.set_usetex(False)
    with atomic_path(path) as temporary, rc_context({"text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a label in a script the font lacks
        figure.savefig(temporary, format="png", metadata={"Title": title})


def write_data(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write the numbers of the picture `path` as CSV beside it; None is an empty cell.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_inert(value) for value in row] for row in rows)
    data = path.with_suffix(".csv")
    write_text(data, text.getvalue())
    return data


def _inert(value: Any) -> Any:
    """A cell as text or a short number, which a spreadsheet does not take for a formula."""
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
