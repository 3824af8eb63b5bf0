from __future__ import annotations

import errno
import importlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file
from tiny import SAMPLE, TINY_CAPSNET, tiny_config

from affbench.base import store
from affbench.base.config import RunConfig, TrainingConfig, override
from affbench.base.errors import AffbenchError, ArtefactError, StorageError, UsageError
from affbench.base.interrupt import Interrupted
from affbench.base.progress import Progress, Task
from affbench.base.workspace import Workspace
from affbench.models.capsnet import CapsNet
from affbench.run import train as training
from affbench.run.folder import RESUME, WEIGHTS, Run, clear, list_runs
from affbench.run.plan import plan_run
from affbench.run.resume import pack
from affbench.run.step import Step
from affbench.run.stopping import Course
from affbench.run.train import _Training, train


def weights(run: Run) -> dict[str, torch.Tensor]:
    # cloned, because the tensors of load_file are the file itself
    return {name: tensor.clone() for name, tensor in load_file(run.path / WEIGHTS).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_run_folder_holds_what_is_documented(workspace: Workspace) -> None:
    run = train(tiny_config(), workspace)
    assert {path.name for path in run.path.iterdir()} == {
        *("config.toml", "history.csv", "model.safetensors", "environment.json", "manifest.json")
    }
    assert run.name.startswith("capsnet-r3-seed0-")
    assert run.config.model.options["primary_dim"] == 8
    assert run.config.data.shift == 6
    assert [row.epoch for row in run.history] == [1, 2]
    assert [row.step for row in run.history] == [3, 6]
    assert run.environment.parameters == sum(tensor.numel() for tensor in weights(run).values())


def test_key_holds_the_precision_and_the_code_that_computes(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_run(tiny_config(precision="auto"), workspace)
    assert plan.config.training.precision in ("float32", "bfloat16")
    assert plan_run(tiny_config(precision=plan.config.training.precision), workspace).key == plan.key
    assert plan_run(plan.config, workspace).key == plan.key
    monkeypatch.setattr("affbench.run.plan.resolve_precision", lambda *_: "float64")
    with pytest.raises(UsageError, match="precision = 'float64'"):
        plan_run(tiny_config(precision="auto"), workspace)
    monkeypatch.setattr("affbench.run.plan.model_code", lambda name: f"other code of {name}")
    assert plan_run(plan.config, workspace).key != plan.key


def test_same_seed_gives_the_same_weights_and_another_seed_others(workspace: Workspace, tmp_path: Path) -> None:
    first = train(tiny_config(), workspace)
    again = train(tiny_config(), Workspace(workspace.data, tmp_path / "again", "cpu"))
    other = train(tiny_config(seed=1), workspace)
    assert first.name == again.name != other.name
    assert same(weights(first), weights(again))
    assert [row.train_loss for row in first.history] == [row.train_loss for row in again.history]
    assert not same(weights(first), weights(other))


def test_same_weights_are_the_same_bytes() -> None:
    content = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    (packed,) = {pack(content, "capsnet") for _ in range(20)}
    assert same(load(packed), content)


def test_training_lowers_the_loss_and_learns(workspace: Workspace) -> None:
    config = tiny_config(epochs=6)
    config = override(config, data={"train_set": "mnist-padded-sample", "limit": 640})
    history = train(config, workspace).history
    assert history[-1].train_loss < 0.8 * history[0].train_loss
    assert max(row.validation_accuracy for row in history) > 0.25


def test_checkpoint_is_that_of_the_first_best_epoch(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []
    shares = iter([0.2, 0.6, 0.6, 0.1])

    def predict(model: torch.nn.Module, dataset: Any, **_: Any) -> tuple[Any, None]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        right = np.arange(len(dataset)) < round(next(shares) * len(dataset))
        return np.where(right, dataset.labels, (dataset.labels + 1) % 10), None

    monkeypatch.setattr(training, "predict", predict)
    run = train(tiny_config(epochs=4), workspace)
    assert [row.validation_accuracy for row in run.history] == [0.2, 0.6, 0.6, 0.1]
    assert run.selected.epoch == 2
    assert same(weights(run), states[1])
    assert not same(weights(run), states[2])


def test_finished_run_is_not_trained_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tiny_config(), workspace)
    monkeypatch.setattr(training, "_Training", None)
    assert train(tiny_config(), workspace).path == run.path


def test_key_follows_what_matters_and_nothing_else(workspace: Workspace) -> None:
    base = plan_run(tiny_config(), workspace)
    device = Workspace(workspace.data, workspace.results, "cuda", Progress())
    assert plan_run(tiny_config(), device).key == base.key
    explicit = {"name": "capsnet", "options": TINY_CAPSNET | {"routings": 3, "primary_dim": 8}}
    assert plan_run(override(tiny_config(), model=explicit), workspace).key == base.key
    changes: list[dict[str, Any]] = [
        {"training": {"epochs": 3, "batch_size": 32, "precision": "float32"}},
        {"training": {"epochs": 2, "batch_size": 32, "precision": "bfloat16"}},
        {"data": {"train_set": SAMPLE, "limit": 97}},
        {"data": {"train_set": SAMPLE, "limit": 96, "shift": 2}},
        {"data": {"train_set": "mnist-padded-sample", "limit": 96}},
        {"model": {"name": "capsnet", "options": TINY_CAPSNET | {"routings": 1}}},
    ]
    keys = {plan_run(override(tiny_config(), **change), workspace).key for change in changes}
    assert len(keys | {base.key}) == len(changes) + 1


def test_changed_source_of_a_model_of_ones_own_makes_another_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "own_model_of_a_test.py"
    source.write_text(
        "from affbench.models.cnn import CNN\ndef make(canvas): return CNN(canvas=canvas, filters=(2, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = override(tiny_config(), model={"name": "own_model_of_a_test:make"})
    first = plan_run(config, workspace)
    source.write_text(source.read_text().replace("(2, 2)", "(2, 3)"))
    assert plan_run(config, workspace).key == first.key  # what runs is what was imported
    importlib.reload(sys.modules["own_model_of_a_test"])
    assert plan_run(config, workspace).key != first.key
    assert first.folder.name.startswith("own_model_of_a_test-make-seed0-")


def test_a_default_that_no_file_can_hold_stays_with_the_factory(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "default_model_of_a_test.py").write_text(
        "from torch import nn\ndef make(act=nn.ReLU, width=3, name='x', sizes=(1, object)): return nn.Linear(3, 10)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = override(tiny_config(), model={"name": "default_model_of_a_test:make"})
    assert plan_run(config, workspace).config.model.options == {"width": 3, "name": "x"}
    for options, words in (({"act": int}, "is <class 'int'>, which config.toml cannot"), ({"canvas": 3}, "the set")):
        with pytest.raises(UsageError, match=f"of model 'default_model_of_a_test:make' cannot be given: .*{words}"):
            plan_run(override(config, model=config.model.model_dump() | {"options": options}), workspace)


class StopsAt(Progress, Task):
    """Sends this process a signal once so many images have been trained on."""

    def __init__(self, images: int, number: int) -> None:
        self.left, self.number = float(images), number

    def task(self, title: str, total: float | None, unit: str = "") -> Any:
        outer = super().task(title, total, unit)
        if not title.startswith("epoch"):
            return outer
        return _Context(self)

    def advance(self, amount: float, text: str = "") -> None:
        self.left -= amount
        if self.left <= 0 and self.number:
            number, self.number = self.number, 0
            os.kill(os.getpid(), number)


class _Context:
    def __init__(self, task: Task) -> None:
        self._task = task

    def __enter__(self) -> Task:
        return self._task

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("images", "number"), [(40, signal.SIGINT), (100, signal.SIGTERM), (170, signal.SIGINT)])
def test_interrupted_run_goes_on_to_the_same_weights(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, number: int
) -> None:
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    config = override(tiny_config(), model={"name": "cnn", "options": {"filters": [4, 4], "hidden": 8}})  # has dropout
    whole = train(config, Workspace(workspace.data, tmp_path / "whole", "cpu"))
    with pytest.raises(Interrupted, match=r"stopped in epoch \d of .*; what was done is saved"):
        train(config, Workspace(workspace.data, workspace.results, "cpu", StopsAt(images, number)))
    (unfinished,) = list_runs(workspace.results)
    assert not unfinished.finished
    assert (unfinished.path / RESUME).is_file()
    resumed = train(config, workspace)
    assert same(weights(resumed), weights(whole))
    assert [row.train_loss for row in resumed.history] == [row.train_loss for row in whole.history]
    assert not (resumed.path / RESUME).exists()


class Saves(Progress):
    """How often was saved, and the notes."""

    def __init__(self) -> None:
        self.count, self.notes = 0, ""

    def saved(self, path: Path) -> None:
        self.count += 1

    def note(self, text: str) -> None:
        self.notes += text + "\n"


def test_saves_go_by_time_and_not_by_epoch(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save of a full-size network takes as long as its epoch on a fast GPU."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 1e-6 * next(ticks), monotonic=lambda: next(ticks), time=time.time)
    monkeypatch.setattr(training, "time", clock)  # a slow step would be a reason to look at the loss, and to save
    seldom, often = Saves(), Saves()
    train(tiny_config(epochs=3), replace(workspace, progress=seldom))
    assert seldom.count == 0  # in less than a minute
    train(tiny_config(epochs=3), Workspace(workspace.data, tmp_path / "often", "cpu", often, checkpoint_seconds=0.0))
    assert often.count == 2  # after the first two; the third is the end


def test_saved_epochs_survive_a_kill(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tiny_config(epochs=3), Workspace(workspace.data, tmp_path / "whole", "cpu"))
    steps = Step.__call__
    count = iter(range(100))

    def dies(self: Any, *batch: Any) -> None:
        if next(count) == 7:
            raise SystemExit("as if killed")
        steps(self, *batch)

    monkeypatch.setattr(Step, "__call__", dies)
    with pytest.raises(SystemExit):
        train(tiny_config(epochs=3), replace(workspace, checkpoint_seconds=0.0))
    monkeypatch.setattr(Step, "__call__", steps)
    listener = Saves()
    run = train(tiny_config(epochs=3), replace(workspace, progress=listener))
    assert same(weights(run), weights(whole))
    assert "going on after epoch 2" in listener.notes


def test_save_within_an_epoch_survives_a_kill(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(tiny_config(), model={"name": "cnn", "options": {"filters": [4, 4], "hidden": 8}})  # has dropout
    whole = train(config, Workspace(workspace.data, tmp_path / "whole", "cpu"))
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    step = Step.__call__
    count = iter(range(100))

    def dies(self: Any, *batch: Any) -> None:
        if next(count) == 5:
            raise SystemExit("as if killed")
        step(self, *batch)

    monkeypatch.setattr(Step, "__call__", dies)
    with pytest.raises(SystemExit):
        train(config, replace(workspace, checkpoint_seconds=0.0))
    monkeypatch.setattr(Step, "__call__", step)
    listener = Saves()
    run = train(config, replace(workspace, progress=listener))
    assert "going on after epoch 1, at batch 2" in listener.notes
    assert same(weights(run), weights(whole))


def test_lock_of_a_dead_process_is_taken_over(workspace: Workspace) -> None:
    folder = plan_run(tiny_config(epochs=1), workspace).folder
    code = "import pathlib, sys, time\nfrom affbench.base import store\n"
    code += "with store.lock(pathlib.Path(sys.argv[1])):\n  print('held', flush=True)\n  time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StorageError, match="is being written by another process"), store.lock(folder, timeout=0):
        pass
    process.kill()
    process.communicate()
    assert train(tiny_config(epochs=1), workspace).finished


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_file_system_without_locks_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    plan = plan_run(tiny_config(), workspace)

    def refuses(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuses)
    with pytest.raises(StorageError, match=r"file system (has no|without) locks; choose another folder"):
        train(tiny_config(), workspace)
    assert not plan.folder.exists()


def test_damaged_resume_file_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_run(tiny_config(), workspace)
    plan.folder.mkdir(parents=True)
    (plan.folder / RESUME).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ArtefactError, match=r"resume.pt is damaged .*; delete it, or use --force"):
        train(tiny_config(), workspace)
    clear(plan.folder)
    assert train(tiny_config(), workspace).finished


def test_damaged_finished_run_is_said_and_force_trains_it_again(workspace: Workspace) -> None:
    run = train(tiny_config(), workspace)
    before = weights(run)
    content = (run.path / WEIGHTS).read_bytes()
    (run.path / WEIGHTS).write_bytes(content[:-10])
    with pytest.raises(ArtefactError, match=r"model.safetensors is damaged.*--force"):
        train(tiny_config(), workspace)
    clear(run.path)
    assert same(weights(train(tiny_config(), workspace)), before)


@pytest.mark.parametrize("damage", ["half", "later", "other"])
def test_finished_run_whose_manifest_is_not_understood_is_left_as_it_is(workspace: Workspace, damage: str) -> None:
    run = train(tiny_config(), workspace)
    manifest, notes = run.path / store.MANIFEST, run.path / "notes.txt"
    notes.write_text("mine")
    content = json.loads(manifest.read_text())
    manifest.write_text(
        {"half": "{", "later": json.dumps(content | {"field": 1}), "other": json.dumps(content | {"key": "0" * 64})}[
            damage
        ]
    )
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(ArtefactError, match=r"The run is left as it is; --force trains it again"):
        train(tiny_config(), workspace)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    clear(run.path)
    train(tiny_config(), workspace)
    assert json.loads(manifest.read_text())["key"] == content["key"]
    assert notes.read_text() == "mine"


def test_diverging_training_is_one_clear_error(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def exploding(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Any:
        scores = model(images)
        return scores.sum() * float("nan"), scores

    monkeypatch.setattr("affbench.run.step.loss_and_scores", exploding)
    with pytest.raises(AffbenchError, match=r"the training loss of capsnet-.* is nan in epoch 1: try a smaller"):
        train(tiny_config(), workspace)
    assert not [run for run in list_runs(workspace.results) if run.finished]


def test_two_threads_train_a_run_once(workspace: Workspace) -> None:
    made: list[float] = []

    def go() -> None:
        run = train(tiny_config(), workspace)
        made.append((run.path / WEIGHTS).stat().st_mtime_ns)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]


def test_tensorboard_logs_are_written_on_request(workspace: Workspace) -> None:
    run = train(tiny_config(), workspace, tensorboard=True)
    assert list((run.path / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("schedule", "step", "batches", "expected"),
    [
        ("paper", 0, 500, 1e-3),
        ("paper", 2000, 500, 0.96e-3),
        ("paper", 1000, 500, 1e-3 * 0.96**0.5),
        ("paper", 10**6, 1000, 1e-6),
        ("keras", 999, 1000, 1e-3),
        ("keras", 15, 5, 1e-3 * 0.9**3),
        ("constant", 9999, 100, 1e-3),
        ("linear", 0, 10, 1e-3 / 30),  # 30 epochs of 10 batches: 300 steps, 30 of them to warm up
        ("linear", 29, 10, 1e-3),
        ("linear", 30, 10, 1e-3),
        ("linear", 165, 10, 0.5e-3),
        ("linear", 299, 10, 1e-3 / 270),
        ("cosine", 14, 10, 0.5e-3),
        ("cosine", 165, 10, 0.5e-3),
        ("cosine", 255, 10, 1e-3 * (0.5 - 0.5 * math.cos(math.pi / 6))),
        ("linear", 0, 1, 1e-3 / 3),
    ],
)
def test_schedules_are_the_published_ones(schedule: Any, step: int, batches: int, expected: float) -> None:
    course = Course(TrainingConfig(schedule=schedule), batches)
    assert course.learning_rate(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": {"name": "capsnat"}}, r"unknown model 'capsnat': did you mean 'capsnet'\?"),
        ({"model": {"name": "capsnet", "options": {"filter": 3}}}, r"has no option 'filter': did you mean 'filters'\?"),
        ({"model": {"name": "capsnet", "options": {"routings": 0}}}, "routings must be a whole number of at least 1"),
        ({"data": {"train_set": "mnist-translatd"}}, r"did you mean 'mnist-translated'\?"),
        ({"data": {"train_set": "homnist"}}, "has no training split"),
        ({"data": {"train_set": "affnist-synthetic-sample", "shift": 2}}, "does not go with"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    workspace: Workspace, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        train(override(tiny_config(), **change), workspace)
    assert not workspace.results.exists()


def test_affine_sets_can_be_trained_on_as_an_upper_bound(workspace: Workspace) -> None:
    config = override(
        tiny_config(), data={"train_set": "affnist-synthetic-sample", "limit": 64, "validation_limit": 9999}
    )
    run = train(config, workspace)
    assert run.config.data.shift == 0
    assert run.environment.selected_by.endswith("n = 1,000")  # one version of each validation digit


def test_original_size_is_trained_on_28_pixels(workspace: Workspace) -> None:
    config = RunConfig.model_validate(tiny_config().model_dump() | {"data": {"train_set": "mnist-sample", "limit": 64}})
    run = train(override(config, data={"train_set": "mnist-sample", "limit": 64, "shift": 2}), workspace)
    assert weights(run)["digits.weight"].numel() == 6 * 6 * 2 * 10 * 16 * 8


def test_manifest_names_the_inputs(workspace: Workspace) -> None:
    manifest = store.read_manifest(train(tiny_config(), workspace).path)
    assert manifest is not None
    assert manifest.inputs["config"]["training"]["batch_size"] == 32
    assert len(manifest.inputs["train"]) == len(manifest.inputs["validation"]) == 64


def test_several_validations_an_epoch_do_not_change_the_training(workspace: Workspace) -> None:
    whole = train(tiny_config(), workspace)
    parts = train(tiny_config(validations=3), workspace)
    assert [row.epoch for row in parts.history] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert [row.step for row in parts.history] == [1, 2, 3, 4, 5, 6]
    assert parts.history[-1].validation_accuracy == whole.history[-1].validation_accuracy
    mean = sum(row.train_loss for row in parts.history[:3]) / 3
    assert mean == pytest.approx(whole.history[0].train_loss, rel=1e-6)


def test_training_stops_at_the_first_validation_that_reaches_the_target(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.5, 0.8, 0.96, 0.99])

    def predict(model: torch.nn.Module, dataset: Any, **_: Any) -> tuple[Any, None]:
        right = np.arange(len(dataset)) < round(next(shares) * len(dataset))
        return np.where(right, dataset.labels, (dataset.labels + 1) % 10), None

    monkeypatch.setattr(training, "predict", predict)
    run = train(tiny_config(stop_at=0.92, validations=2), workspace)
    assert [row.validation_accuracy for row in run.history] == [0.5, 0.8, 0.96]
    assert run.selected.epoch == 1.5
    assert run.environment.stop_at_reached_epoch == pytest.approx(1 + 0.5 * (0.92 - 0.8) / (0.96 - 0.8))


class DrawsEverywhere(torch.nn.Module):
    """Draws its first weights and, while it is trained, noise from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        first = random.gauss(0, 0.1) + np.random.rand(1600, 10) / 100  # noqa: NPY002
        self.weight = torch.nn.Parameter(torch.tensor(first, dtype=torch.float32) + torch.rand(10) / 100)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = images.flatten(1) @ self.weight
        if self.training:
            scores = scores + random.gauss(0, 1) + np.random.randn() + torch.randn(1)  # noqa: NPY002
            scores = scores * torch.tensor(random.sample(range(10), 10))
        return scores


@pytest.mark.parametrize("interrupted", [False, True])
def test_every_generator_is_seeded_and_goes_on_where_it_was(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    config = override(tiny_config(), model={"name": f"{__name__}:DrawsEverywhere"})
    whole = train(config, Workspace(workspace.data, tmp_path / "whole", "cpu"))
    random.seed(os.urandom(8))
    np.random.seed(None)  # noqa: NPY002
    if interrupted:
        with pytest.raises(Interrupted):
            train(config, Workspace(workspace.data, workspace.results, "cpu", StopsAt(140, signal.SIGINT)))
        random.gauss(0, 1)
        np.random.rand()  # noqa: NPY002
    assert same(weights(train(config, workspace)), weights(whole))


def test_part_that_a_factory_froze_stays_frozen(workspace: Workspace) -> None:
    run = train(override(tiny_config(epochs=1), model={"name": f"{__name__}:frozen"}), workspace)
    assert weights(run)["0.running_mean"].item() == 0
    assert weights(run)["1.running_mean"].item() != 0


def frozen() -> torch.nn.Module:
    layers = (torch.nn.BatchNorm2d(1).eval(), torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(1600, 10))
    return torch.nn.Sequential(*layers)


def test_more_validations_than_batches_are_refused(workspace: Workspace) -> None:
    assert plan_run(tiny_config(validations=3), workspace)
    sentence = "validations = 4, but an epoch of 96 images has only 3 batches of 32: no more than 3 validations go into"
    with pytest.raises(UsageError, match=sentence):
        plan_run(tiny_config(validations=4), workspace)


def test_scores_that_are_not_finite_end_the_training(workspace: Workspace) -> None:
    config = override(tiny_config(), model={"name": f"{__name__}:blind"})
    with pytest.raises(AffbenchError, match=r"scores of 500 of 500 images of 'mnist-translated-sample' are NaN"):
        train(config, workspace)


def blind() -> torch.nn.Module:
    class Blind(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores = super().forward(images.flatten(1))
            return scores if self.training or len(images) < 3 else scores * torch.nan

    return Blind(1600, 10)


def test_pause_is_no_training_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now, monotonic=time.monotonic)
    monkeypatch.setattr("affbench.base.interrupt.time", clock)
    step, count = Step.__call__, iter(range(100))

    def takes_two_seconds(self: Any, *batch: Any) -> None:
        step(self, *batch)
        clock.now += 2.0
        if next(count) == 4:
            clock.now += 1000.0  # as if halted, which only the signal that ends it tells
            os.kill(os.getpid(), signal.SIGCONT)

    monkeypatch.setattr(Step, "__call__", takes_two_seconds)
    history = train(tiny_config(), workspace).history
    assert [row.seconds for row in history] == pytest.approx([6.0, 6.0], abs=2.1)


@pytest.mark.parametrize(
    ("images", "asked", "validated"),
    [(None, None, 10_000), (10_000, None, 2_000), (300, None, 500), (300, 10_000, 10_000), (300, 20, 20)],
)
def test_small_runs_are_validated_on_fewer_digits(
    workspace: Workspace, images: int | None, asked: int | None, validated: int
) -> None:
    data = {"train_set": "mnist-translated", "limit": images, "validation_limit": asked}
    assert plan_run(override(tiny_config(), data=data), workspace).config.data.validation_limit == validated


def test_validation_takes_no_more_at_once_than_training(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()
    forward = CapsNet.forward

    def counting(self: CapsNet, images: torch.Tensor) -> torch.Tensor:
        sizes.add(len(images))
        assert not torch.is_grad_enabled()
        return forward(self, images)

    def decode_in_training(self: CapsNet, *arguments: torch.Tensor) -> torch.Tensor:
        assert torch.is_grad_enabled()
        return decode(self, *arguments)

    decode = CapsNet.decode
    monkeypatch.setattr(CapsNet, "forward", counting)
    monkeypatch.setattr(CapsNet, "decode", decode_in_training)
    config = override(tiny_config(epochs=1), data={"train_set": SAMPLE, "limit": 96, "validation_limit": 70})
    run = train(config, workspace)
    assert sizes == {2, 32, 6}  # the trial before training, and validation
    assert run.environment.selected_by == "validation accuracy on mnist-translated-sample, n = 70"


def test_target_that_is_never_reached_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    listener = Progress()
    monkeypatch.setattr(listener, "note", notes.append)
    run = train(tiny_config(stop_at=1.0), Workspace(workspace.data, workspace.results, "cpu", listener))
    assert run.environment.stop_at_reached_epoch is None
    assert len(run.history) == 2
    assert any("never reached 100.00%" in note for note in notes)


def test_a_run_that_stops_on_the_way_is_kept_as_if_it_had_been_trained_alone(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.2, 0.5, 0.4, 0.2, 0.5])  # nothing is left for a training beyond these two
    monkeypatch.setattr(_Training, "_validate", lambda self, stop: next(accuracies))
    best = train(tiny_config(epochs=3), workspace, stops=(0.4, 0.9))
    alone = train(tiny_config(epochs=3, stop_at=0.4), Workspace(workspace.data, tmp_path / "alone", "cpu"))
    never = plan_run(tiny_config(epochs=3, stop_at=0.9), workspace)
    kept = train(tiny_config(epochs=3, stop_at=0.4), workspace)
    assert kept.name == alone.name != best.name
    assert kept.environment.stop_at_reached_epoch == alone.environment.stop_at_reached_epoch
    assert [row.epoch for row in kept.history] == [1, 2]
    for file in ("config.toml", WEIGHTS):
        assert (kept.path / file).read_bytes() == (alone.path / file).read_bytes()
    assert never.is_trained
    assert Run(never.folder).environment.stop_at_reached_epoch is None
    assert same(weights(Run(never.folder)), weights(best))
