"""What the tests of fetching share: a content, files that have it, and a progress that remembers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from affbench.base.progress import Progress, Task
from affbench.data.fetch.files import Fetched, Fetcher, Ways
from affbench.data.fetch.http import Patience
from affbench.data.fetch.sources import RemoteFile, Source

CONTENT = bytes(range(256)) * 800  # 204,800 bytes, several blocks
MAT = bytes(126) + b"IM" + CONTENT
QUICK = Patience(attempts=3, wait=0.01, silence=2, total=20)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()  # noqa: S324


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(content: bytes) -> bytes:
    """An archive of one member."""
    with io.BytesIO() as whole:
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr(zipfile.ZipInfo("1.mat"), content)
        return whole.getvalue()


def checked(*urls: str, content: bytes = CONTENT, name: str = "file.bin", **more: Any) -> RemoteFile:
    """A file with a published checksum."""
    return RemoteFile(name, urls, md5=md5(content), **more)


def trusted(*urls: str, name: str = "file.bin", **more: Any) -> RemoteFile:
    """A file without one."""
    return RemoteFile(name, urls, **more)


def source_of(*files: RemoteFile, name: str = "Set, source") -> Source:
    return Source(name, files, license="none", homepage="https://example.org/set")


def fetch_alternatives(sources: Sequence[Source], folder: Path, **options: Any) -> tuple[Source, list[Fetched]]:
    return Fetcher(folder, Ways(**options)).first_of(sources)


def fetch_source(source: Source, folder: Path, **options: Any) -> list[Fetched]:
    return fetch_alternatives([source], folder, **options)[1]


def fetch_file(file: RemoteFile, folder: Path, **options: Any) -> Fetched:
    return fetch_source(source_of(file), folder, **options)[0]


def find_file(file: RemoteFile, folder: Path) -> Fetched | None:
    return Fetcher(folder).find(file)


def left_in(folder: Path) -> list[str]:
    """What is left behind, but for locks."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


class Recorder(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[tuple[str, float | None, str]] = []
        self.done = 0.0

    @contextlib.contextmanager
    def task(self, title: str, total: float | None, unit: str = "") -> Iterator[Task]:
        self.tasks.append((title, total, unit))
        recorder = self

        class Counter(Task):
            def advance(self, amount: float, text: str = "") -> None:
                recorder.done += amount

        yield Counter()

    def note(self, text: str) -> None:
        self.notes.append(text)
