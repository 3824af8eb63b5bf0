"""What the scripts for a GPU do around the work, with a stand-in for Python that does none of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPEED = {
    "batch_size": 128,
    "train_images_per_second": 1000.0,
    "eval_images_per_second": 3000.0,
    "step_over_floor": {"median": 1.5},
    "textbook_over_step": None,  # there was no room for it
    "routing_10_over_1": {"median": 1.25},
    "peak_memory_bytes": 2**31,
}


def run(script: str, tmp_path: Path, cases: str, **environment: str) -> subprocess.CompletedProcess[str]:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f'#!/bin/bash\necho "$@" | head -1 >> {tmp_path}/calls\ncase "$*" in\n{cases}\n*) exit 9;;\nesac\n'
    )
    stand_in.chmod(0o755)
    return subprocess.run(
        [str(BENCHMARKS / script), str(tmp_path / "out")],
        env=os.environ | {"PYTHON": str(stand_in)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_table_stands_though_training_and_evaluation_fail(tmp_path: Path) -> None:
    speed = tmp_path / "speed.json"
    speed.write_text(json.dumps(SPEED))
    cases = (
        f'"- "*) exec {sys.executable} "$@";;\n*is_available*) ;;\n'
        f"*batch-size\\ 128*) cat {speed};;\n*batch-size*--repeats*) echo half a docum;;\n*train*) exit 124;;"
    )
    done = run("gpu.sh", tmp_path, cases)
    assert done.returncode == 0, done.stderr
    assert "train.json ended with status 124, out of time, see train.log" in done.stdout
    assert "eval.json ended with status 9, see eval.log" in done.stdout
    assert "   128        1,000        3,000        1.50              -    1.25   2.00" in done.stdout.splitlines()


def test_parts_for_which_no_time_is_left_are_left_out(tmp_path: Path) -> None:
    cases = f'"- "*) exec {sys.executable} "$@";;\n*is_available*) ;;'
    done = run("gpu.sh", tmp_path, cases, SECONDS_A_CALL="0")
    assert done.returncode == 0, done.stderr
    assert "bench-128.json was left out: no time is left of 0 seconds" in done.stdout


@pytest.mark.parametrize(("seconds", "started"), [("570", ["paper", "routing-sweep", "models", "ablation"]), ("0", [])])
def test_study_begins_with_the_paper_and_says_what_is_left(tmp_path: Path, seconds: str, started: list[str]) -> None:
    done = run("study.sh", tmp_path, '*run*paper*) exit 130;;\n"- "*) ;;\n*run*) ;;', SECONDS_A_CALL=seconds)
    calls = (tmp_path / "calls").read_text()
    begun = [line.split("pipelines/")[1].split(".")[0] for line in calls.splitlines() if "pipelines/" in line]
    assert begun == started
    assert done.returncode == 3
    left = "paper" if started else "paper routing-sweep models ablation"
    assert f"not finished: {left}; call this again" in done.stdout
