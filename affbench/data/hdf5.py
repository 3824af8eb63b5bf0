"""Converted sets on disk: HDF5 files with the layout that every set shares.

``images`` uint8 (N, H, W), ``labels`` uint8 (N,); affine sets add ``transforms`` float32 (N, 6) with the attribute
``columns``, ``source_index`` int32 (N,) and, official ones, ``original_id`` int32 (N,). File attributes: ``name``,
``split``, ``source``, ``sha256`` (of the inputs), ``license``, ``affbench_version``, and what a set adds of its own.
"""

import contextlib
import io
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from affbench.base.errors import ArtefactError
from affbench.base.version import __version__
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset

CHUNK = 256  # images a chunk: 400 kB at 40×40, so a slice costs little more than itself


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to write in a ``with`` block.

    It is made in memory and written at once: HDF5 crashes at exit where it cannot write its last bytes, such as those
    of a full disk.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        yield file
    path.write_bytes(content.getbuffer())


@dataclass
class SetWriter:
    """Fills a new converted set part by part, so that no more than the compressed set is ever in memory."""

    file: h5py.File
    count: int = 0  # of the images written so far

    def append(self, part: Dataset) -> None:
        """Add the next images."""
        stop = self.count + len(part)
        for name in self.file:
            self.file[name][self.count : stop] = getattr(part, name)
        self.count = stop


@contextlib.contextmanager
def new_set(path: Path, count: int, canvas: int, attributes: Mapping[str, Any], *, affine: bool) -> Iterator[SetWriter]:
    """A new converted set of so many images, to be filled in a ``with`` block."""
    with new_file(path) as file:
        chunks, shape = (max(1, min(CHUNK, count)), canvas, canvas), (count, canvas, canvas)
        file.create_dataset("images", shape, np.uint8, chunks=chunks, compression="gzip", compression_opts=1)
        file.create_dataset("labels", (count,), np.uint8)
        if affine:
            transforms = file.create_dataset("transforms", (count, len(TRANSFORM_COLUMNS)), np.float32)
            transforms.attrs["columns"] = list(TRANSFORM_COLUMNS)
            file.create_dataset("source_index", (count,), np.int32)
        file.attrs.update({**attributes, "affbench_version": __version__})
        writer = SetWriter(file)
        yield writer
        if writer.count != count:
            raise ArtefactError(f"a set of {count:,} images was announced, but {writer.count:,} were written.")


def write_set(path: Path, dataset: Dataset, attributes: Mapping[str, Any]) -> None:
    """Write a set that is in memory."""
    affine = dataset.transforms is not None
    with new_set(path, len(dataset), dataset.canvas, attributes, affine=affine) as writer:
        writer.append(dataset)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError, zlib.error) as error:
        raise ArtefactError(f"{path} is not a converted affbench set, or is damaged ({error}).") from error


def _own(file: h5py.File, name: str) -> h5py.Dataset:
    """An array of the file itself: one that lies in another file would be whatever that file holds."""
    found = file.get(name, getlink=True)
    array = file[name] if isinstance(found, h5py.HardLink) else None
    if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
        raise ValueError(f"'{name}' is missing, or does not lie in the file itself")
    return array


def count_images(path: Path) -> int:
    """Number of images in a converted set; raises as `read_set`."""
    with _opened(path) as file:
        return len(file["labels"])


def read_set(path: Path, key: str = "", start: int = 0, stop: int | None = None) -> Dataset:
    """Read a converted set, or a slice of it without reading the rest."""
    part = slice(start, stop)
    with _opened(path) as file:
        attributes = dict(file.attrs.items())
        images = _unzipped(_own(file, "images"), part)
        names = ["labels", *(name for name in ("transforms", "source_index", "original_id") if name in file)]
        others = {name: _own(file, name)[part] for name in names}
        if images.ndim != 3 or images.dtype != np.uint8 or len(others["labels"]) != len(images):
            raise ValueError("its images are not uint8 (N, H, W) with labels")
        return Dataset(
            str(attributes["name"]), str(attributes["split"]), images, **others, key=key, attributes=attributes
        )


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
