from __future__ import annotations

import os
from pathlib import Path

import pytest

from affbench.base import store
from affbench.base.config import ModelConfig, RunConfig
from affbench.base.errors import ArtefactError, UsageError
from affbench.run.folder import (
    Epoch,
    Run,
    find_run,
    history_from_csv,
    history_to_csv,
    list_runs,
    run_name,
    runs_dir,
)


def make(results: Path, name: str, age: int, *, finished: bool = True) -> Run:
    folder = runs_dir(results) / name
    folder.mkdir(parents=True)
    for file in ("config.toml", *(["manifest.json"] if finished else [])):
        store.write_text(folder / file, RunConfig().to_toml())
        os.utime(folder / file, (1e9 - age, 1e9 - age))
    return Run(folder)


def test_history_survives_the_way_through_csv(tmp_path: Path) -> None:
    rows = [Epoch(1, 10, 1e-3, 0.1 + 0.2, None, 0.5, 1.25, 99.0), Epoch(2, 20, 9e-4, 1 / 3, 0.75, 0.625, 1.0, 1e5)]
    store.write_text(tmp_path / "history.csv", history_to_csv(rows))
    assert history_from_csv(tmp_path / "history.csv") == rows


def test_damaged_history_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("epoch,step\n1,many\n")
    with pytest.raises(ArtefactError, match=r"history.csv cannot be read as a training history"):
        history_from_csv(tmp_path / "history.csv")


def test_names_are_readable_and_safe() -> None:
    model = ModelConfig(name="my.package:make/it")
    assert run_name(model, "seed4", "0123456789") == "my.package-make-it-seed4-01234567"
    model = ModelConfig(options={"routings": 3})
    assert run_name(model, "elsewhere", "0123456789") == "capsnet-r3-elsewhere-01234567"


def test_latest_finished_run_is_the_default(tmp_path: Path) -> None:
    make(tmp_path, "old", age=100)
    make(tmp_path, "new", age=1)
    make(tmp_path, "unfinished", age=0, finished=False)
    assert find_run(tmp_path).name == "new"
    assert [run.name for run in list_runs(tmp_path)] == ["old", "new", "unfinished"]


def test_run_is_found_by_the_beginning_of_its_name(tmp_path: Path) -> None:
    for name in ("capsnet-r3-seed0-aaaa", "capsnet-r3-seed1-bbbb", "cnn-seed0-cccc"):
        make(tmp_path, name, age=1)
    assert find_run(tmp_path, "cnn").name == "cnn-seed0-cccc"
    with pytest.raises(UsageError, match=r"--run capsnet could mean capsnet-r3-seed0-aaaa, capsnet-r3-seed1-bbbb"):
        find_run(tmp_path, "capsnet")
    with pytest.raises(UsageError, match=r"no finished run 'cnn-seed0-ccc0' .* did you mean 'cnn-seed0-cccc'\?"):
        find_run(tmp_path, "cnn-seed0-ccc0")


def test_no_run_at_all_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no finished run .* 'affbench train' makes one"):
        find_run(tmp_path)
