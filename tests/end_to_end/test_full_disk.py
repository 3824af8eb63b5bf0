"""A disk that is full: one sentence, nothing half believed, earlier results intact, and done once there is room.

The disk is a small file system of its own where the kernel lets a test mount one; on every machine, files that may
not grow.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import Disk, ShortFiles, contents, halves, mounted
from tiny import SAMPLE, tiny_config

from affbench.base.workspace import Workspace
from affbench.data.affnist import export_mat
from affbench.data.sets import find_part, load_dataset
from affbench.run.record import evaluate_run
from affbench.run.train import train

AFFINE = "affnist-synthetic-sample"
MODEL = ("-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8", "--device", "cpu")
TRAINING = ("--train-set", SAMPLE, "--limit", "64", "--batch-size", "32", "--precision", "float32", *MODEL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted sets, and results of earlier: a run and its evaluation."""
    folder = tmp_path_factory.mktemp("home")
    workspace = Workspace(folder / "data", folder / "results", "cpu")
    evaluate_run(train(tiny_config(epochs=1), workspace), find_part(AFFINE, copies=1, limit=200), workspace)
    load_dataset(SAMPLE, "test", folder / "data")
    (folder / "mirror").mkdir()
    export_mat(load_dataset(AFFINE, "test", folder / "data", copies=1), folder / "mirror" / "test.mat")
    return folder


@pytest.fixture(params=["small disk", "short files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Iterator[Disk]:
    """A disk that holds the results of earlier."""
    with mounted(tmp_path / "disk") as made:
        disk = made if made is not None and request.param == "small disk" else ShortFiles(tmp_path / "disk")
        for name in ("data", "results"):
            shutil.copytree(home / name, disk.seen / name)
        yield disk


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said, which must be one sentence and no more."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("affbench: ")
    return line


def refused(disk: Disk, *arguments: str, room: int) -> str:
    """Run a command that has not enough room, and look at what it says and leaves; the sentence."""
    before = contents(disk.seen)
    said = sentence(disk.run(*arguments, "--quiet", room=room))
    assert disk.complaint in said
    assert "choose another folder with --data-dir or --results-dir" in said
    assert not halves(disk.seen)
    assert before.items() <= contents(disk.seen).items()
    return said


def completed(disk: Disk, *arguments: str) -> Any:
    """Run a command to its end; its document."""
    done = disk.run(*arguments, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert not halves(disk.seen)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("copies", "unwritten"), [("2", "-2x-"), ("1", "affine.mat")], ids=["convert", "export"])
def test_set_that_does_not_fit(disk: Disk, copies: str, unwritten: str) -> None:
    target = disk.folder / "affine.mat"
    command = ("export", "--set", AFFINE, "--copies", copies, str(target))
    assert unwritten in refused(disk, *command, room=100_000)
    completed(disk, *command)
    assert (disk.seen / target.name).stat().st_size > 100_000


@pytest.mark.parametrize("disk", ["small disk"], indirect=True)
def test_training_that_cannot_save(disk: Disk) -> None:
    command = ("train", *TRAINING, "--epochs", "2", "--seed", "7", "--checkpoint-minutes", "0")
    assert "resume.pt" in refused(disk, *command, room=20_000)
    assert len(list((disk.seen / "results" / "runs").glob("*/manifest.json"))) == 1
    document = completed(disk, *command)
    assert not document["cached"]
    assert (disk.seen / "results" / "runs" / document["run"] / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("disk", "room"),
    [
        ("short files", 0),
        ("small disk", 4096),
    ],
    indirect=["disk"],
)
def test_evaluation_that_cannot_be_written(disk: Disk, room: int) -> None:
    command = ("eval", "--set", SAMPLE, "--device", "cpu")
    assert "predictions-" in refused(disk, *command, room=room)
    assert not list((disk.seen / "results").rglob(f"eval-{SAMPLE}.json"))
    assert completed(disk, *command)["n"] == 1000


@pytest.mark.parametrize("disk", ["small disk"], indirect=True)
def test_report_that_cannot_be_written(disk: Disk) -> None:
    earlier = disk.seen / Path(completed(disk, "report")["html"]).relative_to(disk.folder)
    assert "reports" in refused(disk, "report", room=20_000)
    assert "</html>" in earlier.read_text()
    shutil.rmtree(earlier.parent)
    assert "</html>" in (disk.seen / Path(completed(disk, "report")["html"]).relative_to(disk.folder)).read_text()


@pytest.mark.parametrize("disk", ["small disk"], indirect=True)
def test_files_that_cannot_be_fetched(disk: Disk, home: Path) -> None:
    command = ("fetch", "affnist", "--offline", "--mirror", str(home / "mirror"))
    refused(disk, *command, room=100_000)
    completed(disk, *command)
    assert list((disk.seen / "data").rglob("affnist-test*.h5"))


@pytest.mark.parametrize("disk", ["small disk"], indirect=True)
def test_sweep_says_it_of_its_cell_and_goes_on_later(disk: Disk) -> None:
    command = ("sweep", "--routings", "1", "--seeds", "1", "--sets", SAMPLE, "--epochs", "1", *TRAINING)
    assert "model.safetensors" in refused(disk, *command, room=20_000)
    assert [cell["error"] for cell in completed(disk, *command)["cells"]] == [None]


def test_file_system_that_is_read_only(tmp_path: Path, home: Path) -> None:
    with mounted(tmp_path / "disk") as disk:
        command = ("train", *TRAINING, "--epochs", "1", "--seed", "7")
        if disk is None:  # a file system that takes no files from anybody
            said = sentence(Disk(Path("/sys")).run(*command, "--quiet"))
            assert "choose another folder with --data-dir or --results-dir" in said
            return
        for name in ("data", "results"):
            shutil.copytree(home / name, disk.seen / name)
        disk.protect(on=True)
        said = sentence(disk.run(*command, "--quiet"))
        assert "it is read-only; choose another folder with --data-dir or --results-dir" in said
        disk.protect(on=False)
        assert not completed(disk, *command)["cached"]
