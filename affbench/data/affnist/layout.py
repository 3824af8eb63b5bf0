"""affNIST as others store it: MATLAB files and NumPy archives in, converted sets out.

A .mat file holds one 1×1 struct ``affNISTdata`` with eight fields. The names of six are known; those of the inverse
matrix and of the index of the case have not been seen. So every field is found by its name where the name says enough,
else by its shape and values, and never by its position alone. Three fields are 6×N floating point: the table of
transformations, the matrix from the digit's pixels to the canvas's, and its inverse; where names fail, the table is the
one from which another can be computed.

Images are stored 1600×N, one image a column in row-major order. Indices count from 1 there and from 0 here. What the
six numbers of a transformation mean is documented in `affbench.data.synthesis` and checked by
`affbench.data.affnist.verify`; in which order the originals count, in `affbench.data.affnist.originals`.

References
----------
T. Tieleman, "affNIST", https://www.cs.toronto.edu/~tijmen/affNIST/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.containers import Array, Variables
from affbench.data.dataset import CLASSES, TRANSFORM_COLUMNS
from affbench.data.placement import CANVAS
from affbench.data.transform import old_to_new

STRUCT = "affNISTdata"
PIXELS = CANVAS * CANVAS
ROWS = 10_240  # images converted at once: 16 MB, a whole number of the converted file's chunks
ORIGINALS = 60_000  # digits in MNIST's training file, the most that originals can count to
AGREEMENT = 1e-4  # how far a stored matrix may lie from the one that the table gives
LIMITS = ((-360, 360), (-10, 10), (0.01, 100), (0.01, 100), (-1000, 1000), (-1000, 1000))  # of any affine set's factors


def refuse(label: str, what: str, why: str) -> NoReturn:
    raise DataError(f"{label} is {what}: {why}.")


def listed(variables: Mapping[str, Any]) -> str:
    return ", ".join(list(variables)[:8]) or "none"


def read_fields(label: str, variables: Variables) -> dict[str, Array]:
    """The fields of the struct, by lower-case name; a file whose fields are its variables will do too."""
    structs = [value for value in variables.values() if isinstance(value, dict)]
    found: Any = variables.get(STRUCT)
    if STRUCT in variables and not isinstance(found, dict):
        refuse(label, "not affNIST", f"its {STRUCT} is not a 1×1 struct")
    if found is None:
        found = structs[0] if len(structs) == 1 else variables
        if not any("image" in name.lower() or "label" in name.lower() for name in found):
            refuse(label, "not affNIST", f"it has no struct {STRUCT}; it has {listed(variables)}")
    numeric = {name.lower(): value for name, value in found.items() if isinstance(value, np.ndarray)}
    for name in found:
        if name.lower() not in numeric and name.lower() in ("image", "label_int", "human_readable_transform"):
            refuse(label, "not affNIST", f"its field {name} holds no plain numbers")
    return numeric


def read_images(label: str, fields: Mapping[str, Array], side: int = CANVAS) -> npt.NDArray[np.uint8]:
    pixels = side * side
    named = next((fields[name] for name in ("image", "images") if name in fields), None)
    if named is None:
        named = next((value for value in fields.values() if value.ndim == 2 and pixels in value.shape), None)
    if named is None:
        refuse(label, "incomplete", "it lacks the field image")
    if named.ndim != 2 or pixels not in named.shape or not named.size:
        refuse(label, "not affNIST", f"its images are {named.shape}, none of them {pixels} values long")
    rows = named.T if named.shape[0] == pixels else named
    return read_pixels(label, rows).reshape(-1, side, side)


def read_pixels(label: str, rows: Array, largest: float | None = None) -> npt.NDArray[np.uint8]:
    """Images (N, P) as uint8; floating point from 0 to 1 or from 0 to 255, as its largest value tells."""
    if rows.dtype == np.uint8:
        return np.ascontiguousarray(rows)
    if rows.dtype.kind == "b":
        return rows.astype(np.uint8) * np.uint8(255)
    low, high = rows.min(), rows.max()
    if not (low >= 0 and high <= 255):  # also not a number
        refuse(label, "not affNIST", f"its pixels run from {low:g} to {high:g}, not from 0 to 1 or 255")
    if rows.dtype.kind in "iu":
        return np.ascontiguousarray(rows.astype(np.uint8))
    scale = 255 if (high if largest is None else largest) <= 1 else 1
    if high * scale > 255:
        refuse(label, "not affNIST", "its pixels run to 1 in one part and beyond in another")
    pixels = np.empty(rows.shape, np.uint8)
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        pixels[part] = np.rint(rows[part] * scale)
    return pixels


def read_labels(label: str, fields: Mapping[str, Array], n: int) -> npt.NDArray[np.uint8]:
    plain = next((fields[name] for name in ("label_int", "label", "labels") if name in fields), None)
    one_of_n = next((fields[name] for name in ("label_one_of_n", "one_of_n") if name in fields), None)
    if plain is not None and plain.ndim == 2 and n > 1 and plain.size == CLASSES * n:
        plain, one_of_n = None, plain  # (10, N) under the plain name
    if plain is None and one_of_n is None:
        shapes = ((CLASSES, n), (n, CLASSES))
        one_of_n = next((value for value in fields.values() if value.shape in shapes and _is_one_of_n(value, n)), None)
    if plain is None and one_of_n is None:
        refuse(label, "incomplete", "it lacks the labels, label_int or label_one_of_n")
    said: list[npt.NDArray[np.uint8]] = []
    if plain is not None:
        if plain.size != n:
            refuse(label, "inconsistent", f"it has {plain.size:,} labels for {n:,} images")
        if not (plain.min() >= 0 and plain.max() < CLASSES and (plain == np.floor(plain)).all()):
            refuse(label, "not affNIST", f"its labels run from {plain.min():g} to {plain.max():g}, not 0 to 9")
        said.append(plain.ravel().astype(np.uint8))
    if one_of_n is not None:
        if one_of_n.shape not in ((CLASSES, n), (n, CLASSES)):
            refuse(label, "inconsistent", f"its one-of-n labels are {one_of_n.shape} for {n:,} images")
        if not _is_one_of_n(one_of_n, n):
            refuse(label, "damaged", "its one-of-n labels do not mark one class for each image")
        said.append(one_of_n.argmax(axis=_class_axis(one_of_n, n)).astype(np.uint8))
    if not np.array_equal(said[0], said[-1]):
        refuse(label, "inconsistent", "label_int and label_one_of_n name different classes")
    return said[0]


def _class_axis(values: Array, n: int) -> int:
    """Which axis of one-of-n labels runs over the classes; of ten images, the first unless only the other adds up."""
    if n != CLASSES:
        return 0 if values.shape[0] == CLASSES else 1
    return 0 if (values.sum(axis=0) == 1).all() else 1


def _is_one_of_n(values: Array, n: int) -> bool:
    return bool(np.isin(values, (0, 1)).all() and (values.sum(axis=_class_axis(values, n)) == 1).all())


def read_transforms(label: str, fields: Mapping[str, Array], n: int) -> tuple[npt.NDArray[np.float32], str]:
    """The table of transformations, and what is to be said of the matrices beside it."""
    columns = len(TRANSFORM_COLUMNS)
    shapes = ((columns, n), (n, columns))
    six = {name: _by_image(value, n) for name, value in fields.items() if value.shape in shapes}
    found = next((name for name in fields if name.startswith("human")), None) or _table_by_values(six)
    if found is None:
        refuse(label, "incomplete", "it lacks the field human_readable_transform")
    if found not in six:
        refuse(label, "inconsistent", f"its transformations are {fields[found].shape} for {n:,} images, not (6, {n})")
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 is refused as infinite
        table = np.ascontiguousarray(six[found], np.float32)
    if not np.isfinite(table).all():
        refuse(label, "damaged", "its transformations hold values that are no finite numbers")
    for name, values, (low, high) in zip(TRANSFORM_COLUMNS, table.T, LIMITS, strict=True):
        wrong = values[(values < low) | (values > high)]
        if len(wrong):
            refuse(label, "damaged", f"its {name} of {wrong[0]:g} is no value that an affine set can have")
    matrix = next((value for name, value in six.items() if "old_to_new" in name and name != found), None)
    if matrix is None:
        others = [value for name, value in six.items() if name != found]
        matrix = next((value for value in others if not _off(table, value).any()), None)
    if matrix is None:
        return table, "none in the file"
    off = _off(table, matrix)
    if not off.any():
        return table, "agree with the table"
    return table, f"disagree with the table in {off.mean():.1%} of the images, first in image {off.argmax():,} from 0"


def _table_by_values(six: Mapping[str, Array]) -> str | None:
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


def _by_image(values: Array, n: int) -> Array:
    return values if values.shape == (n, len(TRANSFORM_COLUMNS)) and n != len(TRANSFORM_COLUMNS) else values.T


def read_source_index(label: str, fields: Mapping[str, Array], n: int) -> npt.NDArray[np.int32]:
    candidates: dict[str, Array] = {}
    for name, value in fields.items():
        if value.size == n and max(value.shape, default=0) == n and "label" not in name and name != "image":
            candidates[name] = value
    # An index of originals is called so; an index of cases never repeats, one of originals may.
    called = [name for name in candidates if any(word in name for word in ("orig", "source", "mnist", "base"))]
    usable = {name: candidates[name] for name in called or candidates if _is_index(candidates[name])}
    if not usable:
        wrong = [name for name, value in fields.items() if "orig" in name and value.size != n]
        if wrong:
            refuse(label, "inconsistent", f"{wrong[0]} has {fields[wrong[0]].size:,} values for {n:,} images")
        refuse(label, "incomplete", "it lacks the index of the original of each image")
    largest = {name: float(value.max()) for name, value in usable.items()}
    chosen = min(reversed(usable), key=largest.__getitem__)  # of equals the last, as the official files have it
    index = usable[chosen].ravel().astype(np.int64)
    originals: npt.NDArray[np.int32] = (index - (index.min() > 0)).astype(np.int32)
    if originals.max() >= ORIGINALS:
        refuse(label, "not affNIST", f"it points to original {index.max():,}, and MNIST has {ORIGINALS:,} at most")
    return originals


def _is_index(values: Array) -> bool:
    return bool(
        values.dtype.kind in "iuf"
        and values.min() >= 0
        and values.max() < 2**31
        and (values.dtype.kind != "f" or (values == np.floor(values)).all())
    )
