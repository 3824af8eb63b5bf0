"""Messages and progress on a terminal, on standard error."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from affbench.base.progress import Progress, Task

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Console


SILENCE = 50.0  # seconds after which a log without bars is told how far work has come


class ConsoleProgress(Progress):
    """Bars on a terminal, while there is work, and notes as lines, both on standard error."""

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

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """A bar that goes when the work is done."""
        self._bars.start()
        identity = self._bars.add_task(title, total=total, rate="", text="")
        try:
            yield _Bar(self._bars, identity, title, total, unit, self.note if self._bars.disable else None)
        finally:
            self._bars.remove_task(identity)
            if not self._bars.tasks and not self._bars.disable:
                self._bars.stop()

    def note(self, text: str) -> None:
        """A line on standard error, above the bars."""
        print_line(self._console, text)


class _Bar(Task):
    """Without a terminal, `say` prints a line now and then, so that a log shows life."""

    def __init__(
        self,
        bars: progress.Progress,
        identity: progress.TaskID,
        title: str,
        total: float | None,
        unit: str,
        say: Callable[[str], None] | None,
    ) -> None:
        self._bars, self._identity, self._title, self._total = bars, identity, title, total
        self._unit, self._say = unit, say
        self._start = self._said = time.perf_counter()
        self._done = 0.0

    def advance(self, amount: float, text: str = "") -> None:
        self._done += amount
        rate = self._done / max(time.perf_counter() - self._start, 1e-9)
        shown = f"{rate / 1e6:.1f} MB/s" if self._unit == "bytes" else f"{rate:,.0f} {self._unit}/s"
        self._bars.update(self._identity, advance=amount, rate=shown if self._unit else "", text=text)
        if self._say is not None and (now := time.perf_counter()) - self._said > SILENCE:
            self._said = now
            share = left = ""
            if self._total is not None:
                share = f" {self._done / max(self._total, 1):.0%},"
                seconds = round((self._total - self._done) / max(rate, 1e-9))
                left = f", {datetime.timedelta(seconds=seconds)} left"
            about = ", ".join(filter(None, (shown if self._unit else "", text)))
            self._say(f"{time.strftime('%H:%M:%S')}  {self._title}:{share} {about}{left}")


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line, which a terminal breaks between words, and anything else gets whole."""
    from affbench.report.table import wrapped

    shown = wrapped(text, console.width) if console.is_terminal else text
    console.print(shown, markup=False, style=style, soft_wrap=True)


def console(stream: TextIO, *, quiet: bool = False) -> Console:
    """What prints on standard output or, as long as that can be written, on standard error; a quiet one does not."""
    from rich.console import Console

    file = _Steady(stream) if stream is sys.stderr else stream
    # A pager or `grep` behind a pipe stands on a terminal whose width rich finds; a log has none.
    width = None if "COLUMNS" in os.environ or any(map(os.isatty, range(3))) else 120
    return Console(file=file, quiet=quiet, highlight=False, width=width)  # type: ignore[arg-type]


class _Steady:
    """Standard error; where it takes nothing any more (full, or its reader gone), work goes on without words."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._do(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, action: Callable[..., object], *given: str) -> None:
        try:
            action(*given)
        except OSError:
            let_go(self._stream)


def let_go(stream: IO[str]) -> None:
    """Send what a stream that can no longer be written still holds to nowhere, or Python fails over it at the end."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
