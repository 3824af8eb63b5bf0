from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from affbench.cli import console
from affbench.cli.console import ConsoleProgress


def test_a_log_without_bars_is_told_how_far_work_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    progress = ConsoleProgress(Console(file=log, width=120))
    with progress.task("train", 200, "images") as task:
        task.advance(50)
        assert log.getvalue() == ""  # not every step
        monkeypatch.setattr(console, "SILENCE", 0.0)
        task.advance(50, "loss 0.25")
    with progress.task("convert", None) as task:
        task.advance(1)
    first, second = log.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  train: 50%, [\d,]+ images/s, loss 0.25, \d:\d\d:\d\d left", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  convert: ?", second)


def test_a_terminal_has_bars_and_no_such_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SILENCE", 0.0)
    screen = io.StringIO()
    progress = ConsoleProgress(Console(file=screen, width=80, force_terminal=True))
    with progress.task("train", 200, "images") as task:
        task.advance(100)
    assert " left" not in screen.getvalue()
    assert "train" in screen.getvalue()
