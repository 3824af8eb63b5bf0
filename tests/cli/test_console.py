from __future__ import annotations

import io
import re
import threading

import pytest
from rich.console import Console

from affbench.cli import console
from affbench.cli.console import ConsoleProgress


class Log(io.StringIO):
    """A log that says when something has been written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.told.set()
        return written


def test_a_log_without_bars_is_told_how_far_work_has_come_whatever_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "SILENCE", 0.01)
    log = Log()
    progress = ConsoleProgress(Console(file=log, width=120))
    with progress.task("runs", 4, "runs") as runs:
        runs.skip(1)
        with progress.task("epoch 1/2", 2_000, "images") as task:
            task.advance(1_000, "loss 0.25")
            progress.share(0.5)
            log.told.clear()
            assert log.told.wait(60)
    line = log.getvalue().splitlines()[-1]
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  epoch 1/2: 1,000 of 2,000 images, [\d,]+ images/s, loss 0.25, \d:\d\d:\d\d left; "
        r"runs: 1 of 4 runs, \d:\d\d:\d\d left",
        line,
    )


def test_the_time_left_of_several_runs_counts_the_part_of_one_and_not_those_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    progress = ConsoleProgress(Console(file=io.StringIO(), width=120))
    with progress.task("runs", 12, "runs") as runs:
        runs.skip(2)
        assert "left" not in str(runs)
        clock[0] = 600.0
        progress.share(0.5)  # of the first of ten: twenty times as long in all
        assert str(runs) == "runs: 2 of 12 runs, 3:10:00 left"
        clock[0] = 1_000.0
        runs.advance(1)
        assert str(runs) == "runs: 3 of 12 runs, 2:30:00 left"


@pytest.mark.parametrize("width", [40, 80])
def test_bars_keep_to_one_line_each(width: int) -> None:
    screen = io.StringIO()
    progress = ConsoleProgress(Console(file=screen, width=width, force_terminal=True, color_system=None))
    with (
        progress.task("runs", 12, "runs") as runs,
        progress.task("evaluate affnist-synthetic-sample@only=rotation", 200, "images") as task,
    ):
        runs.advance(3)
        task.advance(100, "loss 0.1234, accuracy 97.25%, run ends in 1:23:45, and more than any line can hold")
        progress._bars.refresh()
    frame = re.sub(r"\x1b\[[\d?;]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, frame)) <= width
    assert any(line.startswith("runs 3/12 ") and "25%" in line and " left" in line for line in frame)
    assert any(line.startswith("evaluate ") and "50%" in line for line in frame)
