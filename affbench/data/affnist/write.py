"""Affine sets written: official files as converted sets, and any set as MATLAB files in affNIST's official layout."""

import io
import itertools
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.base.store import atomic_folder, atomic_path, write_bytes
from affbench.data.affnist import read
from affbench.data.affnist.originals import pair
from affbench.data.containers import npz_array, reading
from affbench.data.dataset import CLASSES, UNPAIRED, Dataset, joined
from affbench.data.hdf5 import new_set
from affbench.data.placement import CANVAS
from affbench.data.transform import old_to_new

_LOG = logging.getLogger(__name__)

ROWS = 10_240  # images of a NumPy archive at once: 16 MB, a whole number of the converted file's chunks
LIMIT = 2**31 - 1  # bytes of a variable; MATLAB reads no larger one from a v5 file
BATCH = 10_000  # images of a batch, where the set is not a number of versions of the same digits
_MEMBER = re.compile(r"\d+\.mat")


def convert_npz(images_path: Path, labels_path: Path, target: Path, about: Mapping[str, Any]) -> None:
    """Write a converted set from the NumPy mirror, which has no transformations, part by part."""
    with npz_array(images_path) as images, npz_array(labels_path) as labels:
        n = len(images) if images.ndim else 0
        if not n or images.size != n * CANVAS * CANVAS or labels.shape[:1] != (n,):
            shapes = f"the arrays are {images.shape} and {labels.shape}, not (N, 1600) or (N, 40, 40), and N labels"
            raise DataError(f"{images_path} and {labels_path} are not affNIST: {shapes}; fetch them again.")
        # The first part decides whether floating point means 0 to 1 or 0 to 255, for the whole file.
        largest = float(images[:ROWS].max())
        with new_set(target, n, CANVAS, {**about, "layout": "NumPy"}, affine=False) as writer:
            for start in range(0, n, ROWS):
                block = images[start : start + ROWS].reshape(-1, CANVAS, CANVAS)
                with reading(images_path, "affNIST"):
                    pixels = read.pixels(block, largest)
                with reading(labels_path, "affNIST"):
                    classes = read.classes({"labels": labels[start : start + ROWS]}, len(block))
                writer.append(Dataset("affnist", "", pixels, classes))


def convert_mat(
    path: Path, target: Path, about: Mapping[str, Any], digits: Dataset | None = None, originals: Path | None = None
) -> None:
    """Write a converted set from MATLAB files, part by part; what they count is looked for among the digits."""
    batches, parts = len(read.members(path)), read.read_parts(path)
    first = next(parts)
    count, known = len(first) * batches, []
    with new_set(target, count, CANVAS, {**about, "layout": "MATLAB"}, affine=True) as writer:
        for number, part in enumerate(itertools.chain([first], parts), 1):
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


def export_mat(dataset: Dataset, target: Path | str) -> None:
    """Write an affine set as MATLAB files (version 5, compressed) in affNIST's layout.

    ``NAME.mat`` is one file, ``NAME.mat.zip`` an archive of one; ``NAME.zip``, or a folder that does not exist or is
    empty, holds batches ``1.mat``, ``2.mat``, …, each with one version of every digit, as the official ones.
    """
    target, name = Path(target), Path(target).name.lower()
    if not len(dataset) or dataset.transforms is None or dataset.canvas != CANVAS:
        raise DataError(
            f"only a set of {CANVAS}×{CANVAS} images with transformations can be exported in affNIST's layout; "
            f"{dataset.name} is none."
        )
    if name.endswith(".mat"):
        write_bytes(target, _packed(dataset))
    elif name.endswith(".zip"):
        parts = {target.stem: dataset} if name.endswith(".mat.zip") else _batches(dataset)
        with atomic_path(target) as path, zipfile.ZipFile(path, "w") as archive:  # of members that are compressed
            for member, part in parts.items():
                archive.writestr(member, _packed(part))
    else:
        with atomic_folder(target, _MEMBER) as folder:
            for member, part in _batches(dataset).items():
                (folder / member).write_bytes(_packed(part))


def _packed(dataset: Dataset) -> bytes:
    """A .mat file of the official struct's eight fields, one case a column, in the order that public loaders rely on.

    The names of ``matrix_new_to_old`` and ``case_index`` have not been seen in an official file.
    """
    import scipy.io

    n, (transforms, source_index) = len(dataset), dataset.table
    matrices = old_to_new(transforms)
    square = np.concatenate([matrices, np.tile([[[0.0, 0.0, 1.0]]], (n, 1, 1))], axis=1)
    ids = source_index + 1 if dataset.original_id is None else dataset.original_id
    fields: dict[str, npt.NDArray[Any]] = {
        "matrix_old_to_new": matrices.reshape(n, 6).T,
        "matrix_new_to_old": np.linalg.inv(square)[:, :2].reshape(n, 6).T,
        "image": dataset.images.reshape(n, -1).T,
        "case_index": np.arange(1, n + 1, dtype=np.int32)[None],
        "label_one_of_n": np.eye(CLASSES, dtype=np.uint8)[dataset.labels].T,
        "label_int": dataset.labels[None],
        "human_readable_transform": transforms.T.astype(np.float64),
        "original_id": ids.astype(np.int32)[None],
    }
    size = sum(values.nbytes for values in fields.values())
    if size > LIMIT:
        raise DataError(
            f"{n:,} images take {size:,} bytes, and a MATLAB v5 file holds {LIMIT:,}; export to a folder, or to a name "
            f"ending in .zip, for batches."
        )
    packed = io.BytesIO()
    scipy.io.savemat(packed, {read.STRUCT: fields}, do_compression=True)
    return packed.getvalue()


def _batches(dataset: Dataset) -> dict[str, Dataset]:
    """One version of every digit each, where the set runs version by version; by the names of their files."""
    source_index = dataset.table[1]
    digits = int(np.argmax(source_index == source_index[-1])) + 1
    versions, rest = divmod(len(dataset), digits)
    if rest or not np.array_equal(source_index, np.tile(source_index[:digits], versions)):
        digits = BATCH
    starts = range(0, len(dataset), digits)
    return {f"{k}.mat": dataset.rows(slice(start, start + digits)) for k, start in enumerate(starts, 1)}
