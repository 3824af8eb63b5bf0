"""The commands that test and show runs; those of ``affbench figure`` draw one picture each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affbench.base.errors import UsageError
from affbench.cli.options import Device, ImageLimit, Images, ModelOptions, RunName, known, run_config
from affbench.cli.session import Session, command

if TYPE_CHECKING:
    from affbench.analysis.results import LabelledRun
    from affbench.base.workspace import Workspace
    from affbench.report.drawing import Drawing

_about = "Draw what trained models do: a PNG, and a CSV of its numbers beside it."
figure = typer.Typer(name="figure", help=_about, no_args_is_help=True)

Runs = Annotated[list[str] | None, typer.Option("--run", help="Run, or the beginning of its name; repeatable.")]
Output = Annotated[Path | None, typer.Option(help="Folder; results/figures by default.")]


@dataclass(frozen=True)
class Canvas:
    """What a figure is drawn of, and where."""

    run: RunName = None
    output: Output = None
    device: Device = "auto"

    def place(self, session: Session) -> tuple[LabelledRun, Workspace, Path]:
        """The run, the workspace, and the folder of figures."""
        return _found(session, self.run), session.workspace, self.output or session.workspace.results / "figures"


@command
def evaluate(
    session: Session,
    images: Images,
    run: RunName = None,
    model: Annotated[str | None, typer.Option(help="What builds the network of --weights.")] = None,
    option: ModelOptions = None,
    weights: Annotated[
        Path | None, typer.Option(help="A state dict of a network trained elsewhere: .safetensors, or of torch.save.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Test a run, or a network trained elsewhere, on a set: accuracy with its 95% interval, per class, by factor."""
    part = images.part()
    if (weights is None) != (model is None) or (weights is not None and run is not None):
        raise UsageError("--model and --weights go together, and without --run: they name a network trained elsewhere.")
    from affbench.experiment.reference import fetch_published
    from affbench.report.terminal import evaluation_tables
    from affbench.run.elsewhere import adopt, read_weights
    from affbench.run.folder import find_run
    from affbench.run.record import evaluate_run

    if run is not None and run.startswith("reference/"):
        tested = fetch_published(run, session.workspace.results)
    elif weights is None:
        tested = find_run(session.workspace.results, run)
    else:
        network = run_config(model=model, option=option).model
        tested = adopt(network, read_weights(weights), session.workspace)
        session.workspace.progress.note(f"run {tested.name}: {network.name} with the weights of {weights}")
    record = evaluate_run(tested, part, session.workspace)
    session.show(*evaluation_tables(record))
    session.document(record.document())


@command
def compare(
    session: Session,
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs, or the beginning of their names: all seeds of one model.", autocompletion=known("runs")
        ),
    ],
    set_name: Annotated[str | None, typer.Option("--set", help="One set only; all that are common by default.")] = None,
) -> None:
    """Compare runs on the same images: accuracies, paired differences with intervals, and a sentence."""
    from affbench.experiment.compare import compare_runs

    found = compare_runs(runs, set_name, session.workspace)
    for problem in found.problems:
        session.workspace.progress.note(problem)
    session.show(*found.tables, *found.sentences)
    session.document({"tables": [asdict(table) for table in found.tables], "sentences": found.sentences})


