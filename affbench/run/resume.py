"""What of a run is on disk: ``resume.pt`` while it lasts, from which it goes on, and its artefacts at the end."""

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from affbench.base import store
from affbench.base.config import RunConfig
from affbench.base.environment import describe
from affbench.base.errors import ArtefactError
from affbench.base.randomness import random_state, restore_random_state, seed_all
from affbench.data.batches import stream_seed
from affbench.data.dataset import Dataset
from affbench.models import parameter_count
from affbench.run.folder import CONFIG, ENVIRONMENT, HISTORY, RESUME, WEIGHTS, Environment, Epoch, best, history_to_csv
from affbench.run.plan import Plan, Recipe
from affbench.run.step import Step
from affbench.run.stopping import crossing


@dataclass
class Position:
    """Where a run is."""

    history: list[Epoch] = field(default_factory=list)
    selected: dict[str, Tensor] = field(default_factory=dict)  # the weights of the best row so far
    batch: int = 0  # batches done in the epoch under way
    images: int = 0  # trained on since the last validation
    seconds: float = 0.0  # which that took


def save(plan: Plan, step: Step, at: Position) -> None:
    """Write all that going on needs; the processes of a run call this together, and the first one writes."""
    state = {
        "key": plan.key,
        "model": step.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "totals": step.totals,
        "randoms": [step.ranks.gather(state) for state in random_state(step.device)],  # by kind and process
        **vars(at),
        "history": [asdict(row) for row in at.history],
    }
    if step.ranks.first:
        with store.atomic_path(plan.folder / RESUME) as path:
            torch.save(state, path)


def resume(plan: Plan, step: Step) -> Position:
    """Where an earlier process left a run, if what it saved is whole and of this run; else its beginning."""
    path, ranks = plan.folder / RESUME, step.ranks
    content = ranks.bytes_from_first(path.read_bytes() if ranks.first and path.is_file() else b"")
    if not content:
        return Position()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if state["key"] != plan.key:
            return Position()
        step.model.load_state_dict(state["model"])
        step.load_state_dict(state["optimizer"])
        step.totals.copy_(state["totals"])
        rows = [Epoch(**row) for row in state["history"]]
        at = Position(rows, *(state[name] for name in ("selected", "batch", "images", "seconds")))
        if len(state["randoms"][0]) == ranks.size:
            restore_random_state([states[ranks.rank] for states in state["randoms"]], step.device)
        else:  # dropout goes on with streams of its own, where the number of processes is another
            seed_all(stream_seed(plan.config.training.seed, len(rows)) + at.batch * 1000 + ranks.rank)
        return at
    except Exception as error:  # torch.load raises all kinds on damaged files
        raise ArtefactError(
            f"{path} is damaged ({type(error).__name__}); delete it, or use --force, to train from the beginning."
        ) from error


def finish(
    plan: Plan, step: Step, at: Position, validation: Dataset, train_images: int, note: Callable[[str], None]
) -> None:
    """Write what a finished run still lacks; nothing is needed to go on any more."""
    target = plan.config.training.stop_at
    reached = None if target is None else crossing(at.history, target)
    history, weights = history_to_csv(at.history).encode(), pack(at.selected, plan.config.model.name)
    conclude(
        plan.folder,
        plan.recipe,
        plan.config,
        {HISTORY: history, WEIGHTS: weights},
        step.model,
        step.device,
        selected_epoch=best(at.history).epoch,
        selected_by=f"validation accuracy on {validation.name}, n = {len(validation):,}",
        stop_at=target,
        stop_at_reached_epoch=reached,
        train_images=train_images,
        train_seconds=round(sum(row.seconds for row in at.history), 3),
        precision=step.precision,
        processes=step.ranks.size,
    )
    (plan.folder / RESUME).unlink(missing_ok=True)
    if target is not None and reached is None:
        note(f"{plan.folder.name}: validation accuracy never reached {target:.2%}; the best checkpoint is kept")


def conclude(
    folder: Path,
    recipe: Recipe,
    config: RunConfig,
    files: Mapping[str, bytes],
    model: nn.Module,
    device: torch.device,
    **known: Any,
) -> None:
    """Write the files of a finished run, and the manifest that makes them count; its environment holds all `known`."""
    environment = Environment(
        run=folder.name,
        parameters=parameter_count(model),
        seed=config.training.seed,
        finished_at=round(time.time(), 3),
        **known,
        **describe(device),
    )
    for name, content in {CONFIG: config.to_toml().encode(), **files}.items():
        store.write_bytes(folder / name, content)
    store.write_json(folder / ENVIRONMENT, environment.model_dump())
    store.seal(folder, *recipe, [CONFIG, *files, ENVIRONMENT])


def pack(weights: Mapping[str, Tensor], model: str | None = None) -> bytes:
    """Weights as safetensors; the same weights give the same bytes."""
    # It stores no memory twice, so tensors that share it become copies. A second entry beside them would make the bytes
    # a matter of chance, for entries are written in no fixed order.
    apart = {name: value.contiguous().clone() for name, value in weights.items()}
    packed: bytes = safetensors.torch.save(apart, {"model": model} if model else None)
    return packed
