"""Affine sets as MATLAB files in affNIST's official layout, for other people's loaders."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from affbench.base.errors import DataError, StorageError
from affbench.base.store import atomic_path, temporary_folder, writing
from affbench.data.dataset import CLASSES, Dataset
from affbench.data.placement import CANVAS, FRAME
from affbench.data.transform import old_to_new

LIMIT = 2**31 - 1  # bytes of a variable; MATLAB reads no larger one from a v5 file
BATCH = 10_000  # images of a batch, where the set is not a number of versions of the same digits


def export_mat(dataset: Dataset, target: Path | str) -> list[Path]:
    """Write an affine set as MATLAB files (version 5, compressed) in affNIST's layout, and list them.

    ``NAME.mat`` is one file, ``NAME.mat.zip`` an archive of one; ``NAME.zip``, or a folder that does not exist or is
    empty, holds batches ``1.mat``, ``2.mat``, …, each with one version of every digit, as the official ones.
    """
    target, name = Path(target), Path(target).name.lower()
    if dataset.transforms is None or dataset.source_index is None:
        raise DataError("only a set with transformations can be exported in affNIST's layout; this one has none.")
    if not len(dataset):
        raise DataError("a set without images cannot be exported.")
    if dataset.canvas != CANVAS:
        raise DataError(
            f"only {CANVAS}×{CANVAS} images can be exported in affNIST's layout; these are "
            f"{dataset.canvas}×{dataset.canvas}."
        )
    if name.endswith(".mat"):
        with atomic_path(target) as path:
            _write(path, dataset)
        return [target]
    if name.endswith(".zip"):
        single = name.endswith(".mat.zip")
        parts = [dataset] if single else _batches(dataset)
        with (
            atomic_path(target) as path,
            temporary_folder() as folder,
            zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,  # the members are compressed already
        ):
            member = folder / "member.mat"
            for number, part in enumerate(parts, 1):
                with writing(member):
                    _write(member, part)
                archive.write(member, target.stem if single else f"{number}.mat")
        return [target]
    return _write_folder(target, _batches(dataset))


def fields(dataset: Dataset) -> dict[str, np.ndarray[Any, Any]]:
    """The eight fields of the official struct, one case a column, in their order, which public loaders rely on.

    The names of ``matrix_new_to_old`` and ``case_index`` have not been seen in an official file.
    """
    n, (transforms, source_index) = len(dataset), dataset.table
    matrices = old_to_new(transforms, FRAME, CANVAS)
    square = np.concatenate([matrices, np.tile([[[0.0, 0.0, 1.0]]], (n, 1, 1))], axis=1)
    one_of_n = np.zeros((CLASSES, n), np.uint8)
    one_of_n[dataset.labels, np.arange(n)] = 1
    ids = source_index + 1 if dataset.original_id is None else dataset.original_id
    return {
        "matrix_old_to_new": matrices.reshape(n, 6).T,
        "matrix_new_to_old": np.linalg.inv(square)[:, :2].reshape(n, 6).T,
        "image": dataset.images.reshape(n, -1).T,
        "case_index": np.arange(1, n + 1, dtype=np.int32)[None],
        "label_one_of_n": one_of_n,
        "label_int": dataset.labels[None],
        "human_readable_transform": transforms.T.astype(np.float64),
        "original_id": ids.astype(np.int32)[None],
    }


def _write(path: Path, dataset: Dataset) -> None:
    import scipy.io

    content = fields(dataset)
    size = sum(values.nbytes for values in content.values())
    if size > LIMIT:
        raise DataError(
            f"{len(dataset):,} images make a variable of {size:,} bytes, more than a MATLAB v5 file holds ({LIMIT:,}); "
            f"export to a folder, or to a name ending in .zip, for batches."
        )
    with path.open("wb") as file:
        scipy.io.savemat(file, {"affNISTdata": content}, do_compression=True)


def _batches(dataset: Dataset) -> list[Dataset]:
    """One version of every digit each, where the set runs version by version."""
    source_index = dataset.table[1]
    digits = int(np.argmax(source_index == source_index[-1])) + 1
    versions, rest = divmod(len(dataset), digits)
    if rest or not np.array_equal(source_index, np.tile(source_index[:digits], versions)):
        digits = BATCH
    return [dataset.rows(slice(start, start + digits)) for start in range(0, len(dataset), digits)]


def _write_folder(target: Path, parts: list[Dataset]) -> list[Path]:
    with writing(target):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise StorageError(f"{target} is there already; give a new folder, or a name ending in .mat or .zip.")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            for number, part in enumerate(parts, 1):
                _write(folder / f"{number}.mat", part)
            folder.chmod(0o755)
            folder.replace(target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return [target / f"{number}.mat" for number in range(1, len(parts) + 1)]
