"""Published results beside these."""

from pathlib import Path

from affbench.analysis.published import published_for
from affbench.analysis.results import Results
from affbench.report.sections import Section
from affbench.report.table import ABSENT, INTERVALS, Cell, Table, accuracy_cell, counted, described, whole


def section(results: Results, folder: Path) -> Section:
    """A table for each set of which something is published."""
    return Section("Published results", tuple(filter(None, (published_table(results, name) for name in results.sets))))


def published_table(results: Results, name: str) -> Table | None:
    """Published accuracies on one set beside ours; None where nothing is published."""
    published = published_for(name)
    if not published:
        return None
    groups = [own for own in results.groups if own.records(name)]
    rows = []
    for own in groups:
        status = f"measured, {counted(len(own.records(name)), 'seed')}"
        about = map(Cell, (name, f"{own.protocol} digits", "this report", status))
        rows.append((Cell(own.name), ABSENT, whole(own.parameters), accuracy_cell(own, name), *about))
    for row in published:
        spread = "" if row.sd is None else f" ± {row.sd:g}"
        size, accuracy = Cell(row.parameters) if row.parameters else ABSENT, Cell(f"{row.value:g}{spread}", row.value)
        where = "affNIST, official" if row.set == "affnist" else row.set
        about = map(Cell, (where, row.trained, row.source, row.status))
        rows.append((Cell(row.method), Cell(str(row.year), row.year), size, accuracy, *about))
    caption = (
        f"Accuracy in percent. Here: {described(name, groups)}. {INTERVALS} Published figures come without intervals; "
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
    return Table(f"Published results beside these: {name}", columns, tuple(rows), caption)
