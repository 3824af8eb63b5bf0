"""Getting files: what is there already, a user's mirror, the known addresses in turn; always verified, always whole.

A file under way lies in ``.NAME.partial`` beside its target and reaches its name only when it is whole and its checksum
is right. ``checksums.json`` in the same folder holds the sha256 and the origin of every file. Where no checksum is
published it is the reference: the first copy is trusted, and a different one later is an error.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict, Unpack
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import pooch  # type: ignore[import-untyped]

from affbench import store
from affbench.data.sources import RemoteFile, Source
from affbench.data.transfer import Patience, Refused, Transfer, shown
from affbench.errors import ArtefactError, DataError, DownloadError, StorageError, UsageError
from affbench.progress import Progress

CHECKSUMS = "checksums.json"
PART = "part"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A file that is there and verified.

    Attributes
    ----------
    path
        The file; for one taken uncompressed from a mirror (`RemoteFile.plain`), that one.
    sha256
        Of the file at `path`, 64 hexadecimal digits.
    origin
        Where it came from: an address, or a name within a folder; it outlives the download in ``checksums.json``.
    """

    path: Path
    sha256: str
    origin: str


class Options(TypedDict, total=False):
    """How files are fetched; all of it may be left out.

    Attributes
    ----------
    mirror
        Folder, or http, https or file address, tried before the known addresses. It may be flat or a torchvision root.
    offline
        Never touch the network.
    force
        Fetch again even what is there, and accept another content where no checksum is published.
    progress
        Receives progress in bytes, and notes.
    patience
        Number of attempts, pauses and time limits.
    """

    mirror: str | Path | None
    offline: bool
    force: bool
    progress: Progress | None
    patience: Patience


def find_file(file: RemoteFile, folder: Path) -> Fetched | None:
    """The file in the folder, verified, or None where it is absent or damaged; never touches the network.

    Parameters
    ----------
    file
        What is looked for.
    folder
        Where fetched files lie.

    Returns
    -------
    Fetched or None

    Raises
    ------
    DataError
        The file is not the one whose checksum was remembered.
    """
    return _Fetcher(folder).find(file)


def fetch_file(file: RemoteFile, folder: Path, **options: Unpack[Options]) -> Fetched:
    """Fetch one file, unless it is there already.

    Parameters
    ----------
    file
        What to fetch.
    folder
        Where it is to lie; made if need be.
    **options
        See `Options`.

    Returns
    -------
    Fetched

    Raises
    ------
    UsageError
        The mirror is neither a folder nor an address.
    DownloadError
        No source could deliver the file; each is named with its reason.
    DataError
        The mirror's folder holds a file with a wrong checksum, or a file differs from the one first fetched.
    StorageError
        The folder cannot be written.
    """
    return _Fetcher(folder, **options).get(file)


def fetch_source(source: Source, folder: Path, **options: Unpack[Options]) -> list[Fetched]:
    """Fetch all files of a source; errors and options as for `fetch_file`.

    Returns
    -------
    list of Fetched
        In the order of ``source.files``.
    """
    fetcher = _Fetcher(folder, homepage=source.homepage, **options)
    return [fetcher.get(file) for file in source.files]


def fetch_alternatives(
    sources: Sequence[Source], folder: Path, **options: Unpack[Options]
) -> tuple[Source, list[Fetched]]:
    """Fetch the first of several sources that can be had whole.

    What is in the folder already comes first, then whatever the mirror has, then the known addresses; within each,
    in the order of `sources`.

    Parameters
    ----------
    sources
        Any one of them will do.
    folder
        Where the files are to lie.
    **options
        See `Options`.

    Returns
    -------
    tuple
        The source that was used, and its files.

    Raises
    ------
    UsageError, DownloadError, DataError, StorageError
        As for `fetch_file`.
    """
    if len(sources) == 1:
        return sources[0], fetch_source(sources[0], folder, **options)  # where its files may come from different places
    fetcher = _Fetcher(folder, homepage=sources[0].homepage, **options)
    if not fetcher.force:
        for source in sources:
            found = [fetcher.find(file) for file in source.files]
            files = [each for each in found if each is not None]
            if len(files) == len(found):
                return source, files
    failures: list[str] = []
    for way in (fetcher.mirrored, fetcher.downloaded):
        for source in sources:
            try:
                return source, way(source.files)
            except _UnavailableError as unavailable:
                failures += unavailable.reasons
    raise fetcher.failed(sources[0].name.partition(",")[0], failures)


