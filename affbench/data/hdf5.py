"""Converted sets on disk: HDF5 files with the layout that every set shares.

``images`` uint8 (N, H, W), ``labels`` uint8 (N,); affine sets add ``transforms`` float32 (N, 6) with the attribute
``columns``, ``source_index`` int32 (N,) and, official ones, ``original_id`` int32 (N,). File attributes: ``name``,
``split``, ``source``, ``sha256`` (of the inputs), ``license``, ``affbench_version``, and what a set adds of its own.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from affbench import __version__
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.errors import ArtefactError

CHUNK = 256  # images a chunk: 400 kB at 40×40, so a slice costs little more than itself


class _Steadfast:
    """A file that takes whatever HDF5 writes, and keeps the first error of the operating system for later.

    A library that cannot write its last bytes, such as those of a full disk, crashes when the process ends.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._position = self._end = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")

        def action() -> None:
            self._file.seek(self._position)
            written = 0
            while written < len(view):
                written += self._file.write(view[written:]) or 0

        self._try(action)
        self._position += len(view)
        self._end = max(self._end, self._position)
        return len(view)

    def read(self, size: int = -1) -> bytes:
        data = bytearray(max(size, 0))
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))

        def action() -> None:
            self._file.seek(self._position)
            found = 0
            while found < len(view) and (n := self._file.readinto(view[found:])):
                found += n

        self._try(action)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        self._try(lambda: self._file.truncate(self._end))
        return self._end

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error

    def _try(self, action: Callable[[], object]) -> None:
        """After the first error the file is lost, so nothing more is tried."""
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error


@contextlib.contextmanager
def _whole(target: _Steadfast) -> Iterator[h5py.File]:
    try:
        with h5py.File(target, "w") as file:
            yield file
    except Exception as error:
        if target.error is not None and error is not target.error:
            raise target.error from error
        raise
    finally:
        target.close()
    if target.error is not None:
        raise target.error


def new_file(path: Path) -> contextlib.AbstractContextManager[h5py.File]:
    """A new HDF5 file to write in a ``with`` block; a full disk ends in an ordinary error, not in a crash.

    Parameters
    ----------
    path
        The file to write (a temporary path; `affbench.store` puts it in place).

    Raises
    ------
    OSError
        On leaving the block: the operating system did not take all that was written.
    """
    return _whole(_Steadfast(path))


