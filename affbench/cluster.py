"""Many runs on a Ray cluster: every cell is a task, and its files travel to the worker and back.

Only the process that started the sweep writes into the results folder, holding the lock of every run that is under
way, so cache, resuming and reports do not care where a cell ran. A worker sends each checkpoint home; a cell whose
worker or node dies goes on from it elsewhere. Sets reach a node once, into a folder of its own
(``AFFBENCH_NODE_DIR``), unless it sees the data folder itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affbench import store
from affbench.config import EvaluationConfig, RunConfig
from affbench.data import catalogue
from affbench.errors import AffbenchError, ArtefactError, BusyError, StorageError, UsageError
from affbench.evaluation import is_evaluated
from affbench.interrupt import Interrupted, Stop
from affbench.progress import Progress, Task
from affbench.runs import CONFIG, RESUME, Run
from affbench.sweep import (
    Cell,
    CellResult,
    Engine,
    SweepResult,
    failed_cell,
    outcome_of,
    run_cell,
    summarise,
    using_threads,
)
from affbench.training import Plan, is_trained, plan_run
from affbench.workspace import Workspace

RETRIES = 3  # of a cell whose worker died before it sent another checkpoint
POLL_SECONDS = 0.1
TELL_SECONDS = 0.5  # between two messages of a cell
STOP_SECONDS = 60.0  # for cells under way to send home what they did, once the sweep is asked to stop
IN_FLIGHT = 64  # cells that are with Ray at once, or twice as many as fit on the cluster

Shipped = dict[str, tuple[bytes, Any]]  # name of a set's file: its manifest, and Ray's reference to its content


def run_cells(
    cells: Sequence[Cell], evaluation: EvaluationConfig, workspace: Workspace, engine: Engine, sets: Sequence[Path]
) -> SweepResult:
    """Train and test every cell on a Ray cluster; as `affbench.sweep.run_cells`, and with the same results.

    Parameters
    ----------
    cells, evaluation, workspace
        As for `affbench.sweep.run_cells`.
    engine
        The cluster, and what each cell asks it for.
    sets
        The converted sets that the cells need.

    Returns
    -------
    SweepResult

    Raises
    ------
    UsageError
        Ray is not installed, no node has what a cell asks for, or a cell's configuration is not valid.
    AffbenchError
        The cluster cannot be reached.
    Interrupted
        The process was asked to stop; finished cells and the checkpoints of others are saved.
    """
    plans = [plan_run(cell.config, workspace) for cell in cells]
    with _connected(engine) as ray:
        return _Driver(ray, cells, plans, evaluation, workspace, engine, sets).run()


@contextlib.contextmanager
def _connected(engine: Engine) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs the package ray: pip install 'affbench[ray]'.") from None
    if ray.is_initialized():  # by the caller, who will end it too
        yield ray
        return
    options: dict[str, Any] = {"address": engine.address, "log_to_driver": False, "logging_level": "ERROR"}
    if engine.address is None:
        processors = max(os.cpu_count() or 1, engine.cpus or 1)
        options |= {"address": "local", "num_cpus": processors, "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AffbenchError(
            f"no Ray cluster answers at --ray-address {engine.address} ({reason}); 'ray start --head' starts one."
            if engine.address
            else f"Ray does not start on this machine: {reason}"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class _State:
    """A cell that is not finished."""

    attempts: int = 0
    deaths: int = 0  # of workers, since the last checkpoint
    not_before: float = 0.0
    node: str = ""
    started: float = 0.0
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # the lock of its run
    shown: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # its line on the screen
    line: Task = field(default_factory=Task)


class _Driver:
    """The side of the process that started the sweep."""

    def __init__(
        self,
        ray: Any,
        cells: Sequence[Cell],
        plans: Sequence[Plan],
        evaluation: EvaluationConfig,
        workspace: Workspace,
        engine: Engine,
        sets: Sequence[Path],
    ) -> None:
        self.ray, self.cells, self.plans, self.evaluation, self.workspace = ray, cells, plans, evaluation, workspace
        self.progress = workspace.progress
        self.cpus, self.gpus = self._resources(engine)
        here = ray.get_runtime_context().get_node_id()
        beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        desk = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=beside)(_Desk)
        self.desk = desk.remote()
        # Retried here, not by Ray, so that a cell goes on from the checkpoint it sent home.
        self.task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(_work)
        self.sets: Shipped = {
            path.name: (store.manifest_path(path).read_bytes(), ray.put(np.fromfile(path, np.uint8))) for path in sets
        }
        self.waiting = deque(range(len(cells)))
        self.states: dict[int, _State] = {}
        self.flying: dict[Any, int] = {}
        self.results: dict[int, CellResult] = {}

    def _resources(self, engine: Engine) -> tuple[int, float]:
        """CPUs and GPUs that each cell asks for."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus = engine.gpus
        if gpus is None:
            any_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
            gpus = 1.0 if any_gpu and self.workspace.device.partition(":")[0] in ("auto", "cuda") else 0.0
        cpus = engine.cpus or (1 if gpus else torch.get_num_threads())
        fitting = [node for node in nodes if node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus]
        if not fitting:
            found = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise UsageError(
                f"no node of the Ray cluster has the {cpus} CPUs and {gpus:g} GPUs that each run asks for (there are "
                f"nodes with {found}): ask for less with --cpus-per-run or --gpus-per-run."
            )
        slots = sum(min(node["CPU"] // cpus, node.get("GPU", 0) // gpus if gpus else 1e9) for node in fitting)
        self.in_flight = max(IN_FLIGHT, 2 * int(slots))
        return cpus, gpus

    def run(self) -> SweepResult:
        """Send cells out until all are back."""
        with Stop() as stop, self.progress.task("runs", len(self.cells)) as self.bar:
            try:
                while len(self.results) < len(self.cells):
                    self._send()
                    self._receive()
                    if stop.asked:
                        raise self._stopped()
            finally:
                for state in self.states.values():
                    state.held.close()
                    state.shown.close()
        results = tuple(self.results[number] for number in range(len(self.cells)))
        return SweepResult(results, summarise(results))

    def _send(self) -> None:
        """Give Ray the next cells; those that another process works on wait for it."""
        for _ in range(len(self.waiting)):
            if len(self.flying) >= self.in_flight:
                return
            number = self.waiting.popleft()
            state = self.states.setdefault(number, _State())
            if time.monotonic() < state.not_before:
                self.waiting.append(number)
                continue
            if state.attempts == 0:
                try:
                    state.held.enter_context(store.lock(self.plans[number].folder, timeout=0))
                except BusyError:
                    self.waiting.append(number)
                    continue
                if self._is_done(number):
                    state.held.close()  # run_cell takes the lock itself
                    self._close(number, run_cell(self.cells[number], self.evaluation, self.workspace))
                    continue
            state.attempts += 1
            reference = self.task.remote(
                self._order(number, state), self.sets, _pack(self.plans[number].folder), self.desk
            )
            self.flying[reference] = number

    def _is_done(self, number: int) -> bool:
        run, wanted = Run(self.plans[number].folder), self.evaluation
        return is_trained(self.plans[number]) and all(
            is_evaluated(run, name, self.workspace, copies=wanted.copies, limit=wanted.limit) for name in wanted.sets
        )

    def _order(self, number: int, state: _State) -> dict[str, Any]:
        """What a worker needs to know, in plain types."""
        device = self.workspace.device
        if device.partition(":")[0] in ("auto", "cuda"):
            device = "cuda" if self.gpus else "cpu"
        return {
            "number": number,
            "attempt": state.attempts,
            "label": self.cells[number].label,
            "config": self.plans[number].config.model_dump(mode="json"),  # which precision is decided here
            "evaluation": self.evaluation.model_dump(mode="json"),
            "key": self.plans[number].key,
            "device": device,
            "threads": self.cpus,
            "checkpoint_seconds": self.workspace.checkpoint_seconds,
            "data": str(self.workspace.data.resolve()),
            "path": [str(Path(entry).resolve()) for entry in sys.path],
        }

    def _receive(self) -> None:
        """Take what has come home: messages, checkpoints, finished cells."""
        ready: list[Any] = []
        if self.flying:
            ready, _ = self.ray.wait(list(self.flying), num_returns=len(self.flying), timeout=POLL_SECONDS)
        else:
            time.sleep(POLL_SECONDS)
        self._collect()  # first: a checkpoint is older than the end of its cell
        for reference in ready:
            self._take(self.flying.pop(reference), reference)

    def _collect(self) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):  # the desk is being started again
            messages, checkpoints = self.ray.get(self.desk.collect.remote())
            for number, attempt, node, text in messages:
                state = self.states.get(number)
                if number < 0:
                    self.progress.note(text)
                elif state is not None and state.attempts == attempt:
                    if not state.started:
                        state.started = time.monotonic()
                        title = f"{self.plans[number].folder.name} on {node}"
                        state.line = state.shown.enter_context(self.progress.task(title, None))
                    state.node = node
                    state.line.advance(0, text)
                    self.bar.advance(0, self._count())
            for number, (attempt, content) in checkpoints.items():
                state = self.states.get(number)
                if state is not None and state.attempts == attempt:
                    plan, state.deaths = self.plans[number], 0
                    if not (plan.folder / CONFIG).is_file():
                        store.write_text(plan.folder / CONFIG, plan.config.to_toml())
                    store.write_bytes(plan.folder / RESUME, content.tobytes())

    def _take(self, number: int, reference: Any) -> None:
        """What a task returned, or why it did not."""
        state, cell, exceptions = self.states[number], self.cells[number], self.ray.exceptions
        try:
            answer = self.ray.get(reference)
            _unpack(self.plans[number].folder, answer["files"])
        except exceptions.RayTaskError as error:
            reason = str(error).strip().splitlines()[-1]
            self._close(number, failed_cell(cell, f"its worker could not run it: {reason}"))
        except (exceptions.RayError, ArtefactError) as error:
            state.shown.close()
            where = f" on {state.node}" if state.node else ""
            state.deaths += 1
            if state.deaths > RETRIES:
                reason = f"its worker died {state.deaths} times ({type(error).__name__}), the last time{where}"
                self._close(number, failed_cell(cell, reason))
                return
            self.progress.note(
                f"{self.plans[number].folder.name}: its worker{where} died ({type(error).__name__}), another goes on"
            )
            state.started = 0.0
            state.not_before = time.monotonic() + state.deaths**2  # seconds in which Ray may notice that a node is gone
            self.waiting.appendleft(number)
        else:
            if answer["result"] is not None:
                self._close(number, CellResult(**answer["result"]))
            else:
                self.waiting.append(number)  # it was asked to stop

    def _close(self, number: int, result: CellResult) -> None:
        state = self.states.pop(number)
        state.held.close()
        state.shown.close()
        self.results[number] = result
        seconds = f" ({time.monotonic() - state.started:.0f} s, {state.node})" if state.started else ""
        self.progress.note(f"[{len(self.results)}/{len(self.cells)}] {outcome_of(result)}{seconds}")
        self.bar.advance(1, self._count())

    def _count(self) -> str:
        running = sum(bool(state.started) for state in self.states.values())
        failed = sum(result.error is not None for result in self.results.values())
        done = len(self.results) - failed
        waiting = len(self.cells) - len(self.results) - running
        return f"{waiting} waiting, {running} running, {done} done, {failed} failed"

    def _stopped(self) -> Interrupted:
        """Ask the cells under way to stop, and wait for what they send home."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.get(self.desk.halt.remote())
        for reference, number in self.flying.items():
            if not self.states[number].started:
                self.ray.cancel(reference)
        deadline = time.monotonic() + STOP_SECONDS
        while any(self.states[number].started for number in self.flying.values()) and time.monotonic() < deadline:
            self._receive()
        return Interrupted(
            f"stopped with {len(self.results)} of {len(self.cells)} runs done; what the others did is saved: the same "
            "command goes on."
        )


class _Desk:
    """An actor that workers leave messages and checkpoints at until the driver collects them."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, int, str, str]] = []
        self._checkpoints: dict[int, tuple[int, Any]] = {}
        self._halted = False

    def report(self, number: int, attempt: int, node: str, text: str) -> bool:
        """Leave a message; answers whether the sweep has been asked to stop."""
        self._messages.append((number, attempt, node, text))
        return self._halted

    def keep(self, number: int, attempt: int, content: Any) -> None:
        """Leave a checkpoint in place of the one before."""
        self._checkpoints[number] = (attempt, content)

    def collect(self) -> tuple[list[tuple[int, int, str, str]], dict[int, tuple[int, Any]]]:
        """Everything since the last time."""
        taken = self._messages, self._checkpoints
        self._messages, self._checkpoints = [], {}
        return taken

    def halt(self) -> None:
        """From now on every message is answered with the request to stop."""
        self._halted = True


class _Courier(Progress, Task):
    """In a worker: brings messages and checkpoints to the desk, and the request to stop from it."""

    def __init__(self, desk: Any, number: int, attempt: int) -> None:
        import ray

        self._ray, self._desk, self._number, self._attempt = ray, desk, number, attempt
        self._node = f"{os.uname().nodename}/{ray.get_runtime_context().get_node_id()[:6]}"
        self._told = 0.0
        self._title = ""
        self._stopped = False

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        """Messages name the piece of work that began last."""
        self._title = title
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        """Tell the desk, not too often; a request to stop arrives as if it were a signal."""
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            self._tell(self._number, f"{self._title}: {text}" if text else self._title)

    def received(self, count: int, size: int) -> None:
        """Tell the desk that sets have come to this node."""
        self._tell(-1, f"{self._node}: received {count} sets, {size / 1e6:.1f} MB")

    def saved(self, path: Path) -> None:
        """Send a checkpoint home."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._desk.keep.remote(self._number, self._attempt, np.fromfile(path, np.uint8)))

    def _tell(self, number: int, text: str) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            halted = self._ray.get(self._desk.report.remote(number, self._attempt, self._node, text))
            if halted and not self._stopped:
                self._stopped = True
                handler = signal.getsignal(signal.SIGINT)
                if not callable(handler):
                    raise KeyboardInterrupt
                handler(signal.SIGINT, None)


def _work(order: dict[str, Any], sets: Shipped, files: dict[str, bytes], desk: Any) -> dict[str, Any]:
    """In a worker: run one cell in a folder of its own; its files go home with the result, None if it was stopped."""
    sys.path += [entry for entry in order["path"] if entry not in sys.path]  # for models of one's own
    cell = Cell(order["label"], RunConfig.model_validate(order["config"]))
    courier = _Courier(desk, order["number"], order["attempt"])
    courier.advance(0, "begins")
    with contextlib.ExitStack() as stack:
        try:
            results = stack.enter_context(_scratch(_node_dir()))
            data = _receive_sets(Path(order["data"]), sets, courier)
            workspace = Workspace(data, results, order["device"], courier, order["checkpoint_seconds"])
            plan = plan_run(cell.config, workspace)
            if plan.key != order["key"]:
                raise UsageError(
                    f"node {os.uname().nodename} has another version of affbench, or of the model's source, than the "
                    "process that started the sweep; install the same one on every node."
                )
            _unpack(plan.folder, files)
        except AffbenchError as error:
            return {"result": asdict(failed_cell(cell, str(error))), "files": {}}
        try:
            with using_threads(order["threads"]):
                result = run_cell(cell, EvaluationConfig.model_validate(order["evaluation"]), workspace)
        except KeyboardInterrupt:
            return {"result": None, "files": {}}  # its checkpoint is home already
        return {"result": asdict(result), "files": _pack(plan.folder)}


def _node_dir() -> Path:
    """This node's own folder: ``$AFFBENCH_NODE_DIR``, else one of this user's below the temporary folder."""
    given = os.environ.get("AFFBENCH_NODE_DIR")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"affbench-{os.getuid()}"
    with store.writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not given and folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder} belongs to another user; name another folder in AFFBENCH_NODE_DIR.")
    return folder


@contextlib.contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A results folder for one cell, gone afterwards; those of workers that died are removed here."""
    with contextlib.ExitStack() as held:
        with store.lock(home / "cells"):  # nobody takes a new folder for one left behind
            for left in home.glob("cell-*"):
                with contextlib.suppress(BusyError), store.lock(left, timeout=0):
                    _remove(left)
            with store.writing(home):
                folder = Path(tempfile.mkdtemp(prefix="cell-", dir=home))
            held.enter_context(store.lock(folder))
        try:
            yield folder
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)


