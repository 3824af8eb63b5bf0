"""Samples of the sets that runs were tested on."""

from pathlib import Path

from affbench.analysis.results import Results
from affbench.base.errors import AffbenchError
from affbench.data.sets import find_part
from affbench.report.drawing import Drawing
from affbench.report.sections import Section
from affbench.report.sheets import set_drawings


def section(results: Results, folder: Path) -> Section | None:
    """A sheet of each set, and why the others are not shown."""
    if results.workspace is None:
        return None
    figures, problems = list[Drawing](), list[str]()
    for name in results.sets:
        try:
            figures += set_drawings(find_part(name), results.workspace.data, folder)
        except AffbenchError as error:
            problems.append(f"Samples of {name} are left out: {error}")
    return Section("Samples of the sets", figures=tuple(figures), problems=tuple(problems))