class SetWriter:
    """Writes a converted set part by part, so that a set never has to fit in memory.

    Parameters
    ----------
    path
        The file to write (a temporary path; `affbench.store` puts it in place).
    count
        N, the number of images to come.
    canvas
        Height and width of the images in pixels.
    attributes
        File attributes; must hold ``name``, ``split``, ``source``, ``sha256`` and ``license``.
    affine
        Whether ``transforms`` and ``source_index`` come too.
    """

    def __init__(self, path: Path, count: int, canvas: int, attributes: Mapping[str, Any], *, affine: bool) -> None:
        self._open = contextlib.ExitStack()
        self._target = _Steadfast(path)
        self._file = self._open.enter_context(_whole(self._target))
        self._next = 0
        self._count = count
        chunk = max(1, min(CHUNK, count))
        self._file.create_dataset(
            "images",
            (count, canvas, canvas),
            np.uint8,
            chunks=(chunk, canvas, canvas),
            compression="gzip",
            compression_opts=1,
        )
        self._file.create_dataset("labels", (count,), np.uint8)
        if affine:
            transforms = self._file.create_dataset("transforms", (count, len(TRANSFORM_COLUMNS)), np.float32)
            transforms.attrs["columns"] = list(TRANSFORM_COLUMNS)
            self._file.create_dataset("source_index", (count,), np.int32)
        for key, value in {**attributes, "affbench_version": __version__}.items():
            self._file.attrs[key] = value

    def append(self, part: Dataset) -> None:
        """Add the next images."""
        if self._target.error is not None:
            raise self._target.error
        stop = self._next + len(part)
        for name in self._file:
            self._file[name][self._next : stop] = getattr(part, name)
        self._next = stop

    def images(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Images that were written before."""
        written: npt.NDArray[np.uint8] = self._file["images"][start:stop]
        return written

    def add_originals(self, source_index: npt.NDArray[np.int32], original_id: npt.NDArray[np.int32]) -> None:
        """Replace ``source_index`` (N,) and keep beside it what the file itself called the originals."""
        self._file["source_index"][...] = source_index
        self._file.create_dataset("original_id", data=original_id)

    def describe(self, **attributes: Any) -> None:
        """Add file attributes."""
        self._file.attrs.update(attributes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if error is None and self._next != self._count:
            raise ArtefactError(f"a set of {self._count:,} images was announced, but {self._next:,} were written.")


def write_set(path: Path, dataset: Dataset, attributes: Mapping[str, Any]) -> None:
    """Write a set that is in memory; parameters as for `SetWriter`."""
    affine = dataset.transforms is not None
    with SetWriter(path, len(dataset), dataset.canvas, attributes, affine=affine) as writer:
        writer.append(dataset)


def _own(file: h5py.File, name: str) -> h5py.Dataset:
    """An array of the file itself: one that lies in another file would be whatever that file holds."""
    found = file.get(name, getlink=True)
    array = file[name] if isinstance(found, h5py.HardLink) else None
    if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
        raise ValueError(f"'{name}' is missing, or does not lie in the file itself")
    return array


def count_images(path: Path) -> int:
    """Number of images in a converted set; raises as `read_set`."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return len(file["labels"])
    except (OSError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is not a converted affbench set, or is damaged ({error}).") from error


def read_set(path: Path, key: str = "", start: int = 0, stop: int | None = None) -> Dataset:
    """Read a converted set, or a slice of it without reading the rest.

    Parameters
    ----------
    path
        The HDF5 file.
    key
        Content key the set is to carry.
    start, stop
        The slice of images.

    Returns
    -------
    Dataset

    Raises
    ------
    ArtefactError
        The file is not a converted set, or is damaged.
    """
    part = slice(start, stop)
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = dict(file.attrs.items())
            optional = [name for name in ("transforms", "source_index", "original_id") if name in file]
            dataset = Dataset(
                name=str(attributes["name"]),
                split=str(attributes["split"]),
                images=_unzipped(_own(file, "images"), part),
                key=key,
                attributes=attributes,
                **{name: _own(file, name)[part] for name in ("labels", *optional)},
            )
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError, zlib.error) as error:
        raise ArtefactError(f"{path} is not a converted affbench set, or is damaged ({error}).") from error
    if dataset.images.ndim != 3 or dataset.images.dtype != np.uint8 or len(dataset.labels) != len(dataset.images):
        raise ArtefactError(f"{path} is not a converted affbench set: its images are not uint8 (N, H, W) with labels.")
    return dataset


def _unzipped(images: h5py.Dataset, part: slice) -> npt.NDArray[np.uint8]:
    """A slice of the images; its chunks are unzipped side by side, which HDF5 would do one after the other."""
    plain = images.chunks is None or images.chunks[1:] != images.shape[1:] or images.dtype != np.uint8
    if plain or (images.compression, images.shuffle, images.fletcher32) != ("gzip", False, False):
        return np.asarray(images[part])
    start, stop, _ = part.indices(len(images))
    length = images.chunks[0]
    found = np.empty((max(stop - start, 0), *images.shape[1:]), np.uint8)

    def unzip(first: int) -> None:
        _, packed = images.id.read_direct_chunk((first, *(0 for _ in images.shape[1:])))
        chunk = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(images.chunks)
        low, high = max(first, start), min(first + length, stop)
        found[low - start : high - start] = chunk[low - first : high - first]

    with ThreadPoolExecutor() as threads:
        list(threads.map(unzip, range(start // length * length, stop, length)))
    return found
