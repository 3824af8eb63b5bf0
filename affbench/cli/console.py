"""Messages and progress on a terminal, on standard error."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
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
    """What is going on, on standard error: bars on a terminal, else a line now and then; and notes."""

    def __init__(self, console: Console) -> None:
        from rich import progress
        from rich.table import Column

        self._console = console
        self._alive = console.is_terminal and not console.is_dumb_terminal
        self._open: list[_Bar] = []
        self._watch: threading.Thread | None = None
        bar = max(console.width // 4, 6)
        title = Column(no_wrap=True, overflow="ellipsis", max_width=max(console.width - bar - 20, 8))
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", table_column=title),
            progress.BarColumn(bar_width=bar),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
            expand=True,
            disable=not self._alive,
        )

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """A bar that goes when the work is done."""
        if self._watch is None and not self._alive:
            self._watch = threading.Thread(target=self._show_life, daemon=True)
            self._watch.start()
        bar = _Bar(self._bars, title, total, unit)
        self._open.append(bar)
        self._bars.start()
        try:
            yield bar
        finally:
            self._open.remove(bar)
            self._bars.remove_task(bar.identity)
            if self._alive and not self._open:
                self._bars.stop()

    def _show_life(self) -> None:
        while True:
            time.sleep(SILENCE)
            if self._open:
                self.note("; ".join(map(str, reversed(self._open))))

    def share(self, done: float) -> None:
        """How much is done of a run is part of a run for those who wait for several."""
        if self._open and self._open[0].unit == "runs":
            self._open[0].share(done)

    def note(self, text: str) -> None:
        """A line on standard error, above the bars; a log is told the time as well."""
        print_line(self._console, text if self._alive else f"{time.strftime('%H:%M:%S')}  {text}")


class _Bar(Task):
    """One bar; it says itself how much time is left, as the units may be few and long."""

    def __init__(self, bars: progress.Progress, title: str, total: float | None, unit: str) -> None:
        self._bars, self._title, self._total, self.unit = bars, title, total, unit
        self._start = time.perf_counter()
        self._done = self._before = self._part = 0.0  # units; those done before, and the part of one under way
        self._text = ""
        self.identity = bars.add_task(title, total=total, text="")
        self._show()

    def skip(self, amount: float) -> None:
        self._before += amount
        self.advance(amount)

    def advance(self, amount: float, text: str = "") -> None:
        self._done, self._text = self._done + amount, text
        if amount:
            self._part = 0.0
        self._show()

    def share(self, part: float) -> None:
        self._part = part
        self._show()

    def _show(self) -> None:
        counted = f"{self._title} {self._done:g}/{self._total:g}" if self.unit == "runs" else self._title
        left, rate = self._speed()
        text = "  ".join(filter(None, (left, rate, self._text)))
        self._bars.update(self.identity, completed=self._done + self._part, description=counted, text=text)

    def _speed(self) -> tuple[str, str]:
        """The time that is left, and units a second, as far as either can be told."""
        seconds, done = time.perf_counter() - self._start, self._done + self._part - self._before
        rate = done / max(seconds, 1e-9)
        if done <= 0:
            return "", ""
        shown = f"{rate / 1e6:.1f} MB/s" if self.unit == "bytes" else f"{rate:,.0f} {self.unit}/s"
        left = datetime.timedelta(seconds=round(((self._total or 0) - self._done - self._part) / rate))
        return f"{left} left" if self._total else "", "" if self.unit in ("", "runs") else shown

    def __str__(self) -> str:
        """The same for a log."""
        left, rate = self._speed()
        done = "" if self._total is None else f"{self._done:,.0f} of {self._total:,.0f} {self.unit}".rstrip()
        return f"{self._title}: {', '.join(filter(None, (done, rate, self._text, left))) or 'under way'}"


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
