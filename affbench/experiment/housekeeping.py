"""Keeping house: what is there, what nothing refers to any more, and whether everything is in order."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
from filelock import FileLock, Timeout

from affbench.base import store
from affbench.base.errors import AffbenchError, ArtefactError
from affbench.base.version import __version__
from affbench.data import sets
from affbench.data.sets import FAMILIES, SOURCES
from affbench.experiment.reference import reference_runs
from affbench.report.table import Cell, Table
from affbench.run.folder import HISTORY, MEASURED, Run, list_runs

_SET = r"(?P<name>[^/]+)-(?P<split>train|validation|test)(-\d+x)?-(?P<key>[0-9a-f]{8})\.h5"
_TEMPORARY = r"(\.[a-z0-9_]{8}\.part|\.lock)"  # what `store.atomic_path` and `store.lock` add to the name of a file
_RAW = "|".join(
    re.escape(Path(file.name).name)
    for source in itertools.chain(*SOURCES.values())
    for file in (*source.files, *source.optional)
)
_RUN = r"config\.toml|history\.csv|[^/]+\.(json|h5)|model\.safetensors|resume\.pt"
_MADE = re.compile(  # the names, below the data and results folders, of what processes that died may leave behind
    rf"\.doctor\.lock|raw/[^/]+/([a-z_]+/)?\.({_RAW}|checksums\.json){_TEMPORARY}"
    rf"|sets/\.({_SET}|(affnist|homnist)-[a-z]+\.h5)(\.manifest\.json)?{_TEMPORARY}"
    rf"|runs/\.[^/]+-seed\d+-[0-9a-f]{{8}}\.lock|runs/[^/]+/({MEASURED})?\.({_RUN}){_TEMPORARY}"
    r"|reports/\.[^/]+\.(part|lock)"
)
ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to no process that still writes it
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "h5py", "typer")
_FETCHED = tuple(family.name for family in FAMILIES.values() if not family.embedded)
Health = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class RawFiles:
    """The downloaded files of one family."""

    family: str
    complete: bool
    bytes: int


@dataclass(frozen=True)
class ConvertedSet:
    """A converted set on disk; `source` says where it came from, or why it cannot be read."""

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

    @property
    def how(self) -> str:
        """How it ended, and after how many epochs."""
        return f"{self.epochs:g}/{self.of_epochs} {self.state}" if self.of_epochs else self.state

    @property
    def shares(self) -> str:
        """Its accuracies in percent."""
        first = {} if self.validation_accuracy is None else {"validation": self.validation_accuracy}
        return "\n".join(f"{100 * share:5.2f} {name}" for name, share in (first | self.accuracy).items()) or "–"


@dataclass(frozen=True)
class Status:
    """Everything `affbench status` shows."""

    data_dir: str
    results_dir: str
    raw: list[RawFiles]
    sets: list[ConvertedSet]
    runs: list[RunState]
    reference: list[RunState]


def read_status(data_dir: Path, results_dir: Path) -> Status:
    """Look at both folders; what is damaged is said, not raised."""
    raw = [RawFiles(own, FAMILIES[own].is_there(data_dir), _size(sets.raw_dir(data_dir, own))) for own in _FETCHED]
    converted = [_converted(path) for path in _set_files(data_dir)]
    runs, committed = (list(map(_run, found)) for found in (list_runs(results_dir), reference_runs(results_dir)))
    return Status(str(data_dir), str(results_dir), raw, converted, runs, committed)


def _set_files(data_dir: Path) -> list[Path]:
    return sorted(sets.sets_dir(data_dir).glob("*.h5"))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())


def _converted(path: Path) -> ConvertedSet:
    name, split, images, source = path.stem, "", 0, "unfinished: no manifest"
    try:
        if (manifest := store.read_manifest(path)) is not None:
            store.verify(path, manifest)  # a damaged HDF5 file is never opened: it could even loop for ever
            with h5py.File(path, "r", locking=False) as file:
                images = len(file["labels"])
                name, split, source = (str(file.attrs[key]) for key in ("name", "split", "source"))
    except (OSError, KeyError, AffbenchError) as error:
        source = f"damaged: {error}"
    return ConvertedSet(path.name, name, split, images, source, _size(path))


def _run(run: Run) -> RunState:
    try:
        if run.finished:
            _ = run.environment  # nothing of a run is shown that was edited in any part
        history = run.history if run.finished or (run.path / HISTORY).is_file() else []
        epochs, validated = (history[-1].epoch, run.selected.validation_accuracy) if history else (0, None)
        accuracy = {name: record.accuracy for name, record in run.evaluations.items()}
        stop_at, of_epochs = run.config.training.stop_at, run.config.training.epochs
        state = "unfinished" if not run.finished else f"matched at {100 * stop_at:g}%" if stop_at else "finished"
        if run.trained_elsewhere:
            state, of_epochs = "trained elsewhere", 0
        return RunState(run.name, state, epochs, of_epochs, validated, accuracy, _size(run.path))
    except AffbenchError as error:
        return RunState(run.name, f"damaged: {error}", 0, 0, None, {}, _size(run.path))


def status_tables(state: Status) -> list[Table]:
    """The same for a terminal."""
    raw = [(own.family, "here" if own.complete else f"affbench fetch {own.family}", own) for own in state.raw]
    sets = [(own.name, own.split, f"{own.images:,}" if own.images else own.source, own) for own in state.sets]
    sources = "; ".join(dict.fromkeys(own.source for own in state.sets if own.images))
    runs = [(own.name, own.how, own.shares, own) for own in state.runs]
    committed = [(own.name, own.how, own.shares.split(" ")[0], own) for own in state.reference]
    more = "'affbench leaderboard' shows their accuracies on test sets beside those of your runs."
    tables = [
        _table(f"Downloads in {state.data_dir}", ("Family", "State"), raw),
        _table("Converted sets", ("Set", "Split", "Images"), sets, f"From {sources}." if sources else ""),
        _table(f"Runs in {state.results_dir}", ("Run", "Epochs", "Accuracy %"), runs),
        _table("Committed runs", ("Run", "Epochs", "Validation %"), committed, more),
    ]
    return [table for table in tables if table.rows]


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], caption: str = "") -> Table:
    """Rows of texts, and what each is about, whose size is shown."""
    cells = tuple((*map(Cell, texts), Cell(f"{own.bytes / 1e6:,.1f}", own.bytes)) for *texts, own in rows)
    return Table(title, (*columns, "MB"), cells, caption)


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing refers to."""

    path: Path
    bytes: int
    reason: str


