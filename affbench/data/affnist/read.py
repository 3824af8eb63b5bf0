"""affNIST as others store it: MATLAB files, batches and zip archives of them; and homNIST.

A .mat file holds one 1×1 struct ``affNISTdata`` with eight fields. The names of six are known; those of the inverse
matrix and of the index of the case have not been seen. So every field is found by its name where the name says enough,
else by its shape and values, and never by its position alone. Three fields are 6×N floating point: the table of
transformations, the matrix from the digit's pixels to the canvas's, and its inverse; where names fail, the table is the
one from which another can be computed. Images are stored 1600×N, one image a column in row-major order. Indices count
from 1 there and from 0 here.

T. Tieleman, "affNIST", https://www.cs.toronto.edu/~tijmen/affNIST/
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.containers import Array, Variables, check_archive, extracted, read_mat_variables, reading
from affbench.data.dataset import CLASSES, TRANSFORM_COLUMNS, UNPAIRED, Dataset, joined
from affbench.data.placement import CANVAS, FRAME
from affbench.data.transform import old_to_new

_LOG = logging.getLogger(__name__)

STRUCT = "affNISTdata"
LABELS = ("label_int", "label", "labels", "label_one_of_n", "one_of_n")
ORIGINALS = 60_000  # digits in MNIST's training file, the most that originals can count to
AGREEMENT = 1e-4  # how far a stored matrix may lie from the one that the table gives
LOW, HIGH = (-360, -10, 0.01, 0.01, -1000, -1000), (360, 10, 100, 100, 1000, 1000)  # of any affine set's factors

Fields = Mapping[str, Array]


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
        With ``transforms``, and ``source_index`` from 0 in the order in which the file itself counts its originals.
        The attribute ``matrices`` says whether the table and the stored matrices agree.

    Raises
    ------
    DataError
        The file is missing, damaged, not affNIST, lacks a field, or its fields contradict each other.
    """
    parts = list(read_parts(Path(path)))
    attributes = {"matrices": said_of_matrices(Path(path), parts), "order": UNPAIRED}
    return replace(joined(parts), name=name, split=split, attributes=attributes)


def read_parts(path: Path) -> Iterator[Dataset]:
    """The files of a source one by one; the attribute ``matrices`` is what each says of its matrices."""
    for label, variables in _opened(path):
        with reading(label, "affNIST"):
            fields = _fields(variables)
            images = _images(fields)
            transforms, matrices = _transforms(fields, len(images))
            source_index = _source_index(fields, len(images))
            labels = classes(fields, len(images))
        yield Dataset("affnist", "", images, labels, transforms, source_index, attributes={"matrices": matrices})


def said_of_matrices(path: Path, parts: list[Dataset]) -> str:
    """What the parts of a set say about its matrices; the first that disagrees speaks for all, aloud."""
    said = [str(part.attributes["matrices"]) for part in parts]
    worst = next((words for words in said if words.startswith("disagree")), said[0])
    if worst.startswith("disagree"):
        _LOG.warning("the matrices in %s %s; 'affbench verify' says which of the two the images follow", path, worst)
    return worst


def read_originals(path: Path) -> npt.NDArray[np.uint8]:
    """The originals of affNIST, in the order in which its files count them: uint8 (M, 28, 28)."""
    label, variables = next(_opened(path))
    with reading(label, "affNIST"):
        fields = _fields(variables)
        if any(value.ndim == 2 and CANVAS**2 in value.shape for value in fields.values()):
            margin = (CANVAS - FRAME) // 2
            return _images(fields)[:, margin:-margin, margin:-margin]
        return _images(fields, FRAME)


