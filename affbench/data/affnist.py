"""affNIST as others store it: MATLAB files and NumPy archives in, converted sets out.

The layout of the official files is known from public loaders only. A .mat file holds one 1×1 struct ``affNISTdata``
with eight fields; four names are used by public loaders (``image``, ``label_one_of_n``, ``label_int``,
``human_readable_transform``), those of the two affine matrices and the two indices are unconfirmed. So every field is
found by its name where the name says enough, else by its shape and values, and never by its position alone.

Images are stored 1600×N, one image a column in row-major order. Indices count from 1 there and from 0 here. What the
six numbers of a transformation mean is documented in `affbench.data.synthesis` and, because that is
unconfirmed for the official files, checked by `affbench.data.verification`.

References
----------
T. Tieleman, "affNIST", https://www.cs.toronto.edu/~tijmen/affNIST/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from affbench.data.containers import Array, NpzArray, Variables, check_archive, extracted, read_mat_variables, reading
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.export import export_mat as export_mat
from affbench.data.hdf5 import SetWriter
from affbench.errors import DataError

STRUCT = "affNISTdata"
CANVAS = 40  # pixels
PIXELS = CANVAS * CANVAS
CLASSES = 10
ROWS = 10_240  # images converted at once: 16 MB, a whole number of the converted file's chunks


@dataclass(frozen=True)
class AffnistSource:
    """Where a split of affNIST lies on disk.

    Attributes
    ----------
    kind
        ``"mat"``: with transformations; ``"npz"``: images and labels only.
    path
        A .mat file, a folder of ``1.mat``, ``2.mat``, …, a zip archive of either, or the .npz file of the images.
    labels
        The .npz file of the labels.
    """

    kind: Literal["mat", "npz"]
    path: Path
    labels: Path | None = None

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
        source_index int32 (N,) from 0.

    Raises
    ------
    DataError
        The file is missing, damaged, not affNIST, lacks a field, or its fields contradict each other.
    """
    path = Path(path)
    parts = [_read_file(file, label, name, split) for file, label in _open_members(path, _members(path))]
    if len(parts) == 1:
        return parts[0]
    n = sum(len(part) for part in parts)
    whole = Dataset(
        name,
        split,
        np.empty((n, CANVAS, CANVAS), np.uint8),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([_given(part.transforms) for part in parts]),
        np.concatenate([_given(part.source_index) for part in parts]),
    )
    stop = n
    while parts:  # from the last to the first, so that every part goes as soon as it is copied
        part = parts.pop()
        whole.images[stop - len(part) : stop] = part.images
        stop -= len(part)
    return whole


def convert(source: AffnistSource, target: Path, split: str, attributes: Mapping[str, Any]) -> None:
    """Write a converted set from a source, part by part.

    Parameters
    ----------
    source
        Where the split lies.
    target
        The HDF5 file to write (a temporary path; `affbench.store` puts it in place).
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    attributes
        File attributes, as for `affbench.data.hdf5.SetWriter`; ``split`` and ``layout`` are added.

    Raises
    ------
    DataError
        The source is damaged, or not affNIST.
    """
    if source.kind == "npz":
        count, parts = _npz_parts(source, split)
    else:
        count, parts = _mat_parts(source.path, split)
    # Official files carry the transformations, the NumPy mirror does not.
    affine = source.kind == "mat"
    described = {**attributes, "split": split, "layout": "MATLAB" if affine else "NumPy"}
    with SetWriter(target, count, CANVAS, described, affine=affine) as writer:
        for part in parts:
            for start in range(0, len(part), ROWS):
                rows = slice(start, start + ROWS)
                writer.append(
                    part.images[rows],
                    part.labels[rows],
                    None if part.transforms is None else part.transforms[rows],
                    None if part.source_index is None else part.source_index[rows],
                )


