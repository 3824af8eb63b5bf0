"""How figures look, and how they are saved: a PNG, its numbers as CSV beside it, and SVG in the colours of a page."""

import io
import math
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from affbench.base.store import atomic_path, write_text
from affbench.report.table import Table, csv_text, inert

# M. Okabe and K. Ito, "Color universal design", 2008, with wine and indigo for the yellow that white swallows: any two
# differ by 16 or more in CIELAB, for normal vision and for the three kinds of colour blindness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#882255", "#332288")
_MARKERS = "os^DvPXhp"
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.4)), (0, (5, 1.4, 1, 1.4)))
INK, GRID, OTHERS, PAPER = "#222222", "#d9d9d9", "#c4c4c4", "#fefefe"
DPI = 130
MOST_LINES, MOST_NETWORKS = 7, 14  # in a panel; of more lines come small multiples, of so many networks at most
SHARES = LinearSegmentedColormap.from_list("shares", [f"{COLOURS[0]}00", COLOURS[0]])
_DIGITS = LinearSegmentedColormap.from_list("digits", ["#00000000", "#000000"])
_ON_PAGE = {INK: "ink", GRID: "line", OTHERS: "faint", PAPER: "back"} | {own: f"c{n}" for n, own in enumerate(COLOURS)}
_STYLE = "".join(
    (Path(__file__).parent / "templates" / f"{name}.css").read_text("utf-8") for name in ("colours", "figure")
)
_UNSAID = ("Creator", "Date", "Format", "Type")


@dataclass(frozen=True)
class Drawing:
    """A figure: the PNG `path`, its numbers in the CSV `data`, and as SVG; the caption says set, split, n, interval."""

    title: str
    caption: str
    path: Path
    data: Path
    svg: str
    table: Table | None = None  # of the same numbers, folded under the figure


@dataclass(frozen=True)
class Band:
    """Lines of pictures uint8 (C, H, W), not all of one length, with a name for each line and column, "" for none."""

    lines: Sequence[npt.NDArray[np.uint8]]
    names: Sequence[str]
    heads: Sequence[str]


@dataclass(frozen=True)
class Line:
    """A line of a panel: whose it is, which checkpoint, `line_look`, and points (P, 4): x, y, both ends of its band."""

    panel: str
    x: str
    network: str
    kept: str
    look: tuple[int, int]
    points: npt.NDArray[np.float64]
    ring: tuple[float, float] | None = None


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def panels(count: int, width: float, height: float, margin: float, *, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels of a size, at most so many in a row, `margin` inches higher than they are."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    figure = new_figure(width * columns, height * lines + margin)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in grid[count:]:
        spare.set_visible(False)
    return figure, grid[:count]


def dress(axes: Axes, title: str = "", x: str = "", y: str = "", *, grid: bool = True, width: int = 40) -> None:
    """Titles in lines of a width, sizes and a light grid."""
    lines = (textwrap.fill(literal(line, 60), width) for line in title.split("\n"))
    axes.set_title("\n".join(lines), fontsize=10 if width > 35 else 9, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(**({"color": GRID, "linewidth": 0.6} if grid else {"visible": False}))
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.spines[:].set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)


def line_look(number: int, ending: int = 0) -> dict[str, Any]:
    """Colour and marker of a network by its number, of which the first 81 differ; where its training ended, a dash."""
    again, kind = divmod(number, len(COLOURS))
    look = {"color": COLOURS[kind], "marker": _MARKERS[(kind + again) % len(_MARKERS)], "linewidth": 1.4}
    face = {"markerfacecolor": PAPER} if ending else {}
    return look | face | {"markersize": 4, "linestyle": _DASHES[ending % len(_DASHES)]}


def draw_lines(lines: Sequence[Line], y: str = "") -> tuple[Figure, dict[str, list[Axes]], str]:
    """Panels, or, of too many lines, one for each network before the others; last, what is to be said of them."""
    labels = {line.panel: line.x for line in lines}
    names = list(dict.fromkeys(line.network for line in lines))
    networks = names[:MOST_NETWORKS]
    lines = [line for line in lines if line.network in networks]
    keys = dict.fromkeys((line.network, line.kept, line.look) for line in lines)
    several = len({kept for _, kept, _ in keys}) > 1
    many = max(Counter(line.panel for line in lines).values()) > MOST_LINES
    if many:
        figure = new_figure(10, 0.9 + 1.25 * len(networks))
        grid = figure.subplots(len(networks), len(labels), sharex="col", sharey="col", squeeze=False)
        entries = {kept: line_look(0, look[1]) | {"color": INK} for _, kept, look in keys} if several else {}
    else:
        entries = {f"{own}, {kept}" if several else own: line_look(*look) for own, kept, look in keys}
        figure, flat = panels(len(labels), 3.2, 2.5, 0.4 + 0.2 * len(entries) / 3)
        grid = np.array([flat])
    places: dict[str, list[Axes]] = dict(zip(labels, map(list, grid.T), strict=True))
    for line in lines:
        for row, axes in enumerate(places[line.panel]):
            _draw_line(axes, line, own=not many or line.network == networks[row])
    for (row, column), axes in np.ndenumerate(grid):
        panel, begins = list(labels)[column], column % (len(labels) if many else 3) == 0
        below = textwrap.fill(labels[panel], 17 if many else 40) if row == len(grid) - 1 else ""
        if many:
            dress(axes, networks[row] if begins else "", below, y if begins else "", width=24)
        else:
            dress(axes, panel, below, y if begins else "")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4 if many else 6))
        if many and row == 0:
            axes.annotate(panel, (0, 1), (0, 24), "axes fraction", "offset points", fontsize=10, color=INK)
    if entries:
        legend(figure, entries)
    said = beginning(axes.get_ylim()[0] for axes in grid.flat) if y else ""
    if many:
        said += " A row for each network, the others in grey; a column has one scale."
    elif len(labels) > 1:
        said += " Each panel has its own scale."
    if hidden := names[MOST_NETWORKS:]:
        said += f" The first {len(networks)} networks are drawn; {len(hidden)} more are in the data."
    return figure, places, said