def read_homnist(path: Path) -> Dataset:
    """Read homNIST, the counterpart of affNIST under homographies: images uint8 (N, H, H), labels uint8 (N,).

    Of its layout only the names of the variables are known; so the axis of ``img_data`` that is as long as there are
    matrices (3×3, which fit no transformation table and are not kept) counts the images.
    """
    label, variables = next(_opened(path))
    with reading(label, "homNIST"):
        images, labels, matrices = (variables.get(name) for name in ("img_data", "labels", "hom_matrices"))
        if not all(isinstance(values, np.ndarray) for values in (images, labels, matrices)):
            raise ValueError(f"its variables are {_listed(variables)}, not img_data, labels and hom_matrices")
        n = matrices.size // 9
        side = math.isqrt(images.size // max(n, 1))
        if not n or n not in images.shape or images.ndim not in (2, 3) or side * side * n != images.size:
            raise ValueError(f"img_data {images.shape} is not {matrices.size / 9:g} square images, one for each matrix")
        rows = np.moveaxis(images, images.shape.index(n), 0).reshape(n, side, side)
        return Dataset("homnist", "test", pixels(rows), classes({"labels": labels}, n))


def members(path: Path) -> list[str]:
    """The .mat files of a source, in order; a file by its own name."""
    if path.suffix.lower() == ".zip":
        names = check_archive(path)
    elif path.is_dir():
        with reading(path, "a folder"):
            names = [entry.name for entry in path.iterdir()]
    else:
        return [path.name]
    names = sorted(name for name in names if name.lower().endswith(".mat"))
    if len(names) == 1:
        return names
    stems = {PurePosixPath(name.replace("\\", "/")).stem: name for name in names}
    batches = {int(stem): name for stem, name in stems.items() if stem.isdecimal() and len(stem) < 6}
    missing = min(set(range(1, max(len(names), 1) + 1)) - batches.keys(), default=None)
    if missing:
        raise DataError(
            f"{path} lacks {missing}.mat: affNIST is one .mat file, or the batches 1.mat, 2.mat, …, and this holds "
            f"{_listed(names)}; fetch it again."
        )
    return [batches[number] for number in sorted(batches)]


def _opened(path: Path) -> Iterator[tuple[str, Any]]:
    """The variables of each .mat file of a source, with what to call the file in an error."""
    for name in members(path):
        if path.suffix.lower() == ".zip":
            label = f"{name} in {path}"
            with extracted(path, name) as file:
                variables = read_mat_variables(file, label)
        else:
            file = path / name if path.is_dir() else path
            label, variables = str(file), read_mat_variables(file, str(file))
        yield label, variables


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:8]) or "none"


def _fields(variables: Variables) -> Fields:
    """The fields of the struct, by lower-case name; a file whose fields are its variables will do too."""
    structs = [value for value in variables.values() if isinstance(value, dict)]
    found: Any = variables.get(STRUCT, structs[0] if len(structs) == 1 else variables)
    if not isinstance(found, dict):
        raise ValueError(f"its {STRUCT} is not a 1×1 struct")
    if STRUCT not in variables and not any("image" in name.lower() or "label" in name.lower() for name in found):
        raise ValueError(f"it has no struct {STRUCT}; it has {_listed(variables)}")
    for name, value in found.items():
        known = name.lower() in ("image", "label_int", "human_readable_transform")
        if known and not isinstance(value, np.ndarray):
            raise ValueError(f"its field {name} holds no plain numbers")
    return {name.lower(): value for name, value in found.items() if isinstance(value, np.ndarray)}


def _images(fields: Fields, side: int = CANVAS) -> npt.NDArray[np.uint8]:
    size, named = side * side, fields.get("image", fields.get("images"))
    choices = fields.values() if named is None else [named]
    found = next((value for value in choices if value.ndim == 2 and size in value.shape and value.size), None)
    if found is None:
        what = "it lacks the field image" if named is None else f"its images are {named.shape}"
        raise ValueError(f"{what}: none of them {size} values long")
    rows = found.T if found.shape[0] == size else found
    return pixels(rows).reshape(-1, side, side)


def pixels(images: Array, largest: float | None = None) -> npt.NDArray[np.uint8]:
    """Images as uint8; floating point from 0 to 1 or from 0 to 255, as the largest value of the file tells."""
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    low, high = float(images.min()), float(images.max())
    scale = 255 if images.dtype.kind in "bf" and (high if largest is None else largest) <= 1 else 1
    if not (low >= 0 and high * scale <= 255):  # also not a number
        raise ValueError(f"its pixels run from {low:g} to {high:g}, not from 0 to 1 or to 255 throughout")
    return np.ascontiguousarray(np.rint(images * scale).astype(np.uint8))


