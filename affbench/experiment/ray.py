"""Many runs on a Ray cluster: every cell is a task, which Ray gives to another worker when its own dies.

A worker that sees the results folder works in it, like a second process of one machine. Any other begins with the files
that the run has where the sweep was started, and puts every checkpoint, and in the end all files, back there.
"""

import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pooch  # type: ignore[import-untyped]
import torch

from affbench.base import store
from affbench.base.config import EvaluationConfig
from affbench.base.errors import AffbenchError, UsageError, reason
from affbench.base.interrupt import Interrupted, Stop
from affbench.base.progress import Progress, Task
from affbench.base.workspace import Workspace
from affbench.data.sets import sets_dir
from affbench.experiment.cells import Cell, CellResult, Engine, is_done, run_cell, tested_parts
from affbench.run.folder import read_files, write_files
from affbench.run.plan import plan_run

RETRIES = 3  # of a cell whose worker or node dies
TELL_SECONDS = 0.5  # between two messages of a cell
STOP_SECONDS = 60.0  # for cells under way to save what they did, once the sweep is asked to stop
NODE_DIR = "AFFBENCH_NODE_DIR"  # where it is set, a node takes no folder for shared and keeps its copies of sets there


@dataclass(frozen=True)
class _Job:
    """What the workers of a sweep need to know."""

    evaluation: EvaluationConfig
    workspace: Workspace  # as the process that started the sweep sees it
    token: str  # a folder below its results: a worker that finds it sees the same ones
    sets: dict[Path, store.Manifest]  # the files of sets
    threads: int
    modules: list[str]  # where models of one's own are found
    home: str  # the node that started the sweep
    news: Any  # the queue of messages: number of the cell, where it is, what it does


def run_cells(
    cells: Sequence[Cell], evaluation: EvaluationConfig, workspace: Workspace, engine: Engine, sets: Sequence[Path]
) -> list[CellResult]:
    """Train and test every cell on a Ray cluster; with the same results as in this process."""
    workspace = replace(workspace, data=workspace.data.resolve(), results=workspace.results.resolve())
    with _connected(engine) as ray, _token(workspace.results) as token, Stop() as stop:
        cpus, gpus, device = _resources(ray, engine, workspace.device)
        home = ray.get_runtime_context().get_node_id()
        news = ray.util.queue.Queue(actor_options=_at(ray, home) | {"max_restarts": -1, "max_task_retries": -1})
        seen = replace(workspace, device=device, progress=Progress())
        manifests = {path.resolve(): manifest for path in sets if (manifest := store.read_manifest(path))}
        modules = [str(Path(entry).resolve()) for entry in sys.path]
        job = _Job(evaluation, seen, token, manifests, cpus, modules, home, news)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_work)
        with workspace.progress.task("runs", len(cells), "runs") as bar:
            board = _Board([cell.plan.folder.name for cell in cells], workspace.progress, bar)
            flying: dict[Any, int] = {}
            for number, cell in enumerate(cells):
                if is_done(cell, tested_parts(evaluation), workspace):
                    board.end(number, run_cell(cell, evaluation, workspace), before=True)
                else:
                    flying[task.remote(job, number, cell)] = number
            while flying and not stop.asked:
                ready, _ = ray.wait(list(flying), timeout=0.1)
                board.show(news.get_nowait_batch(news.qsize()))
                for reference in ready:
                    number = flying.pop(reference)
                    board.end(number, _result(ray, reference, cells[number]))
            if flying:
                for reference in flying:
                    ray.cancel(reference, recursive=False)  # like Ctrl-C, but not for what the cell then puts back
                ray.wait(list(flying), num_returns=len(flying), timeout=STOP_SECONDS)
                raise Interrupted(
                    f"stopped with {len(board.results)} of {len(cells)} runs done; what the others did is saved: the "
                    "same command goes on."
                )
    return [board.results[number] for number in range(len(cells))]


def _result(ray: Any, reference: Any, cell: Cell) -> CellResult:
    """What a task returned, or why it did not."""
    try:
        result: CellResult = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return cell.unfinished(f"its worker could not run it: {str(error).strip().splitlines()[-1]}")
    except ray.exceptions.RayError as error:
        return cell.unfinished(f"its worker died {RETRIES + 1} times, the last time with {type(error).__name__}")
    return result


