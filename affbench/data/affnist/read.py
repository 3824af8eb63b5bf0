"""affNIST as others store it: MATLAB files, batches and NumPy archives in, converted sets out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.affnist.layout import (
    PIXELS,
    ROWS,
    listed,
    read_fields,
    read_images,
    read_labels,
    read_pixels,
    read_source_index,
    read_transforms,
    refuse,
)
from affbench.data.affnist.originals import pair
from affbench.data.containers import NpzArray, check_archive, extracted, read_mat_variables, reading
from affbench.data.dataset import CLASSES, UNPAIRED, Dataset
from affbench.data.hdf5 import SetWriter
from affbench.data.placement import CANVAS, FRAME

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AffnistSource:
    """Where a split of affNIST lies on disk."""

    kind: Literal["mat", "npz"]  # ``"mat"``: with transformations; ``"npz"``: images and labels only
    # A .mat file, a folder of ``1.mat``, ``2.mat``, …, a zip archive of either, or the .npz file of the images
    path: Path
    labels: Path | None = None  # the .npz file of the labels

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it consists of, for checksums."""
        if self.labels is not None:
            return (self.path, self.labels)
        if self.path.is_dir():
            return tuple(self.path / name for name in _members(self.path))
        return (self.path,)


def read_mat(path: Path | str, name: str = "affnist", split: str = "test") -> Dataset:
    """Read affNIST from MATLAB files of version 5, 7 or 7.3.

    Parameters
    ----------
    path
        A .mat file, a folder of ``1.mat``, ``2.mat``, …, or a zip archive that holds either.
    name, split
        What the set is called.

    Returns
    -------
    Dataset
        Images uint8 (N, 40, 40), labels uint8 (N,), transforms float32 (N, 6) in the order of `TRANSFORM_COLUMNS`,
        source_index int32 (N,) from 0, in the order in which the file itself counts its originals. The attribute
        ``matrices`` says whether the table and the stored matrices agree.

    Raises
    ------
    DataError
        The file is missing, damaged, not affNIST, lacks a field, or its fields contradict each other.
    """
    path = Path(path)
    parts = [_read_file(file, label, name, split) for file, label in _open_members(path, _members(path))]
    matrices = _worst(path, parts)
    if len(parts) == 1:
        return parts[0]
    n = sum(len(part) for part in parts)
    whole = Dataset(
        name,
        split,
        np.empty((n, CANVAS, CANVAS), np.uint8),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.table[0] for part in parts]),
        np.concatenate([part.table[1] for part in parts]),
        attributes={"matrices": matrices, "order": UNPAIRED},
    )
    stop = n
    while parts:  # from the last to the first, so that every part goes as soon as it is copied
        part = parts.pop()
        whole.images[stop - len(part) : stop] = part.images
        stop -= len(part)
    return whole


def read_originals(path: Path | str) -> npt.NDArray[np.uint8]:
    """The originals of affNIST, in the order in which its files count them: uint8 (M, 28, 28)."""
    path = Path(path)
    with contextlib.closing(_open_members(path, _members(path))) as members:  # a temporary file goes when it closes
        file, label = next(members)
        fields = read_fields(label, read_mat_variables(file))
    if any(value.ndim == 2 and PIXELS in value.shape for value in fields.values()):
        margin = (CANVAS - FRAME) // 2
        return read_images(label, fields)[:, margin:-margin, margin:-margin]
    return read_images(label, fields, FRAME)


