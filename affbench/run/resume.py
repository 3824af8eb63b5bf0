"""What of a run is on disk: ``resume.pt`` while it lasts, from which it goes on, and its artefacts at the end."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from affbench.base import store
from affbench.base.distributed import Ranks
from affbench.base.errors import ArtefactError
from affbench.base.randomness import random_state, restore_random_state, seed_all
from affbench.data.batches import stream_seed
from affbench.run.folder import CONFIG, ENVIRONMENT, HISTORY, RESUME, WEIGHTS
from affbench.run.history import Epoch, history_to_csv
from affbench.run.plan import Plan
from affbench.run.step import Step
from affbench.run.stopping import best


@dataclass
class Position:
    """Where a run is.

    Attributes
    ----------
    history, selected
        Rows so far, and the weights of the best of them.
    batch
        Batches done in the epoch under way.
    images, seconds
        Trained on since the last validation, and the time that took.
    """

    history: list[Epoch] = field(default_factory=list)
    selected: dict[str, Tensor] = field(default_factory=dict)
    batch: int = 0
    images: int = 0
    seconds: float = 0.0

    def add(self, row: Epoch, model: nn.Module) -> None:
        """A validation is over; the weights are those to keep if there were no better ones."""
        self.history.append(row)
        if best(self.history) is row:
            self.selected = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


@dataclass(frozen=True)
class Checkpoint:
    """The content of ``resume.pt``: all that going on needs.

    Attributes
    ----------
    key
        Of the run.
    model, optimizer, totals
        States, and the sums since the last validation.
    randoms
        States of the generators, by kind and process.
    history, selected, batch, images, seconds
        As in `Position`.
    """

    key: str
    model: dict[str, Any]
    optimizer: dict[str, Any]
    totals: Tensor
    randoms: list[list[Tensor]]
    history: list[dict[str, Any]]
    selected: dict[str, Tensor]
    batch: int
    images: int
    seconds: float

    @classmethod
    def taken(cls, key: str, model: nn.Module, step: Step, position: Position, ranks: Ranks) -> Self:
        """What there is to save; the processes of a run call this together."""
        randoms = [ranks.gather(state) for state in random_state(step.device)]
        rows = [asdict(row) for row in position.history]
        own = vars(position) | {"history": rows}
        return cls(key, model.state_dict(), step.optimizer.state_dict(), step.totals, randoms, **own)

    def write(self, path: Path) -> None:
        """Write the file."""
        with store.atomic_path(path) as target:
            torch.save({part.name: getattr(self, part.name) for part in fields(self)}, target)

    def restore(self, model: nn.Module, step: Step, ranks: Ranks, seed: int) -> Position:
        """Bring model, optimiser and generators where they were."""
        model.load_state_dict(self.model)
        step.load_state_dict(self.optimizer)
        step.totals.copy_(self.totals)
        if len(self.randoms[0]) == ranks.size:
            restore_random_state([states[ranks.rank] for states in self.randoms], step.device)
        else:  # dropout goes on with streams of its own, where the number of processes is another
            seed_all(stream_seed(seed, len(self.history)) + self.batch * 1000 + ranks.rank)
        rows = [Epoch(**row) for row in self.history]
        return Position(rows, self.selected, self.batch, self.images, self.seconds)


def resume(plan: Plan, model: nn.Module, step: Step, ranks: Ranks) -> Position:
    """Where an earlier process left a run, if what it saved is whole and of this run; else its beginning."""
    path = plan.folder / RESUME
    content = ranks.bytes_from_first(path.read_bytes() if ranks.first and path.is_file() else None)
    if content is None:
        return Position()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if state["key"] != plan.key:
            return Position()
        return Checkpoint(**state).restore(model, step, ranks, plan.config.training.seed)
    except Exception as error:  # torch.load raises all kinds on damaged files
        raise ArtefactError(
            f"{path} is damaged ({type(error).__name__}); delete it, or use --force, to train from the beginning."
        ) from error


def begin(plan: Plan) -> None:
    """Make a run's folder and write what it will be."""
    with store.writing(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    store.write_text(plan.folder / CONFIG, plan.config.to_toml())


def write_history(plan: Plan, history: Sequence[Epoch]) -> None:
    """Write ``history.csv``."""
    store.write_text(plan.folder / HISTORY, history_to_csv(history))


def finish(plan: Plan, selected: Mapping[str, Tensor], environment: dict[str, Any]) -> None:
    """Write what a finished run still lacks; nothing is needed to go on any more."""
    with store.atomic_path(plan.folder / WEIGHTS) as path:
        write_weights(path, selected, plan.config.model.name)
    store.write_json(plan.folder / ENVIRONMENT, environment)
    plan.seal()
    (plan.folder / RESUME).unlink(missing_ok=True)


def write_weights(path: Path, weights: Mapping[str, Tensor], model: str) -> None:
    """Write weights of a model as safetensors; the same weights give the same bytes."""
    # The format stores no memory twice, so tensors that share it are stored as copies.
    tensors = {name: value.contiguous().clone() for name, value in weights.items()}
    # A second entry would make the bytes a matter of chance: safetensors writes entries in no fixed order.
    save_file(tensors, path, metadata={"model": model})
