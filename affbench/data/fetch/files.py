"""Getting files: what is there already, a user's mirror, the known addresses in turn; always verified, always whole.

A file under way lies in ``.NAME.partial`` beside its target, and pooch lets it go on from there only with the right
checksum. ``checksums.json`` in the same folder holds the sha256 and the origin of every file. Where no checksum is
published it is the reference: the first copy that is what its name says is trusted, and a different one later an error.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import pooch  # type: ignore[import-untyped]
import requests

from affbench.base import store
from affbench.base.errors import ArtefactError, DataError, DownloadError, UsageError
from affbench.base.progress import Progress
from affbench.data import matlab
from affbench.data.fetch.http import Patience, Refused, Transfer, shown
from affbench.data.fetch.sources import RemoteFile, Source

CHECKSUMS = "checksums.json"
PART = "part"

pooch.get_logger().setLevel("ERROR")  # progress says what is fetched


@dataclass(frozen=True)
class Fetched:
    """A file that is there and verified."""

    path: Path
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


@dataclass(frozen=True)
class _Place:
    """Where a form of a file may be had."""

    form: RemoteFile
    where: Path | str  # a file, or an address
    origin: str  # what it is called in records: never a path of this machine


_Way: TypeAlias = Callable[[RemoteFile], "list[_Place]"]


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
            known = self._remembered(form.name)
            if wrong := _wrong(form, path):
                self._ways.progress.note(f"{path} {wrong}; it is fetched again.")
                if known and not form.published:
                    self._remember(form.name, None)  # or it would refuse the right one for ever
                continue
            sha256 = store.file_hash(path)
            if known and known["sha256"] != sha256 and not form.published:
                raise _changed(path, f"expected sha256:{known['sha256']} but got {sha256}")
            origin = known["origin"] if known and known["sha256"] == sha256 else f"found as {form.name}"
            fetched = Fetched(path, sha256, origin)
            if not form.published and not known:
                self._remember(form.name, fetched)
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
                return source, [*found, *self._optional(source, [self._in_mirror])]
        failures: list[str] = []
        apart: list[list[_Way]] = [[self._in_mirror], [_on_network]]
        for ways in apart if len(sources) > 1 else [[*apart[0], *apart[1]]]:
            for source in sources:
                try:
                    return source, [*self._bring(source.files, ways), *self._optional(source, ways)]
                except Refused as refused:
                    failures.append(refused.reason)
        if self._missing:
            failures = [f"{self._mirror} has no {' or '.join(dict.fromkeys(self._missing))}", *failures]
        reasons = "; ".join(dict.fromkeys(filter(None, failures))) or "no address is known for it"
        hint = "try again later, or " if self._asked else ""
        hint = "run once without --offline, or " if self._ways.offline else hint
        raise DownloadError(
            f"{sources[0].name.partition(',')[0]} could not be fetched: {reasons}. "
            f"To go on, {hint}give a folder or address that has it with --mirror (see {sources[0].homepage})."
        )

    def _optional(self, source: Source, ways: list[_Way]) -> Iterator[Fetched]:
        for file in source.optional:
            try:
                yield from self._bring([file], ways)
            except Refused as refused:
                if refused.reason:
                    self._ways.progress.note(f"{file.name}, which is no must, could not be fetched: {refused}.")

    # Where files may be had

    def _in_mirror(self, file: RemoteFile) -> list[_Place]:
        if self._mirror is None:
            return []
        if isinstance(self._mirror, str):  # where it puts a file can only be found out by asking
            base = self._mirror.rstrip("/")
            return _addresses(file, [f"{base}/{quote(name)}" for name in (file.name, *file.aliases)])
        places = list(_candidates(self._mirror, file))
        if not places:
            self._missing.append(file.name)
        return places

    # Bringing them

    def _there(self, file: RemoteFile) -> Fetched | None:
        return None if self._ways.force else self.find(file)

    def _bring(self, files: Sequence[RemoteFile], ways: list[_Way]) -> list[Fetched]:
        """All of the files, or `Refused`; none is brought before there is a place for each."""
        there = {file: self._there(file) for file in files}
        plans: dict[RemoteFile, list[list[_Place]]] = {}
        for file in files:
            if not there[file]:
                plans[file] = [places for way in ways if (places := way(file))]
                if not plans[file]:
                    raise Refused("")
        return [there[file] or self._bring_one(file, plans[file]) for file in files]

    def _bring_one(self, file: RemoteFile, plan: list[list[_Place]]) -> Fetched:
        reasons = []
        deadline = time.monotonic() + self._ways.patience.total
        for places in plan:
            for place in places:
                try:
                    return self._bring_from(file, place, deadline)
                except Refused as refused:
                    reasons.append(f"{place.origin if isinstance(place.where, str) else place.where} {refused}")
                    if refused.unreachable:
                        self._unreachable.add(urlsplit(str(place.where)).netloc)
            if isinstance(places[0].where, Path):
                # A wrong file that someone points at is a mistake to report, not a reason to go elsewhere.
                raise DataError(f"{'; '.join(reasons)}; put a good copy in its place, or leave --mirror out.")
        raise Refused("; ".join(dict.fromkeys(reasons)))

    def _bring_from(self, file: RemoteFile, place: _Place, deadline: float) -> Fetched:
        form, target = place.form, self._folder / place.form.name
        if isinstance(place.where, str):
            if self._ways.offline:
                raise Refused("was not asked (--offline)")
            if urlsplit(place.where).netloc in self._unreachable:
                raise Refused("cannot be reached")
            self._asked = True
        with store.lock(target), store.writing(target):  # this process alone works on it
            if there := self._there(file):  # another one has fetched it meanwhile
                return there
            staging = target.with_name(f".{target.name}.partial")
            if self._ways.force:
                shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True, exist_ok=True)
            try:
                self._download(place, target, staging, deadline).replace(target)
                shutil.rmtree(staging, ignore_errors=True)
            except OSError:
                shutil.rmtree(staging, ignore_errors=True)  # on a full disk every byte counts
                raise
            finally:
                with contextlib.suppress(OSError):
                    staging.rmdir()  # fails, rightly, while there is something to resume
            fetched = Fetched(target, store.file_hash(target), place.origin)
            self._remember(form.name, fetched)
        if not form.published:
            self._ways.progress.note(
                f"{form.name}: sha256 {fetched.sha256} (none is published; remembered in {self._folder / CHECKSUMS}, "
                "and verified from now on)"
            )
        return fetched

    def _download(self, place: _Place, target: Path, staging: Path, deadline: float) -> Path:
        """The whole file, verified, within `staging`."""
        form = place.form
        transfer = Transfer(form, staging / PART, self._ways.patience, deadline, self._ways.progress)
        bring = transfer if isinstance(place.where, str) else functools.partial(_copy, form, staging / PART)
        known = None if self._ways.force else self._remembered(form.name)
        checksum = form.published or (known and f"sha256:{known['sha256']}")
        while True:
            try:
                whole = Path(pooch.retrieve(str(place.where), checksum, target.name, staging, downloader=bring))
            except ValueError as error:  # the checksum is another
                if transfer.resumed:
                    continue  # the beginning may have been another file's
                differs = str(error).partition("known hash: ")[2].partition(". ")[0]
                if form.published:
                    raise Refused(f"has a wrong checksum: {differs}") from error
                raise _changed(target, f"{place.origin}: {differs}") from error
            if not form.published and (wrong := _misnamed(whole)):
                whole.unlink()
                raise Refused(wrong)
            return whole

    # What is accepted, and remembered

    def _remembered(self, name: str) -> dict[str, str] | None:
        path = self._folder / CHECKSUMS
        if not path.exists():
            return None
        try:
            entry = store.read_json(path).get(name)
            return entry and {key: str(entry[key]) for key in ("sha256", "origin")}
        except (ArtefactError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it to have checksums recorded afresh.") from error

    def _remember(self, name: str, fetched: Fetched | None) -> None:
        """Record a file, or forget what is recorded of it."""
        record = self._folder / CHECKSUMS
        with store.lock(record):
            known = store.read_json(record) if record.exists() else {}
            known.pop(name, None)
            if fetched:
                size = fetched.path.stat().st_size
                known[name] = {"sha256": fetched.sha256, "bytes": size, "origin": fetched.origin}
            store.write_json(record, known)


def _copy(file: RemoteFile, part: Path, path: str, output: str, _: object = None) -> None:
    """A downloader for pooch that brings a file from a folder."""
    size, most = Path(path).stat().st_size, file.size or file.max_bytes
    if size > most:
        raise Refused(f"has {size:,} bytes, more than the {most:,} allowed")
    if not os.access(path, os.R_OK):  # or it would be taken for an error in writing
        raise Refused("cannot be read: permission denied")
    shutil.copyfile(path, part)
    part.replace(output)  # which pooch has made for this user alone


def _wrong(file: RemoteFile, path: Path) -> str:
    """Why a file is not the published one or, where no checksum is published, not what its name says; or nothing."""
    if not file.published:
        return _misnamed(path)
    kind, _, expected = file.published.partition(":")
    got = pooch.file_hash(str(path), kind)
    return "" if got == expected else f"has a wrong checksum: expected {file.published} but got {got}"


def _misnamed(path: Path) -> str:
    with path.open("rb") as opened:
        head = opened.read(matlab.HEAD)
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file it stands for"
    sound = {
        ".zip": zipfile.is_zipfile(path),  # looks at its end as well
        ".mat": head[126:128] in (b"IM", b"MI") or matlab.is_version_73(head),
    }
    return "" if sound.get(path.suffix, True) else f"is no {path.suffix} file, or only the beginning of one"


def _changed(path: Path, how: str) -> DataError:
    return DataError(f"{path} is not what was first fetched: {how}; if the new one is right, accept it with --force.")


def _addresses(file: RemoteFile, urls: Sequence[str]) -> list[_Place]:
    return [_Place(file, url, shown(url)) for url in urls]


def _on_network(file: RemoteFile) -> list[_Place]:
    return _addresses(file, file.urls)


def _candidates(folder: Path, file: RemoteFile) -> Iterator[_Place]:
    """Where a folder holds the file in any form."""
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
