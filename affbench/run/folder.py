"""A run's folder: its names, its files, and reading them back.

``results/runs/NAME/`` holds ``config.toml``, ``history.csv``, ``model.safetensors``, ``environment.json`` and their
``manifest.json`` once training has ended, ``resume.pt`` while it has not, and for every set the run was tested on
``eval-SET.json`` and ``predictions-SET.h5``.
"""

import contextlib
import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from affbench.base import store
from affbench.base.config import ModelConfig, RunConfig, read_run_config
from affbench.base.errors import AffbenchError, ArtefactError, UsageError, nearest
from affbench.data.sets import find_set

CONFIG, HISTORY, WEIGHTS, ENVIRONMENT = "config.toml", "history.csv", "model.safetensors", "environment.json"
RESUME = "resume.pt"
PUBLISHED = "weights"  # the folder of published checkpoints, beside the runs they are of
MEASURED = "(factors|entropy)/"  # folders of what is measured of a finished run
OWN = re.compile(  # names of the files that affbench writes into a run's folder
    r"config\.toml|history\.csv|model\.safetensors|(environment|manifest)\.json|resume\.pt|eval-[^/]+\.json"
    rf"|predictions-[^/]+\.h5|{MEASURED}[^/]+\.json|tensorboard/events\.[^/]+"
)


@dataclass(frozen=True)
class Epoch:
    """One row of ``history.csv``: a validation; with several an epoch, `epoch` counts in fractions."""

    epoch: float  # done, as are optimiser steps
    step: int
    learning_rate: float  # of the last step
    train_loss: float  # means since the last row, while the weights changed
    train_accuracy: float | None  # None for a model whose loss hides its scores
    validation_accuracy: float
    seconds: float  # of training alone, since the last row
    images_per_second: float


def best(history: Sequence[Epoch]) -> Epoch:
    """The validation whose weights are kept: the first with the highest accuracy."""
    return max(history, key=lambda row: row.validation_accuracy)


def history_to_csv(history: Iterable[Epoch]) -> str:
    """The content of ``history.csv``; floats keep every digit, None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, history))
    return text.getvalue()


def history_from_csv(path: Path) -> list[Epoch]:
    """Read ``history.csv``; an `ArtefactError` where it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: text or None for name, text in row.items()} for row in csv.DictReader(file)]
        return TypeAdapter(list[Epoch]).validate_python(rows)
    except (OSError, ValueError, csv.Error) as error:
        raise ArtefactError(f"{path} cannot be read as a training history ({error}).") from error


class Share(BaseModel, frozen=True):
    """How many of some images were classified correctly, with a 95% Wilson interval."""

    n: int
    correct: int
    accuracy: float
    ci95: tuple[float, float]


class ClassShare(Share, frozen=True):
    """The share of one class."""

    label: int


class BinShare(Share, frozen=True):
    """The share of the images whose transformation lies in [low, high)."""

    low: float
    high: float


class Tally(Share, frozen=True, populate_by_name=True):
    """What was counted when a model was tested on a set."""

    ci95: tuple[float, float] = Field(alias="accuracy_ci95")  # takes images as independent
    # Bootstrap over originals, as versions of one digit are not independent; None where every image is an original.
    ci95_clustered: tuple[float, float] | None = Field(alias="accuracy_ci95_clustered")
    set: str
    split: str
    n_originals: int  # different original digits among the images
    per_class: tuple[ClassShare, ...]  # by true class
    confusion: tuple[tuple[int, ...], ...]  # counts: rows true, columns predicted classes
    by_transformation: dict[str, tuple[BinShare, ...]] | None  # bins of each factor; None for sets without
    precision: str  # what the model was run in
    warning: str | None = None  # why the accuracy may not be the model's alone: its answers depend on the batch


class EvaluationRecord(Tally, frozen=True):
    """What was counted, and where it comes from."""

    set_key: str
    copies: int | None  # None but for synthetic affine sets
    limit: int | None  # None for the whole set
    run: str
    model: str
    routings: int | None
    seed: int
    checkpoint_sha256: str
    device: str
    seconds: float
    key: str
    code: str | None = None  # hash of the model's code that answered; the run's, unless it was edited in between
    evaluations: int = Field(default=1, ge=1)  # tests of this checkpoint on the set; answers from disk do not count
    predictions_sha256: str = ""
    affbench_version: str

    def document(self) -> dict[str, Any]:
        """The content of ``eval-SET.json``: the record, and a checksum over all of it."""
        content = self.model_dump(mode="json", by_alias=True)
        return content | {"record_sha256": store.content_key("record", 1, content)}


class Environment(BaseModel, frozen=True, extra="allow"):
    """What reports look up of ``environment.json``, which says more; in earlier runs it says less."""

    run: str | None = None
    parameters: int
    seed: int
    selected_by: str | None = None
    stop_at_reached_epoch: float | None = None
    train_images: int | None = None
    finished_at: float | None = None  # seconds since 1970
    precision: str | None = None
    device_name: str | None = None


