"""What every command shares: common options, the console, one JSON document, errors and exit statuses."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from affbench.distributed import launched
from affbench.errors import AffbenchError, UsageError
from affbench.progress import ConsoleProgress, console
from affbench.workspace import Workspace

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
    """What a command works with.

    Attributes
    ----------
    workspace
        Folders, and where progress goes.
    console
        On standard error.
    json
        Whether one JSON document is wanted on standard output.
    output
        Standard output: for the command alone; what somebody's model prints goes to standard error.
    """

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
            self.output.write(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
            self.output.flush()


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options, a `Session` as first argument, and an exit status for every end.

    0 done; 1 failed; 2 wrong usage; 130 interrupted.
    """

    @functools.wraps(function)
    def wrapped(**options: Any) -> None:
        common = {name: options.pop(name) for name in _COMMON}
        ranks = launched()
        screen = console(quiet=common["quiet"] or not ranks.first)
        progress = ConsoleProgress(screen)
        session = Session(
            Workspace(common["data_dir"], common["results_dir"], options.get("device", "auto"), progress),
            screen,
            common["json"],
            sys.stdout,
        )
        try:
            if not ranks.alone and function.__name__ != "train":
                raise UsageError(f"torchrun starts 'affbench train' on several devices, not '{function.__name__}'.")
            with progress, contextlib.redirect_stdout(sys.stderr):
                function(session, **options)
        except AffbenchError as error:
            raise _end(error, str(error), error.exit_code, debug=common["debug"]) from None
        except KeyboardInterrupt as error:
            raise _end(error, str(error) or "interrupted.", INTERRUPTED, debug=common["debug"]) from None
        except BrokenPipeError:
            raise typer.Exit(0) from None  # whoever read the output has seen enough
        except typer.Exit:
            raise
        except Exception as error:
            text = f"unexpected {type(error).__name__}: {error}. This is a bug; --debug shows where."
            raise _end(error, text, 1, debug=common["debug"]) from None

    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in _COMMON.items()
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
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
