"""Commands, options and exit codes; what a command does lives in the modules it calls."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affbench.base.errors import ArtefactError, UsageError
from affbench.base.version import __version__
from affbench.cli import data as data_commands
from affbench.cli.data import Copies, Expansion, ImageLimit, Only, Rotation, SetName, Shear, Translation, varied
from affbench.cli.figures import figure
from affbench.cli.session import Session, command, surrounded

if TYPE_CHECKING:
    from affbench.base.config import Pipeline, RunConfig
    from affbench.experiment.cells import Engine

app = typer.Typer(
    name="affbench",
    help="Does a model trained only on translated digits recognise digits under affine transformations it never saw?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(figure)

Model = Annotated[
    str | None,
    typer.Option(
        help="capsnet (the default), aff-capsnet, cnn, cnn-gap, cnn-sabour, stn-cnn, or package.module:factory."
    ),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the model, such as filters=32; repeatable."),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs to train.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a step.")]
LearningRate = Annotated[float | None, typer.Option(help="Adam's learning rate.")]
Schedule = Annotated[str | None, typer.Option(help="Learning-rate schedule: paper, keras or constant.")]
StopAt = Annotated[float | None, typer.Option(help="End at the first validation accuracy (0 to 1) that reaches this.")]
Validations = Annotated[int | None, typer.Option(min=1, help="Validations per epoch (1).")]
ValidationLimit = Annotated[
    int | None,
    typer.Option(
        min=1, help="Validate on the first N images only; by default a fifth of the trained ones, at least 500."
    ),
]
TrainSet = Annotated[str | None, typer.Option(help="Set to train on.")]
Shift = Annotated[int | None, typer.Option(min=0, help="Random shift in pixels; by default what the set stands for.")]
Flip = Annotated[bool | None, typer.Option("--flip", help="Mirror half of the training images.")]
TrainLimit = Annotated[int | None, typer.Option(min=1, help="Train on the first N examples only.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")]
Config = Annotated[Path | None, typer.Option(help="A run's TOML file, such as a run folder's config.toml.")]
RunName = Annotated[str | None, typer.Option("--run", help="Run, or the beginning of its name; the latest by default.")]
EngineName = Annotated[str, typer.Option("--engine", help="Where runs are made: local or ray.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Ray cluster (HOST:6379 or auto); by default one is started here.")
]
CpusPerRun = Annotated[int | None, typer.Option(min=1, help="Threads of a run, and CPUs it asks Ray for.")]
GpusPerRun = Annotated[float | None, typer.Option(min=0, help="GPUs a run asks Ray for; 0.5 shares one.")]
CheckpointMinutes = Annotated[float, typer.Option(min=0, help="Time between two saves; an interruption saves as well.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"affbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@command
def fetch(
    session: Session,
    sets: Annotated[
        list[str] | None,
        typer.Argument(help="mnist, affnist, fashion-mnist, affnist-validation, affnist-train, homnist."),
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="URL or folder that is tried first.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is there.")] = False,
) -> None:
    """Download, verify and convert sets (default: mnist affnist)."""
    from affbench.data.fetch.files import Ways
    from affbench.data.fetch.sets import fetch_sets

    ways = Ways(mirror, offline, force, session.workspace.progress)
    fetched = fetch_sets(sets or ["mnist", "affnist"], session.workspace.data, ways)
    for item in fetched:
        for file in item.files:
            session.show(f"{item.name}: {file.path.name} from {file.origin}, sha256 {file.sha256}")
        for path in item.converted:
            session.show(f"{item.name}: {path}")
    session.document({"sets": [item.to_dict() for item in fetched]})


@app.command()
@command
def train(
    session: Session,
    model: Model = None,
    routings: Annotated[int | None, typer.Option(min=1, help="Routing iterations (CapsNet: 3).")] = None,
    option: ModelOptions = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of weights, order, placement and dropout.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    schedule: Schedule = None,
    stop_at: StopAt = None,
    validations: Validations = None,
    limit: TrainLimit = None,
    validation_limit: ValidationLimit = None,
    train_set: TrainSet = None,
    shift: Shift = None,
    flip: Flip = None,
    device: Device = "auto",
    precision: Precision = None,
    config: Config = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the latest unfinished run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train again, even if the run is finished.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write logs for TensorBoard.")] = False,
    checkpoint_minutes: CheckpointMinutes = 1,
) -> None:
    """One training run; a finished run of the same configuration is not trained again, an unfinished one goes on."""
    given = {key: value for key, value in locals().items() if key in _RUN_OPTIONS and value is not None}
    resolved = _resumed(session, given) if resume else _run_config(**given)
    from affbench.base.distributed import launched
    from affbench.run.plan import plan_run
    from affbench.run.train import train as run_training

    cached = not force and plan_run(resolved, session.workspace).is_trained
    workspace = replace(session.workspace, checkpoint_seconds=60 * checkpoint_minutes)
    run = run_training(resolved, workspace, tensorboard=tensorboard, force=force)
    if not launched().first:
        return  # the first process of torchrun speaks for all
    best = run.selected
    session.show(
        f"{run.name}: {'trained before' if cached else 'trained'}, {run.environment['parameters']:,} parameters, best "
        f"validation accuracy {best.validation_accuracy:.2%} (epoch {best.epoch:g} of {run.history[-1].epoch:g}), "
        f"{run.path}"
    )
    session.document(
        {
            "run": run.name,
            "path": str(run.path),
            "cached": cached,
            "validation_accuracy": best.validation_accuracy,
            "selected_epoch": best.epoch,
            "epochs": run.history[-1].epoch,
            "parameters": run.environment["parameters"],
        }
    )


@app.command("eval")
@command
def evaluate(
    session: Session,
    set_name: SetName = "affnist",
    run: RunName = None,
    limit: ImageLimit = None,
    copies: Copies = 32,
    rotation: Rotation = None,
    shear: Shear = None,
    expansion: Expansion = None,
    translation: Translation = None,
    only: Only = None,
    device: Device = "auto",
) -> None:
    """Test a run on a set: accuracy with its 95% interval, per class, and by transformation."""
    name = varied(set_name, only, rotation=rotation, shear=shear, expansion=expansion, translation=translation)
    from affbench.run.folder import evaluation_document, find_run

    found = find_run(session.workspace.results, run)
    from affbench.data.sets import find_part
    from affbench.report.record import evaluation_tables
    from affbench.run.evaluate import evaluate_run

    record = evaluate_run(found, find_part(name, "test", copies, limit), session.workspace)
    session.show(*(table.to_rich() for table in evaluation_tables(record)))
    session.document(evaluation_document(record))


@app.command()
@command
def sweep(
    session: Session,
    routings: Annotated[str, typer.Option(help="Numbers of routing iterations.")] = "1,2,3,5,7,10",
    seeds: Annotated[str, typer.Option(help="How many seeds (3: seeds 0, 1, 2), or a list (0,5,9).")] = "3",
    sets: Annotated[str, typer.Option(help="Sets to test on.")] = "mnist-translated,affnist-synthetic",
    copies: Copies = 32,
    test_limit: Annotated[int | None, typer.Option(min=1, help="Test on the first N images of each set.")] = None,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    checkpoint_minutes: CheckpointMinutes = 1,
    model: Model = None,
    option: ModelOptions = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    schedule: Schedule = None,
    stop_at: StopAt = None,
    validations: Validations = None,
    limit: TrainLimit = None,
    validation_limit: ValidationLimit = None,
    train_set: TrainSet = None,
    shift: Shift = None,
    flip: Flip = None,
    device: Device = "auto",
    precision: Precision = None,
    config: Config = None,
) -> None:
    """Routing iterations x seeds, each an ordinary cached run; an interrupted sweep goes on where it stopped."""
    given = {key: value for key, value in locals().items() if key in _RUN_OPTIONS and value is not None}
    counts = _whole_numbers("--routings", given.pop("routings"), 1)
    chosen = _whole_numbers("--seeds", seeds, 0)
    if "," not in seeds:
        if chosen == [0]:
            raise UsageError("--seeds 0 asks for no seed at all; --seeds 1 runs one, --seeds 0, would be a list.")
        chosen = list(range(chosen[0]))
    place = _engine(engine, ray_address, cpus_per_run, gpus_per_run)
    resolved = _run_config(**given)
    from affbench.base.config import EvaluationConfig, override
    from affbench.experiment.pipeline import run_sweep

    evaluation = override(EvaluationConfig(), sets=sets.split(","), copies=copies, limit=test_limit)
    workspace = replace(session.workspace, checkpoint_seconds=60 * checkpoint_minutes)
    outcome = run_sweep(resolved, counts, chosen, evaluation, workspace, place)
    _show_outcome(session, outcome)
    session.document(outcome.result.to_dict() | {"report": str(outcome.report.html)})
    _fail(session, outcome)


@app.command()
@command
def run(
    session: Session,
    file: Annotated[Path, typer.Argument(help="A pipeline, such as pipelines/quickstart.toml.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is cached and what would run.")] = False,
    epochs: Epochs = None,
    limit: TrainLimit = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Run seeds 0 to N - 1 of every run.")] = None,
    test_limit: Annotated[int | None, typer.Option(min=1, help="Test on the first N images of each set.")] = None,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    checkpoint_minutes: CheckpointMinutes = 1,
    device: Device = "auto",
) -> None:
    """A whole pipeline: convert, train, test and report; what is cached is not done again."""
    from affbench.base.config import read_pipeline

    pipeline = _changed(read_pipeline(file), epochs, limit, seeds, test_limit)
    if dry_run:
        from affbench.experiment.pipeline import plan_pipeline

        steps = plan_pipeline(pipeline, session.workspace)
        session.show(_plan_table(pipeline.title, steps))
        session.document({"pipeline": pipeline.name, "steps": [vars(step) for step in steps]})
        return
    from affbench.experiment.pipeline import run_pipeline

    workspace = replace(session.workspace, checkpoint_seconds=60 * checkpoint_minutes)
    outcome = run_pipeline(pipeline, workspace, _engine(engine, ray_address, cpus_per_run, gpus_per_run))
    _show_outcome(session, outcome)
    session.document(
        outcome.result.to_dict() | {"report": str(outcome.report.html), "markdown": str(outcome.report.markdown)}
    )
    _fail(session, outcome)


@app.command()
@command
def report(
    session: Session,
    explain: Annotated[
        bool, typer.Option("--explain", help="Measure more: one factor at a time, and equivariance.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Tables, figures and a page over all finished runs."""
    from affbench.experiment.pipeline import report_all

    written = report_all(session.workspace, explain=explain)
    session.show(written.table.to_rich(), f"report: {written.html} and {written.markdown}")
    session.document({"html": str(written.html), "markdown": str(written.markdown)})
    if open_page:
        typer.launch(str(written.html.resolve()))