def find_leftovers(data_dir: Path, results_dir: Path) -> list[Leftover]:
    """What can be made again at once: files and locks of dead processes, sets that no run was trained or tested on."""
    return [*_unused_sets(data_dir, results_dir), *_abandoned(data_dir), *_abandoned(results_dir)]


def remove(leftovers: list[Leftover]) -> int:
    """Delete leftovers, and return the bytes that were freed."""
    for leftover in leftovers:
        with store.writing(leftover.path):
            store.manifest_path(leftover.path).unlink(missing_ok=True)  # first, so that no half of it counts
            if leftover.path.is_dir():
                shutil.rmtree(leftover.path)
            else:
                leftover.path.unlink(missing_ok=True)
    return sum(leftover.bytes for leftover in leftovers)


def _unused_sets(data_dir: Path, results_dir: Path) -> Iterator[Leftover]:
    used, current = set(), set()
    for run in list_runs(results_dir):
        with contextlib.suppress(AffbenchError):
            used |= set(run.evaluations)
            trained = sets.find_set(run.config.data.train_set)
            used |= {trained.name, trained.family}
    for name in (*sets.SETS, *used):
        with contextlib.suppress(AffbenchError):
            spec = sets.find_set(name)
            current |= {_identity(sets.SetPart(spec, split).path(data_dir)) for split in sets.SPLITS}
    for path in _set_files(data_dir):
        made = _identity(path)
        if made is not None and made not in current:
            yield Leftover(path, _size(path), "made by another version, or varied and used by no run")
        elif made is not None and made[0] not in used:
            yield Leftover(path, _size(path), "no run was trained or tested on it")


def _identity(path: Path) -> tuple[str, ...] | None:
    """Name, split and key of a set that affbench made of digits; None for other files, official sets among them."""
    found = re.fullmatch(_SET, path.name)
    return found and found.group("name", "split", "key")