def read_homnist(path: Path | str) -> Dataset:
    """Read homNIST, the counterpart of affNIST under homographies.

    Its layout is known from one loader, by the names of its variables only; so whichever axis of ``img_data`` has the
    length of ``labels`` counts the images, and the others must make squares, taken in row-major order. The
    homographies (3×3 each) must be there, one for each image, but are not kept: they fit no transformation table.

    Parameters
    ----------
    path
        ``homNIST_test.mat``, or a zip archive that holds it.

    Returns
    -------
    Dataset
        Images uint8 (N, H, H), labels uint8 (N,); no transforms.

    Raises
    ------
    DataError
        The file is missing, damaged, or not homNIST.
    """
    path = Path(path)
    members = _members(path)
    if len(members) != 1:
        raise DataError(f"{path} holds {len(members)} .mat files; homNIST is one.")
    for file, label in _open_members(path, members):
        variables = read_mat_variables(file)
        for name in ("img_data", "labels", "hom_matrices"):
            if not isinstance(variables.get(name), np.ndarray):
                _refuse(label, "not homNIST", f"it has no variable {name}; it has {_listed(variables)}")
        images, labels, matrices = (np.asarray(variables[name]) for name in ("img_data", "labels", "hom_matrices"))
        one_of_n = labels.ndim == 2 and min(labels.shape) == CLASSES and labels.size > CLASSES
        n = labels.size // CLASSES if one_of_n else labels.size
        classes = _labels(label, {"label_one_of_n" if one_of_n else "label_int": labels}, n)
        if matrices.size != 9 * n:
            _refuse(label, "not homNIST", f"it has {n:,} labels, but {matrices.size / 9:g} matrices of 3×3")
        axis = next((axis for axis, length in enumerate(images.shape) if length == n), None)
        side = round((images.size / max(n, 1)) ** 0.5)
        if axis is None or not n or images.ndim not in (2, 3) or side * side * n != images.size:
            _refuse(label, "not homNIST", f"img_data {images.shape} is not {n:,} square images, one for each label")
        rows = np.moveaxis(images, axis, 0).reshape(n, side * side)
        return Dataset("homnist", "test", _pixels(label, rows).reshape(n, side, side), classes)
    raise AssertionError  # one member was opened


def _given(values: Array | None) -> Array:
    assert values is not None  # noqa: S101 - for the type checker: .mat files always have them
    return values


def _refuse(label: str, what: str, why: str) -> NoReturn:
    raise DataError(f"{label} is {what}: {why}.")


def _listed(variables: Mapping[str, Any]) -> str:
    return ", ".join(list(variables)[:8]) or "none"


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
        raise DataError(f"{path} holds several .mat files that are not the batches 1.mat, 2.mat, …: {_listed(stems)}.")
    missing = next((k for k in range(1, max(numbered) + 1) if k not in numbered), None)
    if missing is not None or 0 in numbered:
        raise DataError(f"{path} lacks the batch {missing or 1}.mat; fetch it again.")
    return [numbered[k] for k in sorted(numbered)]


def _open_members(path: Path, members: list[str]) -> Iterator[tuple[Path, str]]:
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
                _refuse(label, "not a batch of this set", f"it has {len(part):,} images, the first has {len(first):,}")
            yield part

    return len(first) * len(members), parts()


def _npz_parts(source: AffnistSource, split: str) -> tuple[int, Iterator[Dataset]]:
    assert source.labels is not None  # noqa: S101 - for the type checker
    images, labels = NpzArray(source.path), NpzArray(source.labels)
    n = images.shape[0]
    if images.shape[1:] not in ((PIXELS,), (CANVAS, CANVAS), (CANVAS, CANVAS, 1), (1, CANVAS, CANVAS)) or not n:
        _refuse(str(source.path), "not affNIST", f"its images are {images.shape}, not (N, 1600) or (N, 40, 40)")
    if labels.shape[0] != n:
        _refuse(str(source.labels), "no match", f"it has {labels.shape[0]:,} labels for {n:,} images")
    if labels.shape[1:] not in ((), (1,), (CLASSES,)):
        _refuse(str(source.labels), "not affNIST", f"its labels are {labels.shape}, not (N,) or (N, 10)")
    field = "label_one_of_n" if labels.shape[1:] == (CLASSES,) else "label_int"

    def parts() -> Iterator[Dataset]:
        largest = None  # which decides whether floating point means 0 to 1 or 0 to 255, for the whole file
        for block, given in zip(images.rows(ROWS), labels.rows(ROWS), strict=True):
            if largest is None:
                largest = float(block.max()) if block.dtype.kind == "f" else 255.0
            pixels = _pixels(str(source.path), block.reshape(len(block), PIXELS), largest)
            classes = _labels(str(source.labels), {field: given}, len(block))
            yield Dataset("affnist", split, pixels.reshape(-1, CANVAS, CANVAS), classes)

    return n, parts()


