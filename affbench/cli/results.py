"""The commands that test and show runs; those of ``affbench figure`` draw one picture each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affbench.cli.options import Copies, Device, ImageLimit, RunName, SetName, Variation
from affbench.cli.session import Session, command

if TYPE_CHECKING:
    from affbench.analysis.results import LabelledRun
    from affbench.report.drawing import Drawing

figure = typer.Typer(
    name="figure",
    help="Draw what trained models do: a PNG, and a CSV of its numbers beside it.",
    no_args_is_help=True,
)

Runs = Annotated[list[str] | None, typer.Option("--run", help="Run, or the beginning of its name; repeatable.")]
Output = Annotated[Path | None, typer.Option(help="Folder; results/figures by default.")]


@command
def evaluate(
    session: Session,
    variation: Variation,
    set_name: SetName = "affnist",
    run: RunName = None,
    limit: ImageLimit = None,
    copies: Copies = 32,
    device: Device = "auto",
) -> None:
    """Test a run on a set: accuracy with its 95% interval, per class, and by transformation."""
    name = variation.of(set_name)
    from affbench.run.folder import evaluation_document, find_run

    found = find_run(session.workspace.results, run)
    from affbench.data.sets import find_part
    from affbench.report.record import evaluation_tables
    from affbench.run.record import evaluate_run

    record = evaluate_run(found, find_part(name, "test", copies, limit), session.workspace)
    session.show(*(table.to_rich() for table in evaluation_tables(record)))
    session.document(evaluation_document(record))


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


@command
def leaderboard(
    session: Session,
    set_name: Annotated[str | None, typer.Option("--set", help="One set only; every set by default.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(help="Copy a run to results/reference, ready to be committed; repeatable.")
    ] = None,
) -> None:
    """All runs by set, committed ones included; ranks respect ties within the noise."""
    from dataclasses import asdict

    from affbench.experiment.reference import add_reference, leaderboards
    from affbench.report.leaderboard import leaderboard_table
    from affbench.run.folder import find_run

    for run in [find_run(session.workspace.results, name) for name in add or []]:
        session.show(f"added: {add_reference(run, session.workspace.results).path}")
    boards = leaderboards(session.workspace.results, set_name)
    session.show(*(leaderboard_table(board).to_rich() for board in boards))
    session.document({"leaderboards": [asdict(board) for board in boards]})


@figure.command()
@command
def reconstructions(session: Session, run: RunName = None, output: Output = None, device: Device = "auto") -> None:
    """Real digits over their reconstructions, five rows of each."""
    from affbench.report.sections.capsules import reconstruction_figure

    _show(session, reconstruction_figure(_found(session, run), session.workspace, _folder(session, output)))


@figure.command()
@command
def perturb(
    session: Session,
    digit: Annotated[int, typer.Option(help="The class whose capsule is changed, 0 to 9.")] = 5,
    run: RunName = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Each dimension of a digit's capsule changed by -0.25 to 0.25, and drawn."""
    from affbench.report.sections.capsules import perturbation_figure

    _show(session, perturbation_figure(_found(session, run), session.workspace, _folder(session, output), digit=digit))


@figure.command()
@command
def equivariance(
    session: Session,
    digit: Annotated[int | None, typer.Option(help="One class, dimension by dimension; all by default.")] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="Digits of each class (50 for one, else 6).")] = None,
    run: RunName = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """How capsules move as the input rotates, shears, scales or shifts, and what explains their variance."""
    from affbench.report.sections.equivariance import equivariance_figure

    found, folder = _found(session, run), _folder(session, output)
    drawing, table = equivariance_figure(found, session.workspace, folder, digit=digit, per_class=per_class)
    session.show(table.to_rich())
    _show(session, drawing)


@figure.command()
@command
def wrong(
    session: Session,
    set_name: SetName = "affnist",
    run: RunName = None,
    count: Annotated[int, typer.Option(min=1, max=200, help="Digits to show.")] = 20,
    copies: Copies = 32,
    limit: ImageLimit = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """The most confidently wrong digits, with their reconstructions where the model draws any."""
    from affbench.data.sets import find_part
    from affbench.report.sections.mistakes import mistakes_figure

    found, folder = _found(session, run), _folder(session, output)
    part = find_part(set_name, "test", copies, limit)
    _show(session, mistakes_figure(found, part, session.workspace, folder, count=count))


@figure.command()
@command
def positions(
    session: Session,
    set_name: SetName = "affnist",
    run: RunName = None,
    copies: Copies = 32,
    limit: ImageLimit = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Accuracy as a map over the position of the digit on the canvas."""
    from affbench.data.sets import find_part
    from affbench.report.sections.positions import position_figure

    found, folder = _found(session, run), _folder(session, output)
    part = find_part(set_name, "test", copies, limit)
    _show(session, position_figure(found, part, session.workspace, folder))


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
    _show(session, factor_figure(found, chosen, session.workspace, _folder(session, output), limit))


def _found(session: Session, name: str | None) -> LabelledRun:
    """A run, the latest where none is named, which figures call by its own name."""
    from affbench.analysis.results import LabelledRun
    from affbench.run.folder import find_run

    run = find_run(session.workspace.results, name)
    return LabelledRun(run.name, run)


def _folder(session: Session, output: Path | None) -> Path:
    return output or session.workspace.results / "figures"


def _show(session: Session, drawing: Drawing) -> None:
    session.show(drawing.caption, f"{drawing.title}: {drawing.path} and {drawing.data}")
    session.document(
        {
            "title": drawing.title,
            "caption": drawing.caption,
            "figure": str(drawing.path),
            "data": str(drawing.data),
        }
    )
