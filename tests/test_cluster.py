"""Sweeps on a Ray cluster of three nodes on this machine: one for the test itself, two that work and share no disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file
from tiny import SAMPLE, tiny_config

from affbench import store
from affbench.config import EvaluationConfig, RunConfig, override
from affbench.errors import UsageError
from affbench.interrupt import Interrupted
from affbench.pipeline import run_cells_on
from affbench.progress import Progress
from affbench.runs import RESUME, Run, list_runs
from affbench.sweep import Cell, Engine, SweepResult, sweep_cells
from affbench.training import plan_run
from affbench.workspace import Workspace

# Ray leaves its log files and processes to the garbage collector, and its environment warnings to the future.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]
ON_SAMPLE = EvaluationConfig(sets=(SAMPLE,), limit=100)
RAY = Engine("ray", cpus=1)
EPOCHS, STEPS = 4, 3  # of `tiny_config`

MODEL = '''
import os, pathlib, signal, time
import torch

HERE = pathlib.Path(__file__).parent

class Model(torch.nn.Module):
    """Linear, with dropout; logs its training steps, and meets with one accident in each run."""

    def __init__(self, accident, routings=1):
        super().__init__()
        self.layer = torch.nn.Linear(1600, 10)
        self.drop = torch.nn.Dropout(0.2)
        self.accident, self.steps, self.routings = accident, 0, routings

    def forward(self, images):
        if self.training and len(images) > 2:  # a run begins with a trial on two
            self.steps += 1
            with (HERE / f"steps-{self.accident}").open("a") as log:
                log.write(f"{os.getpid()}\\n")
            marker = HERE / f"happened-{self.accident}"
            if self.steps == 8 and not marker.exists():
                happen(self.accident, marker)
        return self.layer(self.drop(images.flatten(1)))

def happen(accident, marker):
    if accident == "error":
        raise ValueError("no luck with this one")
    if accident == "worker":
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if accident in ("node", "stop"):
        import ray
        marker.write_text(ray.get_runtime_context().get_node_id())
        time.sleep(60 if accident == "node" else 2)

def make(accident="none", routings=1):
    return Model(accident, routings)
'''


class Notes(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Node folders of their own stand for machines that share nothing."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    small = {"object_store_memory": 100_000_000}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick} | small)
    for _ in range(2):
        found.add_node(num_cpus=1, env_vars={"AFFBENCH_NODE_DIR": str(tmp_path_factory.mktemp("node"))}, **small)
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def accidents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RunConfig]:
    """Configurations of a model that meets with an accident; its folder is importable here and in workers."""
    module = f"accidents_{tmp_path.name}"  # another one for each test: workers live longer than a test
    (tmp_path / f"{module}.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: override(
        tiny_config(epochs=EPOCHS), model={"name": f"{module}:make", "options": {"accident": name}}
    )


def sweep(config: RunConfig, workspace: Workspace, engine: Engine, seeds: tuple[int, ...] = (0,)) -> SweepResult:
    return run_cells_on(engine, sweep_cells(config, [1], seeds), ON_SAMPLE, workspace)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def assert_same(results: Path, others: Path) -> None:
    names = [run.name for run in list_runs(results)]
    assert sorted(names) == sorted(run.name for run in list_runs(others))
    for name in names:
        one, other = results / "runs" / name, others / "runs" / name
        files, expected = ({path.name for path in each.iterdir() if path.suffix != ".lock"} for each in (one, other))
        assert files == expected
        manifest = store.read_manifest(one)
        assert manifest is not None
        store.verify(one, manifest)
        a, b = weights(one), weights(other)
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert [row.train_loss for row in Run(one).history] == [row.train_loss for row in Run(other).history]
        assert Run(one).evaluations[SAMPLE].confusion == Run(other).evaluations[SAMPLE].confusion


def elsewhere(workspace: Workspace) -> Workspace:
    return replace(workspace, results=workspace.results.with_name("elsewhere"))


def test_results_are_those_of_the_local_engine_bit_for_bit(cluster: Cluster, workspace: Workspace) -> None:
    notes = Notes()
    on_ray = sweep(tiny_config(), replace(workspace, progress=notes), RAY, (0, 1))
    local = sweep(tiny_config(), elsewhere(workspace), Engine(cpus=1), (0, 1))
    assert [cell.error for cell in on_ray.cells] == [None, None]
    assert [cell.accuracy for cell in on_ray.cells] == [cell.accuracy for cell in local.cells]
    assert_same(workspace.results, workspace.results.with_name("elsewhere"))
    received = [text.partition(":")[0] for text in notes.texts if "received 3 sets" in text]
    assert len(received) == len(set(received)) <= 2  # once per node that worked
    # What is there is not made again, wherever it was made.
    before = {path: path.stat().st_mtime_ns for path in (workspace.results / "runs").rglob("*") if path.is_file()}
    notes.texts.clear()
    again = sweep(tiny_config(), replace(workspace, progress=notes), RAY, (0, 1))
    assert [cell.accuracy for cell in again.cells] == [cell.accuracy for cell in local.cells]
    assert not [text for text in notes.texts if "received" in text]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_cell_goes_on_from_its_checkpoint_when_its_worker_is_killed(
    cluster: Cluster, workspace: Workspace, accidents: Callable[[str], RunConfig], tmp_path: Path
) -> None:
    notes = Notes()
    config, often = accidents("worker"), replace(workspace, checkpoint_seconds=0.0, progress=notes)
    result = sweep(config, often, RAY)
    assert result.cells[0].error is None
    assert [text for text in notes.texts if "died" in text and "another goes on" in text]
    steps = (tmp_path / "steps-worker").read_text().splitlines()
    first, second = (steps.count(pid) for pid in dict.fromkeys(steps))
    assert first == 8
    assert second <= EPOCHS * STEPS - 6  # two epochs of three steps were saved
    sweep(config, elsewhere(workspace), Engine(cpus=1))
    assert_same(workspace.results, workspace.results.with_name("elsewhere"))


def test_cell_that_always_fails_is_reported_while_the_others_finish(
    cluster: Cluster, workspace: Workspace, accidents: Callable[[str], RunConfig]
) -> None:
    cells = [Cell("bad", accidents("error")), Cell("good", accidents("none"))]
    result = run_cells_on(RAY, cells, ON_SAMPLE, workspace)
    assert "epoch 3, batch 2 (32 images): ValueError: no luck with this one" in str(result.cells[0].error)
    assert result.cells[1].error is None


def test_interrupted_sweep_keeps_what_its_cells_did(
    cluster: Cluster, workspace: Workspace, accidents: Callable[[str], RunConfig], tmp_path: Path
) -> None:
    def interrupt() -> None:
        while not (tmp_path / "happened-stop").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    config = accidents("stop")
    with pytest.raises(Interrupted, match="stopped with 0 of 1 runs done"):
        sweep(config, workspace, RAY)
    assert (plan_run(config, workspace).folder / RESUME).is_file()
    done = len((tmp_path / "steps-stop").read_text().splitlines())
    assert sweep(config, workspace, RAY).cells[0].error is None
    assert len((tmp_path / "steps-stop").read_text().splitlines()) - done < EPOCHS * STEPS
    assert not (plan_run(config, workspace).folder / RESUME).exists()


def test_run_of_another_process_is_waited_for(cluster: Cluster, workspace: Workspace) -> None:
    config = tiny_config(epochs=1)
    folder = plan_run(
        override(config, model={"name": "capsnet", "options": {**config.model.options, "routings": 1}}), workspace
    ).folder
    released: list[float] = []

    def holds() -> None:
        with store.lock(folder):
            time.sleep(1.5)
            assert not (folder / "manifest.json").exists()
            released.append(time.monotonic())

    thread = threading.Thread(target=holds)
    thread.start()
    time.sleep(0.2)
    result = sweep(config, workspace, RAY)
    thread.join()
    assert result.cells[0].error is None
    assert released


def test_more_than_any_node_has_is_said(cluster: Cluster, workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"no node of the Ray cluster has the 64 CPUs and 0 GPUs .* --cpus-per-run"):
        sweep(tiny_config(), workspace, Engine("ray", cpus=64))


def test_missing_ray_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs the package ray: pip install 'affbench\[ray\]'"):
        sweep(tiny_config(), workspace, RAY)


# The last test: it leaves the cluster with a node less.
def test_cell_goes_on_elsewhere_when_its_node_is_killed(
    cluster: Cluster, workspace: Workspace, accidents: Callable[[str], RunConfig], tmp_path: Path
) -> None:
    killed: list[Any] = []

    def kill() -> None:
        marker = tmp_path / "happened-node"
        while not marker.exists() or not marker.read_text():
            time.sleep(0.05)
        (node,) = (node for node in cluster.worker_nodes if node.node_id == marker.read_text())
        killed.append(node)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    notes = Notes()
    config = accidents("node")
    result = sweep(config, replace(workspace, checkpoint_seconds=0.0, progress=notes), RAY)
    assert result.cells[0].error is None
    assert killed
    assert [text for text in notes.texts if "died" in text]
    steps = (tmp_path / "steps-node").read_text().splitlines()
    assert len(steps) < 8 + EPOCHS * STEPS
    sweep(config, elsewhere(workspace), Engine(cpus=1))
    assert_same(workspace.results, workspace.results.with_name("elsewhere"))
