"""The tables of a report: one model of a table, its three renderings, and what each table holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from affbench.analysis.published import ABLATION, Published, published_for
from affbench.analysis.results import Group, Results
from affbench.base.statistics import SeedSummary, seed_summary
from affbench.data.dataset import TRANSFORM_UNITS
from affbench.run.folder import Share

if TYPE_CHECKING:
    from rich.table import Table as RichTable

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


@dataclass(frozen=True)
class Table:
    """A table, before it is rendered.

    Attributes
    ----------
    title
        One line.
    columns
        Headings, whose lines break at "\\n".
    rows
        As many cells each as there are columns; the first cell names the row.
    caption
        What the numbers are: set, split, n, seeds, interval.
    note
        A sentence about the whole experiment that has to stand under the table; "" for none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table '{self.title}' has rows that do not fit its {len(self.columns)} columns")

    def to_rich(self) -> RichTable:
        """The table for a terminal; nothing in it is taken as markup."""
        from rich.table import Table as RichTable
        from rich.text import Text

        below = Text(plain("\n".join(filter(None, (self.caption, self.note)))), style="dim italic")
        rich = RichTable(title=Text(plain(self.title)), caption=below or None, title_justify="left")
        rich.caption_justify = "left"
        for number, heading in enumerate(self.columns):
            rich.add_column(Text(plain(heading)), justify="right" if self._numeric(number) else "left", overflow="fold")
        for row in self.rows:
            rich.add_row(*(Text(plain(cell.text)) for cell in row))
        return rich

    def to_markdown(self, level: int = 2) -> str:
        """The table as GitHub-flavoured Markdown under a heading of `level`; everything in it is escaped."""
        rule = ["---:" if self._numeric(number) else ":---" for number in range(len(self.columns))]
        lines = [
            f"{'#' * level} {markdown_text(self.title)}",
            "",
            _markdown_row(self.columns),
            f"| {' | '.join(rule)} |",
            *(_markdown_row(cell.text for cell in row) for row in self.rows),
        ]
        for text in filter(None, (self.caption, self.note)):
            lines += ["", f"*{markdown_text(text)}*"]
        return "\n".join(lines) + "\n"

    def to_html(self) -> Markup:
        """The table as an HTML figure whose columns a script can sort by; everything in it is escaped."""
        heads = Markup("").join(
            Markup('<th scope="col"{}>{}</th>').format(self._css(number), _html_text(heading))
            for number, heading in enumerate(self.columns)
        )
        rows = Markup("\n").join(
            Markup("<tr>{}</tr>").format(Markup("").join(self._html_cell(n, cell) for n, cell in enumerate(row)))
            for row in self.rows
        )
        below = Markup("").join(
            Markup('<p class="{}">{}</p>').format(kind, _html_text(text))
            for kind, text in (("caption", self.caption), ("note", self.note))
            if text
        )
        return Markup(
            '<figure class="table"><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
            '<table class="sortable"><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n'
            "<figcaption>{below}</figcaption></figure>"
        ).format(title=plain(self.title), heads=heads, rows=rows, below=below)

    def _numeric(self, column: int) -> bool:
        return column > 0 and any(row[column].sort is not None for row in self.rows)

    def _css(self, column: int) -> Markup:
        return Markup(' class="number"') if self._numeric(column) else Markup("")

    def _html_cell(self, column: int, cell: Cell) -> Markup:
        key = Markup("") if cell.sort is None else Markup(' data-sort="{}"').format(repr(float(cell.sort)))
        if column == 0:
            return Markup('<th scope="row"{}>{}</th>').format(key, _html_text(cell.text))
        return Markup("<td{}{}>{}</td>").format(self._css(column), key, _html_text(cell.text))


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


def _markdown_row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(markdown_text(text) for text in texts)} |"


def _html_text(text: str) -> Markup:
    return Markup("<br>").join(escape(line) for line in plain(text).split("\n"))


def percent(share: float) -> str:
    """A share of 0 to 1 in percent, two decimals."""
    return f"{100 * share:.2f}"


def interval(ends: tuple[float, float]) -> str:
    """An interval of shares in percent."""
    return f"[{percent(ends[0])}, {percent(ends[1])}]"


def whole(value: float | None) -> Cell:
    """A count with thousands separators."""
    return ABSENT if value is None else Cell(f"{value:,.0f}", value)


