"""Disks that really are too small, and affbench run on them as a user runs it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from affbench.base import store
from affbench.base.errors import ArtefactError

SECONDS = 900  # more than any command of these tests takes, however busy the machine
_LIMIT = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)"
_LIMITED = (sys.executable, "-c", f"{_LIMIT}; os.execv(sys.executable, [sys.executable, *sys.argv[2:]])")
# The file system lives as long as this process, and only it and those that join it see it.
_MOUNT = 'mount -t tmpfs -o "size=$2" disk "$1" && echo mounted && exec cat'
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh")


class Disk:
    """Folders `data` and `results` on a disk with as much room as a test gives a command.

    Attributes
    ----------
    folder
        Where the disk is for the commands that run on it.
    seen
        The same folder for the test itself.
    complaint
        How affbench says that there is no more room.
    """

    complaint: str

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, folder

    def run(self, *arguments: str, room: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of affbench with `room` bytes left; with enough of them when None."""
        with self._squeezed(room) as interpreter:
            return subprocess.run(
                [*interpreter, "-m", "affbench", *arguments, *self.folders],
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )

    @property
    def folders(self) -> tuple[str, ...]:
        """The options that name the two folders."""
        return ("--data-dir", str(self.folder / "data"), "--results-dir", str(self.folder / "results"))

    @contextlib.contextmanager
    def _squeezed(self, room: int | None) -> Iterator[tuple[str, ...]]:
        """The interpreter, and what comes before it, while there is so little room."""
        yield (sys.executable,)


class ShortFiles(Disk):
    """No file may grow beyond the room, however many there are: to be had on every machine."""

    complaint = "the file is larger than its file system or 'ulimit -f' allows"

    @contextlib.contextmanager
    def _squeezed(self, room: int | None) -> Iterator[tuple[str, ...]]:
        yield (sys.executable,) if room is None else (*_LIMITED, str(room))


class SmallDisk(Disk):
    """A file system of its own, full but for the room."""

    complaint = "the disk is full"

    def __init__(self, folder: Path, process: int) -> None:
        super().__init__(folder)
        self.seen = Path(f"/proc/{process}/root{folder}")
        self._join = ("nsenter", f"--target={process}", "--user", "--preserve-credentials", "--mount")

    @contextlib.contextmanager
    def _squeezed(self, room: int | None) -> Iterator[tuple[str, ...]]:
        filler = self.seen / "filler"
        if room is not None:
            state = os.statvfs(self.seen)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room)
        try:
            yield (*self._join, sys.executable)
        finally:
            if room is not None:
                filler.unlink()

    def protect(self, *, on: bool) -> None:
        """Make the file system read-only, or writable again."""
        state = "remount,ro" if on else "remount,rw"
        subprocess.run([*self._join, "mount", "-o", state, str(self.folder)], check=True, timeout=SECONDS)


@contextlib.contextmanager
def mounted(folder: Path, size: str = "64m") -> Iterator[SmallDisk | None]:
    """A file system of that size at a new folder; None where the kernel lets nobody but the administrator mount one."""
    folder.mkdir()
    try:
        keeper = subprocess.Popen(
            [*_NAMESPACE, str(folder), size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except FileNotFoundError:
        yield None
        return
    with keeper:  # closes its input, which ends it
        assert keeper.stdout is not None
        disk = SmallDisk(folder, keeper.pid) if keeper.stdout.readline() == "mounted\n" else None
        yield disk


def halves(folder: Path) -> list[str]:
    """Files that an unfinished command left, or that its manifest does not describe as they are."""
    found = [path.name for path in folder.rglob(".*.part")]
    for path in folder.rglob(f"*{store.MANIFEST}"):
        whole = path.parent if path.name == store.MANIFEST else path.with_name(path.name[: -len(store.MANIFEST) - 1])
        manifest = store.read_manifest(whole)
        assert manifest is not None
        try:
            store.verify(whole, manifest)
        except ArtefactError:
            found.append(path.name)
    return found


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder and its checksum, but for locks."""
    return {
        str(path.relative_to(folder)): store.file_hash(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }
