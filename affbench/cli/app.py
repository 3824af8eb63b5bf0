"""The command line: every command in its place; what a command does lives in the modules it calls."""

from typing import Annotated

import typer

from affbench.base.version import __version__
from affbench.cli import catalogue, data, results, train
from affbench.cli.options import OfRun
from affbench.cli.session import surrounded

app = typer.Typer(
    name="affbench",
    help="Does a model trained only on translated digits recognise digits under affine transformations it never saw?",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(data.fetch)
app.command(cls=OfRun)(train.train)
app.command("eval")(results.evaluate)
app.command(cls=OfRun)(train.speedrun)
app.command(cls=OfRun)(train.sweep)
app.command()(train.run)
app.command()(results.compare)
app.command()(results.report)
app.command()(results.leaderboard)
app.command()(data.status)
app.command()(catalogue.models)
app.command()(catalogue.sets)
app.command()(catalogue.rm)
app.command()(train.bench)
for _command in (data.show, data.export, data.verify, data.clean, data.doctor):
    app.command()(_command)
app.add_typer(results.figure)


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


def main() -> None:
    """The entry point of the command ``affbench``."""
    with surrounded():
        app()