def convert(
    source: AffnistSource,
    target: Path,
    split: str,
    attributes: Mapping[str, Any],
    digits: Dataset | None = None,
    originals: Path | None = None,
) -> None:
    """Write a converted set from a source, part by part."""
    if source.kind == "npz":
        count, parts = _npz_parts(source, split)
    else:
        count, parts = _mat_parts(source.path, split)
    # Official files carry the transformations, the NumPy mirror does not.
    affine = source.kind == "mat"
    described = {**attributes, "split": split, "layout": "MATLAB" if affine else "NumPy"}
    whole = []
    with SetWriter(target, count, CANVAS, described, affine=affine) as writer:
        for part in parts:
            for start in range(0, len(part), ROWS):
                writer.append(part.rows(slice(start, start + ROWS)))
            whole.append(replace(part, images=part.images[:0]))
        if affine:
            table, ids, labels = (
                np.concatenate([getattr(part, name) for part in whole])
                for name in ("transforms", "source_index", "labels")
            )
            _check_originals(str(source.path), ids)
            order = UNPAIRED
            if digits is not None:
                try:
                    found = pair(
                        writer.images,
                        labels,
                        table,
                        ids,
                        digits,
                        None if originals is None else read_originals(originals),
                    )
                except DataError as error:
                    order = f"{UNPAIRED}: {error}"
                else:
                    writer.add_originals(found.source_index, ids + 1)
                    order = found.order
            if order.startswith(UNPAIRED):
                _LOG.warning("source_index of %s counts %s", source.path, order)
            writer.describe(matrices=_worst(source.path, whole), order=order)


def _check_originals(label: str, ids: npt.NDArray[np.int32]) -> None:
    """Every original of a whole set comes equally often, and there are many."""
    versions = np.unique(ids, return_counts=True)[1]
    if len(versions) == 1 and len(ids) > 1:
        refuse(label, "not affNIST", f"all of its {len(ids):,} images have the same original")
    if versions.min() != versions.max():
        refuse(label, "incomplete", f"some originals have {versions.min():,} versions in it, others {versions.max():,}")


def _worst(label: Path, parts: list[Dataset]) -> str:
    """What the parts of a set say about its matrices; the first that disagrees speaks for all, aloud."""
    said = [str(part.attributes["matrices"]) for part in parts]
    worst = next((words for words in said if words.startswith("disagree")), said[0])
    if worst.startswith("disagree"):
        _LOG.warning("the matrices in %s %s; 'affbench verify' says which of the two the images follow", label, worst)
    return worst


def read_homnist(path: Path | str) -> Dataset:
    """Read homNIST, the counterpart of affNIST under homographies.

    Its layout is known from one loader, by the names of its variables only; so whichever axis of ``img_data`` has the
    length of ``labels`` counts the images, and the others must make squares, taken in row-major order. The
    homographies (3×3 each) must be there, one for each image, but are not kept: they fit no transformation table.

    Gives images uint8 (N, H, H), labels uint8 (N,); no transforms.
    """
    path = Path(path)
    members = _members(path)
    if len(members) != 1:
        raise DataError(f"{path} holds {len(members)} .mat files; homNIST is one.")
    for file, label in _open_members(path, members):
        variables = read_mat_variables(file)
        for name in ("img_data", "labels", "hom_matrices"):
            if not isinstance(variables.get(name), np.ndarray):
                refuse(label, "not homNIST", f"it has no variable {name}; it has {listed(variables)}")
        images, labels, matrices = (np.asarray(variables[name]) for name in ("img_data", "labels", "hom_matrices"))
        one_of_n = labels.ndim == 2 and min(labels.shape) == CLASSES and labels.size > CLASSES
        n = labels.size // CLASSES if one_of_n else labels.size
        classes = read_labels(label, {"label_one_of_n" if one_of_n else "label_int": labels}, n)
        if matrices.size != 9 * n:
            refuse(label, "not homNIST", f"it has {n:,} labels, but {matrices.size / 9:g} matrices of 3×3")
        axis = next((axis for axis, length in enumerate(images.shape) if length == n), None)
        side = round((images.size / max(n, 1)) ** 0.5)
        if axis is None or not n or images.ndim not in (2, 3) or side * side * n != images.size:
            refuse(label, "not homNIST", f"img_data {images.shape} is not {n:,} square images, one for each label")
        rows = np.moveaxis(images, axis, 0).reshape(n, side * side)
        return Dataset("homnist", "test", read_pixels(label, rows).reshape(n, side, side), classes)
    raise AssertionError  # one member was opened


