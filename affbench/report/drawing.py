"""How figures look, told apart with any colour vision, and how they are saved: a PNG, its numbers as CSV beside it."""

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text

from affbench.base.store import atomic_path, write_text
from affbench.report.table import csv_text, inert

# M. Okabe and K. Ito, "Color universal design", 2008, without the yellow that white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
INK, GRID = "#222222", "#d9d9d9"
DPI = 130


@dataclass(frozen=True)
class Drawing:
    """A figure on disk: the PNG `path` and its numbers in the CSV `data`; the caption says set, split, n, interval."""

    title: str
    caption: str
    path: Path
    data: Path


@dataclass(frozen=True)
class Band:
    """Lines of pictures uint8 (C, H, W), not all of one length, with a name for each line and column, "" for none."""

    lines: Sequence[npt.NDArray[np.uint8]]
    names: Sequence[str]
    heads: Sequence[str]


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def panels(
    count: int, width: float, height: float, margin: float, *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels of a size, at most three in a row, `margin` inches higher than they are."""
    columns = min(3, count)
    lines = math.ceil(count / columns)
    figure = new_figure(width * columns, height * lines + margin)
    grid = list(figure.subplots(lines, columns, sharey=sharey, squeeze=False).flat)
    for spare in grid[count:]:
        spare.set_visible(False)
    return figure, grid[:count]


def dress(axes: Axes, title: str = "", x: str = "", y: str = "", *, grid: bool = True) -> None:
    """Titles, sizes and a light grid."""
    axes.set_title(literal(title), fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(**({"color": GRID, "linewidth": 0.6} if grid else {"visible": False}))
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def line_look(number: int) -> dict[str, Any]:
    """Colour, marker and dash of the line of a number: no two of the first 28 are alike."""
    again, kind = divmod(number, len(COLOURS))
    dash = _DASHES[again % len(_DASHES)]
    return {"color": COLOURS[kind], "marker": _MARKERS[kind], "linestyle": dash, "linewidth": 1.4, "markersize": 4}


def legend(figure: Figure, names: Sequence[str], hidden: int = 0) -> None:
    """The names of the lines, in the order of their looks, below the figure."""
    handles = [Line2D([], [], **line_look(number)) for number in range(len(names))]
    texts = [literal(name, 48) for name in names]
    if hidden:
        handles.append(Line2D([], [], linestyle="none"))
        texts.append(f"and {hidden} more, see the CSV")
    columns = max(1, min(len(texts), 10, 110 // (max(map(len, texts)) + 6)))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def literal(text: str, width: int = 90) -> str:
    """Text that matplotlib takes neither for mathematics nor for an entry to hide, shortened in the middle."""
    text = " ".join(text.split())
    if len(text) > width:
        text = f"{text[: width - 16]}…{text[-15:]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def file_name(text: str) -> str:
    """Text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def beginning(lows: Iterable[float]) -> str:
    """What a caption has to say of axes that begin at these values."""
    above = [low > 0 for low in lows]
    return " The axes do not begin at 0." if all(above) else " Not all axes begin at 0." if any(above) else ""


def sheet(tiles: npt.NDArray[np.uint8], gap: int = 2) -> npt.NDArray[np.uint8]:
    """Pictures (R, C, H, W) in a grid, `gap` pixels apart: many times faster drawn than with an axes for each."""
    rows, columns, height, width = tiles.shape
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap)))
    whole = padded.transpose(0, 2, 1, 3).reshape(rows * (height + gap), columns * (width + gap))
    return whole[: len(whole) - gap, : whole.shape[1] - gap]


def picture_sheet(*bands: Band, size: float = 0.62) -> Figure:
    """Bands of pictures below one another, as dark ink on white, `size` inches each."""
    columns, gap = max(len(line) for band in bands for line in band.lines), 2
    left = 0.5 + 0.08 * max(len(line) for band in bands for name in band.names for line in name.split("\n"))
    heights = [size * len(band.lines) + 0.2 * (1 + max(head.count("\n") for head in band.heads)) for band in bands]
    figure = new_figure(size * columns + left, sum(heights) + 0.5)
    figure.set_layout_engine("compressed")  # for pictures, whose shape is given
    for axes, band in zip(figure.subplots(len(bands), 1, squeeze=False)[:, 0], bands, strict=True):
        tiles = np.stack([np.pad(line, ((0, columns - len(line)), (0, 0), (0, 0))) for line in band.lines])
        height, width = tiles.shape[2] + gap, tiles.shape[3] + gap
        axes.imshow(sheet(tiles, gap), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        for number in range(1, len(tiles)):
            axes.axhline(number * height - 0.5 - gap / 2, color=GRID, linewidth=0.6)
        for number in range(1, columns):
            axes.axvline(number * width - 0.5 - gap / 2, color=GRID, linewidth=0.6)
        axes.set_yticks([(number + 0.5) * height - 1 for number in range(len(band.names))], band.names)
        axes.set_xticks([(number + 0.5) * width - 1 for number in range(len(band.heads))], band.heads)
        axes.xaxis.tick_top()
        axes.tick_params(labelsize=7, length=0, colors=INK)
        axes.spines[:].set_color(GRID)
    return figure


def heat_map(
    axes: Axes,
    values: npt.NDArray[np.float64],
    *,
    texts: npt.ArrayLike | None = None,
    low: float = 0,
    high: float = 100,
    cmap: str = "Blues",
    aspect: Literal["equal", "auto"] = "equal",
) -> AxesImage:
    """Values (R, C) as colours, none where there is no number, under texts (R, C): else those above a half, whole."""
    picture = axes.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect=aspect)
    colours = picture.to_rgba(values)
    shown = [[f"{value:.0f}" if value >= 0.5 else "" for value in line] for line in values] if texts is None else texts
    for (row, column), text in np.ndenumerate(np.asarray(shown)):
        dark = colours[row, column, 3] > 0 and colours[row, column, :3] @ (0.30, 0.59, 0.11) < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)
    return picture


def save_drawing(
    figure: Figure, path: Path, title: str, caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Drawing:
    """Write the figure under its title as PNG, and its numbers as CSV beside it; None is an empty cell."""
    figure.suptitle(literal(title), fontsize=10.5, color=INK)
    data = path.with_suffix(".csv")
    write_text(data, csv_text([header, *(map(_cell, row) for row in rows)]))
    for own in figure.findobj(Text):  # whatever a matplotlibrc says: for its text LaTeX would have to be installed
        own.set_usetex(False)
    with atomic_path(path) as temporary, rc_context({"text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a label in a script the font lacks
        figure.savefig(temporary, format="png", metadata={"Title": title})
    return Drawing(title, caption, path, data)


def _cell(value: Any) -> Any:
    """A cell as inert text or a short number."""
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return inert(value) if isinstance(value, str) else value