def _read_file(path: Path, label: str, name: str, split: str) -> Dataset:
    """One .mat file; errors call it by its label."""
    try:
        fields = _fields(label, read_mat_variables(path))
    except DataError as error:  # a temporary file is called by the archive it came from
        raise DataError(str(error).replace(str(path), label)) from error
    with reading(Path(label), "affNIST"):
        images = _images(label, fields)
        n = len(images)
        transforms = _transforms(label, fields, n)
        source_index = _source_index(label, fields, n)
        labels = _labels(label, fields, n)
        return Dataset(name, split, images, labels, transforms, source_index)


def _fields(label: str, variables: Variables) -> dict[str, Array]:
    """The fields of the struct, by lower-case name; a file whose fields are its variables will do too."""
    structs = [value for value in variables.values() if isinstance(value, dict)]
    found: Any = variables.get(STRUCT)
    if STRUCT in variables and not isinstance(found, dict):
        _refuse(label, "not affNIST", f"its {STRUCT} is not a 1×1 struct")
    if found is None:
        found = structs[0] if len(structs) == 1 else variables
        if not any("image" in name.lower() or "label" in name.lower() for name in found):
            _refuse(label, "not affNIST", f"it has no struct {STRUCT}; it has {_listed(variables)}")
    numeric = {name.lower(): value for name, value in found.items() if isinstance(value, np.ndarray)}
    for name in found:
        if name.lower() not in numeric and name.lower() in ("image", "label_int", "human_readable_transform"):
            _refuse(label, "not affNIST", f"its field {name} holds no plain numbers")
    return numeric


def _images(label: str, fields: Mapping[str, Array]) -> npt.NDArray[np.uint8]:
    named = next((fields[name] for name in ("image", "images") if name in fields), None)
    if named is None:
        named = next((value for value in fields.values() if value.ndim == 2 and PIXELS in value.shape), None)
    if named is None:
        _refuse(label, "incomplete", "it lacks the field image")
    if named.ndim != 2 or PIXELS not in named.shape or not named.size:
        _refuse(label, "not affNIST", f"its images are {named.shape}, none of them 1600 values long")
    rows = named.T if named.shape[0] == PIXELS else named
    return _pixels(label, rows).reshape(-1, CANVAS, CANVAS)


def _pixels(label: str, rows: Array, largest: float | None = None) -> npt.NDArray[np.uint8]:
    """Images (N, P) as uint8; floating point from 0 to 1 or from 0 to 255, as its largest value tells."""
    if rows.dtype == np.uint8:
        return np.ascontiguousarray(rows)
    if rows.dtype.kind == "b":
        return rows.astype(np.uint8) * np.uint8(255)
    low, high = rows.min(), rows.max()
    if not (low >= 0 and high <= 255):  # also not a number
        _refuse(label, "not affNIST", f"its pixels run from {low:g} to {high:g}, not from 0 to 1 or 255")
    if rows.dtype.kind in "iu":
        return np.ascontiguousarray(rows.astype(np.uint8))
    scale = 255 if (high if largest is None else largest) <= 1 else 1
    if high * scale > 255:
        _refuse(label, "not affNIST", "its pixels run to 1 in one part and beyond in another")
    pixels = np.empty(rows.shape, np.uint8)
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        pixels[part] = np.rint(rows[part] * scale)
    return pixels


