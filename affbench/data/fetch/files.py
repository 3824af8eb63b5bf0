"""Getting files: what is there already, a user's mirror, the known addresses in turn; always verified, always whole.

A file under way lies in ``.NAME.partial`` beside its target and reaches its name only when it is whole and its checksum
is right. ``checksums.json`` in the same folder holds the sha256 and the origin of every file. Where no checksum is
published it is the reference: the first copy that is what its name says is trusted, and a different one later an error.
"""

from __future__ import annotations

import contextlib
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import pooch  # type: ignore[import-untyped]
import requests

from affbench.base import store
from affbench.base.errors import AffbenchError, ArtefactError, DataError, DownloadError, UsageError
from affbench.base.progress import Progress
from affbench.data.fetch.http import Patience, Refused, Transfer, shown
from affbench.data.fetch.sources import RemoteFile, Source

CHECKSUMS = "checksums.json"
PART = "part"
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Fetched:
    """A file that is there and verified."""

    path: Path  # for one taken uncompressed from a mirror, that one
    sha256: str
    origin: str  # an address, or a name within a folder


@dataclass(frozen=True)
class Ways:
    """How files may be had."""

    # Folder, or http, https or file address, tried before the known addresses. It may be flat or a torchvision root
    mirror: str | Path | None = None
    offline: bool = False  # never touch the network
    force: bool = False  # fetch again even what is there, and accept another content where no checksum is published
    progress: Progress = field(default_factory=Progress)  # receives progress in bytes, and notes
    patience: Patience = field(default_factory=Patience)  # number of attempts, pauses and time limits


class _Place(NamedTuple):
    """Where a form of a file may be had, and what that is called in records."""

    form: RemoteFile
    where: Path | str  # a file, or an address
    origin: str


def find_file(file: RemoteFile, folder: Path) -> Fetched | None:
    """The file in the folder, verified, or None where it is absent or damaged; never touches the network."""
    return Fetcher(folder).find(file)


