"""Tables: one model of them, its renderings, and the cells that several of them share."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

    from affbench.analysis.results import Group, Results
    from affbench.base.statistics import SeedSummary
    from affbench.run.folder import Share

INTERVALS = (
    "Brackets hold 95% intervals: with one seed over the choice of test images (originals resampled where a set holds "
    "several versions of each digit, else Wilson's); with several seeds Student's t interval of their mean, which "
    "leaves out the choice of test images, with ± standard deviation and the range over seeds."
)


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table: text, whose lines break at "\\n", and the number it sorts by, if any."""

    text: str
    sort: float | None = None


ABSENT = Cell("–")
_BREAK = r"\\"
_LATEX = {sign: rf"\{sign}" for sign in "&%$#_{}"} | {
    "[": "{[}",  # after a line break it would begin a length
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "–": "--", "—": "---", "…": r"\dots{}",
    "β": r"$\beta$", "ε": r"$\epsilon$", "λ": r"$\lambda$", "°": r"$^\circ$", "²": r"$^2$", "·": r"$\cdot$",
    "≥": r"$\ge$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table, before it is rendered: the first column names the row; the caption says set, split, n and interval."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table '{self.title}' has rows that do not fit its {len(self.columns)} columns")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Segment]:
        """The table for a terminal: no word in it is ever broken, and nothing in it is taken as markup."""
        yield Text(plain(self.title), style="bold italic")
        for grid in self._grids(options.max_width):
            yield from console.render(grid, options.update(width=10_000))
        if self.caption:
            yield Text(wrapped(plain(self.caption), options.max_width), style="dim italic", no_wrap=True)

    def _grids(self, room: int) -> Iterator[RichTable]:
        """The table where its words fit into its columns, else its rows as columns, as many at a time as fit."""
        heads, *rows = ([plain(text) for text in line] for line in self._texts)
        if _fits(columns := list(zip(heads, *rows, strict=True)), room):
            yield _grid(columns, room, [self.numeric(number) for number in range(len(columns))])
            return
        while rows:
            count = 1
            while count < len(rows) and _fits([heads, *rows[: count + 1]], room):
                count += 1
            yield _grid([heads, *rows[:count]], room, [False] * (count + 1))
            rows = rows[count:]

    def to_markdown(self, level: int = 2) -> str:
        """The table as GitHub-flavoured Markdown under a heading of `level`; everything in it is escaped."""
        rule = ["---:" if self.numeric(number) else ":---" for number in range(len(self.columns))]
        head, *body = [f"| {' | '.join(map(markdown_text, line))} |" for line in self._texts]
        lines = [f"{'#' * level} {markdown_text(self.title)}", "", head, f"| {' | '.join(rule)} |", *body]
        if self.caption:
            lines += ["", f"*{markdown_text(self.caption)}*"]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """The table as CSV, its headings first; lines of a cell are joined by blanks, numbers are plain."""

        def cell(own: Cell) -> str:
            if own.sort is None:
                return inert(own.text)
            return re.sub(r"(?<=\d),(?=\d{3}\b)", "", _line(own.text)).replace("−", "-")

        rows = (map(cell, row) for row in self.rows)
        return csv_text([[inert(heading) for heading in self.columns], *rows])

    def to_latex(self) -> str:
        """The table as a LaTeX float for the package booktabs; everything in it is escaped."""

        def line(texts: Iterable[str]) -> str:
            cells = (latex_text(text).split("\n") for text in texts)
            return " & ".join(own[0] if len(own) == 1 else rf"\shortstack[l]{{{_BREAK.join(own)}}}" for own in cells)

        columns = "".join("r" if self.numeric(number) else "l" for number in range(len(self.columns)))
        caption = latex_text(_line(f"{self.title}. {self.caption}")).strip()
        begin = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}"]
        head, *body = [rf"{line(texts)} \\" for texts in self._texts]
        lines = [*begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    @property
    def _texts(self) -> list[Iterable[str]]:
        return [self.columns, *((cell.text for cell in row) for row in self.rows)]

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers, which stand at its right; the first names the rows."""
        return column > 0 and any(row[column].sort is not None for row in self.rows)


def _least(column: Iterable[str]) -> int:
    """The width of the longest word."""
    return max((cell_len(word) for text in column for word in text.split()), default=0)


def _fits(columns: Sequence[Iterable[str]], room: int) -> bool:
    return sum(map(_least, columns)) + 2 * (len(columns) - 1) <= room


def _grid(columns: Sequence[Sequence[str]], room: int, right: Sequence[bool]) -> RichTable:
    """Columns, the first text of each its heading, as wide as their words; then the narrow ones get what they lack."""
    widths = list(map(_least, columns))
    lacking = [max(map(cell_len, "\n".join(c).split("\n"))) - w for c, w in zip(columns, widths, strict=True)]
    spare = room - sum(widths) - 2 * (len(widths) - 1)
    for number in sorted(range(len(widths)), key=lacking.__getitem__):
        more = max(min(lacking[number], spare), 0)
        widths[number] += more
        spare -= more
    grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for (head, *_), width, numeric in zip(columns, widths, right, strict=True):
        grid.add_column(Text(head), width=width, justify="right" if numeric else "left")
    for row in zip(*(texts for _, *texts in columns), strict=True):
        grid.add_row(*map(Text, row))
    return grid


def wrapped(text: str, room: int) -> str:
    """Lines broken between words only."""
    lines = text.split("\n")
    return "\n".join(textwrap.fill(line, room, break_long_words=False, break_on_hyphens=False) for line in lines)


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """Cells as CSV; None is an empty one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _line(text: str) -> str:
    return " ".join(plain(text).split())


def latex_text(text: str) -> str:
    """Any text as inert LaTeX; signs that its fonts lack become commands."""
    return "".join(_LATEX.get(sign, sign) for sign in plain(text))


def plain(text: str) -> str:
    """Text without control characters and overrides of the writing direction, which could disguise it; lines stay."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]", " ", text)


def markdown_text(text: str) -> str:
    """Any text as inert Markdown: no character of it is taken as markup, a line break becomes ``<br>``."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|#~$!])", r"\\\1", text)
    # A scheme or www. would be linked by itself; @name would be a mention.
    text = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp):", r"\1&#58;", text)
    text = re.sub(r"(?i)\bwww\.", "www&#46;", text).replace("@", "&#64;")
    return text.strip().replace("\n", "<br>")