def _members(path: Path) -> list[str]:
    """The .mat files of a source, in order; a file by its own name."""
    if path.suffix.lower() != ".zip":
        if not path.is_dir():
            return [path.name]
        with reading(path, "a folder"):
            names = [entry.name for entry in path.iterdir() if entry.suffix.lower() == ".mat"]
    else:
        names = [name for name in check_archive(path) if name.lower().endswith(".mat")]
    stems = {name: PurePosixPath(name.replace("\\", "/")).stem for name in names}
    numbered = {int(stem): name for name, stem in stems.items() if stem.isascii() and stem.isdigit() and len(stem) < 6}
    if not names:
        raise DataError(f"{path} holds no .mat file; affNIST comes as one, or as 1.mat, 2.mat, ….")
    if len(names) == 1 and 1 not in numbered:
        return names
    if len(numbered) != len(names):
        raise DataError(f"{path} holds several .mat files that are not the batches 1.mat, 2.mat, …: {listed(stems)}.")
    missing = next((k for k in range(1, max(numbered) + 1) if k not in numbered), None)
    if missing is not None or 0 in numbered:
        raise DataError(f"{path} lacks the batch {missing or 1}.mat; fetch it again.")
    return [numbered[k] for k in sorted(numbered)]


def _open_members(path: Path, members: list[str]) -> Generator[tuple[Path, str], None, None]:
    """Each .mat file of a source with what to call it in an error; those of an archive are temporary files."""
    for name in members:
        if path.suffix.lower() == ".zip":
            with extracted(path, name) as file:
                yield file, f"{name} in {path}"
        else:
            file = path / name if path.is_dir() else path
            yield file, str(file)


def _mat_parts(path: Path, split: str) -> tuple[int, Iterator[Dataset]]:
    members = _members(path)
    files = _open_members(path, members)
    first = _read_file(*next(files), "affnist", split)

    def parts() -> Iterator[Dataset]:
        yield first
        for file, label in files:
            part = _read_file(file, label, "affnist", split)
            if len(part) != len(first):  # every batch holds each original once
                refuse(label, "not a batch of this set", f"it has {len(part):,} images, the first has {len(first):,}")
            yield part

    return len(first) * len(members), parts()


def _npz_parts(source: AffnistSource, split: str) -> tuple[int, Iterator[Dataset]]:
    images, labels = map(NpzArray, source.files)
    n = images.shape[0]
    if images.shape[1:] not in ((PIXELS,), (CANVAS, CANVAS), (CANVAS, CANVAS, 1), (1, CANVAS, CANVAS)) or not n:
        refuse(str(source.path), "not affNIST", f"its images are {images.shape}, not (N, 1600) or (N, 40, 40)")
    if labels.shape[0] != n:
        refuse(str(source.labels), "no match", f"it has {labels.shape[0]:,} labels for {n:,} images")
    if labels.shape[1:] not in ((), (1,), (CLASSES,)):
        refuse(str(source.labels), "not affNIST", f"its labels are {labels.shape}, not (N,) or (N, 10)")
    field = "label_one_of_n" if labels.shape[1:] == (CLASSES,) else "label_int"

    def parts() -> Iterator[Dataset]:
        largest = None  # which decides whether floating point means 0 to 1 or 0 to 255, for the whole file
        for block, given in zip(images.rows(ROWS), labels.rows(ROWS), strict=True):
            if largest is None:
                largest = float(block.max()) if block.dtype.kind == "f" else 255.0
            pixels = read_pixels(str(source.path), block.reshape(len(block), PIXELS), largest)
            classes = read_labels(str(source.labels), {field: given}, len(block))
            yield Dataset("affnist", split, pixels.reshape(-1, CANVAS, CANVAS), classes)

    return n, parts()


def _read_file(path: Path, label: str, name: str, split: str) -> Dataset:
    """One .mat file; errors call it by its label."""
    try:
        fields = read_fields(label, read_mat_variables(path))
    except DataError as error:  # a temporary file is called by the archive it came from
        raise DataError(str(error).replace(str(path), label)) from error
    with reading(Path(label), "affNIST"):
        images = read_images(label, fields)
        n = len(images)
        transforms, matrices = read_transforms(label, fields, n)
        source_index = read_source_index(label, fields, n)
        labels = read_labels(label, fields, n)
        return Dataset(
            name, split, images, labels, transforms, source_index, attributes={"matrices": matrices, "order": UNPAIRED}
        )
