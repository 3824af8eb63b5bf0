"""The stages and what each needs: fetch → convert → train → eval → report."""

import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from affbench.analysis.published import METHODS
from affbench.analysis.results import LabelledRun, Result, Results, read_results
from affbench.base import store
from affbench.base.config import EvaluationConfig, Pipeline, RunConfig
from affbench.base.errors import AffbenchError, DataError, UsageError, nearest
from affbench.base.workspace import Workspace
from affbench.data.sets import FAMILIES, SetPart, find_part, find_set
from affbench.data.synthesis import COPIES
from affbench.experiment import ray as cluster
from affbench.experiment.cells import Cell, CellResult, Engine, is_done, run_cells, tested_parts
from affbench.report.page import PLAIN, SECTIONS, Report, report_code, write_report
from affbench.report.sections.accuracy import summarise
from affbench.run.folder import EvaluationRecord, Run, finished_runs, runs_dir
from affbench.run.plan import plan_run, training_part, validation_part
from affbench.run.record import evaluate_run, is_evaluated

State = Literal["cached", "to do", "missing"]
_PAGE = re.compile(r"manifest\.json|report\.(md|html)|(figures|pictures|tables)/[^/]+\.(png|csv|tex)")
REPORT_VERSION = 4  # of the report stage: raised where the same runs give another page and `report_code` cannot see it


@dataclass(frozen=True)
class Step:
    """One piece of work of a pipeline."""

    stage: str
    what: str
    state: State


@dataclass(frozen=True)
class Outcome:
    """What an experiment ended in: its cells in the order they were given, and the runs that its report shows."""

    cells: list[CellResult]
    results: Results
    report: Report

    @property
    def failed(self) -> list[CellResult]:
        """The cells that did not finish."""
        return [cell for cell in self.cells if cell.error is not None]

    def to_dict(self) -> dict[str, Any]:
        """The same as a JSON document, with a summary of the seeds of each configuration."""
        summary = [
            {
                "label": own.label,
                "model": own.config.model.name,
                "routings": own.routings,
                "seeds": [result.seed for result in own.results],
                "accuracy": {name: asdict(found) for name in self.results.sets if (found := own.accuracy(name))},
                "validation_accuracy": own.validation and asdict(own.validation),
                "seconds_per_epoch": sum(r.run.seconds_per_epoch for r in own.results) / len(own.results),
            }
            for own in self.results.groups
        ]
        files = {"report": str(self.report.html), "markdown": str(self.report.markdown)}
        return {"cells": [asdict(cell) for cell in self.cells], "summary": summary} | files


@dataclass(frozen=True)
class Experiment:
    """Runs, what each is tested on, and the report over them; a pipeline is one, and so is a sweep."""

    name: str  # of the report's folder
    title: str
    note: str
    cells: tuple[Cell, ...]
    evaluation: EvaluationConfig
    explain: bool = False  # the report also measures where and why models fail, on some thousand images a model

    def __post_init__(self) -> None:
        trained = dict.fromkeys(cell.plan.config.data.train_set for cell in self.cells)
        for train_set, name in itertools.product(trained, self.evaluation.sets):
            canvas, other = find_set(train_set).canvas, find_set(name).canvas
            if canvas != other:
                raise UsageError(
                    f"a model trained on '{train_set}' ({canvas}×{canvas}) cannot be tested on '{name}' "
                    f"({other}×{other})."
                )

    @property
    def inputs(self) -> dict[str, object]:
        """All that its report shows."""
        return {
            "code": report_code(),
            "texts": [self.title, self.note, *((cell.label, cell.published) for cell in self.cells)],
            "evaluation": self.evaluation.model_dump(mode="json"),
            "explain": self.explain,
            "runs": [cell.plan.key for cell in self.cells],
            "evaluations": {
                f"{cell.plan.folder.name}/{path.name}": store.file_hash(path)
                for cell in self.cells
                for path in sorted(cell.plan.folder.glob("eval-*.json"))
            },
        }