class Fetcher:
    """Gets files into one folder, which is made if need be."""

    def __init__(self, folder: Path, ways: Ways | None = None) -> None:
        self._ways = ways or Ways()
        self._folder = folder
        self._mirror = None if self._ways.mirror is None else _parse_mirror(self._ways.mirror)
        self._missing: list[str] = []  # in the mirror's folder
        self._asked = False  # the network, for anything
        self._unreachable: set[str] = set()  # hosts that did not answer; no use in trying them for every file

    def find(self, file: RemoteFile) -> Fetched | None:
        """The file, or its uncompressed form, verified; None where it is absent or damaged."""
        for form in file.forms:
            path = self._folder / form.name
            if not path.is_file():
                continue
            known = _remembered(self._folder, form.name)
            try:
                _check(form, path)
            except Refused as refused:
                self._ways.progress.note(f"{path} {refused}; it is fetched again.")
                if known and not form.published:
                    _remember(self._folder, form.name, None)  # or it would refuse the right one for ever
                continue
            sha256 = store.file_hash(path)
            if known and known["sha256"] != sha256 and not form.published:
                raise _changed(path, known["sha256"], sha256, "is not what was first fetched")
            origin = known["origin"] if known and known["sha256"] == sha256 else f"found as {form.name}"
            fetched = Fetched(path, sha256, str(origin))
            if not form.published and not known:
                _remember(self._folder, form.name, fetched)
            return fetched
        return None

    def first_of(self, sources: Sequence[Source]) -> tuple[Source, list[Fetched]]:
        """The first of several sources that can be had whole, and its files, the optional ones last.

        What is in the folder already comes first, then whatever the mirror has, then the known addresses; within each,
        in the order given. The files of a single source may come from different places.
        """
        for source in () if self._ways.force else sources:
            found = [file for file in map(self.find, source.files) if file]
            if len(found) == len(source.files):
                return source, [*found, *self._optional(source, self._from_mirror)]
        failures: list[str] = []
        for way in (self._from_any,) if len(sources) == 1 else (self._from_mirror, self._from_addresses):
            for source in sources:
                try:
                    return source, [*way(source.files), *self._optional(source, way)]
                except Refused as refused:
                    failures.append(refused.reason)
        raise self._failed(sources[0], failures)

    def _optional(self, source: Source, way: Callable[[Sequence[RemoteFile]], list[Fetched]]) -> Iterator[Fetched]:
        for file in source.optional:
            try:
                yield self._there(file) or way([file])[0]
            except Refused as refused:
                if refused.reason:
                    self._ways.progress.note(f"{file.name}, which is no must, could not be fetched: {refused}.")

    def _failed(self, source: Source, failures: list[str]) -> DownloadError:
        """The error that names every source and why it failed, and the ways on."""
        if self._missing:
            failures = [f"{self._mirror} has no {' or '.join(dict.fromkeys(self._missing))}", *failures]
        reasons = "; ".join(dict.fromkeys(filter(None, failures))) or "no address is known for it"
        ways = "give a folder or address that has it with --mirror"
        if self._ways.offline:
            ways = f"run once without --offline, or {ways}"
        elif self._asked:
            ways = f"try again later, or {ways}"
        what = source.name.partition(",")[0]
        return DownloadError(f"{what} could not be fetched: {reasons}. To go on, {ways} (see {source.homepage}).")

    def _there(self, file: RemoteFile) -> Fetched | None:
        return None if self._ways.force else self.find(file)

    # Ways; each has all of the files or raises `Refused`

    def _from_any(self, files: Sequence[RemoteFile]) -> list[Fetched]:
        fetched = []
        for file in files:
            try:
                fetched.append(self._there(file) or self._from_mirror([file])[0])
            except Refused as refused:
                try:
                    fetched += self._from_addresses([file])
                except Refused as again:
                    raise Refused("; ".join(filter(None, (refused.reason, again.reason)))) from None
        return fetched

    def _from_mirror(self, files: Sequence[RemoteFile]) -> list[Fetched]:
        mirror = self._mirror
        if mirror is None:
            raise Refused("")
        if isinstance(mirror, str):
            # Where a mirror puts a file can only be found out by asking.
            urls = {
                file: [f"{mirror.rstrip('/')}/{quote(name)}" for name in (file.name, *file.aliases)] for file in files
            }
            return [self._from_urls(file, urls[file], only_if_absent=True) for file in files]
        places = {file: list(_candidates(mirror, file)) for file in files}
        there = {file: self._there(file) for file in files}
        for file in files:
            if not (places[file] or there[file]):
                self._missing.append(file.name)
                raise Refused("")
        try:
            return [there[file] or self._from_places(file, places[file]) for file in files]
        except Refused as refused:
            # A wrong file that someone points at is a mistake to report, not a reason to go elsewhere.
            raise DataError(f"{refused}; put a good copy in its place, or leave --mirror out.") from refused

    def _from_addresses(self, files: Sequence[RemoteFile]) -> list[Fetched]:
        if not all(file.urls for file in files):
            raise Refused("")
        return [self._from_urls(file, file.urls) for file in files]

    def _from_urls(self, file: RemoteFile, urls: Sequence[str], *, only_if_absent: bool = False) -> Fetched:
        if self._ways.offline:
            raise Refused(f"{shown(urls[0])} was not asked (--offline)")
        self._asked = True
        return self._from_places(file, [_Place(file, url, shown(url)) for url in urls], only_if_absent=only_if_absent)

    def _from_places(self, file: RemoteFile, places: Sequence[_Place], *, only_if_absent: bool = False) -> Fetched:
        """The file from the first place that has it; with `only_if_absent`, go on only past those that have none."""
        reasons = []
        deadline = time.monotonic() + self._ways.patience.total
        for place in places:
            host = urlsplit(str(place.where)).netloc
            if host in self._unreachable:
                reasons.append(f"{place.origin} cannot be reached")
                continue
            with self._staging(place.form) as part:
                if there := self._there(file):  # another process has fetched it meanwhile
                    return there
                try:
                    return self._obtain(place, part, deadline)
                except Refused as refused:
                    reasons.append(f"{place.origin if host else place.where} {refused}")
                    if refused.unreachable:
                        self._unreachable.add(host)
                    if only_if_absent and not refused.absent:
                        break
        raise Refused("; ".join(dict.fromkeys(reasons)))

    # What is accepted, and remembered

    @contextlib.contextmanager
    def _staging(self, file: RemoteFile) -> Iterator[Path]:
        """Where the file may lie until it is accepted; this process alone works on it."""
        target = self._folder.absolute() / file.name
        with store.lock(target):
            folder = target.with_name(f".{target.name}.partial")
            with store.writing(target):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                yield folder / PART
            finally:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # fails, rightly, while there is something to resume

    def _obtain(self, place: _Place, part: Path, deadline: float) -> Fetched:
        """Bring a file, and put it in its place if it is the right one."""
        file, progress = place.form, self._ways.progress
        target = self._folder / file.name
        bring: Transfer | _Copy = _Copy(file, part, progress)
        if isinstance(place.where, str):
            bring = Transfer(file, part, self._ways.patience, deadline, progress)
        if self._ways.force:
            bring.discard()
        try:
            with store.writing(target):
                bring(str(place.where))
                _check(file, part)
                sha256, known = store.file_hash(part), _remembered(self._folder, file.name)
                if not file.published and known and known["sha256"] != sha256 and not self._ways.force:
                    what = f"from {place.origin} is not what was first fetched"
                    raise _changed(target, known["sha256"], sha256, what)
                part.replace(target)
        except Refused as refused:
            if not refused.wrong:
                raise
            bring.discard()
            if not bring.resumed:
                raise
            return self._obtain(place, part, deadline)  # its beginning may have been another file's
        except AffbenchError:
            bring.discard()  # on a full disk every byte counts
            raise
        bring.discard()
        fetched = Fetched(target, sha256, place.origin)
        _remember(self._folder, file.name, fetched)
        if not file.published:
            progress.note(
                f"{file.name}: sha256 {sha256} (none is published; remembered in {self._folder / CHECKSUMS}, "
                "and verified from now on)"
            )
        return fetched