@contextlib.contextmanager
def _connected(engine: Engine) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.util.queue
    except ImportError:
        raise UsageError("--engine ray needs the package ray: pip install 'affbench[ray]'.") from None
    if ray.is_initialized():  # by the caller, who will end it too
        yield ray
        return
    own = {"num_cpus": max(os.cpu_count() or 1, engine.cpus or 1), "include_dashboard": False}
    options = {} if engine.address else own
    try:
        ray.init(engine.address or "local", log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        what = "Ray does not start on this machine"
        if engine.address:
            what = f"'ray start --head' starts a Ray cluster, but none answers at --ray-address {engine.address}"
        raise AffbenchError(f"{what}: {reason(error)}.") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _token(results: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder by which workers know the results folder, however it is mounted."""
    with store.writing(results):
        results.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".sweep.", suffix=".part", dir=results, ignore_cleanup_errors=True)


def _resources(ray: Any, engine: Engine, device: str) -> tuple[int, float, str]:
    """CPUs and GPUs that each cell asks for, and the device it computes on."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    choice = device.partition(":")[0] in ("auto", "cuda")
    gpus = float(choice and any(node.get("GPU", 0) >= 1 for node in nodes)) if engine.gpus is None else engine.gpus
    cpus = engine.cpus or (1 if gpus else torch.get_num_threads())
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        found = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UsageError(
            f"no node of the Ray cluster has the {cpus} CPUs and {gpus:g} GPUs that each run asks for (there are "
            f"nodes with {found}): ask for less with --cpus-per-run or --gpus-per-run."
        )
    return cpus, gpus, ("cuda" if gpus else "cpu") if choice else device


class _Board:
    """What the user sees of the cells."""

    def __init__(self, names: Sequence[str], progress: Progress, bar: Task) -> None:
        self._names, self._progress, self._bar = names, progress, bar
        self.results: dict[int, CellResult] = {}
        self._places: dict[int, str] = {}
        self._latest = ""

    def show(self, news: Sequence[tuple[int, str, str]]) -> None:
        """What workers told."""
        for number, where, text in news:
            before, name = self._places.get(number, where), self._names[number]
            if before != where:
                self._progress.note(f"{name}: its worker on {before} died, another goes on on {where}")
            self._places[number], self._latest = where, f"; {name} on {where}: {text}"
            self._advance(0)
        self._advance(0)

    def end(self, number: int, result: CellResult, *, before: bool = False) -> None:
        """A cell has ended, perhaps before this sweep."""
        self.results[number] = result
        where = f" ({self._places[number]})" if number in self._places else ""
        self._progress.note(f"[{len(self.results)}/{len(self._names)}] {result}{where}")
        if before:
            self._bar.skip(1)
        self._advance(0 if before else 1)

    def _advance(self, amount: int) -> None:
        running, failed = len(self._places.keys() - self.results), sum(bool(r.error) for r in self.results.values())
        waiting, done = len(self._names) - len(self.results) - running, len(self.results) - failed
        counts = f"{waiting} waiting, {running} running, {done} done, {failed} failed"
        self._bar.advance(amount, counts + self._latest)


def _work(job: _Job, number: int, cell: Cell) -> CellResult:
    """In a worker: train and test one cell."""
    sys.path += [entry for entry in job.modules if entry not in sys.path]
    torch.set_num_threads(job.threads)
    courier = _Courier(job, number)
    _wait(courier.tell("begins"))  # as no cell may die, or end, that nobody saw
    try:
        with tempfile.TemporaryDirectory(prefix="affbench-") as away:
            shared = NODE_DIR not in os.environ and Path(job.token).is_dir()
            results = job.workspace.results if shared else Path(away)
            workspace = replace(job.workspace, data=_data_folder(job, courier), results=results, progress=courier)
            plan = plan_run(cell.plan.config, workspace)
            if plan.key != cell.plan.key:
                raise UsageError(
                    f"node {platform.node()} has another version of affbench, or of the model's source, than the "
                    "process that started the sweep; install the same one on every node."
                )
            if not shared:
                home = job.workspace.results / plan.folder.relative_to(results)
                write_files(plan.folder, _at_home(job, read_files, home))
                courier.put_back = lambda: _at_home(job, write_files, home, read_files(plan.folder))
            # Runs that others stop are cells of their own.
            result = run_cell(Cell(cell.label, plan), job.evaluation, workspace)
            courier.put_back()
            return result
    except AffbenchError as error:
        return cell.unfinished(str(error))


class _Courier(Progress, Task):
    """In a worker: tells the driver what the cell does, and puts checkpoints back."""

    def __init__(self, job: _Job, number: int) -> None:
        import ray

        self._news, self._number = job.news, number
        self._where = f"{platform.node()}/{ray.get_runtime_context().get_node_id()[:6]}, process {os.getpid()}"
        self._told, self._title = 0.0, ""
        self.put_back: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """News name the piece of work that began last."""
        self._title = title
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        """Tell it, not too often."""
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            self.tell(f"{self._title} {text}".rstrip())

    def tell(self, text: str) -> Any:
        """Tell it, and do not wait."""
        return self._news.actor.put_nowait.remote((self._number, self._where, text))

    def saved(self, path: Path) -> None:
        """Put a checkpoint back, and what belongs to it."""
        self.put_back()


def _data_folder(job: _Job, courier: _Courier) -> Path:
    """The data folder as it is where the sweep was started, if its sets are seen here; else this node's copy."""

    def is_there(path: Path, made: store.Manifest) -> bool:
        return store.cached(path, made.stage, made.version, made.inputs)

    if NODE_DIR not in os.environ and all(is_there(*each) for each in job.sets.items()):
        return job.workspace.data
    folder = Path(os.environ.get(NODE_DIR) or pooch.os_cache("affbench"))
    for home, manifest in job.sets.items():
        path = sets_dir(folder) / home.name
        with store.lock(path):  # the other workers of this node wait, and find it
            if not is_there(path, manifest):
                courier.tell(f"receives {home.name}")
                store.manifest_path(path).unlink(missing_ok=True)
                for file in (path, store.manifest_path(path)):
                    store.write_bytes(file, _at_home(job, Path.read_bytes, home.with_name(file.name)))
    return folder


def _at(ray: Any, node: str) -> dict[str, Any]:
    """Options of tasks and actors that run on one node, beside whatever it computes."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": strategy}


def _at_home(job: _Job, function: Callable[..., Any], *arguments: Any) -> Any:
    """Let the node that started the sweep do something, and wait until it is done; its errors are raised here."""
    import ray

    try:
        return _wait(ray.remote(**_at(ray, job.home))(function).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _wait(reference: Any) -> Any:
    """In a worker: what Ray answers; asked in another thread, as Ray begins a cell in place of one whose own waits."""
    import ray

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(ray.get, reference).result()
