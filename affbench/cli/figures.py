"""The commands ``affbench figure …``: each draws one picture of trained runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affbench.cli.session import Session, command

if TYPE_CHECKING:
    from affbench.report.drawing import Drawing

figure = typer.Typer(
    name="figure",
    help="Draw what trained models do: a PNG, and a CSV of its numbers beside it.",
    no_args_is_help=True,
)

RunName = Annotated[str | None, typer.Option("--run", help="Run, or the beginning of its name; the latest by default.")]
Runs = Annotated[list[str] | None, typer.Option("--run", help="Run, or the beginning of its name; repeatable.")]
SetName = Annotated[str, typer.Option("--set", help="Set to test on.")]
Output = Annotated[Path | None, typer.Option(help="Folder; results/figures by default.")]
Copies = Annotated[int, typer.Option(min=1, max=1000, help="Versions of each digit in a synthetic affine set.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first N images only.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]


@figure.command()
@command
def reconstructions(session: Session, run: RunName = None, output: Output = None, device: Device = "auto") -> None:
    """Real digits over their reconstructions, five rows of each."""
    from affbench.report.gallery import reconstruction_figure
    from affbench.run.folder import find_run

    found = find_run(session.workspace.results, run)
    _show(session, reconstruction_figure(found, session.workspace, _folder(session, output)))


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
    from affbench.report.gallery import perturbation_figure
    from affbench.run.folder import find_run

    found = find_run(session.workspace.results, run)
    _show(session, perturbation_figure(found, session.workspace, _folder(session, output), digit=digit))


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
    from affbench.report.gallery import equivariance_figure
    from affbench.run.folder import find_run

    found = find_run(session.workspace.results, run)
    folder = _folder(session, output)
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
    limit: Limit = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """The most confidently wrong digits, with their reconstructions where the model draws any."""
    from affbench.data.sets import find_part
    from affbench.report.gallery import mistakes_figure
    from affbench.run.folder import find_run

    found = find_run(session.workspace.results, run)
    folder = _folder(session, output)
    part = find_part(set_name, "test", copies, limit)
    _show(session, mistakes_figure(found, part, session.workspace, folder, count=count))


@figure.command()
@command
def positions(
    session: Session,
    set_name: SetName = "affnist",
    run: RunName = None,
    copies: Copies = 32,
    limit: Limit = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Accuracy as a map over the position of the digit on the canvas."""
    from affbench.data.sets import find_part
    from affbench.report.gallery import position_figure
    from affbench.run.folder import find_run

    found = find_run(session.workspace.results, run)
    folder = _folder(session, output)
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
    limit: Limit = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Accuracy on sets in which only rotation, only shear, … varies, wider than in affNIST."""
    from affbench.analysis.factors import FACTORS
    from affbench.report.gallery import factor_figure
    from affbench.run.folder import find_run

    found = (
        [find_run(session.workspace.results, name) for name in run] if run else [find_run(session.workspace.results)]
    )
    chosen = factor or list(FACTORS)
    _show(session, factor_figure(found, session.workspace, _folder(session, output), factors=chosen, limit=limit))


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
