"""How long work tells what it is doing, without knowing who listens."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class Task:
    """One piece of work that is under way; this one says nothing."""

    def advance(self, amount: float, text: str = "") -> None:
        """Report that `amount` more units are done; `text` replaces the remark beside the bar."""

    def skip(self, amount: float) -> None:
        """Report that `amount` units were done before, and say nothing about how fast the others are."""


class Progress:
    """Receives progress and notes; this one is silent, and what library calls use unless told otherwise."""

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """Announce work of `total` units (None when unknown), counted in such as ``"bytes"`` or ``"images"``."""
        yield Task()

    def note(self, text: str) -> None:
        """One line worth keeping."""

    def share(self, done: float) -> None:
        """How much of the run that is trained is done, 0 to 1."""

    def saved(self, path: Path) -> None:
        """What an interrupted run needs to go on has been written."""
