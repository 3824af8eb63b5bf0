from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import SAMPLE

from affbench.distributed import Ranks
from affbench.errors import UsageError
from affbench.runs import RESUME, Run, list_runs
from affbench.workspace import Workspace

# A CapsNet has no dropout. 100 digits in batches of 33: parts of 16 and 17, and a last batch of one image.
TRAIN = (
    *("train", "--train-set", SAMPLE, "--limit", "100", "--epochs", "3", "--batch-size", "33", "--device", "cpu"),
    *("--model", "tiny:laid_out_otherwise"),
    *("-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8", "--precision", "float32"),
)


def command(workspace: Workspace, results: Path, processes: int, *options: str) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(torchrun if processes > 1 else []), "-m", "affbench"]
    return [*start, *TRAIN, *options, "--data-dir", str(workspace.data), "--results-dir", str(results)]


@pytest.fixture(autouse=True)
def _models_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


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


def test_two_processes_follow_the_curve_of_one(workspace: Workspace, tmp_path: Path) -> None:
    subprocess.run(command(workspace, tmp_path / "one", 1), check=True, capture_output=True)
    done = subprocess.run(command(workspace, tmp_path / "two", 2, "--json"), check=True, capture_output=True, text=True)
    document = json.loads(done.stdout)  # one document, from the first process
    run = only_run(tmp_path / "two")
    assert document["run"] == run.name
    assert done.stderr.count("validation accuracy") == 4  # three epochs and the summary, each said once
    assert run.environment["processes"] == 2
    assert_follows(run, only_run(tmp_path / "one"))


def test_dead_process_ends_the_job_and_another_number_goes_on(workspace: Workspace, tmp_path: Path) -> None:
    many = ("--epochs", "12", "--limit", "400", "--checkpoint-minutes", "0")
    subprocess.run(command(workspace, tmp_path / "one", 1, *many), check=True, capture_output=True)
    process = subprocess.Popen(
        command(workspace, tmp_path / "two", 2, *many), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "epoch 3/12" in line:
            os.kill(second_of(process.pid), signal.SIGKILL)
            break
    said += process.stderr.readlines()
    process.stderr.close()
    assert process.wait(60) != 0
    message = " ".join("".join(said).split())
    assert re.search(r"process 0 of 2 lost the others: one of them died", message)
    assert "the same command goes on from the last checkpoint, with any number of processes" in message
    unfinished = only_run(tmp_path / "two")
    assert not unfinished.finished
    assert (unfinished.path / RESUME).is_file()
    resumed = subprocess.run(
        [*command(workspace, tmp_path / "two", 1, *many)], check=True, capture_output=True, text=True
    )
    assert re.search(r"going on after epoch \d", resumed.stderr)
    assert_follows(only_run(tmp_path / "two"), only_run(tmp_path / "one"))


def second_of(parent: int) -> int:
    """The process of torchrun whose rank is 1."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    status, environment = (folder / "status").read_text(), (folder / "environ").read_bytes()
                except OSError:
                    continue
                if f"PPid:\t{parent}\n" in status and b"\0RANK=1\0" in environment:
                    return int(folder.name)
    raise AssertionError("there is no second process")


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
