"""Stopping when asked to, without losing what was done."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop; what was done is saved. The message says how to go on."""


class Stop:
    """Turns SIGINT and SIGTERM into a question that a loop asks; a second signal stops at once.

    Parameters
    ----------
    patience
        Seconds after the first signal in which others count as the same request (torchrun passes Ctrl-C on to
        processes that the terminal has told already).
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.asked = False
        self._patience = patience
        self._first = 0.0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.asked and error is None:  # too late to stop the loop, which is finished, but not what follows
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal, too, stop at once."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.asked and time.monotonic() - self._first >= self._patience
        if not self.asked:
            self._first = time.monotonic()
        self.asked = True
        if again or self._at_once:
            raise KeyboardInterrupt
