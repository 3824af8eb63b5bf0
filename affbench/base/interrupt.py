"""Stopping when asked to, without losing what was done."""

import signal
import threading
import time
from types import FrameType
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop; what was done is saved. The message says how to go on."""


class Stop:
    """Turns SIGINT, SIGTERM and SIGHUP into a question that a loop asks; a second signal stops at once.

    For `patience` seconds after the first signal, others count as the same request: torchrun passes Ctrl-C on to
    processes that the terminal has told already.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.asked = False
        self.at_once = False  # whether the first signal, too, stops at once
        self.pauses = 0  # how often the process was halted (Ctrl-Z) and went on
        self._patience = patience
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
                    self._before[number] = signal.signal(number, self._receive)
            self._before[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._went_on)
            signal.siginterrupt(signal.SIGCONT, False)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.asked and error is None:  # too late to stop the loop, which is finished, but not what follows
            raise KeyboardInterrupt

    def _went_on(self, number: int, frame: FrameType | None) -> None:
        self.pauses += 1

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.asked and time.monotonic() - self._first >= self._patience
        if not self.asked:
            self._first = time.monotonic()
        self.asked = True
        if again or self.at_once:
            raise KeyboardInterrupt


class Stopwatch:
    """Times a loop round by round; a round in which the process was halted counts as the mean of the others."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._rounds = self._counted = 0
        self._seconds = self._with_pauses = 0.0
        self.go()

    def go(self) -> None:
        """What came since the last round does not count."""
        self._last, self._pauses = time.perf_counter(), self._stop.pauses

    def round(self) -> None:
        """A round has ended."""
        seconds = time.perf_counter() - self._last
        self._rounds += 1
        self._with_pauses += seconds
        if self._pauses == self._stop.pauses:
            self._counted += 1
            self._seconds += seconds
        self.go()

    @property
    def seconds(self) -> float:
        """Time of all rounds; pauses are in it only where every round had one."""
        return self._seconds * self._rounds / self._counted if self._counted else self._with_pauses