@command
def report(
    session: Session,
    explain: Annotated[
        bool, typer.Option("--explain", help="Measure more: one factor at a time, and equivariance.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    run: Runs = None,
    set_name: Annotated[list[str] | None, typer.Option("--set", help="Set; repeatable, all by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder; results/reports/all by default.")] = None,
) -> None:
    """Tables, figures and a page over all finished runs, or some."""
    from affbench.experiment.pipeline import report_all

    written = report_all(session.workspace, names=run or (), sets=set_name or (), folder=output, explain=explain)
    session.show(written.table, f"report: {written.html} and {written.markdown}")
    session.document({"html": str(written.html), "markdown": str(written.markdown)})
    if open_page:
        typer.launch(str(written.html.resolve()))


@command
def leaderboard(
    session: Session,
    set_name: Annotated[str | None, typer.Option("--set", help="One set only; every set by default.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(help="Copy a run to results/reference, ready to be committed; repeatable.")
    ] = None,
    publish: Annotated[
        list[str] | None, typer.Option(help="The same with its checkpoint in half precision, tested again; repeatable.")
    ] = None,
) -> None:
    """All runs by set, committed ones included; ranks respect ties within the noise."""
    from affbench.experiment.reference import add_reference, leaderboards
    from affbench.experiment.reference import publish as publish_run
    from affbench.report.terminal import leaderboard_tables
    from affbench.run.folder import find_run

    for run in [find_run(session.workspace.results, name) for name in add or []]:
        session.workspace.progress.note(f"added: {add_reference(run, session.workspace.results).path}")
    for run in [find_run(session.workspace.results, name) for name in publish or []]:
        session.workspace.progress.note(f"published: {publish_run(run, session.workspace).path}")
    boards = leaderboards(session.workspace.results, set_name)
    session.show(*(table for board in boards for table in leaderboard_tables(board)))
    session.document({"leaderboards": [asdict(board) for board in boards]})


@figure.command()
@command
def reconstructions(session: Session, canvas: Canvas) -> None:
    """Real digits over their reconstructions, five rows of each."""
    from affbench.report.sections.capsules import reconstruction_figure

    _show(session, reconstruction_figure(*canvas.place(session)))


@figure.command()
@command
def perturb(
    session: Session,
    canvas: Canvas,
    digit: Annotated[int, typer.Option(help="The class whose capsule is changed, 0 to 9.")] = 5,
) -> None:
    """Each dimension of a digit's capsule changed by -0.25 to 0.25, and drawn."""
    from affbench.report.sections.capsules import perturbation_figure

    _show(session, perturbation_figure(*canvas.place(session), digit=digit))


@figure.command()
@command
def equivariance(
    session: Session,
    canvas: Canvas,
    digit: Annotated[int | None, typer.Option(help="One class, dimension by dimension; all by default.")] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="Digits of each class (50 for one, else 6).")] = None,
) -> None:
    """How capsules move as the input rotates, shears, scales or shifts, and what explains their variance."""
    from affbench.report.sections.equivariance import equivariance_figure

    _show(session, equivariance_figure(*canvas.place(session), digit=digit, per_class=per_class))


@figure.command()
@command
def wrong(
    session: Session,
    canvas: Canvas,
    images: Images,
    count: Annotated[int, typer.Option(min=1, max=200, help="Digits to show.")] = 20,
) -> None:
    """The most confidently wrong digits, with their reconstructions where the model draws any."""
    from affbench.report.sections.mistakes import mistakes_figure

    run, workspace, folder = canvas.place(session)
    _show(session, mistakes_figure(run, images.part(), workspace, folder, count=count))


@figure.command()
@command
def positions(session: Session, canvas: Canvas, images: Images) -> None:
    """Accuracy as a map over the position of the digit on the canvas."""
    from affbench.report.sections.positions import position_figure, position_map

    run, workspace, folder = canvas.place(session)
    _show(session, position_figure([position_map(run, images.part(), workspace)], folder))


@figure.command()
@command
def factors(
    session: Session,
    run: Runs = None,
    factor: Annotated[
        list[str] | None, typer.Option(help="Factor, such as rotation; repeatable, all by default.")
    ] = None,
    limit: ImageLimit = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Accuracy on sets in which only rotation, only shear, … varies, wider than in affNIST."""
    from affbench.analysis.factors import FACTORS
    from affbench.report.sections.factors import factor_figure

    found = [_found(session, name) for name in run] if run else [_found(session, None)]
    chosen = list(dict.fromkeys(factor or FACTORS))
    folder = output or session.workspace.results / "figures"
    _show(session, factor_figure(found, chosen, session.workspace, folder, limit))


def _found(session: Session, name: str | None) -> LabelledRun:
    """A run, the latest where none is named; figures call it by its own name."""
    from affbench.analysis.results import LabelledRun
    from affbench.run.folder import find_run

    run = find_run(session.workspace.results, name)
    return LabelledRun(run.name, run)


def _show(session: Session, drawing: Drawing) -> None:
    tables = [drawing.table] if drawing.table is not None else []
    session.show(*tables, drawing.caption, f"{drawing.title}: {drawing.path} and {drawing.data}")
    files = {"figure": str(drawing.path), "data": str(drawing.data)}
    session.document({"title": drawing.title, "caption": drawing.caption} | files)
