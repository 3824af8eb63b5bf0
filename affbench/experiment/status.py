"""Data, cache and runs at a glance; nothing here loads a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from affbench.base import store
from affbench.base.errors import AffbenchError
from affbench.data.sets import FAMILIES, raw_dir, sets_dir
from affbench.run.folder import Run, list_runs

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class RawFiles:
    """Downloaded files of one family: their bytes, and whether all are there."""

    family: str
    complete: bool
    bytes: int


@dataclass(frozen=True)
class ConvertedSet:
    """A converted set on disk: name, split, images, where it came from, bytes; `source` says why it is unreadable."""

    file: str
    name: str
    split: str
    images: int
    source: str
    bytes: int


@dataclass(frozen=True)
class RunState:
    """A run's folder: how far it is, its accuracy on the validation split, and on every set it was tested on."""

    name: str
    state: str
    epochs: float
    of_epochs: int
    validation_accuracy: float | None
    accuracy: dict[str, float]
    bytes: int


@dataclass(frozen=True)
class Status:
    """Everything `affbench status` shows."""

    data_dir: str
    results_dir: str
    raw: tuple[RawFiles, ...]
    sets: tuple[ConvertedSet, ...]
    runs: tuple[RunState, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return asdict(self)


def read_status(data_dir: Path, results_dir: Path) -> Status:
    """Look at both folders; what is damaged is said, not raised."""
    families = [_raw(family.name, data_dir) for family in FAMILIES.values() if family.sources]
    sets = [_converted(path) for path in sorted(sets_dir(data_dir).glob("*.h5"))]
    runs = [_run(run) for run in list_runs(results_dir)]
    return Status(str(data_dir), str(results_dir), tuple(families), tuple(sets), tuple(runs))


def _raw(family: str, data_dir: Path) -> RawFiles:
    folder = raw_dir(data_dir, family)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return RawFiles(family, FAMILIES[family].is_there(data_dir), size)


def _converted(path: Path) -> ConvertedSet:
    size = path.stat().st_size
    try:
        manifest = store.read_manifest(path)
        if manifest is None:
            return ConvertedSet(path.name, path.stem, "", 0, "unfinished: no manifest", size)
        store.verify(path, manifest)  # a damaged HDF5 file is never opened: it could even loop for ever
        with h5py.File(path, "r", locking=False) as file:
            name, split, source = (str(file.attrs[key]) for key in ("name", "split", "source"))
            return ConvertedSet(path.name, name, split, len(file["labels"]), source, size)
    except (OSError, KeyError, AffbenchError) as error:
        return ConvertedSet(path.name, path.stem, "", 0, f"damaged: {error}", size)


def _run(run: Run) -> RunState:
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    try:
        if run.finished:
            _ = run.environment  # nothing of a run is shown that was edited in any part
        history = run.history if run.finished or (run.path / "history.csv").is_file() else []
        return RunState(
            name=run.name,
            state="finished" if run.finished else "unfinished",
            epochs=history[-1].epoch if history else 0,
            of_epochs=run.config.training.epochs,
            validation_accuracy=run.selected.validation_accuracy if history else None,
            accuracy={name: record.accuracy for name, record in run.evaluations.items()},
            bytes=size,
        )
    except AffbenchError as error:
        return RunState(run.name, f"damaged: {error}", 0, 0, None, {}, size)


def status_tables(state: Status) -> list[RichTable]:
    """The same for a terminal."""
    from rich.table import Table
    from rich.text import Text

    raw = Table(title=f"Downloads in {state.data_dir}", title_justify="left")
    for heading in ("family", "state", "MB"):
        raw.add_column(heading)
    for family in state.raw:
        there = "there" if family.complete else f"not there ('affbench fetch {family.family}')"
        raw.add_row(family.family, there, _megabytes(family.bytes))
    sets = Table(title="Converted sets", title_justify="left")
    for heading in ("set", "split", "images", "source", "MB"):
        sets.add_column(heading, overflow="fold")
    for converted in state.sets:
        texts = (converted.name, converted.split, f"{converted.images:,}", converted.source)
        sets.add_row(*map(Text, texts), _megabytes(converted.bytes))
    runs = Table(title=f"Runs in {state.results_dir}", title_justify="left")
    for heading in ("run", "state", "epochs", "validation %", "tested on (accuracy %)", "MB"):
        runs.add_column(heading, overflow="fold")
    for run in state.runs:
        tested = ", ".join(f"{name} {100 * accuracy:.2f}" for name, accuracy in run.accuracy.items())
        accuracy = "" if run.validation_accuracy is None else f"{100 * run.validation_accuracy:.2f}"
        states = (run.name, run.state, f"{run.epochs:g}/{run.of_epochs}", accuracy, tested or "–")
        runs.add_row(*map(Text, states), _megabytes(run.bytes))
    return [raw, sets, runs]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
