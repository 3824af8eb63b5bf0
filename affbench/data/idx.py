"""Reading IDX files, the format of MNIST: the header is checked against the file before anything is believed."""

import gzip
import math
import struct
from pathlib import Path
from typing import Literal

import idx2numpy
import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.containers import reading
from affbench.data.dataset import CLASSES

MAX_BYTES = 1 << 30  # an IDX file may unpack to this much: twenty times the MNIST training images
DIMENSIONS = {"images": 3, "labels": 1}

_UINT8 = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_LIMIT = 1032  # deflate cannot shrink data by more than this factor


def read_pair(images_path: Path, labels_path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images uint8 (N, H, W) and their labels uint8 (N,)."""
    labels = read(labels_path, "labels")  # the small file first: what is wrong shows sooner
    images = read(images_path, "images")
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images):,} images, but {labels_path} holds {len(labels):,} labels; "
            "give two files of the same split."
        )
    return images, labels


def read(path: Path, what: Literal["images", "labels"]) -> npt.NDArray[np.uint8]:
    """Images (N, H, W), 0 background to 255 ink, or labels (N,), classes 0 to 9; uint8, writable."""
    with reading(path, f"an IDX file of {what}"):
        with path.open("rb") as file:
            zipped = file.read(2) == _GZIP_MAGIC
        most = min(MAX_BYTES, path.stat().st_size * (_DEFLATE_LIMIT if zipped else 1))
        with gzip.open(path) if zipped else path.open("rb") as file:
            dimensions = DIMENSIONS[what]
            magic, header = bytes([0, 0, _UINT8, dimensions]), file.read(4 + 4 * dimensions)
            if not header.startswith(magic):
                begin = header[:4].hex(" ") or "nothing"
                raise ValueError(f"it begins with {begin} instead of {magic.hex(' ')}")
            size = math.prod(struct.unpack(f">{dimensions}I", header[4:]))
            if not 0 < size <= most:
                raise ValueError(f"it announces {size:,} bytes of {what}, and can hold 1 to {most:,}")
            file.seek(0)
            # A copy, since idx2numpy gives a read-only view; at its end a gzip file's checksum is compared as well.
            values = np.array(idx2numpy.convert_from_file(file))
        if what == "labels" and values.max() >= CLASSES:
            raise ValueError(f"it holds label {values.max()} (example {values.argmax()}), but classes are 0 to 9")
        return values
