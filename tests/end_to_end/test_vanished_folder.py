"""A folder that is removed while a command works in it: one sentence, nothing half believed, and done the next time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from disks import Disk, halves
from tiny import SAMPLE, Affbench, tiny_config

from affbench.base import store
from affbench.base.workspace import Workspace
from affbench.data.sets import find_part
from affbench.run.folder import WEIGHTS, list_runs
from affbench.run.record import evaluate_run
from affbench.run.train import train

TRAIN = (
    *("train", "--train-set", SAMPLE, "--limit", "320", "--epochs", "4", "--batch-size", "32", "--device", "cpu"),
    *("-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8", "--precision", "float32"),
)

STOPPING = """
import os, signal
from affbench.cli import app, console

note = console.ConsoleProgress.note

def stopping(self, text):
    note(self, text)
    if "epoch 2/4" in text:
        os.kill(os.getpid(), signal.SIGSTOP)  # nothing is written while the folder goes

console.ConsoleProgress.note = stopping
app.main()
"""


@pytest.mark.parametrize("which", ["the run", "all results"])
def test_folder_removed_in_training(workspace: Workspace, tmp_path: Path, which: str) -> None:
    disk = Disk(tmp_path)
    shutil.copytree(workspace.data, tmp_path / "data", dirs_exist_ok=True)
    command = [sys.executable, "-m", "affbench", *TRAIN, *disk.folders]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *command[3:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    (run,) = list_runs(tmp_path / "results")
    shutil.rmtree(run.path if which == "the run" else tmp_path / "results")
    process.send_signal(signal.SIGCONT)
    stdout, rest = process.communicate()
    assert process.returncode == 1
    assert stdout == ""
    assert "Traceback" not in rest
    assert "bug" not in rest
    (said,) = [line for line in rest.splitlines() if "affbench: " in line]
    assert run.path.name in said
    assert "vanished meanwhile" in said
    assert "run the same command again" in said
    assert not [found for found in list_runs(tmp_path / "results") if found.finished]
    assert not halves(tmp_path)
    if which == "the run":
        return

    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert not json.loads(again.stdout)["cached"]
    (whole,) = list_runs(tmp_path / "results")
    assert [row.epoch for row in whole.history] == [1, 2, 3, 4]
    undisturbed = train(whole.config, workspace)
    assert store.file_hash(whole.path / WEIGHTS) == store.file_hash(undisturbed.path / WEIGHTS)


def test_run_removed_while_it_is_evaluated(
    affbench: Affbench, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from affbench.run import record as evaluation

    run = train(tiny_config(epochs=1), workspace)
    real = evaluation.evaluate

    def remove(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(run.path)
        return real(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", remove)
    ended = affbench("eval", "--set", SAMPLE, "--limit", "100", "--device", "cpu", "--quiet")
    assert ended.status == 1
    assert ended.stdout == ""
    (said,) = ended.stderr.splitlines()
    assert f"run {run.name} vanished from" in said
    assert "train it again" in said
    monkeypatch.undo()
    assert affbench("eval", "--set", SAMPLE, "--limit", "100", "--device", "cpu", "--quiet").status == 1
    assert affbench("eval", "--set", SAMPLE, "--limit", "100", "--run", run.name, "--quiet").status == 2


def test_results_removed_while_they_are_reported(
    affbench: Affbench, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from affbench.experiment import pipeline

    evaluate_run(train(tiny_config(epochs=1), workspace), find_part(SAMPLE, limit=100), workspace)
    real = pipeline.write_report

    def remove(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(workspace.results)
        return real(*arguments, **options)

    monkeypatch.setattr(pipeline, "write_report", remove)
    ended = affbench("report", "--quiet")
    assert ended.status == 1
    (said,) = ended.stderr.splitlines()
    assert said.startswith("affbench: ")
    assert "bug" not in said
