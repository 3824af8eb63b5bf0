"""What every command shares: common options, the console, one JSON document, errors and exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, get_type_hints

import typer

from affbench.base.distributed import launched
from affbench.base.errors import AffbenchError, StorageError, UsageError
from affbench.base.workspace import Workspace
from affbench.cli.console import ConsoleProgress, console, let_go

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

INTERRUPTED = 130

_COMMON = {
    "data_dir": (
        Annotated[
            Path,
            typer.Option(envvar="AFFBENCH_DATA_DIR", help="Downloads and converted sets.", rich_help_panel="Common"),
        ],
        Path("data"),
    ),
    "results_dir": (
        Annotated[
            Path, typer.Option(envvar="AFFBENCH_RESULTS_DIR", help="Runs and reports.", rich_help_panel="Common")
        ],
        Path("results"),
    ),
    "json": (
        Annotated[bool, typer.Option("--json", help="One JSON document on standard output.", rich_help_panel="Common")],
        False,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="Print errors only.", rich_help_panel="Common")], False),
    "debug": (
        Annotated[bool, typer.Option("--debug", help="Print a traceback with errors.", rich_help_panel="Common")],
        False,
    ),
}


@dataclass(frozen=True)
class Session:
    """What a command works with."""

    workspace: Workspace
    console: Console
    json: bool
    output: TextIO

    def show(self, *renderables: RenderableType) -> None:
        """Print tables or lines on standard error."""
        for renderable in renderables:
            if isinstance(renderable, str):
                self.console.print(renderable, markup=False, soft_wrap=True)
            else:
                self.console.print(renderable)

    def document(self, content: Any) -> None:
        """Print the JSON document, if it is wanted."""
        if self.json:
            say(json.dumps(content, indent=2, ensure_ascii=False, default=str), self.output)


def say(text: str, output: TextIO) -> None:
    """Print on standard output; nobody who reads no further is bothered, but a full disk is told."""
    try:
        output.write(f"{text}\n")
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
        raise UsageError(
            f"{folder} is in the home folder of nobody here; write out the folder that is meant."
        ) from None


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

    0 done; 1 failed; 2 wrong usage; 130 interrupted.
    """

    @functools.wraps(function)
    def wrapped(**options: Any) -> None:
        quiet, debug, document = (options.pop(name) for name in ("quiet", "debug", "json"))
        ranks = launched()
        screen = console(quiet=quiet or not ranks.first)
        progress = ConsoleProgress(screen)
        try:
            options = {name: home(value) for name, value in options.items()}
            folders = options.pop("data_dir"), options.pop("results_dir")
            seconds = 60 * options.get("checkpoint_minutes", 1)
            workspace = Workspace(*folders, options.get("device", "auto"), progress, seconds)
            for name, group in groups.items():
                options[name] = group(**{field.name: options.pop(field.name) for field in dataclasses.fields(group)})
            session = Session(workspace, screen, document, sys.stdout)
            if not ranks.alone and function.__name__ != "train":
                raise UsageError(f"torchrun starts 'affbench train' on several devices, not '{function.__name__}'.")
            with progress, contextlib.redirect_stdout(screen.file):
                function(session, **options)
        except AffbenchError as error:
            raise _end(error, str(error), error.exit_code, debug=debug) from None
        except KeyboardInterrupt as error:
            raise _end(error, str(error) or "interrupted.", INTERRUPTED, debug=debug) from None
        except typer.Exit:
            raise
        except Exception as error:
            text = f"unexpected {type(error).__name__}: {error}. This is a bug; --debug shows where."
            if isinstance(error, OSError) and error.errno and error.filename:
                from affbench.base.store import hint

                # What the operating system refuses wherever nobody expected it is no fault of the program's.
                text = f"{error.filename} cannot be used: {hint(Path(str(error.filename)), error)}."
            raise _end(error, text, 1, debug=debug) from None

    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Any] = {}
    options: dict[str, tuple[Any, Any]] = {}
    for own in list(signature.parameters.values())[1:]:
        if dataclasses.is_dataclass(own.annotation):  # its fields are options
            groups[own.name] = own.annotation
            kinds = get_type_hints(own.annotation, include_extras=True)
            options |= {field.name: (kinds[field.name], field.default) for field in dataclasses.fields(own.annotation)}
        else:
            options[own.name] = (own.annotation, own.default)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in (options | _COMMON).items()
    ]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _end(error: BaseException, text: str, status: int, *, debug: bool) -> typer.Exit:
    # What was asked for wrongly, every process that torchrun started finds out; one of them says so.
    screen = console(quiet=isinstance(error, UsageError) and not launched().first)
    if debug:
        import traceback

        sys.stderr.write("".join(traceback.format_exception(error)))
    screen.print(
        f"affbench: {text}", markup=False, style="bold red" if status != INTERRUPTED else "yellow", soft_wrap=True
    )
    return typer.Exit(status)
