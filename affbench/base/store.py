"""Cached artefacts: keyed by what made them, written atomically, verified when read.

An artefact is a file, or a folder of files, with a *manifest* (``NAME.manifest.json`` beside it, or ``manifest.json``
in it), which holds the key, what the key was made from, and the size and sha256 of every file. It is written last: an
artefact without one is unfinished and never used.
"""

import contextlib
import errno
import hashlib
import inspect
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from affbench.base.errors import AffbenchError, ArtefactError, StorageError
from affbench.base.version import __version__

MANIFEST = "manifest.json"
_ELSEWHERE = "choose another folder with --data-dir or --results-dir"
_HINTS = {
    errno.ENOSPC: f"the disk is full; free some space, or {_ELSEWHERE}",
    errno.EDQUOT: f"the disk quota is used up; free some space, or {_ELSEWHERE}",
    errno.EFBIG: f"the file is larger than its file system or 'ulimit -f' allows; raise the limit, or {_ELSEWHERE}",
    errno.EROFS: f"it is read-only; {_ELSEWHERE}",
    errno.EACCES: f"permission denied; {_ELSEWHERE}",
    errno.EPERM: f"permission denied; {_ELSEWHERE}",
    errno.ENAMETOOLONG: f"a name in it is longer than its file system allows; shorten it, or {_ELSEWHERE}",
    errno.ENOTDIR: f"a folder in it is a file; {_ELSEWHERE}",
    errno.EIO: f"the disk reports an error; check it, or {_ELSEWHERE}",
    **dict.fromkeys((errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS), f"its file system has no locks; {_ELSEWHERE}"),
    **dict.fromkeys(
        (errno.ESTALE, errno.ENOTCONN), "the file system is gone; run the same command again once it is back"
    ),
}
_VANISHED = "its folder vanished meanwhile; run the same command again, with the folder left where it is"
_TEMPORARY = "affbench-temporary-"
_PROBE = 1 << 16  # bytes; more than what is left in the last block of a file
# A lock that outlives its holder is no lock: filelock from version 4 has to be told not to fall back on one.
_HARD: dict[str, Any] = (
    {"fallback_to_soft": False} if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters else {}
)


def content_key(stage: str, version: int, inputs: Mapping[str, Any]) -> str:
    """The key of an artefact: sha256 over the stage, its version and JSON of all else that determines its content."""
    text = json.dumps({"stage": stage, "version": version, "inputs": inputs}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an operating-system error while writing `target` into a StorageError of one clear sentence."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {target}: {hint(target, error)}.") from error


