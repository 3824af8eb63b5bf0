"""Keeping house: what nothing refers to any more, and whether everything is in order."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from affbench.base import store
from affbench.base.errors import AffbenchError, ArtefactError
from affbench.base.version import __version__
from affbench.data import sets
from affbench.data.sets import FAMILIES, SOURCES, sources_of
from affbench.run.folder import Run, list_runs

_SET = r"[^/]+-(train|validation|test)(-\d+x)?-[0-9a-f]{8}\.h5"
_TEMPORARY = r"(\.[a-z0-9_]{8}\.part|\.lock)"  # what `store.atomic_path` and `store.lock` add to the name of a file
_RAW = "|".join(
    re.escape(Path(file.name).name)
    for name in SOURCES
    for source in sources_of(name)
    for file in (*source.files, *source.optional)
)
_RUN = r"config\.toml|history\.csv|[^/]+\.(json|h5)|model\.safetensors|resume\.pt"
_MADE = re.compile(  # the names, below the data and results folders, of what processes that died may leave behind
    rf"\.doctor\.lock|raw/[^/]+/([a-z_]+/)?\.({_RAW}|checksums\.json){_TEMPORARY}"
    rf"|sets/\.({_SET}|(affnist|homnist)-[a-z]+\.h5)(\.manifest\.json)?{_TEMPORARY}"
    rf"|runs/\.[^/]+-seed\d+-[0-9a-f]{{8}}\.lock|runs/[^/]+/(factors/)?\.({_RUN}){_TEMPORARY}"
    r"|reports/\.[^/]+\.(part|lock)"
)
ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to no process that still writes it
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "h5py", "typer")
Health = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing refers to."""

    path: Path
    bytes: int
    reason: str


@dataclass(frozen=True)
class Finding:
    """One line of `diagnose`."""

    subject: str
    health: Health
    text: str


def find_leftovers(data_dir: Path, results_dir: Path) -> list[Leftover]:
    """What can be deleted without losing anything that cannot be made again at once.

    Temporary files of processes that died, locks that nobody holds, converted sets of an earlier version, and
    converted sets that no run was trained or tested on. Downloads, official sets, runs, reports and
    ``results/reference`` are never among them.
    """
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
    for name in (*sets.set_names(), *used):
        with contextlib.suppress(AffbenchError):
            spec = sets.find_set(name)
            current |= {_stem(sets.SetPart(spec, split).path(data_dir)) for split in sets.SPLITS}
    for path in sorted(sets.sets_dir(data_dir).glob("*.h5")):
        name = path.name.partition("-train")[0].partition("-validation")[0].partition("-test")[0]
        if (name in FAMILIES and FAMILIES[name].write) or not _is_converted(path):
            continue
        if _stem(path) not in current:
            yield Leftover(path, path.stat().st_size, "made by another version, or varied and used by no run")
        elif name not in used:
            yield Leftover(path, path.stat().st_size, "no run was trained or tested on it")


def _is_converted(path: Path) -> bool:
    """Whether affbench made a set: its manifest says so, or its name where the manifest is lost."""
    try:
        manifest = store.read_manifest(path)
    except ArtefactError:
        manifest = None
    return manifest.stage == "convert" if manifest else re.fullmatch(_SET, path.name) is not None


def _stem(path: Path) -> str:
    """Name of a converted set without the number of its copies."""
    parts = path.stem.split("-")
    return "-".join(part for part in parts if not (part.endswith("x") and part[:-1].isdigit()))


def _abandoned(folder: Path) -> Iterator[Leftover]:
    for path in sorted(folder.rglob(".*")) if folder.is_dir() else ():
        if not _MADE.fullmatch(path.relative_to(folder).as_posix()) or path.is_symlink() or not path.exists():
            continue
        size = sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())
        if path.suffix == ".lock":
            if path.is_file() and not size and not _held(path):
                yield Leftover(path, size, "lock that nobody holds")
        elif time.time() - path.stat().st_mtime > ABANDONED_SECONDS and _holds_report(path):
            yield Leftover(path, size, "temporary file of a process that died")


def _holds_report(path: Path) -> bool:
    """Whether a temporary folder is one of `store.atomic_folder`: it holds the folder it is named after alone."""
    return path.is_file() or [inside.name for inside in path.iterdir()] in ([], [path.name[1:].removesuffix(".part")])