def legend(figure: Figure, looks: Mapping[str, dict[str, Any]]) -> None:
    """The names of lines, with their looks, below the figure."""
    texts = [literal(name, 48) for name in looks]
    figure.legend(
        [Line2D([], [], **look) for look in looks.values()],
        texts,
        loc="outside lower center",
        ncols=max(1, min(len(texts), 110 // (max(map(len, texts)) + 6))),
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        handlelength=3,
    )


def _draw_line(axes: Axes, line: Line, *, own: bool) -> None:
    """A line with its band, or, of another network, in the background."""
    x, y, low, high = line.points.T
    if not own:
        axes.plot(x, y, color=OTHERS, linewidth=0.8, zorder=1)
        return
    look = line_look(*line.look) | ({"marker": None} if len(x) > 30 else {})
    axes.plot(x, y, **look)
    if (high > low).any():
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    if line.ring is not None:
        axes.plot(*line.ring, "o", markersize=8, markerfacecolor="none", markeredgecolor=look["color"])


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
        axes.imshow(sheet(tiles, gap), cmap=_DIGITS, vmin=0, vmax=255, interpolation="none")
        axes.set_facecolor("none")
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
    texts: npt.NDArray[np.str_],
    *,
    low: float = 0,
    high: float = 100,
    cmap: str | Colormap = SHARES,
) -> QuadMesh:
    """Values (R, C) as colours, none where there is no number, under texts (R, C)."""
    rows, columns = (np.arange(size + 1) - 0.5 for size in values.shape)
    cells = axes.pcolormesh(columns, rows, values, cmap=cmap, vmin=low, vmax=high, edgecolors=PAPER, linewidth=0.4)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    colours = cells.to_rgba(values)
    for (row, column), text in np.ndenumerate(texts):
        covered, dark = colours[row, column, 3] > 0.75, colours[row, column, :3] @ (0.30, 0.59, 0.11) < 0.5
        colour = ("#ffffff" if dark else "#111111") if covered else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return cells


def save_drawing(
    figure: Figure,
    path: Path,
    title: str,
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    table: Table | None = None,
) -> Drawing:
    """Write the figure under its title as PNG, and its numbers as CSV beside it; None is an empty cell."""
    data = path.with_suffix(".csv")
    write_text(data, csv_text([header, *(map(_cell, row) for row in rows)]))
    for own in figure.findobj(Text):  # whatever a matplotlibrc says: for its text LaTeX would have to be installed
        own.set_usetex(False)
    settings: dict[Any, Any] = {"text.usetex": False, "svg.fonttype": "none", "svg.hashsalt": "affbench"}
    with atomic_path(path) as temporary, rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a label in a script the font lacks
        figure.draw_without_rendering()  # the layout takes long: it is done once
        figure.set_layout_engine("none")
        box, svg = figure.get_tightbbox().padded(0.05), io.StringIO()
        figure.savefig(svg, format="svg", bbox_inches=box, facecolor="none", metadata=dict.fromkeys(_UNSAID))
        middle, top = (box.x0 + box.width / 2) / figure.get_figwidth(), box.y1 / figure.get_figheight()
        figure.text(middle, top, literal(title), ha="center", fontsize=10.5, color=INK, usetex=False)
        figure.savefig(temporary, format="png", bbox_inches=box.padded(0, 0.2), metadata={"Title": title})
    return Drawing(title, caption, path, data, _in_colours_of_page(svg.getvalue()), table)


def _in_colours_of_page(svg: str) -> str:
    """What matplotlib wrote with colours and font of the page, and no more digits than a screen shows."""
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg[svg.index("<svg") :])
    for colour, name in _ON_PAGE.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\.(\d\d)\d+", r".\1", path[0]), svg)
    return svg.replace('<style type="text/css">', f'<style type="text/css">{_STYLE}', 1)


def _cell(value: Any) -> Any:
    """A cell as inert text or a short number."""
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return inert(value) if isinstance(value, str) else value