@dataclass(frozen=True)
class Run:
    """A run's folder; files are read, and compared with its manifest once training has ended, when first asked for."""

    path: Path  # its name is readable and unique, such as ``capsnet-r3-seed0-1a2b3c4d``

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.path.name

    @cached_property
    def config(self) -> RunConfig:
        """Everything that determined the run, resolved."""
        return read_run_config(self._verified(CONFIG))

    @cached_property
    def trained_elsewhere(self) -> bool:
        """Whether its weights came from a file: there is no history of their training, nor a seed."""
        manifest = self.manifest
        return manifest is not None and manifest.stage == "elsewhere"

    @cached_property
    def history(self) -> list[Epoch]:
        """One entry per validation; none where it was trained elsewhere."""
        return [] if self.trained_elsewhere else history_from_csv(self._verified(HISTORY))

    @cached_property
    def environment(self) -> Environment:
        """How the run came about, and on what."""
        path = self._verified(ENVIRONMENT)
        return _read(Environment, path, store.read_json(path))

    def _verified(self, name: str) -> Path:
        if (manifest := self.manifest) is not None:
            store.verify(self.path, manifest, only=name)
        return self.path / name

    @property
    def manifest(self) -> store.Manifest | None:
        """What the run was made from and must look like; None while training has not ended."""
        return store.read_manifest(self.path)

    @property
    def sealed(self) -> store.Manifest:
        """Its manifest; an `ArtefactError` where training has not ended."""
        if (manifest := self.manifest) is None:
            raise ArtefactError(f"run {self.name} is not finished; 'affbench train --resume' goes on with it.")
        return manifest

    @property
    def origin(self) -> dict[str, Any]:
        """What besides the configuration determined the run: data and code, where it says so."""
        inputs = self.manifest.inputs if self.manifest else {}
        return {key: value for key, value in inputs.items() if key != "config"}

    @property
    def canvas(self) -> int:
        """Height and width of the images the model takes, in pixels."""
        return find_set(self.config.data.train_set).canvas

    @property
    def weights(self) -> Path:
        """The checkpoint: in the run's folder, or of a published run beside it, in ``weights``."""
        published = self.path.parent / PUBLISHED / f"{self.name}.safetensors"
        return published if published.is_file() else self.path / WEIGHTS

    @property
    def made_at(self) -> float:
        """When training ended, in seconds since 1970; where the run does not say it, when its folder was begun."""
        with contextlib.suppress(AffbenchError):
            if self.finished and self.environment.finished_at is not None:
                return self.environment.finished_at
        return (self.path / CONFIG).stat().st_mtime

    @property
    def finished(self) -> bool:
        """Whether training ended and the checkpoint counts."""
        return (self.path / store.MANIFEST).is_file()

    @property
    def selected(self) -> Epoch:
        """The validation whose weights were kept: the first with the highest accuracy."""
        if not self.history:
            raise ArtefactError(f"run {self.name} was trained elsewhere: nobody knows its validation accuracy.")
        return best(self.history)

    @property
    def train_seconds(self) -> float:
        """Of all epochs, training alone."""
        return sum(row.seconds for row in self.history)

    @property
    def seconds_per_epoch(self) -> float:
        """Mean over the epochs, training alone; NaN without a history."""
        return self.train_seconds / self.history[-1].epoch if self.history else math.nan

    @cached_property
    def evaluations(self) -> dict[str, EvaluationRecord]:
        """Set name to record, for every set the run was tested on, in the order of their names."""
        return {record.set: record for record in map(self.evaluation, sorted(self.path.glob("eval-*.json")))}

    def evaluation(self, path: Path) -> EvaluationRecord:
        """One of the records in the folder; an `ArtefactError` if it is not of this run's checkpoint and its set."""
        record, manifest = read_evaluation(path), self.manifest
        weights = manifest.files.get(WEIGHTS) if manifest else None
        if weights is not None and record.checkpoint_sha256 != weights["sha256"]:
            raise ArtefactError(f"{path} is of another checkpoint than the manifest's.")
        if path.name != f"eval-{record.set}.json":
            raise ArtefactError(f"{path} is of set '{record.set}', which its file name does not say.")
        return record


def clear(folder: Path) -> None:
    """Delete what affbench wrote into a run's folder, so that the run is trained again."""
    if folder.is_dir():
        with store.lock(folder), store.writing(folder):
            (folder / store.MANIFEST).unlink(missing_ok=True)  # first, so that no half of it counts
            for path in folder.rglob("*"):
                if OWN.fullmatch(path.relative_to(folder).as_posix()):
                    path.unlink()