def span(values: Iterable[int]) -> str:
    """One number, or the lowest and highest, with thousands separators."""
    low, *_, high = sorted(numbers := list(values)) * 2
    return f"{low:,}" if len(set(numbers)) == 1 else f"{low:,} to {high:,}"


def set_heading(name: str, groups: Sequence[Group]) -> str:
    """A column's heading that says set, split and n."""
    split, n, originals = _extent(name, groups)
    shown = name.replace("-sample", "\n-sample").replace("@", "\n@")  # where a narrow terminal may break it
    return f"{shown}\n{split} accuracy %\nn {n}" + ("" if n == originals else f" of\n{originals} digits")


def _described(name: str, groups: Sequence[Group]) -> str:
    """The same in one line, without what is measured."""
    split, n, originals = _extent(name, groups)
    return f"{name}, {split}, n {n}" + ("" if n == originals else f" of {originals} digits")


def _extent(name: str, groups: Sequence[Group]) -> tuple[str, str, str]:
    """Split, number of images and number of originals of the evaluations on a set, in words."""
    records = [record for own in groups for record in own.records(name)]
    n, originals = ([getattr(record, key) for record in records] for key in ("n", "n_originals"))
    return "/".join(sorted({record.split for record in records})), span(n), span(originals)


def accuracy_cell(own: Group, name: str, among: Sequence[Group] = ()) -> Cell:
    """Accuracy on one set with interval and spread over seeds; n where it differs `among` groups, and seeds."""
    summary, ends = own.accuracy(name), own.interval(name)
    if summary is None or ends is None:
        return ABSENT
    lines = [percent(summary.mean), interval(ends)]
    if summary.sd is not None:
        lines[0] += f" ± {percent(summary.sd)}"
        lines.append(f"{percent(summary.minimum)} to {percent(summary.maximum)}")
    if len({record.n for group in among for record in group.records(name)}) > 1:
        lines.append(f"n {span(record.n for record in own.records(name))}")
    if summary.n != len(own.results):
        lines.append(f"{summary.n} of {len(own.results)} seeds")
    return Cell("\n".join(lines), 100 * summary.mean)


def validation_cell(own: Group) -> Cell:
    """Validation accuracy with its spread over seeds."""
    summary = own.validation
    spread = "" if summary.sd is None else f" ± {percent(summary.sd)}"
    return Cell(percent(summary.mean) + spread, 100 * summary.mean)


def _seeds(own: Group) -> Cell:
    return Cell(str(len(own.results)), len(own.results))


def summarise(results: Results, *, title: str = "Summary", note: str = "") -> Table:
    """One row per model configuration, one column per set: accuracy, interval, n and seeds; perhaps no row at all."""
    groups = results.groups
    headings = [set_heading(name, groups) for name in results.sets]
    rows = tuple(
        (
            Cell(own.name),
            whole(own.parameters),
            whole(own.routings),
            _seeds(own),
            validation_cell(own),
            *(accuracy_cell(own, name, groups) for name in results.sets),
        )
        for own in groups
    )
    caption = f"Validation accuracy selects the checkpoint; test sets are only evaluated. {INTERVALS}"
    for name in results.sets:
        if len({(record.set_key, record.n) for own in groups for record in own.records(name)}) > 1:
            caption += f" Not all models were tested on the same images of {name}: compare that column with care."
    columns = ("Model", "Parameters", "Routings", "Seeds", "Validation\naccuracy %", *headings)
    return Table(title, columns, rows, caption, note)


def sweep_table(results: Results, *, note: str = "") -> Table | None:
    """Routing iterations × seeds: mean, sd and range on validation and every set; None where nothing was swept."""
    groups = [own for sweep in results.sweeps for own in sweep]
    if not groups:
        return None
    sets = [name for name in results.sets if any(own.records(name) for own in groups)]
    columns = ["Model", "Routings", "Seeds"]
    for heading in ("validation", *(set_heading(name, groups) for name in sets)):
        columns += [f"{heading}\nmean", "sd", "range"]
    rows = []
    for own in groups:
        cells = [Cell(own.label), whole(own.routings), _seeds(own), *_spread(own.validation)]
        for name in sets:
            cells += _spread(own.accuracy(name))
        seconds = sum(result.seconds_per_epoch for result in own.results) / len(own.results)
        rows.append((*cells, Cell(f"{seconds:.1f}", seconds)))
    caption = (
        "Accuracy in percent: mean, standard deviation and range over seeds; validation is the split that selects the "
        "checkpoint. Seconds are those of training alone, each on its run's own device."
    )
    return Table("Routing iterations", (*columns, "Seconds\nper epoch"), tuple(rows), caption, note)


