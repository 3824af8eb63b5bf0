"""From fetched files to a converted set: digits placed or transformed, official files as they are."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data import idx, placement
from affbench.data.affnist import read
from affbench.data.affnist.originals import pair
from affbench.data.containers import npz_array, reading
from affbench.data.dataset import UNPAIRED, Dataset, joined
from affbench.data.hdf5 import new_set, write_set
from affbench.data.placement import CANVAS

_LOG = logging.getLogger(__name__)

Form = Literal["original", "padded", "translated", "affine", "official"]
Digits: TypeAlias = "tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]"  # images (N, 28, 28) and labels (N,)
# Converts official files: target, files, attributes of the set, and, where at hand, the digits that its images were
# made from, and a file of its own originals.
Writer: TypeAlias = Callable[[Path, Sequence[Path], Mapping[str, Any], Dataset | None, Path | None], None]

ORIGINALS_VERSION = 2  # of how affNIST's own originals are used
ROWS = 10_240  # images of a NumPy archive at once: 16 MB, a whole number of the converted file's chunks


def read_idx(file: Callable[[str], Path], kind: Literal["train", "test"]) -> Digits:
    """All digits of MNIST's training or test files, or of files called like them; `file` finds one by its name."""
    stem = "t10k" if kind == "test" else "train"
    return idx.read_pair(file(f"{stem}-images-idx3-ubyte.gz"), file(f"{stem}-labels-idx1-ubyte.gz"))


def write_placed(target: Path, digits: Digits, form: Form, seed: int, attributes: Mapping[str, Any]) -> None:
    """Write digits as they are, centred on the canvas, or placed at random on it."""
    images, labels = digits
    if form == "padded":
        images = placement.pad(images, CANVAS)
    elif form == "translated":
        images = placement.translate(images, CANVAS, np.random.default_rng(seed))
    write_set(target, Dataset(str(attributes["name"]), str(attributes["split"]), images, labels), attributes)


def write_homnist(target: Path, files: Sequence[Path], attributes: Mapping[str, Any], *_: object) -> None:
    """Convert homNIST."""
    write_set(target, read.read_homnist(files[0]), attributes)


def write_affnist(
    target: Path,
    files: Sequence[Path],
    attributes: Mapping[str, Any],
    digits: Dataset | None = None,
    originals: Path | None = None,
) -> None:
    """Convert a split of affNIST, part by part."""
    if files[0].suffix == ".npz":
        _write_npz(target, files[0], files[1], attributes)
        return
    path = files[0] if len(files) == 1 else files[0].parent  # batches lie in a folder of their own, as 1.mat, 2.mat, …
    batches, parts = len(read.members(path)), read.read_parts(path)
    first = next(parts)
    count, known = len(first) * batches, []
    with new_set(target, count, CANVAS, {**attributes, "layout": "MATLAB"}, affine=True) as writer:
        for number, part in enumerate(chain([first], parts), 1):
            if len(part) != len(first):  # every batch holds each original once
                raise DataError(f"{path} is no set: batch {number} has {len(part):,} images, 1 has {len(first):,}.")
            writer.append(part)
            known.append(replace(part, images=part.images[:0].copy()))  # a view would keep all of them
        table = joined(known)
        versions = np.unique(table.table[1], return_counts=True)[1]  # as many of every original, and many originals
        low, high = versions.min(), versions.max()
        if low != high or (len(versions) == 1 and count > 1):
            raise DataError(
                f"{path} is no whole set: {low:,} to {high:,} versions of each of {len(versions):,} originals."
            )
        order = UNPAIRED
        if digits is not None:
            try:
                given = None if originals is None else read.read_originals(originals)
                found, order = pair(writer.file["images"], table, digits, given)
                writer.file["source_index"][...] = found
                writer.file["original_id"] = table.table[1] + 1
            except DataError as error:
                order = f"{UNPAIRED}: {error}"
        if order.startswith(UNPAIRED):
            _LOG.warning("source_index of %s counts %s", path, order)
        writer.file.attrs.update({"matrices": read.said_of_matrices(path, known), "order": order})


def _write_npz(target: Path, images_path: Path, labels_path: Path, attributes: Mapping[str, Any]) -> None:
    """Convert the NumPy mirror, which has no transformations."""
    with npz_array(images_path) as images, npz_array(labels_path) as labels:
        with reading(images_path, "affNIST"):
            n = len(images)
            if not n or images.size != n * CANVAS**2:
                raise ValueError(f"its array is {images.shape}, not (N, 1600) or (N, 40, 40)")
            # The first part decides whether floating point means 0 to 1 or 0 to 255, for the whole file.
            largest = float(images[:ROWS].max())
        with reading(labels_path, "affNIST"):
            classes = read.classes({"labels": labels}, n)
        with new_set(target, n, CANVAS, {**attributes, "layout": "NumPy"}, affine=False) as writer:
            for start in range(0, n, ROWS):
                part = slice(start, start + ROWS)
                with reading(images_path, "affNIST"):
                    pixels = read.pixels(images[part].reshape(-1, CANVAS, CANVAS), largest)
                writer.append(Dataset("affnist", "", pixels, classes[part]))


def origin(name: str, split: str, source: str, checksums: Mapping[str, str], license: str) -> dict[str, str]:
    """The attributes that say where a set comes from."""
    return {"name": name, "split": split, "source": source, "sha256": json.dumps(checksums), "license": license}