def classes(fields: Fields, n: int) -> npt.NDArray[np.uint8]:
    """The label of each of n images, from plain or one-of-n labels, which must not contradict each other."""
    given = [fields[name] for name in LABELS if name in fields]
    if not given:
        marks = (values for values in fields.values() if values.size == CLASSES * n)
        given = [values for values in marks if _classes(values, n) is not None][:1]
    said = [labels for values in given if (labels := _classes(values, n)) is not None]
    if not said or len(said) < len(given):
        raise ValueError(f"it lacks labels that name one class, 0 to 9, for each of its {n:,} images")
    if any(not np.array_equal(labels, said[0]) for labels in said):
        raise ValueError("label_int and label_one_of_n name different classes")
    return said[0].astype(np.uint8)


def _classes(values: Array, n: int) -> Array | None:
    """The class of each image by plain labels, or one-of-n ones, (10, N) or else (N, 10); None if they are neither."""
    if values.size == n:
        return values.ravel() if np.isin(values, range(CLASSES)).all() else None
    for by_class in (values, values.T):
        if by_class.shape == (CLASSES, n) and np.isin(values, (0, 1)).all() and (by_class.sum(axis=0) == 1).all():
            return np.asarray(by_class.argmax(axis=0))
    return None


def _transforms(fields: Fields, n: int) -> tuple[npt.NDArray[np.float32], str]:
    """The table of transformations, and what is to be said of the matrices beside it."""
    columns = len(TRANSFORM_COLUMNS)
    of_six = {name: value for name, value in fields.items() if value.shape in ((columns, n), (n, columns))}
    six = {name: value.T if len(value) == columns else value for name, value in of_six.items()}
    found = next((name for name in fields if name.startswith("human")), None) or _table_by_values(six)
    if found not in six:
        raise ValueError(f"it lacks the field human_readable_transform of 6 values for each of {n:,} images")
    for name, values, low, high in zip(TRANSFORM_COLUMNS, six[found].T, LOW, HIGH, strict=True):
        wrong = values[~((values >= low) & (values <= high))]  # also not a number
        if len(wrong):
            raise ValueError(f"its {name} of {wrong[0]:g} is no value that an affine set can have")
    table = np.ascontiguousarray(six.pop(found), np.float32)
    named = [value for name, value in six.items() if "old_to_new" in name]
    matrices = named or [value for value in six.values() if not _off(table, value).any()]
    if not matrices:
        return table, "none in the file"
    off = _off(table, matrices[0])
    if not off.any():
        return table, "agree with the table"
    return table, f"disagree with the table in {off.mean():.1%} of the images, first in image {off.argmax():,} from 0"


def _table_by_values(six: Fields) -> str | None:
    """Which of the arrays (N, 6) is the table: matrices follow from it, and expansions are positive."""
    usable = {name: value for name, value in six.items() if value.dtype.kind == "f" and np.isfinite(value).all()}
    for name, value in usable.items():
        if any(not _off(value, other).any() for key, other in usable.items() if key != name):
            return name
    positive = [name for name, value in usable.items() if (value[:, 2:4] > 0).all()]
    whole = [name for name in positive if (usable[name][:, 4:] == np.rint(usable[name][:, 4:])).all()]
    return next(iter(whole + positive), None)


def _off(table: Array, matrices: Array) -> npt.NDArray[np.bool_]:
    """Which matrices (N, 6), row by row on (row, column, 1), are not those of the table."""
    return np.asarray(~(np.abs(old_to_new(table).reshape(-1, 6) - matrices).max(axis=1) <= AGREEMENT))


def _source_index(fields: Fields, n: int) -> npt.NDArray[np.int32]:
    vectors = {name: value.ravel() for name, value in fields.items() if value.shape in ((n,), (1, n), (n, 1))}
    named = [name for name in vectors if any(word in name for word in ("orig", "source", "mnist", "base"))]
    choices = named or [name for name in vectors if "label" not in name and name != "image"]
    numbers = [vectors[name] for name in choices if vectors[name].dtype.kind in "iuf"]
    usable = [values for values in numbers if ((values >= 0) & (values < 2**31) & (values == np.rint(values))).all()]
    if not usable:
        raise ValueError(f"it lacks original_id, the index of the original of each of its {n:,} images")
    # An index of cases never repeats, one of originals may; of equals the last, as the official files have it.
    index = min(reversed(usable), key=lambda values: float(values.max())).astype(np.int64)
    originals: npt.NDArray[np.int32] = (index - (index.min() > 0)).astype(np.int32)
    if originals.max() >= ORIGINALS:
        raise ValueError(f"it points to original {index.max():,}, and MNIST has {ORIGINALS:,} at most")
    return originals
