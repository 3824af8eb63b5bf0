"""Converted sets as MATLAB files in affNIST's official layout, for other people's loaders.

The file is written as a stream: its sizes follow from the number of images, so no more than a block of images is ever
in memory. Four of the eight field names are those of the official files; those of the two matrices and the two indices
are unconfirmed, which no loader by position notices.

References
----------
The MathWorks, "MAT-File Format", the level 5 format.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from affbench import __version__
from affbench.data.containers import Array
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.hdf5 import read_set
from affbench.data.synthesis import affine_matrices
from affbench.errors import DataError, StorageError
from affbench.store import atomic_path, temporary_folder, writing

VARIABLE_LIMIT = 2**31 - 1  # bytes; MATLAB reads no larger variable from a v5 file
BATCH = 10_000  # images of a batch, where the set is not a number of versions of the same digits
BLOCK = 4_096  # images in memory at once
LEVEL = 6  # of compression; 1 is little faster, for most of the time goes into images' empty background

_STRUCT, _DOUBLE, _UINT8, _INT32 = 2, 6, 9, 12  # MATLAB classes
_MI_INT8, _MI_UINT8, _MI_INT32, _MI_UINT32, _MI_DOUBLE, _MI_MATRIX, _MI_COMPRESSED = 1, 2, 5, 6, 9, 14, 15
_NAME_BYTES = 32  # of every field name; MATLAB's own width, of which the last byte is zero
_STORED: dict[int, tuple[int, np.dtype[Any]]] = {
    _DOUBLE: (_MI_DOUBLE, np.dtype("<f8")),
    _UINT8: (_MI_UINT8, np.dtype("u1")),
    _INT32: (_MI_INT32, np.dtype("<i4")),
}


@dataclass(frozen=True)
class _Field:
    name: str
    matlab_class: int
    rows: int
    columns: Callable[[Dataset, int], Array]  # of a block of images and the number of the first: (block, rows)


def _one_of_n(part: Dataset, _: int) -> Array:
    return np.eye(10, dtype=np.uint8)[part.labels]


def _matrices(part: Dataset, _: int) -> Array:
    return affine_matrices(_table(part)).transpose(0, 2, 1).reshape(-1, 9)  # column by column, as MATLAB has it


def _inverses(part: Dataset, _: int) -> Array:
    return np.linalg.inv(affine_matrices(_table(part))).transpose(0, 2, 1).reshape(-1, 9)


def _table(part: Dataset) -> Array:
    assert part.transforms is not None  # noqa: S101 - for the type checker: checked before any block is read
    return part.transforms


def _originals(part: Dataset, _: int) -> Array:
    assert part.source_index is not None  # noqa: S101
    return part.source_index[:, None] + 1


# The order is that of the official files, which public loaders rely on.
_FIELDS = (
    _Field("affine_matrix", _DOUBLE, 9, _matrices),
    _Field("inverse_affine_matrix", _DOUBLE, 9, _inverses),
    _Field("image", _UINT8, 1600, lambda part, _: part.images.reshape(len(part), -1)),
    _Field("case_index", _INT32, 1, lambda part, first: np.arange(first + 1, first + 1 + len(part))[:, None]),
    _Field("label_one_of_n", _UINT8, 10, _one_of_n),
    _Field("label_int", _UINT8, 1, lambda part, _: part.labels[:, None]),
    _Field("human_readable_transform", _DOUBLE, len(TRANSFORM_COLUMNS), lambda part, _: _table(part)),
    _Field("original_index", _INT32, 1, _originals),
)


def export_mat(source: Dataset | Path | str, target: Path | str) -> list[Path]:
    """Write an affine set as MATLAB files (version 5, compressed) in affNIST's layout.

    Parameters
    ----------
    source
        The set, or its converted file, which is then never whole in memory.
    target
        ``NAME.mat``: one file. ``NAME.mat.zip``: a zip archive of one. ``NAME.zip``, or a folder that does not exist
        or is empty: batches ``1.mat``, ``2.mat``, …, each with one version of every digit, as the official ones.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    DataError
        The set has no transformations, its images are not 40×40, or it is too large for one file.
    StorageError
        The target cannot be written, or is a folder with files in it.
    """
    reader = _Reader(source)
    target = Path(target)
    name = target.name.lower()
    if name.endswith(".mat"):
        with atomic_path(target) as path:
            _write(path, reader, 0, reader.count)
        return [target]
    if name.endswith(".zip"):
        single = name.endswith(".mat.zip")
        batch = reader.count if single else reader.batch
        with (
            atomic_path(target) as path,
            temporary_folder() as folder,
            zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,  # the members are compressed already
        ):
            member = folder / "member.mat"
            for number, start in enumerate(range(0, reader.count, batch), 1):
                _write(member, reader, start, min(start + batch, reader.count))
                archive.write(member, target.stem if single else f"{number}.mat")
        return [target]
    return _write_folder(target, reader)


def _write_folder(target: Path, reader: _Reader) -> list[Path]:
    with writing(target):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise StorageError(f"{target} is there already; give a new folder, or a name ending in .mat or .zip.")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            starts = range(0, reader.count, reader.batch)
            for number, start in enumerate(starts, 1):
                _write(folder / f"{number}.mat", reader, start, min(start + reader.batch, reader.count))
            folder.chmod(0o755)
            folder.replace(target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return [target / f"{number}.mat" for number in range(1, len(starts) + 1)]


class _Reader:
    """Slices of a set in memory or on disk."""

    def __init__(self, source: Dataset | Path | str) -> None:
        self._source = source
        if isinstance(source, Dataset):
            self.count, index = len(source), source.source_index
            transforms = source.transforms
        else:
            import h5py

            path = Path(source)
            sample = read_set(path, stop=1)
            transforms = sample.transforms
            with h5py.File(path, "r", locking=False) as file:
                self.count = len(file["images"])
                index = file["source_index"][:] if "source_index" in file else None
        if transforms is None or index is None:
            raise DataError("only a set with transformations can be exported in affNIST's layout; this one has none.")
        if not self.count:
            raise DataError("a set without images cannot be exported.")
        canvas = self.part(0, 1).images.shape[1:]
        if canvas != (40, 40):
            raise DataError(
                f"only 40×40 images can be exported in affNIST's layout; these are {canvas[0]}×{canvas[1]}."
            )
        digits = int(index.max()) + 1
        copies, rest = divmod(self.count, digits)
        whole = not rest and np.array_equal(index, np.tile(np.arange(digits), copies))
        self.batch = digits if whole else BATCH

    def part(self, start: int, stop: int) -> Dataset:
        source = self._source
        if not isinstance(source, Dataset):
            return read_set(Path(source), start=start, stop=stop)
        rows = slice(start, stop)
        return Dataset(
            source.name,
            source.split,
            source.images[rows],
            source.labels[rows],
            None if source.transforms is None else source.transforms[rows],
            None if source.source_index is None else source.source_index[rows],
        )


def _write(path: Path, reader: _Reader, start: int, stop: int) -> None:
    """One file with the images from start to stop."""
    n = stop - start
    opening = _element(_MI_UINT32, struct.pack("<II", _STRUCT, 0)) + _element(_MI_INT32, struct.pack("<ii", 1, 1))
    opening += _element(_MI_INT8, b"affNISTdata")
    opening += struct.pack("<HHI", _MI_INT32, 4, _NAME_BYTES)  # the small form, which readers expect here
    opening += _element(_MI_INT8, b"".join(field.name.encode().ljust(_NAME_BYTES, b"\0") for field in _FIELDS))
    heads = [_array_head(field, n) for field in _FIELDS]
    size = len(opening) + sum(
        len(head) + _padded(_data_bytes(field, n)) for field, head in zip(_FIELDS, heads, strict=True)
    )
    if size > VARIABLE_LIMIT:
        raise DataError(
            f"{n:,} images make a variable of {size:,} bytes, more than a MATLAB v5 file holds ({VARIABLE_LIMIT:,}); "
            f"export to a folder, or to a name ending in .zip, for batches."
        )
    with path.open("wb") as file:
        text = f"MATLAB 5.0 MAT-file, affNIST layout, written by affbench {__version__}"
        file.write(text.encode().ljust(124) + struct.pack("<H2s", 0x0100, b"IM"))
        file.write(struct.pack("<II", _MI_COMPRESSED, 0))
        pack = zlib.compressobj(LEVEL)
        file.write(pack.compress(struct.pack("<II", _MI_MATRIX, size) + opening))
        for field, head in zip(_FIELDS, heads, strict=True):
            file.write(pack.compress(head))
            for data in _column_bytes(field, reader, start, stop):
                file.write(pack.compress(data))
            file.write(pack.compress(b"\0" * (-_data_bytes(field, n) % 8)))
        file.write(pack.flush())
        _set_length(file)


def _set_length(file: IO[bytes]) -> None:
    """Write the length of the compressed element, known only now, into its tag."""
    end = file.seek(0, os.SEEK_END)
    file.seek(132)
    file.write(struct.pack("<I", end - 136))


def _column_bytes(field: _Field, reader: _Reader, start: int, stop: int) -> Iterator[bytes]:
    stored = _STORED[field.matlab_class][1]
    for first in range(start, stop, BLOCK):
        part = reader.part(first, min(first + BLOCK, stop))
        yield np.ascontiguousarray(field.columns(part, first - start), stored).tobytes()


def _data_bytes(field: _Field, n: int) -> int:
    return field.rows * n * _STORED[field.matlab_class][1].itemsize


def _padded(size: int) -> int:
    return size + -size % 8


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def _array_head(field: _Field, n: int) -> bytes:
    """All of a numeric array but its values: tags, flags, shape (rows, n) and an empty name."""
    inner = _element(_MI_UINT32, struct.pack("<II", field.matlab_class, 0))
    inner += _element(_MI_INT32, struct.pack("<ii", field.rows, n)) + _element(_MI_INT8, b"")
    size = _data_bytes(field, n)
    inner += struct.pack("<II", _STORED[field.matlab_class][0], size)
    return struct.pack("<II", _MI_MATRIX, len(inner) + _padded(size)) + inner
