"""Replication: networks of earlier work, made again as a pipeline says, beside their published accuracies."""

from collections.abc import Iterator
from pathlib import Path

from affbench.analysis.published import Published, published_for
from affbench.analysis.results import Group, Results
from affbench.report.sections import Section
from affbench.report.table import INTERVALS, Cell, Table, accuracy_cell, counted, described, signed


def section(results: Results, folder: Path) -> Section | None:
    """A table for each set with published accuracies of networks that were made again; None without any."""
    tables = tuple(filter(None, (_table(results, name) for name in results.sets)))
    return Section("Made again", tables) if tables else None


def _table(results: Results, name: str) -> Table | None:
    rows, shown = [], []
    for own, published in _pairs(results, name):
        summary, ends = own.accuracy(name), own.interval(name)
        if summary is None or ends is None:
            continue
        theirs = published.value / 100
        low, high = ends[0] - theirs, ends[1] - theirs
        difference = f"{signed(summary.mean - theirs)}\n[{signed(low)}, {signed(high)}]"
        over = "seeds" if summary.n > 1 else "images, one seed"
        says = "above the published value" if low > 0 else "below it" if high < 0 else "the interval holds it"
        spread = "" if published.sd is None else f" ± {published.sd:g}"
        rows.append(
            (
                Cell(own.name),
                accuracy_cell(own, name),
                Cell(f"{published.value:g}{spread}\n{published.method}", published.value),
                Cell(difference, 100 * (summary.mean - theirs)),
                Cell(f"{says}\n({counted(summary.n, 'seed')}: interval over {over})"),
                Cell(f"{published.source}\n({published.status}; {published.trained})"),
            )
        )
        shown.append(own)
    if not rows:
        return None
    columns = ("Model", "Accuracy % here", "Published", "Difference", "What it says", "Source")
    caption = (
        f"{described(name, shown)}, in percent and points. {INTERVALS} The interval of a difference is that of the "
        "accuracy here: published values come without one (± is a standard deviation over trials). Those of matched "
        "networks stand beside runs stopped at an accuracy, others beside those trained to the end. Networks of other "
        "sizes, or trained on fewer digits than all of MNIST, make the published experiment again in small only."
    )
    if name.startswith("affnist-synthetic"):
        caption += " Published values are of the official affNIST, those here of digits drawn as it was."
    return Table(f"Made again: {name}", columns, tuple(rows), caption)


def _pairs(results: Results, name: str) -> Iterator[tuple[Group, Published]]:
    """Every configuration beside what is published for its network and protocol; the highest matched beside matched."""
    for own in results.groups:
        alike = [other for other in results.groups if other.published == own.published]
        ends = [other.config.training.stop_at or 0.0 for other in alike]
        for row in published_for(name, own.published) if own.published else ():
            wanted = max(ends) if row.matched else min(ends)
            if row.protocol == own.protocol and wanted == (own.config.training.stop_at or 0.0):
                yield own, row