def percent(share: float) -> str:
    """A share of 0 to 1 in percent, two decimals."""
    return f"{100 * share:.2f}"


def mean_percent(over_seeds: SeedSummary) -> str:
    """The mean of shares, with their standard deviation where there are several."""
    return percent(over_seeds.mean) + ("" if over_seeds.sd is None else f" ± {percent(over_seeds.sd)}")


def interval(ends: tuple[float, float]) -> str:
    """An interval of shares in percent."""
    return f"[{percent(ends[0])}, {percent(ends[1])}]"


def whole(value: float | None) -> Cell:
    """A count with thousands separators."""
    return ABSENT if value is None else Cell(f"{value:,.0f}", value)


def counted(number: int, what: str) -> str:
    """A number of things in words: "1 seed", "3 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def signed(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def span(values: Iterable[int]) -> str:
    """One number, or the lowest and highest, with thousands separators."""
    low, *_, high = sorted(numbers := list(values)) * 2
    return f"{low:,}" if len(set(numbers)) == 1 else f"{low:,} to {high:,}"


def described(name: str, groups: Sequence[Group]) -> str:
    """A set with its split and n."""
    split, n, originals = extent(name, groups)
    return f"{name}, {split}, n {n}" + ("" if n == originals else f" of {originals} digits")


def extent(name: str, groups: Sequence[Group]) -> tuple[str, str, str]:
    """Split, number of images and number of originals of the evaluations on a set, in words."""
    records = [record for own in groups for record in own.records(name)]
    n, originals = ([getattr(record, key) for record in records] for key in ("n", "n_originals"))
    return "/".join(sorted({record.split for record in records})), span(n), span(originals)


def accuracy_cell(own: Group, name: str, among: Sequence[Group] = ()) -> Cell:
    """Accuracy on one set with interval and spread over seeds; n where it differs `among` groups, and seeds."""
    summary, ends = own.accuracy(name), own.interval(name)
    if summary is None or ends is None:
        return ABSENT
    lines = [mean_percent(summary), interval(ends)]
    if summary.sd is not None:
        lines.append(f"{percent(summary.minimum)} to {percent(summary.maximum)}")
    if len({record.n for group in among for record in group.records(name)}) > 1:
        lines.append(f"n {span(record.n for record in own.records(name))}")
    if summary.n != len(own.results):
        lines.append(f"{summary.n} of {len(own.results)} seeds")
    return Cell("\n".join(lines), 100 * summary.mean)


def over_seeds(shares: Sequence[Share]) -> tuple[SeedSummary, tuple[float, float]]:
    """The accuracy of one part of a set over seeds, and its band: the interval of one seed, the range of several."""
    from affbench.base.statistics import seed_summary

    summary = seed_summary([share.accuracy for share in shares])
    return summary, shares[0].ci95 if summary.n == 1 else (summary.minimum, summary.maximum)


def accuracy_table(
    title: str, heads: Sequence[str], lines: Sequence[tuple[Group, Sequence[Cell]]], results: Results, caption: str
) -> Table:
    """A row for each of some groups: the cells under `heads`, validation accuracy, and accuracy on every set."""
    shown = [own for own, _ in lines]
    sets = [name for name in results.sets if any(own.records(name) for own in shown)]
    columns = [*heads, "Validation\naccuracy %"]
    for name in sets:
        split, n, originals = extent(name, shown)
        size = f"n {n}" if n == originals else f"n {n} of\n{originals} digits"
        columns.append(f"{name}\n{split} accuracy %\n{size}")
    rows = []
    for own, cells in lines:
        validation = Cell("trained elsewhere")
        if own.validation is not None:
            validation = Cell(mean_percent(own.validation), 100 * own.validation.mean)
        rows.append((*cells, validation, *(accuracy_cell(own, name, results.groups) for name in sets)))
    return Table(title, tuple(columns), tuple(rows), caption)


def shares_table(
    title: str, first: str, lines: Mapping[Cell, Mapping[str, Sequence[Share]]], results: Results, name: str
) -> Table:
    """A row for each part of a set and a column for each model: its shares there by seed, under the group's name."""

    def cell(shares: Sequence[Share]) -> Cell:
        if not shares:
            return ABSENT
        summary, ends = over_seeds(shares)
        reach = interval(ends) if summary.n == 1 else " to ".join(map(percent, ends))
        return Cell(f"{percent(summary.mean)}\n{reach}", 100 * summary.mean)

    groups = [own for own in results.groups if any(own.name in models for models in lines.values())]
    columns = (first, *(f"{own.name}\n{counted(len(own.records(name)), 'seed')}" for own in groups))
    rows = tuple((label, *(cell(found.get(own.name, ())) for own in groups)) for label, found in lines.items())
    caption = (
        "Accuracy in percent. With one seed, brackets hold Wilson's 95% interval, which takes images as independent "
        "(versions of one digit are not: it is too narrow for affine sets); with several seeds, mean and range over "
        "seeds."
    )
    return Table(f"{title}: {described(name, groups)}", columns, rows, caption)


def inert(text: str) -> str:
    """A text in one line, which a spreadsheet does not take for a formula."""
    line = _line(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line
