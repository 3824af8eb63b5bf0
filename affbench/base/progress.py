"""How long work tells what it is doing, without knowing who listens."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Task:
    """One piece of work that is under way; this one says nothing."""

    def advance(self, amount: float, text: str = "") -> None:
        """Report that `amount` more units are done; `text` replaces the remark beside the bar."""


class Progress:
    """Receives progress and notes; this one is silent, and what library calls use unless told otherwise."""

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """Announce a piece of work.

        Parameters
        ----------
        title
            What is being done.
        total
            Units to do; None when unknown.
        unit
            What is counted: ``"bytes"``, ``"images"``.

        Yields
        ------
        Task
        """
        yield Task()

    def note(self, text: str) -> None:
        """One line worth keeping."""

    def saved(self, path: Path) -> None:
        """What an interrupted run needs to go on has been written."""


class ConsoleProgress(Progress):
    """Bars on a terminal, and notes as lines, both on standard error; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        from rich import progress

        self._console = console
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """A bar that goes when the work is done."""
        identity = self._bars.add_task(title, total=total, rate="", text="")
        try:
            yield _Bar(self, identity, unit)
        finally:
            self._bars.remove_task(identity)

    def note(self, text: str) -> None:
        """A line on standard error, above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _update(self, identity: TaskID, amount: float, rate: str, text: str) -> None:
        self._bars.update(identity, advance=amount, rate=rate, text=text)


class _Bar(Task):
    def __init__(self, owner: ConsoleProgress, identity: TaskID, unit: str) -> None:
        self._owner = owner
        self._identity = identity
        self._unit = unit
        self._start = time.perf_counter()
        self._done = 0.0

    def advance(self, amount: float, text: str = "") -> None:
        self._done += amount
        rate = self._done / max(time.perf_counter() - self._start, 1e-9)
        shown = f"{rate / 1e6:.1f} MB/s" if self._unit == "bytes" else f"{rate:,.0f} {self._unit}/s"
        self._owner._update(self._identity, amount, shown if self._unit else "", text)


def console(*, quiet: bool = False) -> Console:
    """The console on standard error that messages and tables go to.

    Parameters
    ----------
    quiet
        Print nothing but errors.
    """
    from rich.console import Console

    width = None if sys.stderr.isatty() else 120
    return Console(file=_Steady(sys.stderr), quiet=quiet, highlight=False, width=width)  # type: ignore[arg-type]


class _Steady:
    """Standard error; where it takes nothing any more (full, or its reader gone), work goes on without words."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or let what cannot be written go nowhere."""
        try:
            return self._stream.write(text)
        except OSError:
            let_go(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush, or let what cannot be written go nowhere."""
        try:
            self._stream.flush()
        except OSError:
            let_go(self._stream)


def let_go(stream: TextIO) -> None:
    """Send what a stream that can no longer be written still holds to nowhere, or Python fails over it at the end."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