def _abandoned(folder: Path) -> Iterator[Leftover]:
    for path in sorted(folder.rglob(".*")) if folder.is_dir() else ():
        if not _MADE.fullmatch(path.relative_to(folder).as_posix()) or path.is_symlink() or not path.exists():
            continue
        size = _size(path)
        if path.suffix == ".lock":
            with contextlib.suppress(Timeout, OSError):
                if path.is_file() and not size:
                    with FileLock(path, timeout=0):
                        pass
                    yield Leftover(path, size, "lock that nobody holds")
        elif time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            # A temporary folder of `store.atomic_folder` holds the folder it is named after alone.
            named = [] if path.is_file() else [inside.name for inside in path.iterdir()]
            if named in ([], [path.name[1:].removesuffix(".part")]):
                yield Leftover(path, size, "temporary file of a process that died")


@dataclass(frozen=True)
class Finding:
    """One line of `diagnose`."""

    subject: str
    health: Health
    text: str


def diagnose(data_dir: Path, results_dir: Path) -> Iterator[Finding]:
    """Check environment, data, cache and runs; every checksum is verified. The network is not asked."""
    from affbench.base.device import device_name, resolve_device, resolve_precision

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    yield Finding("affbench", "good", f"{__version__}, Python {platform.python_version()}, {versions}")
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    yield Finding("device", "good", f"{device} ({device_name(device)}), --precision auto is {precision}")
    yield _checked("data folder", "", _folder, data_dir)
    yield _checked("results folder", "", _folder, results_dir)
    for family in _FETCHED:
        yield _checked(f"downloads of {family}", "", _downloads, family, data_dir)
    for path in _set_files(data_dir):
        yield _checked(f"set {path.stem}", "It will be made again when it is needed.", _artefact, path)
    for run in list_runs(results_dir):
        subject = f"run {run.name}"
        if run.finished:
            yield _checked(subject, "Train it again with --force.", _artefact, run.path)
        else:
            yield Finding(subject, "note", "unfinished; 'affbench train --resume' goes on with it")
        for path in sorted(run.path.glob("eval-*.json")):
            yield _checked(subject, "It will be tested again when it is needed.", _record, run, path)


def _checked(subject: str, remedy: str, check: Callable[..., tuple[Health, str]], *of: Any) -> Finding:
    """What a check found; one that raises found something bad."""
    try:
        return Finding(subject, *check(*of))
    except AffbenchError as error:
        return Finding(subject, "bad", f"{error} {remedy}".rstrip())


def _folder(folder: Path) -> tuple[Health, str]:
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    with store.lock(folder / "doctor", timeout=0):
        pass
    (folder / ".doctor.lock").unlink(missing_ok=True)
    return "good" if free > 2e9 else "note", f"{folder} can be written and locked, {free / 1e9:.1f} GB free"


def _downloads(family: str, data_dir: Path) -> tuple[Health, str]:
    from affbench.data.fetch.files import Fetcher

    folder = sets.raw_dir(data_dir, family)
    if not folder.is_dir():
        return "note", f"none; 'affbench fetch {family}' gets them"
    files = [file for source in SOURCES[family] for file in source.files]
    present = [file for file in files if any((folder / form.name).exists() for form in file.forms)]
    damaged = [file.name for file in present if Fetcher(folder).find(file) is None]
    if damaged:
        return "bad", f"{', '.join(damaged)} damaged; 'affbench fetch {family}' gets them again"
    return "good", f"{len(present)} files, checksums right"


def _artefact(path: Path) -> tuple[Health, str]:
    manifest = store.read_manifest(path)
    if manifest is None:
        raise ArtefactError("unfinished: it has no manifest.")
    store.verify(path, manifest)
    return "good", f"{len(manifest.files)} files, checksums right"


def _record(run: Run, path: Path) -> tuple[Health, str]:
    from affbench.run.record import is_answered, predictions_path

    record = run.evaluation(path)
    predictions = predictions_path(run, record.set)
    if predictions.is_file() and not is_answered(run, record):
        raise ArtefactError(f"{predictions} is damaged, or contradicts {path.name}.")
    return "good", f"{path.name} is right"


def ask_mirrors() -> Iterator[Finding]:
    """Whether the sources of every family answer."""
    import requests
    import urllib3

    from affbench.data.fetch.http import unanswered

    for family in _FETCHED:
        answers = []
        for url in (url for source in SOURCES[family] for file in source.files[:1] for url in file.urls):
            try:
                answers.append(f"{requests.head(url, timeout=3, allow_redirects=True).status_code} {url}")
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
                answers.append(f"{url} {unanswered(error)}")
        good = any(answer.startswith("200 ") for answer in answers)
        text = "; ".join(answers) or "none; give a folder with --mirror"
        yield Finding(f"mirrors of {family}", "good" if good else "note", text)
