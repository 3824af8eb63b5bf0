"""Chosen runs side by side: their accuracies, and each with each on the same images."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from affbench.analysis.results import LabelledRun, read_results
from affbench.base.errors import ArtefactError, UsageError
from affbench.base.workspace import Workspace
from affbench.experiment.pipeline import on_common_images
from affbench.report.sections.accuracy import summarise
from affbench.report.sections.pairs import compared
from affbench.report.table import Table
from affbench.run.folder import finished_runs


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
    runs = [LabelledRun(name, run) for name in names for run in finished_runs(workspace.results, name)]
    results = read_results(runs, workspace)
    for name in names:
        if len(own := [group for group in results.groups if group.label == name]) > 1:
            raise UsageError(f"{name} could mean several: {'; '.join(group.name for group in own)}; give more of it.")
    results = on_common_images(results, workspace, sets=[] if set_name is None else [set_name])
    pairs = compared(results, lambda groups: itertools.combinations(groups, 2))
    if not pairs.tables:
        raise ArtefactError(
            f"{' and '.join(names)} were not tested on the same images of a set, or share no seed: "
            f"'affbench eval --run {names[0]} --set {set_name or 'affnist-synthetic'}' tests one."
        )
    summary = summarise(results, title="Accuracy")
    return Comparison((summary, *pairs.tables), pairs.paragraphs, (*results.problems, *pairs.problems))