def _spread(summary: SeedSummary | None) -> tuple[Cell, Cell, Cell]:
    if summary is None:
        return ABSENT, ABSENT, ABSENT
    mean = Cell(percent(summary.mean), 100 * summary.mean)
    if summary.sd is None:
        return mean, ABSENT, ABSENT
    extent = f"{percent(summary.minimum)} to {percent(summary.maximum)}"
    return mean, Cell(percent(summary.sd), 100 * summary.sd), Cell(extent, 100 * (summary.maximum - summary.minimum))


def _shares(shares: Sequence[Share]) -> Cell:
    """The same share from several seeds: mean, and its interval for one seed or its range for several."""
    summary = seed_summary([share.accuracy for share in shares])
    if len(shares) == 1:
        low, high = shares[0].ci95
        return Cell(f"{percent(summary.mean)}\n[{percent(low)}, {percent(high)}]", 100 * summary.mean)
    extent = f"{percent(summary.minimum)} to {percent(summary.maximum)}"
    return Cell(f"{percent(summary.mean)}\n{extent}", 100 * summary.mean)


_SHARES_CAPTION = (
    "Accuracy in percent. With one seed, brackets hold Wilson's 95% interval, which takes images as independent "
    "(versions of one digit are not: it is too narrow for affine sets); with several seeds, mean and range over seeds."
)


def per_class_table(results: Results, name: str, *, note: str = "") -> Table:
    """Accuracy on one set by true class: a row per class, a column per model."""
    groups = [own for own in results.groups if own.records(name)]
    labels = sorted({share.label for own in groups for record in own.records(name) for share in record.per_class})
    rows = []
    for label in labels:
        cells = [Cell(str(label), label)]
        for own in groups:
            found = [share for record in own.records(name) for share in record.per_class if share.label == label]
            cells.append(_shares(found) if found else ABSENT)
        rows.append(tuple(cells))
    columns = ("Class", *(_model_heading(own, name) for own in groups))
    return Table(f"By class: {_described(name, groups)}", columns, tuple(rows), _SHARES_CAPTION, note)


def transformation_table(results: Results, name: str, *, note: str = "") -> Table | None:
    """Accuracy on one set by bins of each factor of the transformation; None for a set without transformations."""
    groups = [own for own in results.groups if any(record.by_transformation for record in own.records(name))]
    bins: dict[tuple[str, float, float], dict[str, list[Share]]] = {}
    for own in groups:
        for record in own.records(name):
            for factor, shares in (record.by_transformation or {}).items():
                for share in shares:
                    if share.n:
                        edges = float(f"{share.low:.3g}"), float(f"{share.high:.3g}")
                        bins.setdefault((factor, *edges), {}).setdefault(own.name, []).append(share)
    if not bins:
        return None
    factors = list(dict.fromkeys(factor for factor, _, _ in bins))
    rows = tuple(
        (
            Cell(f"{factor.replace('_', ' ')} {low:g} to {high:g} {TRANSFORM_UNITS.get(factor, '')}".strip()),
            *(_shares(cells[own.name]) if own.name in cells else ABSENT for own in groups),
        )
        for (factor, low, high), cells in sorted(
            bins.items(), key=lambda item: (factors.index(item[0][0]), *item[0][1:])
        )
    )
    columns = ("Transformation", *(_model_heading(own, name) for own in groups))
    return Table(f"By transformation: {_described(name, groups)}", columns, rows, _SHARES_CAPTION, note)


def _model_heading(own: Group, name: str) -> str:
    seeds = len(own.records(name))
    return f"{own.name}\n{seeds} seed{'' if seeds == 1 else 's'}"