def from_pipeline(pipeline: Pipeline, workspace: Workspace) -> Experiment:
    """The experiment that a pipeline describes."""
    for entry in pipeline.runs:
        if entry.published and entry.published not in METHODS:
            raise UsageError(f"nothing is published as '{entry.published}': {nearest(entry.published, METHODS)}")
    cells = tuple(
        Cell(label, plan_run(config, workspace), () if config.training.stop_at else pipeline.matched, published)
        for label, config, published in pipeline.expand()
    )
    return Experiment(pipeline.name, pipeline.title, pipeline.note, cells, pipeline.evaluation, pipeline.explain)


def from_sweep(
    config: RunConfig, routings: Sequence[int], seeds: Sequence[int], evaluation: EvaluationConfig, workspace: Workspace
) -> Experiment:
    """The experiment of a sweep: routing iterations × seeds, innermost, and a report in ``reports/sweep-MODEL``."""
    cells, called = [], config.model.name
    for iterations, seed in itertools.product(routings, seeds):
        model = config.model.model_copy(update={"options": config.model.options | {"routings": iterations}})
        training = config.training.model_copy(update={"seed": seed})
        own = config.model_copy(update={"model": model, "training": training})
        cells.append(Cell(called, plan_run(own, workspace)))
    name = "sweep-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", called)
    return Experiment(name, f"Routing sweep of {called}", "", tuple(cells), evaluation)


def plan_experiment(experiment: Experiment, workspace: Workspace) -> list[Step]:
    """Everything an experiment would do, in order, and what of it is done already; nothing is written."""
    steps = [
        Step("convert", f"{part.name} ({part.split})", _state(part, workspace))
        for part in _parts(experiment.cells, experiment.evaluation)
    ]
    steps += [
        Step("train", f"{cell.label}: {cell.plan.folder.name}", "cached" if cell.plan.is_trained else "to do")
        for cell in experiment.cells
    ]
    for cell, part in itertools.product(experiment.cells, tested_parts(experiment.evaluation)):
        state: State = "cached" if is_done(cell, [part], workspace) else "to do"
        steps.append(Step("eval", f"{cell.plan.folder.name} on {part.name}", state))
    folder = report_dir(workspace.results, experiment.name)
    done = {step.state for step in steps} == {"cached"}
    done = done and store.cached(folder, "report", REPORT_VERSION, experiment.inputs)
    return [*steps, Step("report", str(folder), "cached" if done else "to do")]


def run_experiment(experiment: Experiment, workspace: Workspace, engine: Engine | None = None) -> Outcome:
    """Do all that is not cached; failed cells are in the result, and an error where there are no others."""
    folder = report_dir(workspace.results, experiment.name)
    store.refuse_foreign(folder)
    _prepare(experiment, workspace)
    made = run_cells_on(engine or Engine(), experiment.cells, experiment.evaluation, workspace)
    runs = [
        LabelledRun(cell.label, cell.plan.run, published=cell.published)
        for cell in experiment.cells
        if cell.plan.is_trained
    ]
    if not runs:
        raise AffbenchError(f"no cell of '{experiment.name}' finished; the first one failed because {made[0].error}")
    results = on_common_images(read_results(runs, workspace), workspace, tested_parts(experiment.evaluation))
    inputs = experiment.inputs
    if store.cached(folder, "report", REPORT_VERSION, inputs):
        table = summarise(results, title=experiment.title, note=experiment.note)
        return Outcome(made, results, Report(folder / "report.md", folder / "report.html", table))
    report = _write_report(folder, results, workspace, experiment.explain, experiment.title, experiment.note)
    if all(cell.error is None for cell in made):
        files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        store.seal(folder, "report", REPORT_VERSION, inputs, files)
    return Outcome(made, results, report)


def run_cells_on(
    engine: Engine, cells: Sequence[Cell], evaluation: EvaluationConfig, workspace: Workspace
) -> list[CellResult]:
    """Train and test cells, in this process or on a Ray cluster; see `affbench.experiment.cells.run_cells`."""
    if engine.name == "local":
        return run_cells(cells, evaluation, workspace, threads=engine.cpus)
    sets = [part.ensure(workspace.data) for part in _parts(cells, evaluation)]
    return cluster.run_cells(cells, evaluation, workspace, engine, sets)