def _labels(label: str, fields: Mapping[str, Array], n: int) -> npt.NDArray[np.uint8]:
    plain = next((fields[name] for name in ("label_int", "label", "labels") if name in fields), None)
    one_of_n = next((fields[name] for name in ("label_one_of_n", "one_of_n") if name in fields), None)
    if plain is not None and plain.ndim == 2 and n > 1 and plain.size == CLASSES * n:
        plain, one_of_n = None, plain  # (10, N) under the plain name
    if plain is None and one_of_n is None:
        shapes = ((CLASSES, n), (n, CLASSES))
        one_of_n = next((value for value in fields.values() if value.shape in shapes and _is_one_of_n(value, n)), None)
    if plain is None and one_of_n is None:
        _refuse(label, "incomplete", "it lacks the labels, label_int or label_one_of_n")
    classes = None
    if plain is not None:
        if plain.size != n:
            _refuse(label, "inconsistent", f"it has {plain.size:,} labels for {n:,} images")
        if not (plain.min() >= 0 and plain.max() < CLASSES and (plain == np.floor(plain)).all()):
            _refuse(label, "not affNIST", f"its labels run from {plain.min():g} to {plain.max():g}, not 0 to 9")
        classes = plain.ravel().astype(np.uint8)
    if one_of_n is not None:
        if one_of_n.shape not in ((CLASSES, n), (n, CLASSES)):
            _refuse(label, "inconsistent", f"its one-of-n labels are {one_of_n.shape} for {n:,} images")
        if not _is_one_of_n(one_of_n, n):
            _refuse(label, "damaged", "its one-of-n labels do not mark one class for each image")
        indices = one_of_n.argmax(axis=_class_axis(one_of_n, n)).astype(np.uint8)
        if classes is not None and not np.array_equal(classes, indices):
            _refuse(label, "inconsistent", "label_int and label_one_of_n name different classes")
        classes = indices
    return _given(classes)


def _class_axis(values: Array, n: int) -> int:
    """Which axis of one-of-n labels runs over the classes; of ten images, the first unless only the other adds up."""
    if n != CLASSES:
        return 0 if values.shape[0] == CLASSES else 1
    return 0 if (values.sum(axis=0) == 1).all() else 1


def _is_one_of_n(values: Array, n: int) -> bool:
    return bool(np.isin(values, (0, 1)).all() and (values.sum(axis=_class_axis(values, n)) == 1).all())


def _transforms(label: str, fields: Mapping[str, Array], n: int) -> npt.NDArray[np.float32]:
    columns = len(TRANSFORM_COLUMNS)
    shapes = ((columns, n), (n, columns))
    found = next((value for name, value in fields.items() if name.startswith("human")), None)
    if found is None:
        # Two-by-three matrices would have the same shape; expansions are positive, the entries of matrices are not all.
        candidates = [value for value in fields.values() if value.shape in shapes and value.dtype.kind == "f"]
        found = next((value for value in candidates if (_by_image(value, n)[:, 2:4] > 0).all()), None)
    if found is None:
        _refuse(label, "incomplete", "it lacks the field human_readable_transform")
    if found.shape not in shapes:
        _refuse(label, "inconsistent", f"its transformations are {found.shape} for {n:,} images, not (6, {n})")
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 is refused as infinite
        table = _by_image(found, n).astype(np.float32)
    if not np.isfinite(table).all():
        _refuse(label, "damaged", "its transformations hold values that are no finite numbers")
    return np.ascontiguousarray(table)


def _by_image(values: Array, n: int) -> Array:
    return values if values.shape == (n, len(TRANSFORM_COLUMNS)) and n != len(TRANSFORM_COLUMNS) else values.T


def _source_index(label: str, fields: Mapping[str, Array], n: int) -> npt.NDArray[np.int32]:
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
            _refuse(label, "inconsistent", f"{wrong[0]} has {fields[wrong[0]].size:,} values for {n:,} images")
        _refuse(label, "incomplete", "it lacks the index of the original of each image")
    largest = {name: float(value.max()) for name, value in usable.items()}
    chosen = min(reversed(usable), key=largest.__getitem__)  # of equals the last, as the official files have it
    index = usable[chosen].ravel().astype(np.int64)
    originals: npt.NDArray[np.int32] = (index - (index.min() > 0)).astype(np.int32)
    return originals


def _is_index(values: Array) -> bool:
    return bool(
        values.dtype.kind in "iuf"
        and values.min() >= 0
        and values.max() < 2**31
        and (values.dtype.kind != "f" or (values == np.floor(values)).all())
    )
