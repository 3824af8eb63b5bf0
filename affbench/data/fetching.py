"""Fetching a set: its files from wherever they can be had, verified, and converted at once."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affbench import store
from affbench.data import catalogue
from affbench.data.affnist import AffnistSource, convert, read_homnist
from affbench.data.download import Fetched, fetch_alternatives
from affbench.data.hdf5 import write_set
from affbench.data.sources import Source, sources_of
from affbench.errors import DownloadError
from affbench.progress import Progress


@dataclass(frozen=True)
class FetchedSet:
    """A set that is there.

    Attributes
    ----------
    name
        As asked for.
    source
        Which of its sources was used.
    files
        The downloaded files, with checksum and origin.
    converted
        The converted sets made from them.
    """

    name: str
    source: str
    files: tuple[Fetched, ...]
    converted: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        files = [asdict(file) | {"path": str(file.path)} for file in self.files]
        return {
            "name": self.name,
            "source": self.source,
            "files": files,
            "converted": [str(path) for path in self.converted],
        }


def fetch_sets(
    names: Sequence[str],
    data_dir: Path,
    *,
    mirror: str | Path | None = None,
    offline: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> list[FetchedSet]:
    """Download, verify and convert sets; what is there and whole is not downloaded again.

    Parameters
    ----------
    names
        ``"mnist"``, ``"fashion-mnist"``, ``"affnist"``, ``"affnist-validation"``, ``"affnist-train"``, ``"homnist"``.
    data_dir
        Folder of the data.
    mirror
        URL or folder that is tried first.
    offline
        Never touch the network.
    force
        Fetch again what is there, and accept other content where no checksum is published.
    progress
        Receives progress.

    Returns
    -------
    list of FetchedSet
        In the order of `names`.

    Raises
    ------
    UsageError
        A name is unknown, or the mirror is neither a folder nor an address.
    DownloadError
        No source could deliver a set. The sets before it are there.
    DataError
        A file is damaged, or is not what it should be.
    StorageError
        The data folder cannot be written.
    """
    for name in names:
        sources_of(name)
    listener = progress or Progress()
    return [fetch_set(name, data_dir, mirror=mirror, offline=offline, force=force, progress=listener) for name in names]


def fetch_set(
    name: str,
    data_dir: Path,
    *,
    mirror: str | Path | None = None,
    offline: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> FetchedSet:
    """Fetch one set; see `fetch_sets`."""
    listener = progress or Progress()
    family = "affnist" if name.startswith("affnist") else name
    folder = catalogue.raw_dir(data_dir, family)
    try:
        source, files = fetch_alternatives(
            sources_of(name), folder, mirror=mirror, offline=offline, force=force, progress=listener
        )
    except DownloadError as error:
        if family != "affnist":
            raise
        raise DownloadError(
            f"{error} Without the official files, '--set affnist-synthetic' tests on a set drawn in the same way."
        ) from None
    converted = []
    with listener.task(f"convert {name}", None):
        if family in ("affnist", "homnist"):
            spec = catalogue.find_set(name)
            converted.append(_convert_official(spec, source, files, data_dir))
        else:
            for spec, split in catalogue.convertible(family):
                converted.append(catalogue.ensure_set(spec, split, data_dir))
    return FetchedSet(name, source.name, tuple(files), tuple(converted))


def fetch_for(name: str, split: str, data_dir: Path, progress: Progress | None = None) -> None:
    """Fetch whatever a set of the catalogue is made from: its own files, or its digits; nothing for the sample.

    Parameters
    ----------
    name, split
        As for `affbench.load_dataset`.
    data_dir, progress
        As for `fetch_sets`.

    Raises
    ------
    UsageError, DownloadError, DataError, StorageError
        As for `fetch_sets`.
    """
    spec = catalogue.find_set(name)
    part = catalogue.check_split(spec, split)
    if spec.family == "affnist" and part != "test":
        fetch_set(f"affnist-{part}", data_dir, progress=progress)
    elif spec.family != catalogue.SAMPLE:
        fetch_set(spec.family, data_dir, progress=progress)


def _convert_official(spec: catalogue.SetSpec, source: Source, files: Sequence[Fetched], data_dir: Path) -> Path:
    """Convert official files; the key of the set is that of their content."""
    split = catalogue.check_split(spec, "test")
    checksums = {file.path.name: file.sha256 for file in files}
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    attributes = {
        "name": spec.family,
        "split": split,
        "source": f"{source.name}: {files[0].origin}{more}",
        "sha256": json.dumps(checksums),
        "license": source.license,
    }

    def make(target: Path) -> None:
        if source.layout == "homnist-mat":
            write_set(target, read_homnist(files[0].path), attributes)
            return
        with _affnist_source(source, [file.path for file in files]) as found:
            convert(found, target, split, attributes)

    path = catalogue.set_path(spec, split, data_dir)
    return store.derive_file(path, "convert", catalogue.VERSION, {"files": checksums, "split": split}, make)


@contextlib.contextmanager
def _affnist_source(source: Source, paths: Sequence[Path]) -> Iterator[AffnistSource]:
    """The files of a source as the reader wants them: batches in a folder of their own, as 1.mat, 2.mat, …."""
    if source.layout == "affnist-npz":
        yield AffnistSource("npz", *paths)
    elif len(paths) == 1:
        yield AffnistSource("mat", paths[0])
    else:
        with tempfile.TemporaryDirectory(prefix="affbench-") as folder:
            for number, path in enumerate(paths, start=1):
                (Path(folder) / f"{number}.mat").symlink_to(path.resolve())
            yield AffnistSource("mat", Path(folder))