def report_all(
    workspace: Workspace,
    *,
    names: Sequence[str] = (),
    sets: Sequence[str] = (),
    folder: Path | None = None,
    explain: bool = False,
) -> Report:
    """A report over every finished run, or those whose names begin so, on all sets or some, in ``reports/all``.

    To `explain` is to measure more, as in a pipeline.
    """
    runs = []
    for run in finished_runs(workspace.results, *(names or [""])):
        label = run.name
        with contextlib.suppress(AffbenchError):  # said in the report
            label = run.config.model.name
        runs.append(LabelledRun(label, run))
    if not runs:
        raise AffbenchError(f"there is no finished run in {runs_dir(workspace.results)}; 'affbench train' makes one.")
    results = on_common_images(read_results(runs, workspace), workspace, sets=sets)
    title = "Chosen runs" if names or sets else "All runs"
    return _write_report(folder or report_dir(workspace.results, "all"), results, workspace, explain, title)


def on_common_images(
    results: Results, workspace: Workspace, asked: Sequence[SetPart] = (), sets: Sequence[str] = ()
) -> Results:
    """The same images of each set for every run: the first ones, as many as all were tested on, or as are asked for.

    Of some `sets` only, where they are named. Where the predictions of a longer evaluation are gone, its record stays
    as it is, and tables say so.
    """
    wanted = {find_set(name).name for name in sets}
    tested: dict[str, list[int]] = {}
    for record in itertools.chain.from_iterable(own.evaluations.values() for own in results.results):
        tested.setdefault(record.set, []).append(record.n)
    for part in asked:
        tested.setdefault(part.name, []).extend(n for n in (part.made_size, part.limit) if n is not None)

    def narrowed(run: Run, record: EvaluationRecord) -> EvaluationRecord:
        n = min(tested[record.set])
        with contextlib.suppress(AffbenchError):
            part = find_part(record.set, record.split, record.copies or COPIES, n)
            if record.n > n and is_evaluated(run, part, workspace):
                return evaluate_run(run, part, workspace)
        return record

    def common(own: Result) -> Result:
        kept = {name: record for name, record in own.evaluations.items() if not sets or name in wanted}
        return replace(own, evaluations={name: narrowed(own.run, record) for name, record in kept.items()})

    return replace(results, results=tuple(map(common, results.results)))


def _write_report(
    folder: Path, results: Results, workspace: Workspace, explain: bool, title: str, note: str = ""
) -> Report:
    """Write a report in the place of an earlier one."""
    sections = SECTIONS if explain else PLAIN
    with store.lock(folder), workspace.progress.task("report", None), store.atomic_folder(folder, _PAGE) as new:
        report = write_report(new, results, title=title, note=note, sections=sections)
    return replace(report, markdown=folder / report.markdown.name, html=folder / report.html.name)


def report_dir(results_dir: Path, name: str) -> Path:
    """Where the report called `name` lies."""
    return results_dir / "reports" / name


def _parts(cells: Sequence[Cell], evaluation: EvaluationConfig) -> list[SetPart]:
    """Every converted set the runs need, once."""
    configs = [cell.plan.config.data for cell in cells]
    trained = [part for data in configs for part in (training_part(data), validation_part(data))]
    parts = [*trained, *tested_parts(evaluation)]
    return list({(part.name, part.split, part.made_copies): part for part in parts}.values())


def _prepare(experiment: Experiment, workspace: Workspace) -> None:
    """Convert every set the runs need, before the first of them starts."""
    needed = _parts(experiment.cells, experiment.evaluation)
    missing = [part.spec for part in needed if _state(part, workspace) == "missing"]
    if missing:
        names = ", ".join(dict.fromkeys(f"'{spec.name}'" for spec in missing))
        families = " ".join(dict.fromkeys(spec.family for spec in missing))
        raise DataError(f"'{experiment.name}' needs {names}, not fetched yet: run 'affbench fetch {families}' first.")
    for part in needed:
        if not part.is_ready(workspace.data):
            with workspace.progress.task(f"convert {part.name} ({part.split})", None):
                part.ensure(workspace.data)


def _state(part: SetPart, workspace: Workspace) -> State:
    """Whether a set is converted, can be, or cannot."""
    if part.is_ready(workspace.data):
        return "cached"
    fetched = part.spec.form != "official" and FAMILIES[part.spec.family].is_there(workspace.data)
    return "to do" if fetched else "missing"
