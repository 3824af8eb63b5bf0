"""Reading IDX files, the format of MNIST: the header is checked against the file before anything is believed."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import cast

import idx2numpy
import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.dataset import CLASSES

MAX_BYTES = 1 << 30  # an IDX file may unpack to this much: twenty times the MNIST training images

_UINT8 = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_LIMIT = 1032  # deflate cannot shrink data by more than this factor


def read_images(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of images: uint8 (N, H, W), 0 background to 255 ink, writable."""
    return _read(path, dimensions=3, what="images")


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of labels: uint8 (N,), classes 0 to 9, writable."""
    labels = _read(path, dimensions=1, what="labels")
    if labels.max() >= CLASSES:
        where = int(labels.argmax())
        raise DataError(
            f"{path} holds label {labels[where]} (example {where:,}), but labels are 0 to {CLASSES - 1}; "
            "give the label file of a set of ten classes."
        )
    return labels


def read_pair(images_path: Path, labels_path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images uint8 (N, H, W) and their labels uint8 (N,)."""
    labels = read_labels(labels_path)  # the small file first: what is wrong shows sooner
    images = read_images(images_path)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images):,} images, but {labels_path} holds {len(labels):,} labels; "
            "give two files of the same split."
        )
    return images, labels


def _read(path: Path, dimensions: int, what: str) -> npt.NDArray[np.uint8]:
    try:
        content = _content(path, dimensions, what)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"is not a whole gzip file, it is truncated or corrupt ({error})"
        raise DataError(f"{path} {reason}; fetch it again.") from error
    except FileNotFoundError:
        raise DataError(f"{path} is missing; fetch it first.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise DataError(f"{path} {error}; fetch it again, or give the right file.") from None
    parsed = cast("npt.NDArray[np.uint8]", idx2numpy.convert_from_string(content))
    return parsed.copy()  # what idx2numpy returns is a read-only view of `content`


def _content(path: Path, dimensions: int, what: str) -> bytes:
    """The bytes of an IDX file, exactly as many as its header announces; else ValueError says what is wrong."""
    most = path.stat().st_size  # that the file can hold
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
    with gzip.open(path) if zipped else path.open("rb") as file:
        magic, header = bytes([0, 0, _UINT8, dimensions]), file.read(4 + 4 * dimensions)
        if header[:4] != magic:
            begin = header[:4].hex(" ") or "nothing"
            raise ValueError(f"is not an IDX file of {what}: it begins with {begin} instead of {magic.hex(' ')}")
        if len(header) < 4 + 4 * dimensions:
            raise ValueError("ends within its header")
        shape = struct.unpack(f">{dimensions}I", header[4:])
        size = math.prod(shape)
        announced = f"its header announces {'×'.join(f'{n:,}' for n in shape)} {what if dimensions == 1 else 'pixels'}"
        if 0 in shape:
            raise ValueError(f"holds no {what}: {announced}")
        if size > MAX_BYTES:
            raise ValueError(f"is refused: {announced}, more than the {MAX_BYTES:,} bytes allowed")
        if len(header) + size > most * (_DEFLATE_LIMIT if zipped else 1):
            raise ValueError(f"is damaged: {announced}, more than the file can hold")
        body = file.read(size)
        if len(body) < size:
            raise ValueError(f"is damaged: {announced}, but there are {len(body):,}")
        if file.read(1):  # at the end of a gzip file this also checks its CRC
            raise ValueError(f"is damaged: {announced}, but more bytes follow")
    return header + body