_checked: set[tuple[str, int, int]] = set()  # sets that this worker has verified, by file, time and size


def _receive_sets(data: Path, sets: Shipped, courier: _Courier) -> Path:
    """The data folder on this node: the driver's own where it can be seen, else a copy that is made once."""
    if "AFFBENCH_NODE_DIR" not in os.environ and all(
        _is_there(catalogue.sets_dir(data) / name, manifest) for name, (manifest, _) in sets.items()
    ):
        return data
    copied = _node_dir() / "data"
    received = []
    for name, (manifest, reference) in sets.items():
        target = catalogue.sets_dir(copied) / name
        if _is_there(target, manifest):
            continue
        with store.lock(target):  # the other workers of this node wait, and find it
            if not _is_there(target, manifest):
                content = courier._ray.get(reference)
                store.manifest_path(target).unlink(missing_ok=True)
                store.write_bytes(target, content.tobytes())
                store.write_bytes(store.manifest_path(target), manifest)
                received.append(len(content))
    if received:
        courier.received(len(received), sum(received))
    return copied


def _is_there(path: Path, manifest: bytes) -> bool:
    """Whether a set is there, whole, with exactly this manifest."""
    try:
        if store.manifest_path(path).read_bytes() != manifest:
            return False
        found = path.stat()
        known = (str(path), found.st_mtime_ns, found.st_size)
        if known not in _checked:
            read = store.read_manifest(path)
            if read is None:
                return False
            store.verify(path, read)
            _checked.add(known)
    except (OSError, ArtefactError):
        return False
    return True


