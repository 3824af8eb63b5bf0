"""Many runs: each cell is trained and tested as an ordinary cached run, so what was finished stays finished."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from affbench.base.config import EvaluationConfig
from affbench.base.errors import AffbenchError
from affbench.base.workspace import Workspace
from affbench.data.sets import SetPart, find_part
from affbench.run.plan import Plan
from affbench.run.record import evaluate_run, is_evaluated
from affbench.run.train import train


@dataclass(frozen=True)
class Engine:
    """Where cells run, and what each of them may use; none of it changes a result's key."""

    name: str = "local"  # or "ray"
    address: str | None = None  # of the Ray cluster; None starts one on this machine
    # Threads of each cell, and the CPUs it asks Ray for; None takes as many threads as torch would here. Results on the
    # CPU are equal bit for bit where the number of threads is.
    cpus: int | None = None
    gpus: float | None = None  # GPUs, or parts of one, that each cell asks Ray for; None takes one where there is any


@dataclass(frozen=True)
class CellResult:
    """What became of a cell."""

    label: str
    model: str
    routings: int | None
    seed: int
    run: str = ""  # its name; "" where it could not even be trained
    accuracy: dict[str, float] = field(default_factory=dict)  # of each set, 0 to 1
    validation_accuracy: float | None = None  # of the selected epoch
    epochs: float | None = None
    seconds_per_epoch: float | None = None
    error: str | None = None

    def __str__(self) -> str:
        routing = "" if self.routings is None else f", routing {self.routings}"
        accuracies = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in self.accuracy.items())
        outcome = f"failed: {self.error}" if self.error else accuracies
        return f"{self.label}{routing}, seed {self.seed}: {outcome}"


@dataclass(frozen=True)
class Cell:
    """A run to be made, planned once and handed down."""

    label: str
    plan: Plan
    stops: tuple[float, ...] = ()  # validation accuracies at which other cells stop this training
    published: str = ""  # the published network it makes again

    def unfinished(self, error: str | None = None) -> CellResult:
        """What is known before it is run, or when it came to nothing."""
        model, training = self.plan.config.model, self.plan.config.training
        return CellResult(self.label, model.name, model.routings, training.seed, error=error)


def tested_parts(evaluation: EvaluationConfig) -> list[SetPart]:
    """The images that every cell is tested on."""
    return [find_part(name, "test", evaluation.copies, evaluation.limit) for name in evaluation.sets]


def is_done(cell: Cell, parts: Sequence[SetPart], workspace: Workspace) -> bool:
    """Whether a cell is trained, and tested on some images, already."""
    return cell.plan.is_trained and all(is_evaluated(cell.plan.run, part, workspace) for part in parts)


def run_cells(
    cells: Sequence[Cell], evaluation: EvaluationConfig, workspace: Workspace, *, threads: int | None = None
) -> list[CellResult]:
    """Train and test every cell in this process; one that fails is reported, and the others go on."""
    results, parts = [], tested_parts(evaluation)
    with using_threads(threads), workspace.progress.task("runs", len(cells), "runs") as task:
        for number, cell in enumerate(cells, start=1):
            started = time.perf_counter()
            tell = task.skip if is_done(cell, parts, workspace) else task.advance
            results.append(run_cell(cell, evaluation, workspace))
            seconds = time.perf_counter() - started
            workspace.progress.note(f"[{number}/{len(cells)}] {results[-1]} ({seconds:.0f} s)")
            tell(1)
    return results


@contextlib.contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Let torch use that many threads (None: as it is), and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_cell(cell: Cell, evaluation: EvaluationConfig, workspace: Workspace) -> CellResult:
    """Train and test one cell; an error becomes part of the result."""
    result = cell.unfinished()
    try:
        run = train(cell.plan, workspace, stops=cell.stops)
        result = replace(
            result,
            run=run.name,
            validation_accuracy=run.selected.validation_accuracy,
            epochs=run.history[-1].epoch,
            seconds_per_epoch=run.seconds_per_epoch,
        )
        records = [evaluate_run(run, part, workspace) for part in tested_parts(evaluation)]
    except AffbenchError as error:
        return replace(result, error=str(error))
    except Exception as error:  # a model may raise anything, or ask for more memory than there is
        return replace(result, error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return replace(result, accuracy={record.set: record.accuracy for record in records})
