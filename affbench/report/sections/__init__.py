"""The sections of a report: one file each, which holds its table and its figure.

A section is a function ``section(results, folder) -> Section | None``, listed in `affbench.report.page`: None where it
has nothing to show. Figures go into the folder; sections that look at models or images need `Results.workspace`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from affbench.analysis.results import Result, Results
from affbench.base.errors import AffbenchError
from affbench.base.workspace import Workspace
from affbench.report.drawing import Drawing
from affbench.report.table import Table

PICTURED_MODELS = 6  # more would make the page long and slow, and tell little

T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """What stands under one heading: tables, figures, paragraphs, and a sentence for each thing left out."""

    title: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Drawing, ...] = ()
    paragraphs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


MakeSection = Callable[[Results, Path], Section | None]


class NothingToShowError(AffbenchError):
    """What a figure is of does not exist here, such as the mistakes of a model without any; a page passes over it."""


def of_each_model(
    results: Results, look: Callable[[Result, Workspace], Iterable[T]]
) -> tuple[tuple[T, ...], tuple[str, ...]]:
    """What a look at the first run of each of the first models finds, and a sentence for each model left out."""
    found, problems = list[T](), list[str]()
    if results.workspace is not None:
        for own in results.whole.groups[:PICTURED_MODELS]:
            entry = replace(own.results[0], label=f"{own.name}, seed {own.results[0].seed}")
            try:
                found += look(entry, results.workspace)
            except NothingToShowError:
                continue
            except AffbenchError as error:  # such as a model that cannot be imported any more
                problems.append(f"Pictures of {entry.label} are left out: {error}")
    return tuple(found), tuple(problems)
