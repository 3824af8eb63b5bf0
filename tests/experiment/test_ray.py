"""Sweeps on a Ray cluster of this machine, and on one of nodes that share no disk: a head, and two that work."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file
from tiny import SAMPLE, tiny_config

from affbench.base import store
from affbench.base.config import EvaluationConfig, RunConfig, override
from affbench.base.errors import UsageError
from affbench.base.interrupt import Interrupted
from affbench.base.progress import Progress, Task
from affbench.base.workspace import Workspace
from affbench.experiment import ray as engine_of_cluster
from affbench.experiment.cells import Cell, CellResult, Engine
from affbench.experiment.pipeline import from_sweep, run_cells_on
from affbench.run.folder import RESUME, Run, list_runs
from affbench.run.plan import plan_run

# Ray leaves its log files and processes to the garbage collector, and its environment warnings to the future.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]
ON_SAMPLE = EvaluationConfig(sets=(SAMPLE,), limit=100)
RAY = Engine("ray", cpus=1)
EPOCHS, STEPS = 4, 3  # of `tiny_config`; accidents happen at step 8, after two epochs were saved

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
                marker.touch()
                happen(self.accident)
        return self.layer(self.drop(images.flatten(1)))

def happen(accident):
    if accident == "error":
        raise ValueError("no luck with this one")
    if accident == "worker":
        os.kill(os.getpid(), signal.SIGKILL)
    if accident == "node":
        signal.pause()
    if accident == "stop":
        stop = signal.getsignal(signal.SIGINT).__self__
        while not stop.asked:
            time.sleep(0.01)

def make(accident="none", routings=1):
    return Model(accident, routings)
'''
DOOMED = """
import os, signal

def make(routings=1):
    if {driver} != os.getpid():
        os.kill(os.getpid(), signal.SIGKILL)
    import torch
    return torch.nn.Linear(1, 1)
