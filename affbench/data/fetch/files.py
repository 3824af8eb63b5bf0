"""Getting files: what is there already, a user's mirror, the known addresses in turn; always verified, always whole.

A file under way lies in ``.NAME.partial`` beside its target, and pooch lets it go on from there only with the right
checksum. ``checksums.json`` in the same folder holds the sha256 and the origin of every file. Where no checksum is
published it is the reference: the first copy that is what its name says is trusted, and a different one later an error.
"""

import contextlib
import functools
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import h5py
import pooch  # type: ignore[import-untyped]
import requests

from affbench.base import store
from affbench.base.errors import ArtefactError, DataError, DownloadError, UsageError
from affbench.base.progress import Progress
from affbench.data.fetch.http import Patience, Refused, Transfer, shown
from affbench.data.fetch.sources import RemoteFile, Source

CHECKSUMS = "checksums.json"
PART = "part"

_Place: TypeAlias = "tuple[RemoteFile, Path | str]"  # a form of a file, and where: in a mirror's folder, or an address

pooch.get_logger().setLevel("ERROR")  # progress says what is fetched


@dataclass(frozen=True)
class Fetched:
    """A file that is there and verified."""

    path: Path
    sha256: str
    origin: str  # an address, or a name within a folder: never a path of this machine


@dataclass(frozen=True)
class Ways:
    """How files may be had."""

    # Folder, or http, https or file address, tried before the known addresses. It may be flat or a torchvision root
    mirror: str | Path | None = None
    offline: bool = False  # never touch the network
    force: bool = False  # fetch again even what is there, and accept another content where no checksum is published
    progress: Progress = field(default_factory=Progress)  # receives progress in bytes, and notes
    patience: Patience = field(default_factory=Patience)  # number of attempts, pauses and time limits


