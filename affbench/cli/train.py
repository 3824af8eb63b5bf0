"""The commands that make runs: one, the cells of a sweep, a pipeline; and the one that says how fast they are."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affbench.base.errors import AffbenchError, ArtefactError, UsageError
from affbench.base.version import __version__
from affbench.base.workspace import torchrun_rank
from affbench.cli.options import (
    CheckpointMinutes,
    Copies,
    Device,
    Model,
    ModelOptions,
    Place,
    Routings,
    TestLimit,
    run_config,
    whole_numbers,
)
from affbench.cli.session import Session, command

if TYPE_CHECKING:
    from affbench.base.config import Pipeline, RunConfig
    from affbench.experiment.pipeline import Outcome


@command
def train(
    session: Session,
    context: typer.Context,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the latest unfinished run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train again, even if the run is finished.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write logs for TensorBoard.")] = False,
    checkpoint_minutes: CheckpointMinutes = 1,
) -> None:
    """One training run; a finished run of the same configuration is not trained again, an unfinished one goes on."""
    resolved = _unfinished(session) if resume and not context.obj else run_config(**context.obj)
    from affbench.run.folder import clear
    from affbench.run.plan import plan_run
    from affbench.run.train import train as run_training

    plan = plan_run(resolved, session.workspace)
    if force and not torchrun_rank():
        clear(plan.folder)
    cached = plan.is_trained
    run = run_training(plan, session.workspace, tensorboard=tensorboard)
    if torchrun_rank():
        return  # the first process of torchrun speaks for all
    best, parameters, epochs = run.selected, run.environment.parameters, run.history[-1].epoch
    session.show(
        f"{run.name}: {'trained before' if cached else 'trained'}, {parameters:,} parameters, best validation accuracy "
        f"{best.validation_accuracy:.2%} (epoch {best.epoch:g} of {epochs:g}), {run.path}"
    )
    selected = {"validation_accuracy": best.validation_accuracy, "selected_epoch": best.epoch, "epochs": epochs}
    session.document({"run": run.name, "path": str(run.path), "cached": cached, **selected, "parameters": parameters})


def _unfinished(session: Session) -> RunConfig:
    """What `train --resume` goes on with where nothing else is said: the latest unfinished run."""
    from affbench.run.folder import list_runs
    from affbench.run.plan import plan_run

    unfinished = [found for found in list_runs(session.workspace.results) if not found.finished]
    if not unfinished:
        raise UsageError(f"--resume: there is no unfinished run in {session.workspace.results / 'runs'}.")
    latest = unfinished[-1]
    session.workspace.progress.note(f"going on with {latest.name}")
    if plan_run(latest.config, session.workspace).folder.name != latest.name:
        raise ArtefactError(
            f"{latest.path} cannot be gone on with: its config.toml, the code of its model or its data are no "
            f"longer those it began with; 'affbench train --config {latest.path / 'config.toml'}' begins anew."
        )
    return latest.config


RECIPE: dict[str, Any] = {"epochs": 8, "batch_size": 32, "learning_rate": 0.003, "schedule": "linear"}


@command
def speedrun(
    session: Session,
    context: typer.Context,
    target: Annotated[float, typer.Option(min=0, max=1, help="Validation accuracy to reach.")] = 0.9923,
    checkpoint_minutes: CheckpointMinutes = 1,
    device: Device = "auto",
) -> None:
    """Train to an accuracy and print the record: a line for the table of docs/speed.md."""
    resolved = run_config(**{**RECIPE, **context.obj, "stop_at": target})
    from affbench.data.sets import find_part
    from affbench.run.plan import plan_run
    from affbench.run.record import evaluate_run
    from affbench.run.train import train as run_training

    run = run_training(plan_run(resolved, session.workspace), session.workspace)
    made, last, settings = run.environment, run.history[-1], run.config.training
    if made.stop_at_reached_epoch is None:
        best = run.selected.validation_accuracy
        raise AffbenchError(f"{run.name} reached {best:.2%} in {last.epoch:g} epochs, not {target:.2%}: no record.")
    tested = evaluate_run(run, find_part(run.config.data.train_set), session.workspace)
    images = round(last.epoch * (made.train_images or 0))
    recipe = f"batch {settings.batch_size}, {settings.schedule} from {settings.learning_rate:g}, seed {settings.seed}"
    columns = (
        f"{run.name} ({made.parameters:,} parameters)", f"{made.device_name}, {made.precision}", recipe,
        f"{last.epoch:g} of {settings.epochs}", f"{images:,}", f"{run.train_seconds:,.0f}",
        f"{last.validation_accuracy:.2%}", f"{tested.accuracy:.2%} (n {tested.n:,})", __version__,
    )  # fmt: skip
    session.show(f"| {' | '.join(columns)} |")
    accuracy = {"validation_accuracy": last.validation_accuracy, "test_accuracy": tested.accuracy, "test_n": tested.n}
    spent = {"seconds": run.train_seconds, "epochs": last.epoch, "images": images, "device": made.device_name}
    session.document({"run": run.name, "target": target, **spent, **accuracy, "precision": made.precision})


@command
def sweep(
    session: Session,
    context: typer.Context,
    place: Place,
    routings: Annotated[str, typer.Option(help="Numbers of routing iterations.")] = "1,2,3,5,7,10",
    seeds: Annotated[str, typer.Option(help="How many seeds (3: seeds 0, 1, 2), or a list (0,5,9).")] = "3",
    sets: Annotated[
        str, typer.Option(help="Sets to test on: mnist-translated, affnist-synthetic.", show_default=False)
    ] = "mnist-translated,affnist-synthetic",
    copies: Copies = 32,
    test_limit: TestLimit = None,
    checkpoint_minutes: CheckpointMinutes = 1,
    device: Device = "auto",
) -> None:
    """Routing iterations x seeds, each an ordinary cached run; an interrupted sweep goes on where it stopped."""
    counts, listed = whole_numbers("--routings", routings, 1), "," in seeds
    chosen = whole_numbers("--seeds", seeds, 0 if listed else 1)
    chosen = chosen if listed else list(range(chosen[0]))
    engine, resolved = place.to_engine(), run_config(**context.obj)
    from affbench.base.config import EvaluationConfig, override
    from affbench.experiment.pipeline import from_sweep, run_experiment

    evaluation = override(EvaluationConfig(), sets=sets.split(","), copies=copies, limit=test_limit)
    experiment = from_sweep(resolved, counts, chosen, evaluation, session.workspace)
    _end(session, run_experiment(experiment, session.workspace, engine))


@command
def run(
    session: Session,
    place: Place,
    file: Annotated[Path, typer.Argument(help="The name of one of affbench's, such as quickstart, or your own file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is cached and what would run.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs to train.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on the first N examples only.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Run seeds 0 to N - 1 of every run.")] = None,
    test_limit: TestLimit = None,
    checkpoint_minutes: CheckpointMinutes = 1,
    device: Device = "auto",
) -> None:
    """A whole pipeline: convert, train, test and report; what is cached is not done again."""
    from affbench.base.config import read_pipeline
    from affbench.experiment.pipeline import from_pipeline, plan_experiment, run_experiment
    from affbench.report.table import Cell, Table

    pipeline = changed(read_pipeline(file), epochs, limit, seeds, test_limit)
    engine, experiment = place.to_engine(), from_pipeline(pipeline, session.workspace)
    if dry_run:
        steps = plan_experiment(experiment, session.workspace)
        rows = tuple((Cell(step.stage), Cell(step.what), Cell(step.state)) for step in steps)
        session.show(Table(pipeline.title, ("Stage", "What", "State"), rows))
        session.document({"pipeline": pipeline.name, "steps": [vars(step) for step in steps]})
    else:
        _end(session, run_experiment(experiment, session.workspace, engine))


def changed(
    pipeline: Pipeline, epochs: int | None, limit: int | None, seeds: int | None, test_limit: int | None
) -> Pipeline:
    """A pipeline with what the command line changes, in every run."""
    from affbench.base.config import override

    given = {"--epochs": epochs, "--limit": limit, "--seeds": seeds, "--test-limit": test_limit}
    told = ", ".join(f"{option} {value}" for option, value in given.items() if value is not None)
    if not told:
        return pipeline
    chosen = None if seeds is None else tuple(range(seeds))
    data, training = {"limit": limit} if limit else {}, {"epochs": epochs} if epochs else {}
    runs = [
        override(entry, data=entry.data | data, training=entry.training | training, seeds=chosen).model_dump()
        for entry in pipeline.runs
    ]
    evaluation = override(pipeline.evaluation, limit=test_limit).model_dump()
    note = f"{pipeline.note} Changed on the command line: {told}.".strip()
    return override(pipeline, runs=runs, seeds=chosen, evaluation=evaluation, note=note)


def _end(session: Session, outcome: Outcome) -> None:
    """Show what many runs ended in, with status 1 when some failed; the others are finished and reported."""
    report = outcome.report
    session.show(report.table, f"report: {report.html}", f"        {report.markdown}")
    session.document(outcome.to_dict())
    for cell in outcome.failed:
        session.workspace.progress.note(str(cell))
    if outcome.failed:
        raise typer.Exit(1)


@command
def bench(
    session: Session,
    model: Model = "capsnet",
    routings: Routings = None,
    option: ModelOptions = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; medians are shown.")] = 7,
    textbook: Annotated[
        Path | None, typer.Option(help="Textbook formulation to compare with, if not benchmarks/textbook.py.")
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    curves: Annotated[
        bool, typer.Option("--curves", help="Also draw cost against routing iterations, batch size and canvas.")
    ] = False,
) -> None:
    """Throughput of training and evaluation against the floor, measured in one run."""
    from affbench.base.config import shipped
    from affbench.base.device import resolve_device, resolve_precision

    sys.path.append(str(shipped("benchmarks")))  # a process of its own, which measures memory, searches there too
    from model_speed import Workload, benchmark_speed, draw_curves, time_to_accuracy

    target = resolve_device(device)
    config = run_config(model=model, routings=routings, option=option, precision=precision)
    computed = resolve_precision(config.training.precision, target)
    workload = Workload(config.model.name, config.model.options, target, computed, batch_size)
    result = benchmark_speed(workload, repeats=repeats, textbook=textbook, progress=session.workspace.progress)
    reached = time_to_accuracy(workload, session.workspace.results)
    session.show(result.table(reached))
    document = result.to_dict() | {"time_to_accuracy": reached}
    if curves:
        path, points = draw_curves(workload, session.workspace)
        session.show(f"cost curves: {path}")
        document["curves"] = [asdict(point) for point in points]
    session.document(document)