def _pack(folder: Path) -> dict[str, bytes]:
    """The files of a run's folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path.read_bytes() for path in paths if path.is_file() and not path.name.startswith(".")}


def _unpack(folder: Path, files: dict[str, bytes]) -> None:
    """Put the files of a run in place: what a manifest or a record speaks of comes before it.

    Raises
    ------
    ArtefactError
        A file is not the one that the run's manifest lists.
    """

    def rank(name: str) -> int:
        return 1 if name == store.MANIFEST else 2 if name.startswith("eval-") else 0

    for name in sorted(files, key=rank):
        if name != Path(name).name or name.startswith("."):
            raise ArtefactError(f"'{name}' is no name of a file of a run.")
        path = folder / name
        if name == store.MANIFEST:
            _check(folder, files)
        if not path.is_file() or path.read_bytes() != files[name]:
            store.write_bytes(path, files[name])
    if store.MANIFEST in files and RESUME not in files:
        (folder / RESUME).unlink(missing_ok=True)


def _check(folder: Path, files: dict[str, bytes]) -> None:
    for name, expected in json.loads(files[store.MANIFEST])["files"].items():
        if hashlib.sha256(files.get(name, b"")).hexdigest() != expected["sha256"]:
            raise ArtefactError(f"{folder / name} did not arrive whole.")