def ablation_table(results: Results, *, note: str = "") -> Table | None:
    """Routing × reconstruction on centred MNIST, in the shape of CapsNet-Keras's table; None without such runs."""
    ours: dict[tuple[int, bool], list[Group]] = {}
    for own in results.groups:
        if own.config.model.name == "capsnet" and own.config.data.train_set == "mnist" and own.records("mnist"):
            on = bool(own.config.model.options.get("reconstruction", True))
            ours.setdefault((own.routings or 3, on), []).append(own)
    published = {(row.method, row.routings, row.reconstruction): row for row in ABLATION}
    if len(ours.keys() & {(routings, on) for _, routings, on in published}) < 2:
        return None
    rows = []
    for routings, on in sorted(ours):
        cells = [Cell("CapsNet"), whole(routings), Cell("yes" if on else "no")]
        cells.append(Cell("\n".join(_error(own) for own in ours[routings, on]), _error_mean(ours[routings, on][0])))
        for method in ("CapsNet", "CapsNet-Keras"):
            row = published.get((method, routings, on))
            text = ABSENT.text if row is None else f"{row.value:.2f} ({row.sd})"
            cells.append(Cell(text, None if row is None else row.value))
        rows.append(tuple(cells))
    groups = [own for cell in ours.values() for own in cell]
    columns = ("Method", "Routing", "Reconstruction", "Here", "Sabour et al.", "CapsNet-Keras")
    caption = (
        f"Test error in percent on {_described('mnist', groups)}: mean (standard deviation) over seeds here and over 3 "
        f"trials elsewhere; here the checkpoint is selected on validation digits. Sabour et al.: {ABLATION[0].status}; "
        f"CapsNet-Keras: {ABLATION[-1].status}, which selects on the test set."
    )
    return Table("Ablation: routing and reconstruction", columns, tuple(rows), caption, note)


def _error_mean(own: Group) -> float:
    summary = own.accuracy("mnist")
    return 100 * (1 - summary.mean) if summary else 100.0


def _error(own: Group) -> str:
    summary = own.accuracy("mnist")
    spread = f" ({percent(summary.sd)})" if summary and summary.sd is not None else ""
    seeds = len(own.records("mnist"))
    return f"{_error_mean(own):.2f}{spread}, {seeds} seed{'' if seeds == 1 else 's'}"


def published_table(results: Results, name: str, *, note: str = "") -> Table | None:
    """Published accuracies on one set beside ours; None where nothing is published."""
    published = published_for(name)
    if not published:
        return None
    groups = [own for own in results.groups if own.records(name)]
    rows = [_ours(own, name) for own in groups] + [_theirs(row) for row in published]
    caption = (
        f"Accuracy in percent. Here: {_described(name, groups)}. {INTERVALS} Published figures come without intervals; "
        "± is a standard deviation. Matched: tested where the accuracy on translated digits was that of the others. "
        "Training on centred digits is another protocol. The last column says how well each figure is confirmed."
    )
    if name not in ("affnist", "mnist-translated"):
        caption += (
            " The published figures are of other images (official affNIST or all translated MNIST test digits, but "
            "where another set is named), after training on all of MNIST: they cannot be compared directly with those "
            f"of {name}."
        )
    columns = ("Method", "Year", "Parameters", "Accuracy %", "Tested on", "Trained on", "Source", "Status")
    return Table(f"Published results beside these: {name}", columns, tuple(rows), caption, note)


def _ours(own: Group, name: str) -> tuple[Cell, ...]:
    seeds = len(own.records(name))
    status = f"measured, {seeds} seed{'' if seeds == 1 else 's'}"
    size = ABSENT if own.parameters is None else Cell(f"{own.parameters:,}", own.parameters)
    trained = "translated digits" if own.config.data.shift else own.config.data.train_set
    return (
        Cell(own.name),
        ABSENT,
        size,
        accuracy_cell(own, name),
        Cell(name),
        Cell(trained),
        Cell("this report"),
        Cell(status),
    )


def _theirs(row: Published) -> tuple[Cell, ...]:
    spread = "" if row.sd is None else f" ± {row.sd:g}"
    return (
        Cell(row.method),
        Cell(str(row.year), row.year),
        Cell(row.parameters or ABSENT.text),
        Cell(f"{row.value:g}{spread}", row.value),
        Cell("affNIST, official" if row.set == "affnist" else row.set),
        Cell(row.trained),
        Cell(row.source),
        Cell(row.status),
    )


def evaluations_table(results: Results) -> Table | None:
    """How many times each run was tested on each set; None where nothing was tested."""
    sets = results.sets
    if not sets:
        return None
    rows = []
    for result in results.results:
        counts = [result.evaluations[name].evaluations if name in result.evaluations else 0 for name in sets]
        rows.append((Cell(result.name), *map(whole, counts)))
    caption = (
        "How many times each checkpoint was tested on each set; answers from disk do not count. Selection uses "
        "validation only, whatever this number."
    )
    return Table("Number of evaluations", ("Run", *sets), tuple(rows), caption)
