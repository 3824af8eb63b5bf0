"""Chosen runs side by side: their accuracies, and each with each on the same images."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from affbench.analysis.results import LabelledRun, Results, read_results
from affbench.base.errors import ArtefactError, UsageError
from affbench.base.workspace import Workspace
from affbench.data.sets import find_set
from affbench.experiment.pipeline import on_common_images
from affbench.report.sections.accuracy import summarise
from affbench.report.sections.pairs import compared
from affbench.report.table import Table
from affbench.run.folder import Run, find_run, list_runs


@dataclass(frozen=True)
class Comparison:
    """Accuracies, a table of pairs for each set, and a sentence for each pair; what was left out, and why."""

    tables: tuple[Table, ...]
    sentences: tuple[str, ...]
    problems: tuple[str, ...]


def compare_runs(names: Sequence[str], set_name: str | None, workspace: Workspace) -> Comparison:
    """Compare models by the names of their runs, or how the names of all seeds of one begin."""
    if len(set(names)) < 2:
        raise UsageError("compare takes at least two runs: 'affbench status' lists them.")
    results = select_runs(names, None if set_name is None else [set_name], workspace)
    for name in names:
        if len(own := [group for group in results.groups if group.label == name]) > 1:
            raise UsageError(f"{name} could mean several: {'; '.join(group.name for group in own)}; give more of it.")
    pairs = compared(results, lambda groups: itertools.combinations(groups, 2))
    if not pairs.tables:
        raise ArtefactError(
            f"{' and '.join(names)} were not tested on the same images of a set, or share no seed: "
            f"'affbench eval --run {names[0]} --set {set_name or 'affnist-synthetic'}' tests one."
        )
    summary = summarise(results, title="Accuracy")
    return Comparison((summary, *pairs.tables), pairs.paragraphs, (*results.problems, *pairs.problems))


def select_runs(names: Sequence[str], sets: Sequence[str] | None, workspace: Workspace) -> Results:
    """The finished runs whose names begin so, labelled by these beginnings; of their tests, those on some sets only."""
    runs = [LabelledRun(name, run) for name in names for run in _called(name, workspace)]
    results = read_results(runs, workspace)
    if sets is not None:
        wanted = {find_set(name).name for name in sets}
        results = replace(
            results,
            results=tuple(
                replace(own, evaluations={name: e for name, e in own.evaluations.items() if name in wanted})
                for own in results.results
            ),
        )
    return on_common_images(results, workspace)


def _called(name: str, workspace: Workspace) -> list[Run]:
    finished = [run for run in list_runs(workspace.results) if run.finished]
    exact = [run for run in finished if run.name == name]
    begun = [run for run in finished if run.name.startswith(name)]
    return exact or begun or [find_run(workspace.results, name)]