"""


class Watcher(Progress, Task):
    """Keeps what is said, and acts once, as soon as the driver says something that `act` answers with True."""

    def __init__(self, act: Callable[[str], bool] = lambda said: True) -> None:
        self.notes: list[str] = []
        self.said: list[str] = []
        self.act, self.acted = act, False

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        self.said.append(text)
        self.acted = self.acted or self.act(text)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the nodes."""
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def cluster(nodes: Path) -> Iterator[Cluster]:
    """Node folders of their own stand for machines that share nothing."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    small = {"object_store_memory": 100_000_000}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick} | small)
    for number in range(2):
        found.add_node(wait=False, num_cpus=1, env_vars={"AFFBENCH_NODE_DIR": str(nodes / str(number))}, **small)
    found.wait_for_nodes()
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


def sweep(config: RunConfig, workspace: Workspace, engine: Engine, seeds: tuple[int, ...] = (0,)) -> list[CellResult]:
    return run_cells_on(engine, from_sweep(config, [1], seeds, ON_SAMPLE, workspace).cells, ON_SAMPLE, workspace)


def steps_of_workers(folder: Path, accident: str) -> list[int]:
    """How many steps each worker did, in the order in which they came."""
    steps = (folder / f"steps-{accident}").read_text().splitlines()
    return [steps.count(process) for process in dict.fromkeys(steps)]


def assert_went_on(folder: Path, accident: str) -> None:
    """The second worker did not do again what was saved, which are two epochs, and perhaps a batch of the third."""
    first, second = steps_of_workers(folder, accident)
    assert first == 8
    assert EPOCHS * STEPS - 7 <= second <= EPOCHS * STEPS - 6


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


# The first test: affbench starts a cluster of this machine, whose workers see the folders.
def test_workers_that_see_the_results_work_in_them(
    workspace: Workspace, accidents: Callable[[str], RunConfig], tmp_path: Path
) -> None:
    configs = {"plain": tiny_config(), "killed": accidents("worker")}

    def planned(workspace: Workspace) -> list[Cell]:
        return [Cell(label, plan_run(config, workspace)) for label, config in configs.items()]

    watcher = Watcher()
    result = run_cells_on(
        RAY, planned(workspace), ON_SAMPLE, replace(workspace, checkpoint_seconds=0.0, progress=watcher)
    )
    assert [cell.error for cell in result] == [None, None]
    assert_went_on(tmp_path, "worker")
    assert len([text for text in watcher.notes if "died, another goes on" in text]) == 1
    local = run_cells_on(Engine(cpus=1), planned(elsewhere(workspace)), ON_SAMPLE, elsewhere(workspace))
    assert [cell.accuracy for cell in result] == [cell.accuracy for cell in local]
    assert_same(workspace.results, workspace.results.with_name("elsewhere"))
    assert [path.name for path in workspace.results.iterdir()] == ["runs"]


def test_results_are_those_of_the_local_engine_bit_for_bit(cluster: Cluster, workspace: Workspace, nodes: Path) -> None:
    def files(folder: Path, pattern: str) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern) if path.is_file()}

    on_ray = sweep(tiny_config(), workspace, RAY, (0, 1))
    local = sweep(tiny_config(), elsewhere(workspace), Engine(cpus=1), (0, 1))
    assert [cell.error for cell in on_ray] == [None, None]
    assert [cell.accuracy for cell in on_ray] == [cell.accuracy for cell in local]
    assert_same(workspace.results, workspace.results.with_name("elsewhere"))
    # What is there is not made again, wherever it was made, nor sent again to a node that has it.
    made, sent = files(workspace.results / "runs", "*"), files(nodes, "*.h5")
    assert len(sent) in (3, 6)
    watcher = Watcher()
    again = sweep(tiny_config(), replace(workspace, progress=watcher), RAY, (0, 1, 2))
    assert [cell.accuracy for cell in again[:2]] == [cell.accuracy for cell in local]
    assert made.items() <= files(workspace.results / "runs", "*").items()
    assert sent.items() <= files(nodes, "*.h5").items()
    assert any(said.startswith("0 waiting, 1 running, 2 done, 0 failed; capsnet-r1-seed2-") for said in watcher.said)
    for path in sent:
        path.write_bytes(b"damaged")
    (cell,) = sweep(tiny_config(), workspace, RAY, (3,))
    assert cell.error is None


def test_cell_goes_on_from_its_checkpoint_when_its_worker_is_killed(
    cluster: Cluster, workspace: Workspace, accidents: Callable[[str], RunConfig], tmp_path: Path
) -> None:
    watcher = Watcher()
    config = accidents("worker")
    result = sweep(config, replace(workspace, checkpoint_seconds=0.0, progress=watcher), RAY)
    assert result[0].error is None
    assert [text for text in watcher.notes if "died, another goes on" in text]
    assert_went_on(tmp_path, "worker")
    sweep(config, elsewhere(workspace), Engine(cpus=1))
    assert_same(workspace.results, workspace.results.with_name("elsewhere"))


def test_cells_that_fail_are_reported_while_the_others_finish(
    cluster: Cluster,
    workspace: Workspace,
    accidents: Callable[[str], RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_of_cluster, "RETRIES", 1)
    (tmp_path / "doomed.py").write_text(DOOMED.format(driver=os.getpid()))
    doomed = override(tiny_config(), model={"name": "doomed:make", "options": {}})
    configs = {"bad": accidents("error"), "worse": doomed, "good": accidents("none")}
    cells = [Cell(label, plan_run(config, workspace)) for label, config in configs.items()]
    result = run_cells_on(RAY, cells, ON_SAMPLE, workspace)
    bad, worse, good = (cell.error for cell in result)
    assert "epoch 3, batch 2 of 32 images: ValueError: no luck with this one" in str(bad)
    assert worse == "its worker died 2 times, the last time with WorkerCrashedError"
    assert good is None


def test_interrupted_sweep_keeps_what_its_cells_did(
    cluster: Cluster, workspace: Workspace, accidents: Callable[[str], RunConfig], tmp_path: Path
) -> None:
    def interrupt(said: str) -> bool:
        happened = (tmp_path / "happened-stop").exists()
        if happened:
            signal.raise_signal(signal.SIGINT)
        return happened

    config = accidents("stop")
    with pytest.raises(Interrupted, match="stopped with 0 of 1 runs done"):
        sweep(config, replace(workspace, progress=Watcher(interrupt)), RAY)
    assert (plan_run(config, workspace).folder / RESUME).is_file()
    assert steps_of_workers(tmp_path, "stop") == [8]
    assert sweep(config, workspace, RAY)[0].error is None
    assert sum(steps_of_workers(tmp_path, "stop")) == EPOCHS * STEPS
    assert not (plan_run(config, workspace).folder / RESUME).exists()


def test_run_of_another_process_is_waited_for(cluster: Cluster, workspace: Workspace) -> None:
    config = tiny_config(epochs=1)
    (cell,) = from_sweep(config, [1], [0], ON_SAMPLE, workspace).cells
    folder = cell.plan.folder
    with contextlib.ExitStack() as held:
        held.enter_context(store.lock(folder))

        def release(said: str) -> bool:
            if "begins" not in said:
                return False
            assert not (folder / store.MANIFEST).exists()
            held.close()
            return True

        watcher = Watcher(release)
        result = sweep(config, replace(workspace, progress=watcher), RAY)
    assert watcher.acted
    assert result[0].error is None
    assert Run(folder).finished


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
    def kill(said: str) -> bool:
        if not (tmp_path / "happened-node").exists():
            return False
        place = next(text for text in watcher.said if ": begins" in text)
        (node,) = (node for node in cluster.worker_nodes if f"/{node.node_id[:6]}," in place)
        cluster.remove_node(node, allow_graceful=False)
        return True

    watcher = Watcher(kill)
    config = accidents("node")
    result = sweep(config, replace(workspace, checkpoint_seconds=0.0, progress=watcher), RAY)
    assert result[0].error is None
    assert watcher.acted
    assert [text for text in watcher.notes if "died, another goes on" in text]
    assert_went_on(tmp_path, "node")
    sweep(config, elsewhere(workspace), Engine(cpus=1))
    assert_same(workspace.results, workspace.results.with_name("elsewhere"))
