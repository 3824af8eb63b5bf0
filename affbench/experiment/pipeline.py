"""The stages and what each needs: fetch → convert → train → eval → report."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from affbench.analysis.results import LabelledRun, Results, read_results
from affbench.base import store
from affbench.base.config import EvaluationConfig, Pipeline, RunConfig
from affbench.base.errors import AffbenchError, DataError, UsageError
from affbench.base.workspace import Workspace
from affbench.data.sets import SetPart, find_part, find_set, has_digits
from affbench.data.synthesis import COPIES
from affbench.experiment import ray as cluster
from affbench.experiment.cells import (
    Cell,
    Engine,
    PlannedCell,
    SweepResult,
    plan_cells,
    run_cells,
    sweep_cells,
    tested_parts,
)
from affbench.report.page import PLAIN, SECTIONS, Report, report_code, write_report
from affbench.report.sections.accuracy import summarise
from affbench.run.folder import EvaluationRecord, Run, list_runs, runs_dir
from affbench.run.plan import Plan, training_part, validation_part
from affbench.run.record import evaluate_run, is_evaluated

State = Literal["cached", "to do", "missing"]
LOCAL = Engine()
_PAGE = re.compile(r"manifest\.json|report\.(md|html)|(figures|pictures)/[^/]+\.(png|csv)")
REPORT_VERSION = 4  # of the report stage: raised where the same runs give another page and `report_code` cannot see it


@dataclass(frozen=True)
class Step:
    """One piece of work of a pipeline.

    Attributes
    ----------
    stage
        ``"convert"``, ``"train"``, ``"eval"`` or ``"report"``.
    what
        The set, the run, or the run and the set.
    state
        ``"cached"``: done before; ``"to do"``; ``"missing"``: its files have to be fetched first.
    """

    stage: str
    what: str
    state: State


@dataclass(frozen=True)
class Outcome:
    """What a pipeline ended in."""

    result: SweepResult
    report: Report


def cells_of(pipeline: Pipeline, workspace: Workspace) -> list[PlannedCell]:
    """The runs of a pipeline."""
    stops = () if pipeline.matched is None else (pipeline.matched,)
    cells = [Cell(label, config, () if config.training.stop_at else stops) for label, config in pipeline.expand()]
    return _checked(plan_cells(cells, workspace), pipeline.evaluation)


def plan_pipeline(pipeline: Pipeline, workspace: Workspace) -> list[Step]:
    """Everything a pipeline would do, in order, and what of it is done already; nothing is written.

    Raises
    ------
    UsageError
        The configuration of a run, or a set, is not valid.
    """
    cells = cells_of(pipeline, workspace)
    plans = [cell.plan for cell in cells]
    steps = [_conversion(part, workspace) for part in _parts(cells, pipeline.evaluation)]
    steps += [
        Step("train", f"{cell.label}: {cell.plan.folder.name}", "cached" if cell.plan.is_trained else "to do")
        for cell in cells
    ]
    for plan in plans:
        for part in tested_parts(pipeline.evaluation):
            done = plan.is_trained and is_evaluated(plan.run, part, workspace)
            steps.append(Step("eval", f"{plan.folder.name} on {part.name}", "cached" if done else "to do"))
    changed = any(step.state != "cached" for step in steps)
    folder = report_dir(workspace.results, pipeline.name)
    done = not changed and store.cached(folder, "report", REPORT_VERSION, _report_inputs(pipeline, plans))
    return [*steps, Step("report", str(folder), "cached" if done else "to do")]


def run_pipeline(pipeline: Pipeline, workspace: Workspace, engine: Engine = LOCAL) -> Outcome:
    """Do everything a pipeline asks for; what is cached is not done again.

    Parameters
    ----------
    pipeline
        The experiment.
    workspace
        Folders, device and progress.
    engine
        Where the runs are made.

    Returns
    -------
    Outcome

    Raises
    ------
    UsageError
        The configuration is not valid.
    DataError
        A set has to be fetched first.
    Interrupted
        The process was asked to stop; what was done is saved.
    """
    folder = report_dir(workspace.results, pipeline.name)
    store.refuse_foreign(folder)
    cells = cells_of(pipeline, workspace)
    _prepare(cells, pipeline.evaluation, workspace, f"pipeline '{pipeline.name}'")
    result = run_cells_on(engine, cells, pipeline.evaluation, workspace)
    inputs = _report_inputs(pipeline, [cell.plan for cell in cells])
    runs = [LabelledRun(cell.label, cell.plan.run) for cell in cells if cell.plan.is_trained]
    results = _on_common_images(read_results(runs, workspace), workspace, pipeline.evaluation)
    table = summarise(results, title=pipeline.title, note=pipeline.note)
    outcome = Outcome(result, Report(folder / "report.md", folder / "report.html", table))
    if store.cached(folder, "report", REPORT_VERSION, inputs):
        return outcome
    make_report(
        folder,
        results,
        workspace,
        title=pipeline.title,
        note=pipeline.note,
        explain=pipeline.explain,
    )
    if not result.failed:
        files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        store.seal(folder, "report", REPORT_VERSION, inputs, files)
    return outcome


def run_sweep(
    config: RunConfig,
    routings: Sequence[int],
    seeds: Sequence[int],
    evaluation: EvaluationConfig,
    workspace: Workspace,
    engine: Engine = LOCAL,
) -> Outcome:
    """Routing iterations × seeds, and a report in ``reports/sweep-MODEL``.

    Parameters
    ----------
    config
        What all cells share.
    routings, seeds
        As for `affbench.experiment.cells.sweep_cells`.
    evaluation
        What each run is tested on.
    workspace
        Folders, device and progress.
    engine
        Where the runs are made.

    Returns
    -------
    Outcome
        Failed cells are in its result; the others are finished and reported.

    Raises
    ------
    UsageError
        The configuration is not valid.
    DataError
        A set has to be fetched first.
    AffbenchError
        Every cell failed.
    Interrupted
        The process was asked to stop; what was done is saved.
    """
    folder = report_dir(workspace.results, f"sweep-{_file_name(config.model.name)}")
    store.refuse_foreign(folder)
    cells = _checked(plan_cells(sweep_cells(config, routings, seeds), workspace), evaluation)
    _prepare(cells, evaluation, workspace, f"the sweep of '{config.model.name}'")
    result = run_cells_on(engine, cells, evaluation, workspace)
    runs = [LabelledRun(config.model.name, cell.plan.run) for cell in cells if cell.plan.is_trained]
    if not runs:
        raise AffbenchError(f"no cell of the sweep finished; the first one failed because {result.failed[0].error}")
    title = f"Routing sweep of {config.model.name}"
    results = _on_common_images(read_results(runs, workspace), workspace, evaluation)
    return Outcome(result, make_report(folder, results, workspace, title=title, note=""))


def run_cells_on(
    engine: Engine, cells: Sequence[PlannedCell], evaluation: EvaluationConfig, workspace: Workspace
) -> SweepResult:
    """Train and test cells, in this process or on a Ray cluster; see `affbench.experiment.cells.run_cells`."""
    if engine.name == "local":
        return run_cells(cells, evaluation, workspace, threads=engine.cpus)
    sets = [part.ensure(workspace.data) for part in _parts(cells, evaluation)]
    return cluster.run_cells(cells, evaluation, workspace, engine, sets)


def report_all(workspace: Workspace, *, explain: bool = False) -> Report:
    """A report over every finished run, in ``reports/all``; `explain` as for `make_report`.

    Raises
    ------
    AffbenchError
        There is no finished run.
    """
    runs = [LabelledRun(_model_of(run), run) for run in list_runs(workspace.results) if run.finished]
    if not runs:
        raise AffbenchError(f"there is no finished run in {runs_dir(workspace.results)}; 'affbench train' makes one.")
    results = _on_common_images(read_results(runs, workspace), workspace)
    folder = report_dir(workspace.results, "all")
    return make_report(folder, results, workspace, title="All runs", note="", explain=explain)


def _model_of(run: Run) -> str:
    try:
        return run.config.model.name
    except AffbenchError:  # said in the report
        return run.name


def _on_common_images(results: Results, workspace: Workspace, asked: EvaluationConfig | None = None) -> Results:
    """The same images of each set for every run: the first ones, as many as all were tested on, or as are asked for.

    A later evaluation by another command may have been of more. Where the predictions are gone, a record stays as it
    is, and tables say so.
    """
    common: dict[str, int] = {}
    for result in results.results:
        for name, record in result.evaluations.items():
            common[name] = min(common.get(name, record.n), record.n)
    if asked is not None:
        for part in tested_parts(asked):
            sizes = (common.get(part.name), part.made_size, part.limit)
            common[part.name] = min((n for n in sizes if n is not None), default=0)
    narrowed = []
    for own in results.results:
        records = own.evaluations.items()
        same = {name: _narrowed(own.run, record, common[name], workspace) for name, record in records}
        narrowed.append(replace(own, evaluations=same))
    return replace(results, results=tuple(narrowed))


def _narrowed(run: Run, record: EvaluationRecord, n: int, workspace: Workspace) -> EvaluationRecord:
    with contextlib.suppress(AffbenchError):
        part = find_part(record.set, record.split, record.copies or COPIES, n)
        if record.n > n and is_evaluated(run, part, workspace):
            return evaluate_run(run, part, workspace)
    return record


def make_report(
    folder: Path,
    results: Results,
    workspace: Workspace,
    *,
    title: str,
    note: str,
    explain: bool = False,
) -> Report:
    """Write a report; to `explain` is to measure more, on some thousand images a model."""
    with (
        store.lock(folder),
        workspace.progress.task("report", None),
        store.atomic_folder(folder, _PAGE) as new,
    ):
        report = write_report(new, results, title=title, note=note, sections=SECTIONS if explain else PLAIN)
    return replace(report, markdown=folder / report.markdown.name, html=folder / report.html.name)


def report_dir(results_dir: Path, name: str) -> Path:
    """Where the report called `name` lies."""
    return results_dir / "reports" / name


def _parts(cells: Sequence[Cell], evaluation: EvaluationConfig) -> list[SetPart]:
    """Every converted set the runs need, once."""
    configs = [cell.config.data for cell in cells]
    trained = [part for data in configs for part in (training_part(data), validation_part(data))]
    parts = [*trained, *tested_parts(evaluation)]
    return list({(part.name, part.split, part.made_copies): part for part in parts}.values())


def _prepare(cells: Sequence[Cell], evaluation: EvaluationConfig, workspace: Workspace, what: str) -> None:
    """Convert every set the runs need, before the first of them starts."""
    needed = _parts(cells, evaluation)
    missing = [part.spec for part in needed if _conversion(part, workspace).state == "missing"]
    if missing:
        names = ", ".join(dict.fromkeys(f"'{spec.name}'" for spec in missing))
        families = " ".join(dict.fromkeys(spec.family for spec in missing))
        raise DataError(f"{what} needs {names}, not fetched yet: run 'affbench fetch {families}' first.")
    for part in needed:
        if not part.is_ready(workspace.data):
            with workspace.progress.task(f"convert {part.name} ({part.split})", None):
                part.ensure(workspace.data)


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def _conversion(part: SetPart, workspace: Workspace) -> Step:
    state: State = "to do"
    if part.is_ready(workspace.data):
        state = "cached"
    elif part.spec.form == "official" or not has_digits(part.spec.family, workspace.data):
        state = "missing"
    return Step("convert", f"{part.name} ({part.split})", state)


def _checked(cells: list[PlannedCell], evaluation: EvaluationConfig) -> list[PlannedCell]:
    """The cells, of which every model takes the images that it is tested on."""
    for train_set, name in itertools.product({cell.config.data.train_set: None for cell in cells}, evaluation.sets):
        canvas, other = find_set(train_set).canvas, find_set(name).canvas
        if canvas != other:
            raise UsageError(
                f"a model trained on '{train_set}' ({canvas}×{canvas}) cannot be tested on '{name}' ({other}×{other})."
            )
    return cells


def _report_inputs(pipeline: Pipeline, plans: Sequence[Plan]) -> dict[str, object]:
    """All that a pipeline's report shows."""
    records = {}
    for plan in plans:
        for path in sorted(plan.folder.glob("eval-*.json")):
            records[f"{plan.folder.name}/{path.name}"] = store.file_hash(path)
    return {
        "code": report_code(),
        "pipeline": json.loads(pipeline.model_dump_json()),
        "runs": [plan.key for plan in plans],
        "evaluations": records,
    }