@app.command()
@command
def leaderboard(
    session: Session,
    set_name: Annotated[str | None, typer.Option("--set", help="One set only; every set by default.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(help="Copy a run to results/reference, ready to be committed; repeatable.")
    ] = None,
) -> None:
    """All runs by set, committed ones included; ranks respect ties within the noise."""
    from affbench.experiment.reference import add_reference, leaderboards
    from affbench.report.leaderboard import leaderboard_table
    from affbench.run.folder import find_run

    for run in [find_run(session.workspace.results, name) for name in add or []]:
        session.show(f"added: {add_reference(run, session.workspace.results).path}")
    boards = leaderboards(session.workspace.results, set_name)
    session.show(*(leaderboard_table(board).to_rich() for board in boards))
    session.document({"leaderboards": [board.to_dict() for board in boards]})


@app.command()
@command
def status(session: Session) -> None:
    """Data, cache and runs at a glance."""
    from affbench.experiment.status import read_status, status_tables

    state = read_status(session.workspace.data, session.workspace.results)
    session.show(*status_tables(state))
    session.document(state.to_dict())


@app.command()
@command
def bench(
    session: Session,
    model: Model = "capsnet",
    routings: Annotated[int | None, typer.Option(min=1, help="Routing iterations (CapsNet: 3).")] = None,
    option: ModelOptions = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats; medians are shown.")] = 7,
    textbook: Annotated[
        Path | None, typer.Option(help="Textbook formulation to compare with; benchmarks/textbook.py where it is.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    curves: Annotated[
        bool, typer.Option("--curves", help="Also draw cost against routing iterations, batch size and canvas.")
    ] = False,
) -> None:
    """Throughput of training and evaluation against the floor, measured in one run."""
    from affbench.base.device import resolve_device, resolve_precision
    from affbench.experiment.bench import benchmark_speed
    from affbench.experiment.timing import Workload

    target = resolve_device(device)
    config = _run_config(model=model, routings=routings, option=option, precision=precision)
    computed = resolve_precision(config.training.precision, target)
    workload = Workload(config.model.name, config.model.options, target, computed, batch_size)
    result = benchmark_speed(workload, repeats=repeats, textbook=textbook, progress=session.workspace.progress)
    session.show(result.to_rich())
    document = result.to_dict()
    if curves:
        from affbench.experiment.cost import draw_curves

        path, points = draw_curves(workload, session.workspace)
        session.show(f"cost curves: {path}")
        document["curves"] = [asdict(point) for point in points]
    session.document(document)


for _command in (
    data_commands.show,
    data_commands.export,
    data_commands.verify,
    data_commands.clean,
    data_commands.doctor,
):
    app.command()(_command)

_RUN_OPTIONS = (
    *("model", "routings", "option", "seed", "epochs", "batch_size", "learning_rate", "schedule"),
    *("stop_at", "validations", "limit", "validation_limit"),
    *("train_set", "shift", "flip", "precision", "config"),
)


def _run_config(
    *,
    config: Path | None = None,
    model: str | None = None,
    routings: int | None = None,
    option: list[str] | None = None,
    **given: Any,
) -> RunConfig:
    """The run that a file and the options on the command line describe together; the options win."""
    from affbench.base.config import DataConfig, RunConfig, override, read_run_config

    base = read_run_config(config) if config else RunConfig()
    name = model or base.model.name
    options = dict(base.model.options) if name == base.model.name else {}
    options |= _model_options(option)
    if routings is not None:
        from affbench.models import model_options

        if "routings" not in model_options(name):
            raise UsageError(f"--routings does not go with model '{name}', which has no routing.")
        options["routings"] = routings
    data = {key: given.pop(key) for key in list(given) if key in DataConfig.model_fields}
    return override(
        base,
        model={"name": name, "options": options},
        data=override(base.data, **data).model_dump(),
        training=override(base.training, **given).model_dump(),
    )


def _resumed(session: Session, given: dict[str, Any]) -> RunConfig:
    """What `train --resume` goes on with: the run the options describe, or without any the latest unfinished one."""
    from affbench.run.folder import list_runs

    if given:
        return _run_config(**given)
    unfinished = [found for found in list_runs(session.workspace.results) if not found.finished]
    if not unfinished:
        raise UsageError(f"--resume: there is no unfinished run in {session.workspace.results / 'runs'}.")
    session.show(f"going on with {unfinished[-1].name}")
    config = unfinished[-1].config
    from affbench.run.plan import plan_run

    if plan_run(config, session.workspace).folder.name != unfinished[-1].name:
        raise ArtefactError(
            f"{unfinished[-1].path} cannot be gone on with: its config.toml, the code of its model or its data are no "
            f"longer those it began with; 'affbench train --config {unfinished[-1].path / 'config.toml'}' begins anew."
        )
    return config


def _engine(name: str, address: str | None, cpus: int | None, gpus: float | None) -> Engine:
    """Where the runs of a sweep or a pipeline are made."""
    from affbench.base.errors import nearest
    from affbench.experiment.cells import Engine

    if name not in ("local", "ray"):
        raise UsageError(f"--engine {name} is unknown: {nearest(name, ('local', 'ray'))}.")
    if name == "local" and (address is not None or gpus is not None):
        option = "--ray-address" if address is not None else "--gpus-per-run"
        raise UsageError(f"{option} goes with --engine ray.")
    return Engine("ray" if name == "ray" else "local", address, cpus, gpus)


def _model_options(given: list[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` pairs, the values as TOML; ``64,32`` is a list, ``none`` is None, and what is no TOML a string."""
    options = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {pair} is not of the form KEY=VALUE.")
        for text in (value, f"[{value}]" if "," in value else value):
            try:
                options[key.replace("-", "_")] = tomllib.loads(f"value = {text}")["value"]
                break
            except tomllib.TOMLDecodeError:
                options[key.replace("-", "_")] = None if value == "none" else value
    return options


def _whole_numbers(option: str, text: str, least: int) -> list[int]:
    """A comma-separated list of different whole numbers."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} {text} is not a list of whole numbers, such as 1,3,5.") from None
    if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
        raise UsageError(f"{option} {text} must list different whole numbers of at least {least}, such as 1,3,5.")
    return numbers


def _changed(
    pipeline: Pipeline, epochs: int | None, limit: int | None, seeds: int | None, test_limit: int | None
) -> Pipeline:
    """A pipeline with what the command line changes, in every run."""
    from affbench.base.config import override

    training = {} if epochs is None else {"epochs": epochs}
    data = {} if limit is None else {"limit": limit}
    chosen = None if seeds is None else tuple(range(seeds))
    runs = [
        entry.model_dump() | {"data": entry.data | data, "training": entry.training | training, "seeds": chosen}
        if seeds is not None
        else entry.model_dump() | {"data": entry.data | data, "training": entry.training | training}
        for entry in pipeline.runs
    ]
    evaluation = override(pipeline.evaluation, limit=test_limit).model_dump()
    given = {"--epochs": epochs, "--limit": limit, "--seeds": seeds, "--test-limit": test_limit}
    told = ", ".join(f"{option} {value}" for option, value in given.items() if value is not None)
    note = f"{pipeline.note} Changed on the command line: {told}.".strip() if told else None
    return override(pipeline, runs=runs, seeds=chosen, evaluation=evaluation, note=note)


def _plan_table(title: str, steps: list[Any]) -> Any:
    from rich.table import Table

    table = Table("stage", "what", "state", title=title, title_justify="left")
    colours = {"cached": "green", "to do": "yellow", "missing": "red"}
    for step in steps:
        table.add_row(step.stage, step.what, f"[{colours[step.state]}]{step.state}[/]")
    return table


def _show_outcome(session: Session, outcome: Any) -> None:
    session.show(outcome.report.table.to_rich(), f"report: {outcome.report.html}", f"        {outcome.report.markdown}")


def _fail(session: Session, outcome: Any) -> None:
    """End with status 1 when cells failed; the others are finished and reported."""
    for cell in outcome.result.failed:
        session.show(f"failed: {cell.label}, seed {cell.seed}: {cell.error}")
    if outcome.result.failed:
        raise typer.Exit(1)


def main() -> None:
    """The entry point of the command ``affbench``."""
    with surrounded():
        app()