def hint(path: Path, error: OSError) -> str:
    """What an operating-system error at a path means, and the way on."""
    # h5py raises OSError without an errno when HDF5 itself met the error.
    told = re.search(r"errno = (\d+)", str(error))
    number = error.errno or (int(told[1]) if told else 0)
    if number in (errno.ENOENT, errno.EEXIST):
        link = next((each for each in (path, *path.parents) if each.is_symlink() and not each.exists()), None)
        if link is not None:
            return f"{link} is a link to {link.readlink()}, which is not there; mount or make that, or {_ELSEWHERE}"
    if number == errno.ENOENT and not path.parent.is_dir():
        return _VANISHED
    text = _HINTS.get(number, error.strerror or str(error))
    if _TEMPORARY in str(path):
        text = text.replace(_ELSEWHERE, "name another folder for temporary files in the environment variable TMPDIR")
    return text


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder where the operating system keeps what is needed for a moment; it goes when the block ends."""
    with writing(Path(tempfile.tempdir or "", f"{_TEMPORARY}folder")):
        folder = tempfile.TemporaryDirectory(prefix=_TEMPORARY, ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target` if the block succeeds, and vanishes if it does not."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.umask(mask := os.umask(0))
            temporary.chmod(0o666 & ~mask)
            temporary.replace(target)
        except Exception as error:
            # torch, safetensors and h5py meet a full disk with errors of their own, so the disk itself is asked.
            if not isinstance(error, (OSError, AffbenchError)):
                with temporary.open("rb+") as file:
                    file.seek(0, os.SEEK_END)
                    file.write(bytes(_PROBE))
                    file.flush()
                    os.fsync(file.fileno())
            raise
        finally:
            temporary.unlink(missing_ok=True)


def refuse_foreign(target: Path) -> None:
    """Raise StorageError if there is something at `target` that affbench did not write."""
    with writing(target):
        ours = target.is_dir() and not target.is_symlink()
        if ours and any(target.iterdir()):
            named = (target / name for name in (MANIFEST, "report.html") if (target / name).is_file())
            ours = any(b"affbench" in path.read_bytes() for path in named)
        if not ours and (target.exists() or target.is_symlink()):
            raise StorageError(f"{target} was not written by affbench; move it away, or choose another name.")


@contextlib.contextmanager
def atomic_folder(target: Path, own: re.Pattern[str]) -> Iterator[Path]:
    """An empty folder that takes the place of `target` if the block succeeds, under a lock; else it vanishes.

    Files in `target` whose relative names do not match `own` are kept.
    """
    temporary = target.with_name(f".{target.name}.part")
    refuse_foreign(target)
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        new = temporary / target.name
        new.mkdir(parents=True)
        try:
            yield new
            refuse_foreign(target)  # it may have come meanwhile
            if target.is_dir():
                for path in target.rglob("*"):
                    name = path.relative_to(target)
                    if not own.fullmatch(name.as_posix()) and (path.is_symlink() or not path.is_dir()):
                        (new / name.parent).mkdir(parents=True, exist_ok=True)
                        shutil.copy2(path, new / name, follow_symlinks=False)
                shutil.rmtree(target)
            new.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(target) as path:
        path.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(target, content.encode())


def write_json(target: Path, content: Any) -> None:
    """Write a JSON document atomically, indented, keys in the order given."""
    write_text(target, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; whatever else is there is an ArtefactError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} does not hold a JSON object.")
    return content


@dataclass(frozen=True)
class Manifest:
    """What an artefact is and what it must look like; `files` are name to ``{"sha256": …, "bytes": …}``."""

    key: str
    stage: str
    version: int
    inputs: dict[str, Any]
    files: dict[str, dict[str, Any]]
    affbench_version: str = __version__


def manifest_path(artefact: Path) -> Path:
    """Where the manifest of a file or folder artefact lies."""
    return artefact / MANIFEST if artefact.is_dir() else artefact.with_name(f"{artefact.name}.{MANIFEST}")


def seal(artefact: Path, stage: str, version: int, inputs: Mapping[str, Any], names: list[str] | None = None) -> None:
    """Write the manifest of a finished file, or of a folder and the files `names` in it: from now on it counts."""
    members = {name: artefact / name for name in names} if names is not None else {artefact.name: artefact}
    try:
        files = {name: {"sha256": file_hash(path), "bytes": path.stat().st_size} for name, path in members.items()}
    except OSError as error:
        why = f"{error.filename} vanished meanwhile" if error.errno == errno.ENOENT else str(error)
        raise StorageError(f"{artefact} cannot be finished: {why}; run the same command again.") from error
    manifest = Manifest(content_key(stage, version, inputs), stage, version, dict(inputs), files)
    write_json(manifest_path(artefact), manifest.__dict__)


def read_manifest(artefact: Path) -> Manifest | None:
    """The manifest of an artefact, or None where it is unfinished or absent; a damaged one is an ArtefactError."""
    path = manifest_path(artefact)
    if not path.exists():
        return None
    content = read_json(path)
    try:
        manifest = Manifest(**content)
        whole = all({"sha256", "bytes"} <= entry.keys() for entry in manifest.files.values())
        if whole and manifest.key == content_key(manifest.stage, manifest.version, manifest.inputs):
            return manifest
        why = "its key is not that of what it describes" if whole else "it lacks the checksum of a file"
    except (TypeError, AttributeError) as error:
        why = str(error)
    raise ArtefactError(f"{path} is damaged, or not of this version of affbench: {why}.")


def verify(artefact: Path, manifest: Manifest, only: str | None = None) -> None:
    """Compare the files of an artefact, or `only` one, with its manifest, byte for byte; else raise ArtefactError."""
    for name in manifest.files if only is None else [only]:
        path = artefact / name if artefact.is_dir() else artefact.with_name(name)
        expected = manifest.files.get(name)
        try:
            if expected is None:
                raise ArtefactError(f"the manifest of {artefact} does not list {name}.")
            if path.stat().st_size != expected["bytes"] or file_hash(path) != expected["sha256"]:
                raise ArtefactError(f"{path} is damaged: its size or sha256 is not the one in its manifest.")
        except (OSError, ValueError) as error:  # a name may be none that a file can have
            raise ArtefactError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def cached(artefact: Path, stage: str, version: int, inputs: Mapping[str, Any]) -> bool:
    """Whether a finished, undamaged artefact with exactly this key is there."""
    try:
        manifest = read_manifest(artefact)
        if manifest is None or manifest.key != content_key(stage, version, inputs):
            return False
        verify(artefact, manifest)
    except ArtefactError:
        return False
    return True


def derive_file(
    target: Path, stage: str, version: int, inputs: Mapping[str, Any], make: Callable[[Path], None]
) -> Path:
    """The file `target`, which `make` writes only when it is not there, is damaged, or was made from something else."""
    if cached(target, stage, version, inputs):
        return target
    with lock(target):
        if not cached(target, stage, version, inputs):  # another process may have made it meanwhile
            with atomic_path(target) as path:
                make(path)
                manifest_path(target).unlink(missing_ok=True)  # never a manifest beside a file it does not describe
            seal(target, stage, version, inputs)
    return target


@contextlib.contextmanager
def lock(target: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of an artefact, so that two processes never write the same one; a negative timeout waits for ever.

    If the folder of `target` is removed meanwhile, that is a StorageError, even if this process made it again.
    """
    path, folder = target.with_name(f".{target.name}.lock"), target.parent
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, timeout=timeout, **_HARD)
        try:
            held.acquire()
        except Timeout:
            raise StorageError(f"{target} is being written by another process; wait for it to end.") from None
        except NotImplementedError as error:
            raise OSError(errno.ENOLCK, str(error)) from error
        handle = os.open(folder, os.O_RDONLY)  # as long as it is open, no other folder gets the same number

    def check() -> None:
        if not (path.exists() or (folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat()))):
            raise vanished(target)

    try:
        yield
        check()
    except OSError:
        check()
        raise
    finally:
        held.release()
        os.close(handle)


def vanished(target: Path) -> StorageError:
    """What to say where the folder of `target` was removed in the middle of work."""
    return StorageError(f"cannot write {target}: {_VANISHED}.")