class _UnavailableError(Exception):
    """A way to some files that leads nowhere, for these reasons."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class _Fetcher:
    """One folder and one set of options; parameters as `Options`, and the page to send people to."""

    def __init__(
        self,
        folder: Path,
        *,
        mirror: str | Path | None = None,
        offline: bool = False,
        force: bool = False,
        progress: Progress | None = None,
        patience: Patience | None = None,
        homepage: str = "",
    ) -> None:
        self.force = force
        self._folder = folder
        self._mirror = None if mirror is None else _parse_mirror(mirror)
        self._offline = offline
        self._progress = progress or Progress()
        self._patience = patience or Patience()
        self._homepage = homepage
        self._missing: list[str] = []  # in the mirror's folder
        self._asked = False  # the network, for anything
        self._unreachable: set[str] = set()  # hosts that did not answer; no use in trying them for every file

    def find(self, file: RemoteFile) -> Fetched | None:
        """The file, or its uncompressed form, verified; None where it is absent or damaged."""
        for form in _forms(file):
            path = self._folder / form.name
            if not path.is_file():
                continue
            known = self._remembered(form.name)
            sha256 = store.file_hash(path)
            if form.published:
                got, expected = _checksums(form, path, sha256)
                if got != expected:
                    self._progress.note(f"{path} is damaged ({got} instead of {expected}); it is fetched again.")
                    continue
            elif known and known["sha256"] != sha256:
                raise _changed(path, known["sha256"], sha256, "is not what was first fetched")
            origin = known["origin"] if known and known["sha256"] == sha256 else f"found as {form.name}"
            if not form.published and not known:
                self._remember(form, path, sha256, origin)
            return Fetched(path, sha256, str(origin))
        return None

    def get(self, file: RemoteFile) -> Fetched:
        """One file, from wherever it can be had."""
        if there := self._there(file):
            return there
        failures: list[str] = []
        for way in (self.mirrored, self.downloaded):
            try:
                return way([file])[0]
            except _UnavailableError as unavailable:
                failures += unavailable.reasons
        raise self.failed(file.name, failures)

    def _there(self, file: RemoteFile) -> Fetched | None:
        return None if self.force else self.find(file)

    def mirrored(self, files: Sequence[RemoteFile]) -> list[Fetched]:
        """All of the files from the mirror, or `_UnavailableError`."""
        if self._mirror is None:
            raise _UnavailableError([])
        if isinstance(self._mirror, Path):
            return self._from_folder(self._mirror, files)
        fetched = []
        for file in files:
            base = self._mirror.rstrip("/")
            # Where a mirror puts a file can only be found out by asking.
            urls = [f"{base}/{quote(name)}" for name in (file.name, *file.aliases)]
            fetched.append(self._from_urls(file, urls, only_if_absent=True))
        return fetched

    def downloaded(self, files: Sequence[RemoteFile]) -> list[Fetched]:
        """All of the files from their known addresses, or `_UnavailableError`."""
        if not all(file.urls for file in files):
            raise _UnavailableError([])
        return [self._from_urls(file, file.urls) for file in files]

    def failed(self, what: str, failures: list[str]) -> DownloadError:
        """The error that names every source and why it failed, and the ways on."""
        if self._missing:
            failures = [f"{self._mirror} has no {' or '.join(self._missing)}", *failures]
        reasons = "; ".join(dict.fromkeys(failures)) or "no address is known for it"
        ways = "give a folder or address that has it with --mirror"
        if self._offline:
            ways = f"run once without --offline, or {ways}"
        elif self._asked:
            ways = f"try again later, or {ways}"
        if self._homepage:
            ways += f" (see {self._homepage})"
        return DownloadError(f"{what} could not be fetched: {reasons}. To go on, {ways}.")

    # The mirror as a folder

    def _from_folder(self, folder: Path, files: Sequence[RemoteFile]) -> list[Fetched]:
        located = {file: list(_candidates(folder, file)) for file in files}
        there = {file: self._there(file) for file in files}
        for file in files:
            if not (located[file] or there[file]):
                self._missing.append(file.name)
                raise _UnavailableError([])
        return [there[file] or self._first_good(located[file], file) for file in files]

    def _first_good(self, candidates: list[tuple[RemoteFile, Path, str]], file: RemoteFile) -> Fetched:
        reasons = []
        for form, path, origin in candidates:
            with self._staging(form) as staged:
                if there := self._there(file):
                    return there
                try:
                    self._copy(form, path, staged)
                    return self._accept(form, staged, origin)
                except Refused as refused:
                    reasons.append(f"{path} {refused}")
        # A wrong file that someone points at is a mistake to report, not a reason to go elsewhere.
        raise DataError(f"{'; '.join(reasons)}; put a good copy in its place, or leave --mirror out.")

    def _copy(self, file: RemoteFile, source: Path, target: Path) -> None:
        most = file.size or file.max_bytes
        try:
            size = source.stat().st_size
            if size > most:
                raise Refused(f"has {size:,} bytes, more than the {most:,} that {file.name} may have")
            reader = source.open("rb")
        except OSError as error:
            raise Refused(f"cannot be read ({error.strerror or error})") from error
        with (
            reader,
            store.writing(self._folder / file.name),
            target.open("wb") as writer,
            self._progress.task(file.name, size, "bytes") as task,
        ):
            while block := _read(reader):
                writer.write(block)
                task.advance(len(block))

    # Addresses

    def _from_urls(self, file: RemoteFile, urls: Sequence[str], *, only_if_absent: bool = False) -> Fetched:
        """The file from the first address that has it; with `only_if_absent`, go on only past a 404."""
        if self._offline:
            raise _UnavailableError([f"{shown(urls[0])} was not asked (--offline)"])
        reasons = []
        with self._staging(file) as staged:
            if there := self._there(file):  # another process has fetched it meanwhile
                return there
            self._asked = True
            deadline = time.monotonic() + self._patience.total
            for url in urls:
                host = urlsplit(url).netloc
                if host in self._unreachable:
                    reasons.append(f"{shown(url)} cannot be reached")
                    continue
                try:
                    self._download(file, url, staged, deadline)
                    return self._accept(file, staged, shown(url))
                except Refused as refused:
                    reasons.append(f"{shown(url)} {refused}")
                    if refused.unreachable:
                        self._unreachable.add(host)
                    if only_if_absent and not refused.absent:
                        break
        raise _UnavailableError(reasons)

    def _download(self, file: RemoteFile, url: str, staged: Path, deadline: float) -> None:
        """Through pooch: it verifies what has a published checksum, and deletes what fails."""
        pooch.get_logger().setLevel("WARNING")  # it would announce every download on standard error
        known = f"sha256:{file.sha256}" if file.sha256 else f"md5:{file.md5}" if file.md5 else None
        for last in (False, True):
            transfer = Transfer(file, staged.with_name(PART), self._patience, deadline, self._progress)
            if self.force and not last:
                transfer.discard()
            staged.unlink(missing_ok=True)  # pooch would take it for the download
            try:
                with store.writing(self._folder / file.name):
                    pooch.retrieve(url, known, fname=staged.name, path=staged.parent, downloader=transfer)
                return
            except StorageError:
                transfer.discard()  # on a full disk every byte counts
                raise
            except ValueError as error:  # pooch's word for a wrong checksum
                if transfer.resumed and not last:
                    continue  # the beginning may have been another file's; once more, from the start
                raise Refused(f"has a wrong checksum: {transfer.digest} instead of {known}") from error

    # What is accepted, and remembered

    @contextlib.contextmanager
    def _staging(self, file: RemoteFile) -> Iterator[Path]:
        """Where the file may lie until it is accepted; this process alone works on it."""
        target = self._folder / file.name
        with store.lock(target):
            folder = self._folder.absolute() / f".{file.name}.partial"
            with store.writing(target):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                yield folder / file.name
            finally:
                with contextlib.suppress(OSError):
                    for path in folder.iterdir():
                        if path.name not in (PART, f"{PART}.json"):
                            path.unlink()
                    folder.rmdir()  # fails, rightly, while there is something to resume

    def _accept(self, file: RemoteFile, staged: Path, origin: str) -> Fetched:
        """Put a complete file in its place, if it is the right one."""
        target = self._folder / file.name
        sha256 = store.file_hash(staged)
        got, expected = _checksums(file, staged, sha256)
        if got != expected:
            raise Refused(f"has a wrong checksum: {got} instead of {expected}")
        known = self._remembered(file.name)
        if not file.published and known and known["sha256"] != sha256 and not self.force:
            raise _changed(target, known["sha256"], sha256, f"from {origin} is not what was first fetched")
        with store.writing(target):
            staged.replace(target)
        self._remember(file, target, sha256, origin)
        return Fetched(target, sha256, origin)

    def _remembered(self, name: str) -> dict[str, Any] | None:
        path = self._folder / CHECKSUMS
        if not path.exists():
            return None
        try:
            entry = store.read_json(path).get(name)
        except ArtefactError as error:
            raise DataError(f"{error} Delete it to have checksums recorded afresh.") from error
        if entry is not None and not (isinstance(entry, dict) and {"sha256", "origin"} <= entry.keys()):
            raise DataError(f"{path} is damaged at {name}; delete it to have checksums recorded afresh.")
        return entry

    def _remember(self, file: RemoteFile, path: Path, sha256: str, origin: str) -> dict[str, Any]:
        record = self._folder / CHECKSUMS
        entry = {"sha256": sha256, "bytes": path.stat().st_size, "origin": origin}
        with store.lock(record):
            known = store.read_json(record) if record.exists() else {}
            store.write_json(record, known | {file.name: entry})
        if not file.published:
            self._progress.note(
                f"{file.name}: sha256 {sha256} (none is published; remembered in {record}, and verified from now on)"
            )
        return entry


def _parse_mirror(mirror: str | Path) -> str | Path:
    """An http or https address as text, anything else as an existing folder."""
    text = str(mirror)
    if isinstance(mirror, str) and "://" in text:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname:
            return text
        if parts.scheme != "file":
            raise UsageError(f"--mirror {shown(text)} must be a folder, or an http, https or file address.")
        text = url2pathname(parts.path)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        wrong = "is a file; give the folder that holds it" if folder.exists() else "does not exist"
        raise UsageError(f"--mirror {text} {wrong}.")
    return folder


def _read(reader: IO[bytes]) -> bytes:
    try:
        return reader.read(_BLOCK)
    except OSError as error:  # told apart from one in writing
        raise Refused(f"cannot be read ({error.strerror or error})") from error


def _forms(file: RemoteFile) -> Iterator[RemoteFile]:
    yield file
    if file.plain is not None:
        yield file.plain


def _candidates(folder: Path, file: RemoteFile) -> Iterator[tuple[RemoteFile, Path, str]]:
    """Where a folder holds the file in any form, and what that is called in records (no path of this machine)."""
    name = folder.resolve().name
    foreign = any(word in name.lower() for word in file.not_in)
    for form in _forms(file):
        for relative in (form.name, *form.aliases):
            if "/" not in relative and relative != form.name and foreign:
                continue
            paths = [folder / relative]
            if relative.split("/")[0] == name:  # "MNIST/raw/…" with the folder MNIST itself as mirror
                paths.append(folder.parent / relative)
            for path in paths:
                if path.is_file():
                    yield form, path, f"{name}/{relative.removeprefix(f'{name}/')} (a folder)"


def _checksums(file: RemoteFile, path: Path, sha256: str) -> tuple[str, str]:
    """Checksum of a file and the published one, as ``sha256:…`` or ``md5:…``; equal where none is published."""
    if file.sha256:
        return f"sha256:{sha256}", f"sha256:{file.sha256}"
    if file.md5:
        return f"md5:{store.file_hash(path, 'md5')}", f"md5:{file.md5}"
    return "", ""


def _changed(path: Path, expected: str, got: str, what: str) -> DataError:
    return DataError(
        f"{path} {what}: sha256 {got} instead of {expected}; if the new one is right, accept it with --force."
    )
