"""How many times each run was tested on each set."""

from pathlib import Path

from affbench.analysis.results import Results
from affbench.report.sections import Section
from affbench.report.table import Cell, Table, whole


def section(results: Results, folder: Path) -> Section | None:
    """The counts; None where nothing was tested."""
    sets = results.sets
    if not sets:
        return None
    rows = []
    for result in results.results:
        counts = [result.evaluations[name].evaluations if name in result.evaluations else 0 for name in sets]
        rows.append((Cell(result.run.name), *map(whole, counts)))
    caption = (
        "How many times each checkpoint was tested on each set; answers from disk do not count. Selection uses "
        "validation only, whatever this number."
    )
    title = "Number of evaluations"
    return Section(title, (Table(title, ("Run", *sets), tuple(rows), caption),))