def _remembered(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / CHECKSUMS
    if not path.exists():
        return None
    try:
        entry = store.read_json(path).get(name)
    except ArtefactError as error:
        raise DataError(f"{error} Delete it to have checksums recorded afresh.") from error
    if entry is not None and not (isinstance(entry, dict) and {"sha256", "origin"} <= entry.keys()):
        raise DataError(f"{path} is damaged at {name}; delete it to have checksums recorded afresh.")
    return entry


def _remember(folder: Path, name: str, fetched: Fetched | None) -> None:
    """Record a file, or forget what is recorded of it."""
    record = folder / CHECKSUMS
    with store.lock(record):
        known = store.read_json(record) if record.exists() else {}
        known.pop(name, None)
        if fetched:
            size = fetched.path.stat().st_size
            known[name] = {"sha256": fetched.sha256, "bytes": size, "origin": fetched.origin}
        store.write_json(record, known)


class _Copy:
    """Brings a file from a folder, as `Transfer` does from an address."""

    resumed = False

    def __init__(self, file: RemoteFile, part: Path, progress: Progress) -> None:
        self.part = part
        self._file, self._progress = file, progress

    def __call__(self, place: str) -> None:
        source, most = Path(place), self._file.size or self._file.max_bytes
        try:
            size = source.stat().st_size
            if size > most:
                raise Refused(f"has {size:,} bytes, more than the {most:,} that {self._file.name} may have")
            reader = source.open("rb")
        except OSError as error:
            raise Refused(f"cannot be read ({error.strerror or error})") from error
        with reader, self.part.open("wb") as writer, self._progress.task(self._file.name, size, "bytes") as task:
            while block := self._read(reader):
                writer.write(block)
                task.advance(len(block))

    def _read(self, reader: IO[bytes]) -> bytes:
        try:
            return reader.read(1 << 20)
        except OSError as error:  # told apart from one in writing
            raise Refused(f"cannot be read ({error.strerror or error})") from error

    def discard(self) -> None:
        """Forget what has been copied so far."""
        self.part.unlink(missing_ok=True)


def _check(file: RemoteFile, path: Path) -> None:
    """`Refused` where a file has not the published checksum or, where there is none, is not what its name says."""
    if file.published:
        kind, _, expected = file.published.partition(":")
        if (got := pooch.file_hash(str(path), kind)) != expected:
            raise Refused(f"has a wrong checksum: {kind}:{got} instead of {file.published}", wrong=True)
        return
    with path.open("rb") as opened:
        head = opened.read(520)
    kind = PurePosixPath(file.name).suffix
    sound = {
        ".zip": zipfile.is_zipfile(path),  # looks at its end as well
        ".mat": head[126:128] in (b"IM", b"MI") or _HDF5 in (head[:8], head[512:]),
    }
    if head.startswith(b"version https://git-lfs"):
        raise Refused("is a pointer of Git LFS, not the file it stands for", wrong=True)
    if not sound.get(kind, True):
        raise Refused(f"is no {kind} file, or only the beginning of one", wrong=True)


def _parse_mirror(mirror: str | Path) -> str | Path:
    """An http or https address as text, anything else as an existing folder."""
    text = str(mirror)
    if isinstance(mirror, str) and "://" in text:
        try:
            parts = urlsplit(text)
            if parts.scheme in ("http", "https"):
                requests.Request("GET", text).prepare()
                return text
        except (OSError, ValueError) as error:
            raise UsageError(f"--mirror {shown(text)} is no address ({error}).") from None
        if parts.scheme != "file":
            raise UsageError(f"--mirror {shown(text)} must be a folder, or an http, https or file address.")
        text = url2pathname(parts.path)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        wrong = "is a file; give the folder that holds it" if folder.exists() else "does not exist"
        raise UsageError(f"--mirror {text} {wrong}.")
    return folder


def _candidates(folder: Path, file: RemoteFile) -> Iterator[_Place]:
    """Where a folder holds the file in any form; its place in records is no path of this machine."""
    name = folder.resolve().name
    foreign = any(word in name.lower() for word in file.not_in)
    for form in file.forms:
        for relative in (form.name, *form.aliases):
            if "/" not in relative and relative != form.name and foreign:
                continue
            paths = [folder / relative]
            if relative.split("/")[0] == name:  # "MNIST/raw/…" with the folder MNIST itself as mirror
                paths.append(folder.parent / relative)
            for path in filter(Path.is_file, paths):
                yield _Place(form, path, f"{name}/{relative.removeprefix(f'{name}/')} (a folder)")


def _changed(path: Path, expected: str, got: str, what: str) -> DataError:
    return DataError(
        f"{path} {what}: sha256 {got} instead of {expected}; if the new one is right, accept it with --force."
    )
