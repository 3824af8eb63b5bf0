"""What every command shares: common options, the console, one JSON document, errors and exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from affbench.base.errors import AffbenchError, StorageError, UsageError, nearest
from affbench.base.workspace import Workspace, torchrun_rank
from affbench.cli.console import ConsoleProgress, console, let_go, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from affbench.report.table import Table

INTERRUPTED = 130
_option = functools.partial(typer.Option, rich_help_panel="Common")


FORMS: dict[str, Callable[[Table], Any]] = {
    "text": lambda table: table,
    "markdown": lambda table: table.to_markdown(),
    "csv": lambda table: table.to_csv(),
    "latex": lambda table: table.to_latex(),
}
"""How a table is printed."""


def _known_form(form: str) -> str:
    """Refuse a form before the work whose tables would be printed in it."""
    if form not in FORMS:
        raise typer.BadParameter(f"{form} is unknown: {nearest(form, FORMS)}")
    return form


@dataclass(frozen=True)
class Common:
    """The options of every command."""

    data_dir: Annotated[Path, _option(envvar="AFFBENCH_DATA_DIR", help="Downloads and converted sets.")] = Path("data")
    results_dir: Annotated[Path, _option(envvar="AFFBENCH_RESULTS_DIR", help="Runs and reports.")] = Path("results")
    form: Annotated[str, _option("--format", help="Of tables: text, markdown, csv or latex.", callback=_known_form)] = (
        "text"
    )
    json: Annotated[bool, _option("--json", help="One JSON document on standard output.")] = False
    quiet: Annotated[bool, _option("--quiet", help="Print errors only.")] = False
    debug: Annotated[bool, _option("--debug", help="Print a traceback with errors.")] = False


@dataclass(frozen=True)
class Session:
    """What a command works with."""

    workspace: Workspace
    console: Console  # on standard output
    json: bool
    form: str

    def show(self, *results: Table | str) -> None:
        """Print what was asked for on standard output: tables in their form, and lines; a JSON document replaces them.

        Lines beside tables for another program go to standard error.
        """
        lines = [result for result in results if isinstance(result, str)]
        aside = self.form != "text" and len(lines) < len(results)
        with self.console.capture() as printed:
            for number, result in enumerate(results):
                if not isinstance(result, str):
                    if number:
                        self.console.print()
                    shown, whole = FORMS[self.form](result), self.form != "text"
                    self.console.print(shown, end="", markup=False, soft_wrap=whole, crop=False)
                elif not aside:
                    print_line(self.console, result)
        say(re.sub(" +$", "", printed.get(), flags=re.MULTILINE), self.console.file)
        for line in lines if aside else ():
            self.workspace.progress.note(line)

    def document(self, content: Any) -> None:
        """Print the JSON document, if it is wanted."""
        if self.json:
            text = json.dumps(content, indent=2, ensure_ascii=self.console.encoding != "utf-8", default=str)
            say(f"{text}\n", self.console.file)


def say(text: str, output: IO[str]) -> None:
    """Print on standard output; nobody who reads no further is bothered, but a full disk is told."""
    try:
        output.write(text)
        output.flush()
    except OSError as error:
        let_go(output)
        if not isinstance(error, BrokenPipeError):
            raise StorageError(f"standard output cannot be written ({error.strerror}); send it elsewhere.") from error


def home(folder: Any) -> Any:
    """A path with ``~`` for a home folder written out, which shells do not do everywhere; anything else as it is."""
    try:
        return folder.expanduser() if isinstance(folder, Path) else folder
    except RuntimeError:
        raise UsageError(f"{folder} is in the home folder of nobody here; write out the whole path.") from None


@contextlib.contextmanager
def surrounded() -> Iterator[None]:
    """What a whole process needs, whatever started it: open streams, figures that go into files, a quiet end."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook names one for its children that they need not have
    for number in range(3):  # a closed one would be given to the next file that is opened, and written to as a stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123
    if isinstance(sys.stdout, io.TextIOWrapper):  # as those of errors, which an encoding may lack, are written
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:  # click prints help and version itself
        let_go(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            sys.exit(f"affbench: standard output cannot be written ({error.strerror}); send it elsewhere.")
        if isinstance(error.__context__, SystemExit):
            raise error.__context__ from None


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options, a `Session` as first argument, and an exit status for every end.

    The fields of a dataclass that it takes are options as well.
    """
    signature, keyword = inspect.signature(function, eval_str=True), inspect.Parameter.KEYWORD_ONLY
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for own in (*list(signature.parameters.values())[1:], inspect.Parameter("common", keyword, annotation=Common)):
        if not dataclasses.is_dataclass(own.annotation):
            parameters.append(own.replace(kind=keyword))
            continue
        groups[own.name], kinds = own.annotation, get_type_hints(own.annotation, include_extras=True)
        for field in dataclasses.fields(own.annotation):
            kind = kinds[field.name]
            parameters.append(inspect.Parameter(field.name, keyword, annotation=kind, default=field.default))

    @functools.wraps(function)
    def wrapped(**options: Any) -> None:
        debug, rank = options["debug"], torchrun_rank()
        screen = console(sys.stderr, quiet=options["quiet"] or bool(rank))
        try:
            options = {name: home(value) for name, value in options.items()}
            device, seconds = options.get("device", "auto"), 60 * options.get("checkpoint_minutes", 1)
            for name, group in groups.items():
                options[name] = group(**{field.name: options.pop(field.name) for field in dataclasses.fields(group)})
            common = options.pop("common")
            workspace = Workspace(common.data_dir, common.results_dir, device, ConsoleProgress(screen), seconds)
            shown = console(sys.stdout, quiet=common.json or screen.quiet)
            if rank is not None and function.__name__ != "train":
                raise UsageError(f"torchrun starts 'affbench train' on several devices, not '{function.__name__}'.")
            with contextlib.redirect_stdout(screen.file):
                function(Session(workspace, shown, common.json, common.form), **options)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise _end(error, debug=debug) from None

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _end(error: BaseException, *, debug: bool) -> typer.Exit:
    """Say how a command ended: 1 failed, 2 wrong usage, 130 interrupted."""
    status, text = 1, f"unexpected {type(error).__name__}: {error}. This is a bug; --debug shows where."
    if isinstance(error, AffbenchError):
        status, text = error.exit_code, str(error)
    elif isinstance(error, KeyboardInterrupt):
        status, text = INTERRUPTED, str(error) or "interrupted."
    elif isinstance(error, OSError) and error.errno and error.filename:
        from affbench.base.store import hint

        # What the operating system refuses wherever nobody expected it is no fault of the program's.
        text = f"{error.filename} cannot be used: {hint(Path(str(error.filename)), error)}."
    # What was asked for wrongly, every process that torchrun started finds out; one of them says so.
    screen = console(sys.stderr, quiet=isinstance(error, UsageError) and bool(torchrun_rank()))
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    style = "yellow" if status == INTERRUPTED else "bold red"
    print_line(screen, f"affbench: {text}", style)
    return typer.Exit(status)