def _held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def diagnose(data_dir: Path, results_dir: Path, *, offline: bool = False) -> Iterator[Finding]:
    """Check environment, data, cache and runs; every checksum is verified."""
    yield from _environment()
    for label, folder in (("data folder", data_dir), ("results folder", results_dir)):
        yield _folder(label, folder)
    for family in (family.name for family in FAMILIES.values() if family.sources):
        yield _downloads(family, data_dir)
    for path in sorted(sets.sets_dir(data_dir).glob("*.h5")):
        yield _artefact(f"set {path.stem}", path, "it will be made again when it is needed")
    for run in list_runs(results_dir):
        if run.finished:
            yield _artefact(f"run {run.name}", run.path, "train it again with --force")
        else:
            yield Finding(f"run {run.name}", "note", "unfinished; 'affbench train --resume' goes on with it")
        for path in sorted(run.path.glob("eval-*.json")):
            if (wrong := _wrong_record(run, path)) is not None:
                yield Finding(f"run {run.name}", "bad", f"{wrong} It will be tested again when it is needed.")
    if offline:
        yield Finding("mirrors", "note", "not asked (--offline)")
    else:
        for family in (family.name for family in FAMILIES.values() if family.sources):
            yield _reachable(family)


def _environment() -> Iterator[Finding]:
    from affbench.base.device import device_name, resolve_device, resolve_precision

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    yield Finding("affbench", "good", f"{__version__}, Python {platform.python_version()}, {versions}")
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    yield Finding("device", "good", f"{device} ({device_name(device)}), --precision auto is {precision}")


def _folder(label: str, folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    try:
        with store.lock(folder / "doctor", timeout=0):
            pass
        (folder / ".doctor.lock").unlink(missing_ok=True)
    except AffbenchError as error:
        return Finding(label, "bad", str(error))
    return Finding(
        label, "good" if free > 2e9 else "note", f"{folder} can be written and locked, {free / 1e9:.1f} GB free"
    )


def _downloads(family: str, data_dir: Path) -> Finding:
    from affbench.data.fetch.files import find_file

    folder = sets.raw_dir(data_dir, family)
    if not folder.is_dir():
        return Finding(f"downloads of {family}", "note", f"none; 'affbench fetch {family}' gets them")
    present = [
        file
        for source in sources_of(family)
        for file in source.files
        if any((folder / name).exists() for name in (file.name, file.plain.name if file.plain else file.name))
    ]
    try:
        damaged = [file.name for file in present if find_file(file, folder) is None]
    except AffbenchError as error:
        return Finding(f"downloads of {family}", "bad", str(error))
    if damaged:
        text = f"{', '.join(damaged)} damaged; 'affbench fetch {family}' gets them again"
        return Finding(f"downloads of {family}", "bad", text)
    return Finding(f"downloads of {family}", "good", f"{len(present)} files, checksums right")


def _artefact(subject: str, path: Path, remedy: str) -> Finding:
    try:
        manifest = store.read_manifest(path)
        if manifest is None:
            return Finding(subject, "bad", f"unfinished: it has no manifest; {remedy}")
        store.verify(path, manifest)
    except AffbenchError as error:
        return Finding(subject, "bad", f"{error} {remedy[0].upper()}{remedy[1:]}.")
    return Finding(subject, "good", f"{len(manifest.files)} files, checksums right")


def _wrong_record(run: Run, path: Path) -> str | None:
    from affbench.run.record import is_answered, predictions_path

    try:
        record = run.evaluation(path)
    except AffbenchError as error:
        return str(error)
    there = predictions_path(run, record.set)
    if there.is_file() and not is_answered(run, record):
        return f"{there} is damaged, or contradicts {path.name}."
    return None


def _reachable(family: str) -> Finding:
    import requests
    import urllib3

    from affbench.data.fetch.http import unanswered

    urls = [url for source in sources_of(family) for file in source.files[:1] for url in file.urls]
    if not urls:
        return Finding(f"mirrors of {family}", "note", "none; give a folder with --mirror")
    answers = []
    for url in urls:
        try:
            answers.append(f"{requests.head(url, timeout=3, allow_redirects=True).status_code} {url}")
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            answers.append(f"{url} {unanswered(error)}")
    good = any(answer.startswith("200 ") for answer in answers)
    return Finding(f"mirrors of {family}", "good" if good else "note", "; ".join(answers))
