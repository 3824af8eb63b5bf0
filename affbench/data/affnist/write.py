"""Any affine set written as MATLAB files in affNIST's official layout."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.base.store import atomic_folder, atomic_path, write_bytes
from affbench.data.affnist.read import STRUCT
from affbench.data.dataset import CLASSES, Dataset
from affbench.data.placement import CANVAS
from affbench.data.transform import old_to_new

LIMIT = 2**31 - 1  # bytes of a variable; MATLAB reads no larger one from a v5 file
BATCH = 10_000  # images of a batch, where the set is not a number of versions of the same digits
_MEMBER = re.compile(r"\d+\.mat")


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
    scipy.io.savemat(packed, {STRUCT: fields}, do_compression=True)
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
