"""Reading IDX files, the format of MNIST: the header is checked against the file before anything is believed."""

import gzip
import math
import struct
from pathlib import Path

import idx2numpy
import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.containers import reading
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
    with reading(path, f"an IDX file of {what}"):
        with path.open("rb") as file:
            zipped = file.read(2) == _GZIP_MAGIC
        most = min(MAX_BYTES, path.stat().st_size * (_DEFLATE_LIMIT if zipped else 1))
        with gzip.open(path) if zipped else path.open("rb") as file:
            magic, header = bytes([0, 0, _UINT8, dimensions]), file.read(4 + 4 * dimensions)
            if not header.startswith(magic):
                begin = header[:4].hex(" ") or "nothing"
                raise ValueError(f"it begins with {begin} instead of {magic.hex(' ')}")
            size = math.prod(struct.unpack(f">{dimensions}I", header[4:]))
            if not 0 < size <= most:
                raise ValueError(f"it announces {size:,} bytes of {what}, and can hold 1 to {most:,}")
            file.seek(0)
            # A copy, since idx2numpy gives a read-only view; at its end a gzip file's checksum is compared as well.
            return np.array(idx2numpy.convert_from_file(file))