def delete(run: Run) -> bool:
    """Delete a run, and its folder unless it holds files that affbench did not write; whether the folder is gone."""
    clear(run.path)
    for path in sorted(run.path.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif re.fullmatch(r"\..+\.lock", path.name):
            path.unlink()
    with contextlib.suppress(OSError):
        run.path.rmdir()
    return not run.path.exists()


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read ``eval-SET.json``; an `ArtefactError` if it is damaged, contradicts itself, or was edited since."""
    content = store.read_json(path)
    checksum = content.pop("record_sha256", None)  # records of earlier versions have none
    record = _read(EvaluationRecord, path, content)
    hits = sum(sum(row[number : number + 1]) for number, row in enumerate(record.confusion))
    counted = [(sum(map(sum, record.confusion)), hits)]
    for shares in (record.per_class, *(record.by_transformation or {}).values()):
        counted.append((sum(share.n for share in shares), sum(share.correct for share in shares)))
    low, high = record.ci95
    agrees = low <= record.accuracy <= high and abs(record.accuracy - record.correct / max(record.n, 1)) <= 1e-9
    if record.n < 1 or set(counted) != {(record.n, record.correct)} or not agrees:
        counts = f"n = {record.n:,} and correct = {record.correct:,}"
        raise ArtefactError(f"{path} contradicts itself: its accuracy, classes or bins are not those of {counts}.")
    if checksum not in (None, store.content_key("record", 1, content)):
        raise ArtefactError(f"{path} was edited after it was written: its checksum is another.")
    return record


_Content = TypeVar("_Content", bound=BaseModel)


def _read(kind: type[_Content], path: Path, content: dict[str, Any]) -> _Content:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtefactError(f"{path} is not what affbench writes there ({where}: {first['msg']}).") from None


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a run, for another machine."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.read_bytes() for path in paths if path.is_file() and not path.name.startswith(".")}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files from another machine in their places, unless this one has finished the run itself meanwhile."""
    with store.lock(folder):
        manifest = folder / store.MANIFEST
        if manifest.is_file() and manifest.read_bytes() != files.get(store.MANIFEST):
            return
        # What a manifest or an evaluation speaks of comes before it.
        for name in sorted(files, key=lambda name: (name.startswith("eval-"), name == store.MANIFEST)):
            store.write_bytes(folder / name, files[name])
        if store.MANIFEST in files:
            (folder / RESUME).unlink(missing_ok=True)


def default_results_dir() -> Path:
    """Where results lie unless told otherwise: ``$AFFBENCH_RESULTS_DIR``, else ``results``."""
    return Path(os.environ.get("AFFBENCH_RESULTS_DIR") or "results")


def runs_dir(results_dir: Path) -> Path:
    """Where runs lie."""
    return results_dir / "runs"


def run_name(model: ModelConfig, which: str, key: str) -> str:
    """The readable name of a run with content key `key`; `which` tells it from others of its model."""
    short = re.sub(r"^.*/(?=[^/]*\.py:)", "", model.name)  # of a model in a file, without the file's folders
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", short)[:100]
    return f"{name}{'' if model.routings is None else f'-r{model.routings}'}-{which}-{key[:8]}"


def list_runs(results_dir: Path) -> list[Run]:
    """Every run below a results folder, finished or not, oldest first."""
    folder = runs_dir(results_dir)
    found = [Run(path) for path in folder.iterdir() if (path / CONFIG).is_file()] if folder.is_dir() else []
    return sorted(found, key=lambda run: (run.made_at, run.name))


def finished_runs(results_dir: Path, *names: str) -> list[Run]:
    """The finished runs of these names, or whose names begin so; `UsageError` where a name is that of none."""
    finished = {run.name: run for run in list_runs(results_dir) if run.finished}
    found: dict[str, Run] = {}
    for name in names:
        begun = [known for known in finished if known.startswith(name)]
        if name and not begun:
            pick_run(name, finished, runs_dir(results_dir))
        found |= {known: finished[known] for known in ([name] if name in finished else begun)}
    return list(found.values())


def find_run(results_dir: Path, name: str | None = None) -> Run:
    """The finished run called `name` (or whose name alone begins so); the latest one when None."""
    finished = {run.name: run for run in list_runs(results_dir) if run.finished}
    if name is not None:
        return pick_run(name, finished, runs_dir(results_dir), "--run ")
    if not finished:
        raise ArtefactError(f"there is no finished run in {runs_dir(results_dir)}; 'affbench train' makes one.")
    return list(finished.values())[-1]


def pick_run(name: str, runs: Mapping[str, Run], folder: Path, option: str = "") -> Run:
    """The one of the finished runs in a folder that is called `name`, or whose name alone begins so."""
    matches = [name] if name in runs else [known for known in runs if known.startswith(name)]
    if len(matches) == 1:
        return runs[matches[0]]
    if matches:
        raise UsageError(f"{option}{name} could mean {', '.join(matches)}; give more of the name.")
    hint = nearest(name, list(runs)) if runs else "there are no finished runs yet."
    raise UsageError(f"there is no finished run '{name}' in {folder}: {hint}")