class Fetcher:
    """Gets files into one folder, which is made if need be."""

    def __init__(self, folder: Path, ways: Ways | None = None) -> None:
        self._folder, self._ways = folder, ways or Ways()
        self._mirror = None if self._ways.mirror is None else _parse_mirror(self._ways.mirror)
        self._missing: list[str] = []  # in the mirror's folder
        self._refused: dict[str, str] = {}  # why, by addresses, and hosts that cannot be reached; none is asked twice

    def find(self, file: RemoteFile) -> Fetched | None:
        """The file, or its uncompressed form, verified; None where it is absent or damaged, or to be fetched again."""
        for form in () if self._ways.force else file.forms:
            path = self._folder / form.name
            if not path.is_file():
                continue
            known = self._remembered(form.name)
            if wrong := _wrong(form, path):
                self._ways.progress.note(f"{path} {wrong}; it is fetched again.")
                continue
            found = Fetched(path, store.file_hash(path), f"found as {form.name}")
            if known and known.sha256 == found.sha256:
                return known
            if not form.published:
                if known:
                    raise _changed(path, f"expected sha256:{known.sha256} but got {found.sha256}")
                self._remember(found)
            return found
        return None

    def first_of(self, sources: Sequence[Source]) -> tuple[Source, list[Fetched]]:
        """The first of several sources that can be had whole, and its files, the optional ones last.

        What is there already or in the mirror comes before any address; within each, in the order given. The files of
        a single source may come from different places.
        """
        for network in (False, True):
            for source in sources:
                with contextlib.suppress(Refused):
                    return source, [*self._bring(source.files, network), *self._optional(source, network)]
        missing = f"{self._mirror} has no {' or '.join(dict.fromkeys(self._missing))}" if self._missing else ""
        reasons = "; ".join(filter(None, [missing, *self._refused.values()])) or "no address is known for it"
        hint = "try again later, or " if self._refused else ""
        hint = "run once without --offline, or " if self._ways.offline else hint
        raise DownloadError(
            f"{sources[0].name.partition(',')[0]} could not be fetched: {reasons}. "
            f"To go on, {hint}give a folder or address that has it with --mirror (see {sources[0].homepage})."
        )

    def _optional(self, source: Source, network: bool) -> Iterator[Fetched]:
        for file in source.optional:
            try:
                yield from self._bring([file], network)
            except Refused as refused:
                if str(refused):
                    self._ways.progress.note(f"{file.name}, which is no must, could not be fetched: {refused}.")

    def _places(self, file: RemoteFile, network: bool) -> list[_Place]:
        """Where a file may be had, or `Refused`; a mirror's folder that has it is the only place."""
        urls = file.urls if network else ()
        if isinstance(self._mirror, Path):
            if places := _in_folder(self._mirror, file):
                return places
            self._missing.append(file.name)
        elif self._mirror:  # where it puts a file can only be found out by asking
            base = self._mirror.rstrip("/")
            urls = (*(f"{base}/{quote(name)}" for name in (file.name, *file.aliases)), *urls)
        if not urls:
            raise Refused
        return [(file, url) for url in urls]

    def _bring(self, files: Sequence[RemoteFile], network: bool) -> list[Fetched]:
        """All of the files, or `Refused`; none is brought before there is a place for each."""
        there = {file: self.find(file) for file in files}
        places = {file: self._places(file, network) for file in files if not there[file]}
        return [there[file] or self._bring_one(file, places[file]) for file in files]

    def _bring_one(self, file: RemoteFile, places: list[_Place]) -> Fetched:
        reasons = []
        for form, where in places:
            host = urlsplit(str(where)).netloc
            if {str(where), host} & self._refused.keys():
                continue
            try:
                return self._bring_from(file, form, where)
            except Refused as refused:
                reasons.append(f"{shown(where) if isinstance(where, str) else where} {refused}")
                self._refused[host if refused.unreachable else str(where)] = reasons[-1]
        if isinstance(places[0][1], Path):
            # A wrong file that someone points at is a mistake to report, not a reason to go elsewhere.
            raise DataError(f"{'; '.join(reasons)}; put a good copy in its place, or leave --mirror out.")
        raise Refused("; ".join(reasons))

    def _bring_from(self, file: RemoteFile, form: RemoteFile, where: Path | str) -> Fetched:
        if self._ways.offline and isinstance(where, str):
            raise Refused("was not asked (--offline)")
        target = self._folder / form.name
        with store.lock(target), store.writing(target):  # this process alone works on it
            if there := self.find(file):  # another one has fetched it meanwhile
                return there
            staging = target.with_name(f".{target.name}.partial")
            if self._ways.force:
                shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True, exist_ok=True)
            try:
                self._download(form, where, target, staging).replace(target)
            except OSError:
                (staging / PART).unlink(missing_ok=True)  # on a full disk every byte counts
                raise
            finally:
                if not (staging / PART).exists():  # nothing to go on from
                    shutil.rmtree(staging, ignore_errors=True)
            origin = shown(where) if isinstance(where, str) else f"{where.parent.name}/{where.name} (a folder)"
            fetched = Fetched(target, store.file_hash(target), origin)
            self._remember(fetched)
        if not form.published:
            remembered = f"none is published; remembered in {self._folder / CHECKSUMS}, and verified from now on"
            self._ways.progress.note(f"{form.name}: sha256 {fetched.sha256} ({remembered})")
        return fetched

    def _download(self, form: RemoteFile, where: Path | str, target: Path, staging: Path) -> Path:
        """The whole file, verified, within `staging`."""
        transfer = Transfer(form, staging / PART, self._ways.patience, self._ways.progress)
        bring = functools.partial(_copy, staging / PART) if isinstance(where, Path) else transfer
        known = None if self._ways.force else self._remembered(form.name)
        checksum = form.published or (known and f"sha256:{known.sha256}")
        while True:
            try:
                whole = Path(pooch.retrieve(str(where), checksum, target.name, staging, downloader=bring))
            except ValueError as error:  # the checksum is another
                if transfer.resumed:
                    continue  # the beginning may have been another file's
                differs = str(error).partition("known hash: ")[2].partition(". ")[0]
                if form.published:
                    raise Refused(f"has a wrong checksum: {differs}") from error
                raise _changed(target, differs) from error
            if not form.published and (wrong := _wrong(form, whole)):
                raise Refused(wrong)
            return whole

    def _remembered(self, name: str) -> Fetched | None:
        path = self._folder / CHECKSUMS
        if not path.exists():
            return None
        try:
            entry = store.read_json(path).get(name)
            return entry and Fetched(self._folder / name, str(entry["sha256"]), str(entry["origin"]))
        except (ArtefactError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it to have checksums recorded afresh.") from error

    def _remember(self, file: Fetched) -> None:
        record = self._folder / CHECKSUMS
        with store.lock(record):
            known = store.read_json(record) if record.exists() else {}
            size, name = file.path.stat().st_size, file.path.relative_to(self._folder).as_posix()
            known[name] = {"sha256": file.sha256, "bytes": size, "origin": file.origin}
            store.write_json(record, known)


def _copy(part: Path, path: str, output: str, _: object = None) -> None:
    """A downloader for pooch that brings a file from a folder."""
    if not os.access(path, os.R_OK):  # or it would be taken for an error in writing
        raise Refused("cannot be read: permission denied")
    shutil.copyfile(path, part)
    part.replace(output)  # which pooch has made for this user alone


def _wrong(file: RemoteFile, path: Path) -> str:
    """Why a file is not the published one or, where no checksum is published, not what its name says; or nothing."""
    if file.published:
        kind, _, expected = file.published.partition(":")
        got = pooch.file_hash(str(path), kind)
        return "" if got == expected else f"has a wrong checksum: expected {file.published} but got {got}"
    with path.open("rb") as opened:
        head = opened.read(128)
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file it stands for"
    sound = {
        ".zip": zipfile.is_zipfile(path),  # looks at its end as well
        ".mat": head[126:128] in (b"IM", b"MI") or h5py.is_hdf5(path),
    }
    return "" if sound.get(path.suffix, True) else f"is no {path.suffix} file, or only the beginning of one"


def _changed(path: Path, how: str) -> DataError:
    return DataError(f"{path} is not what was first fetched: {how}; if the new one is right, accept it with --force.")


def _in_folder(folder: Path, file: RemoteFile) -> list[_Place]:
    """Where a mirror's folder holds the file in any form."""
    foreign = any(word in folder.name.lower() for word in file.not_in)
    places: list[_Place] = []
    for form in file.forms:
        for name in (form.name, *form.aliases):
            if foreign and "/" not in name and name != form.name:
                continue
            # "MNIST/raw/…" may be looked for with the folder MNIST itself as mirror
            roots = (folder, folder.parent) if name.startswith(f"{folder.name}/") else (folder,)
            places += [(form, root / name) for root in roots if (root / name).is_file()]
    return places


def _parse_mirror(mirror: str | Path) -> str | Path:
    """An http or https address as text, anything else as an existing folder."""
    text = str(mirror)
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if text.lower().startswith(("http://", "https://")):
            requests.Request("GET", text).prepare()
            return text
        folder = Path(url2pathname(urlsplit(text).path) if text.startswith("file://") else text).expanduser().resolve()
        if folder.is_dir():
            return folder
    raise UsageError(f"--mirror {shown(text)} must be a folder that exists, or an http, https or file address.")
