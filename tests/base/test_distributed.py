from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import SAMPLE, Affbench

from affbench.base.distributed import Ranks
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.run.folder import RESUME, Run, list_runs

# A CapsNet has no dropout. 100 digits in batches of 33: parts of 16 and 17, and a last batch of one image.
TRAIN = (
    *("train", "--train-set", SAMPLE, "--limit", "100", "--epochs", "3", "--batch-size", "33", "--device", "cpu"),
    *("--model", "tiny:laid_out_otherwise"),
    *("-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8", "--precision", "float32"),
)


DYING = """
import os, signal
from affbench.cli import app, console

note = console.ConsoleProgress.note

def dying(self, text):
    note(self, text)
    if os.environ["RANK"] == "1" and "epoch 1/3" in text:
        os.kill(os.getpid(), signal.SIGKILL)

console.ConsoleProgress.note = dying
app.main()
"""


def command(
    workspace: Workspace, results: Path, *options: str, program: tuple[str, ...] = ("-m", "affbench")
) -> list[str]:
    """Two processes that train."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*torchrun, *program, *TRAIN, *options, "--data-dir", str(workspace.data), "--results-dir", str(results)]


@pytest.fixture(autouse=True)
def _models_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )


def only_run(results: Path) -> Run:
    (run,) = list_runs(results)
    return run


def assert_follows(run: Run, single: Run) -> None:
    """The same curve and weights, up to what adding in another order changes in float32."""
    assert run.name == single.name
    for row, expected in zip(run.history, single.history, strict=True):
        assert (row.epoch, row.step) == (expected.epoch, expected.step)
        assert row.train_loss == pytest.approx(expected.train_loss, rel=2e-5)
        assert row.train_accuracy == pytest.approx(expected.train_accuracy, abs=0.011)
        assert row.validation_accuracy == pytest.approx(expected.validation_accuracy, abs=0.003)
    found, wanted = (load_file(each.path / "model.safetensors") for each in (run, single))
    for name, tensor in found.items():
        # Adam divides by the size of the gradient, which makes much of rounding where a gradient is almost zero.
        assert (tensor - wanted[name]).abs().mean() < 1e-4, name


@pytest.fixture
def single(affbench: Affbench, tmp_path: Path) -> Run:
    """The run of one process."""
    assert affbench(*TRAIN, results_dir=tmp_path / "one").status == 0
    return only_run(tmp_path / "one")


def test_two_processes_follow_the_curve_of_one(workspace: Workspace, tmp_path: Path, single: Run) -> None:
    done = subprocess.run(command(workspace, tmp_path / "two", "--json"), check=True, capture_output=True, text=True)
    document = json.loads(done.stdout)  # one document, from the first process
    run = only_run(tmp_path / "two")
    assert document["run"] == run.name
    assert done.stderr.count("validation accuracy") == 3  # of every epoch, said once
    assert run.environment.processes == 2
    assert_follows(run, single)


def test_dead_process_ends_the_job_and_another_number_goes_on(
    workspace: Workspace, tmp_path: Path, single: Run, affbench: Affbench
) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    done = subprocess.run(
        command(workspace, tmp_path / "two", "--checkpoint-minutes", "0", program=(str(tmp_path / "dying.py"),)),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert re.search(r"process 0 of 2 lost the others: one of them died", message)
    assert "the same command goes on from the last checkpoint, with any number of processes" in message
    unfinished = only_run(tmp_path / "two")
    assert not unfinished.finished
    assert (unfinished.path / RESUME).is_file()
    resumed = affbench(*TRAIN, results_dir=tmp_path / "two")
    assert re.search(r"going on after epoch [12]", resumed.stderr)
    assert_follows(only_run(tmp_path / "two"), single)


def test_parts_of_a_batch_are_the_batch() -> None:
    for size in (1, 2, 3, 8):
        for count in (1, 7, 32, 100):
            parts = [np.arange(count)[Ranks(rank, size).share(count)] for rank in range(size)]
            assert np.array_equal(np.concatenate(parts), np.arange(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_every_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Ranks(3, 4, 1).device("auto") == "cuda:1"
    assert Ranks(3, 4, 1).device("cpu") == "cpu"
    assert Ranks().device("cuda:5") == "cuda:5"
    with pytest.raises(UsageError, match="--device cuda:1 does not go with torchrun"):
        Ranks(3, 4, 1).device("cuda:1")


def test_other_commands_are_not_for_torchrun(workspace: Workspace) -> None:
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    done = subprocess.run(
        [sys.executable, "-m", "affbench", "status"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "torchrun starts 'affbench train' on several devices, not 'status'" in " ".join(done.stderr.split())
