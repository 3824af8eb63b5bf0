"""Fetching a set: its files from wherever they can be had, verified, and converted at once."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affbench.base import store
from affbench.base.errors import DownloadError, UsageError, nearest
from affbench.data import convert, sets
from affbench.data.convert import Writer
from affbench.data.fetch.files import Fetched, Fetcher, Ways
from affbench.data.fetch.sources import Source
from affbench.data.sets import SetPart


@dataclass(frozen=True)
class FetchedSet:
    """A set that is there."""

    name: str  # as asked for
    source: str  # which of its sources was used
    files: tuple[Fetched, ...]  # the downloaded files, with checksum and origin
    converted: tuple[Path, ...]  # the converted sets made from them


def fetch_sets(names: Sequence[str], data_dir: Path, ways: Ways | None = None) -> list[FetchedSet]:
    """Download, verify and convert sets; what is there and whole is not downloaded again."""
    for name in names:
        if name not in sets.SOURCES:
            raise UsageError(f"no set called '{name}' can be fetched; {nearest(name, sets.SOURCES)}")
    return [_fetch_set(name, data_dir, ways or Ways()) for name in names]


def _fetch_set(name: str, data_dir: Path, ways: Ways) -> FetchedSet:
    part = sets.find_part(name)
    family = part.family
    if family.name == "affnist" and not sets.FAMILIES["mnist"].is_there(data_dir):
        with contextlib.suppress(DownloadError):  # to find the originals among; without them the file's order stays
            Fetcher(sets.raw_dir(data_dir, "mnist"), ways).first_of(sets.SOURCES["mnist"])
    try:
        source, fetched = Fetcher(sets.raw_dir(data_dir, family.name), ways).first_of(sets.SOURCES[name])
    except DownloadError as error:
        if family.name != "affnist":
            raise
        raise DownloadError(
            f"{error} Without the official files, '--set affnist-synthetic' tests on a set drawn in the same way."
        ) from None
    with ways.progress.task(f"convert {name}", None):
        if family.write is None:
            plain = [spec for spec in family.sets if not spec.affine]
            converted = [sets.SetPart(spec, split).ensure(data_dir) for spec in plain for split in sets.SPLITS]
        else:
            converted = [_convert_official(part, family.write, source, fetched, data_dir)]
    return FetchedSet(name, source.name, tuple(fetched), tuple(converted))


def _convert_official(part: SetPart, write: Writer, source: Source, fetched: list[Fetched], data_dir: Path) -> Path:
    """Convert official files; the key of the set is that of their content."""
    files = fetched[: len(source.files)]
    originals = next((file.path for file in fetched[len(files) :]), None)
    digits = sets.made_from(part, data_dir) if sets.FAMILIES["mnist"].is_there(data_dir) else None
    checksums = {file.path.name: file.sha256 for file in files}
    edition = convert.ORIGINALS_VERSION if originals else False
    inputs = {"files": checksums, "split": part.split, "digits": digits is not None, "originals": edition}
    origin = f"{source.name}: {files[0].origin}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    about = convert.origin(part.spec.family, part.split, origin, checksums, source.license)

    def make(target: Path) -> None:
        write(target, [file.path for file in files], about, digits, originals)

    return store.derive_file(part.path(data_dir), "convert", part.version, inputs, make)
