"""Reading IDX files, the format of MNIST: the header is checked against the file before anything is believed."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import idx2numpy
import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.dataset import CLASSES

MAX_BYTES = 1 << 30  # an IDX file may unpack to this much: twenty times the MNIST training images

_UINT8 = 0x08
_BLOCK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_LIMIT = 1032  # deflate cannot shrink data by more than this factor
_AGAIN = "fetch it again"


def read_images(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of images.

    Gives uint8 (N, H, W), 0 background to 255 ink, writable.
    """
    return _read(path, dimensions=3, what="images")


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of labels.

    Gives uint8 (N,), classes 0 to 9, writable.
    """
    labels = _read(path, dimensions=1, what="labels")
    if labels.max() >= CLASSES:
        where = int(labels.argmax())
        raise DataError(
            f"{path} holds label {labels[where]} (example {where:,}), but labels are 0 to {CLASSES - 1}; "
            "give the label file of a set of ten classes."
        )
    return labels


def read_pair(images_path: Path, labels_path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read images and their labels.

    Gives images uint8 (N, H, W) and labels uint8 (N,).
    """
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
        raise DataError(f"{path} is not a whole gzip file, it is truncated or corrupt ({error}); {_AGAIN}.") from error
    except FileNotFoundError:
        raise DataError(f"{path} is missing; fetch it first.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    parsed = cast("npt.NDArray[np.uint8]", idx2numpy.convert_from_string(content))
    return parsed.copy()  # what idx2numpy returns is a read-only view of `content`


def _content(path: Path, dimensions: int, what: str) -> bytes:
    """The bytes of an IDX file, exactly as many as its header announces."""
    packed = path.stat().st_size
    if not packed:
        raise DataError(f"{path} is empty; {_AGAIN}.")
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not zipped:
            return _body(raw, path, dimensions, what, most=packed)
        with gzip.GzipFile(fileobj=raw) as unpacked:
            return _body(cast("IO[bytes]", unpacked), path, dimensions, what, most=_DEFLATE_LIMIT * packed)


def _body(file: IO[bytes], path: Path, dimensions: int, what: str, most: int) -> bytes:
    """Header and body of an open file that cannot hold more than `most` bytes."""
    header = file.read(4 + 4 * dimensions)
    magic = bytes([0, 0, _UINT8, dimensions])
    if header[:4] != magic:
        raise DataError(
            f"{path} is not an IDX file of {what}: it begins with {header[:4].hex(' ') or 'nothing'} instead of "
            f"{magic.hex(' ')}; {_AGAIN}, or give the right file."
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path} ends within its header; {_AGAIN}.")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    size = len(header) + math.prod(shape)
    announced = f"its header announces {'×'.join(f'{n:,}' for n in shape)} {what if dimensions == 1 else 'pixels'}"
    if 0 in shape:
        raise DataError(f"{path} holds no {what}: {announced}; {_AGAIN}.")
    if size > MAX_BYTES:
        raise DataError(f"{path} is refused: {announced}, more than the {MAX_BYTES:,} bytes allowed; {_AGAIN}.")
    if size > most:
        raise DataError(f"{path} is damaged: {announced}, more than the file can hold; {_AGAIN}.")
    content = bytearray(header)
    # Block by block, so that a header that lies costs no more memory than the file really holds.
    while len(content) < size and (block := file.read(min(_BLOCK, size - len(content)))):
        content += block
    if len(content) < size:
        raise DataError(
            f"{path} is damaged: {announced}, {size:,} bytes in all, but there are {len(content):,}; {_AGAIN}."
        )
    if file.read(1):  # at the end of a gzip file this also checks its CRC
        raise DataError(f"{path} is damaged: {announced}, but more bytes follow; {_AGAIN}.")
    return bytes(content)
