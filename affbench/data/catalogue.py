"""Every set by name: what it is made of, under which key it is stored, and loading it.

Digits come in four families: ``mnist``, ``fashion-mnist``, and the embedded sample of MNIST (sets ending in
``-sample``), each as original 28×28 images, centred on the 40×40 canvas (``-padded``), placed at random on it
(``-translated``) or under random affine transformations (``affnist-synthetic``, ``fashion-mnist-affine``); and the
official affNIST, which is only ever read from its own files.

A synthetic affine set can be varied in its name: ``affnist-synthetic@rotation=45,translation=0`` (half-widths of the
intervals, see `affbench.data.synthesis.AffineRange.around`), ``affnist-synthetic@only=rotation,rotation=60``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from affbench.base import store
from affbench.base.errors import ArtefactError, DataError, UsageError, nearest
from affbench.data import hdf5, idx, placement
from affbench.data.dataset import UNPAIRED, Dataset
from affbench.data.fetch.sources import SOURCES, Source
from affbench.data.synthesis import CANVAS, AffineRange, synthesize, write_synthetic
from affbench.data.synthesis import COPIES as COPIES
from affbench.data.synthesis import FRAME as FRAME

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Form = Literal["original", "padded", "translated", "affine", "official"]

VERSION = 2  # of the conversion of affine sets: raised whenever the same digits would give other images
PLACED_VERSION = 1  # of all other sets, likewise
SAMPLE = "mnist-sample"
_FAMILIES = ("mnist", SAMPLE, "fashion-mnist")
_IDX = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_VALIDATION = {"mnist": 10_000, "fashion-mnist": 10_000, SAMPLE: 1_000}  # the first training digits
_SIZES = {
    "mnist": {"train": 50_000, "validation": 10_000, "test": 10_000},
    "fashion-mnist": {"train": 50_000, "validation": 10_000, "test": 10_000},
    SAMPLE: {"train": 5_000, "validation": 1_000, "test": 1_000},
}


@dataclass(frozen=True)
class SetSpec:
    """What a set is.

    Attributes
    ----------
    name
        The whole name, variation included.
    family
        Where its digits come from: ``"mnist"``, ``"fashion-mnist"``, ``"mnist-sample"``, or official files
        (``"affnist"``, ``"homnist"``).
    form
        What is done to them.
    split
        The only split the name stands for (``affnist-train``); None for any.
    ranges
        What the transformations of an affine set are drawn from.
    """

    name: str
    family: str
    form: Form
    split: Split | None = None
    ranges: AffineRange | None = None

    @property
    def canvas(self) -> int:
        """Height and width of the images in pixels."""
        return FRAME if self.form == "original" else CANVAS

    @property
    def affine(self) -> bool:
        """Whether the images were made by affine transformations."""
        return self.form in ("affine", "official")


def _built_in() -> dict[str, SetSpec]:
    specs = []
    for family, suffix in (("mnist", ""), (SAMPLE, "-sample")):
        specs += [
            SetSpec(f"mnist{suffix}", family, "original"),
            SetSpec(f"mnist-padded{suffix}", family, "padded"),
            SetSpec(f"mnist-translated{suffix}", family, "translated"),
            SetSpec(f"affnist-synthetic{suffix}", family, "affine", ranges=AffineRange()),
        ]
    specs += [
        SetSpec("fashion-mnist", "fashion-mnist", "original"),
        SetSpec("fashion-mnist-padded", "fashion-mnist", "padded"),
        SetSpec("fashion-mnist-translated", "fashion-mnist", "translated"),
        SetSpec("fashion-mnist-affine", "fashion-mnist", "affine", ranges=AffineRange()),
        SetSpec("affnist", "affnist", "official"),
        SetSpec("affnist-validation", "affnist", "official", split="validation"),
        SetSpec("affnist-train", "affnist", "official", split="train"),
        SetSpec("homnist", "homnist", "official", split="test"),
    ]
    return {spec.name: spec for spec in specs}


_SETS = _built_in()


def set_names() -> tuple[str, ...]:
    """Every name `find_set` knows, without the variations of synthetic sets."""
    return tuple(_SETS)


def find_set(name: str) -> SetSpec:
    """The set called `name`.

    Raises
    ------
    UsageError
        There is no such set, or it cannot be varied in this way.
    """
    base, _, variation = name.partition("@")
    if base not in _SETS:
        raise UsageError(f"unknown set '{name}': {nearest(base, _SETS)}")
    spec = _SETS[base]
    if not variation and "@" not in name:
        return spec
    if spec.form != "affine":
        raise UsageError(f"set '{base}' cannot be varied ('@{variation}'): only synthetic affine sets can.")
    return replace(spec, **_varied(base, variation))


def varied_name(base: str, *, only: str | None = None, **half_widths: float | None) -> str:
    """The name of a synthetic set with other ranges; None leaves a factor as it is."""
    parts = [f"only={only}"] if only else []
    given = {key: repr(float(value)).removesuffix(".0") for key, value in half_widths.items() if value is not None}
    parts += [f"{key}={value}" for key, value in sorted(given.items())]
    return f"{base}@{','.join(parts)}" if parts else base


def _varied(base: str, variation: str) -> dict[str, Any]:
    given: dict[str, str] = {}
    known = ("only", "rotation", "shear", "expansion", "translation")
    for part in variation.split(","):
        key, _, value = part.partition("=")
        if key not in known:
            raise UsageError(f"unknown variation '{key}' of set '{base}': {nearest(key, known)}")
        if key in given:
            joined = "; several factors are only=rotation+shear" if key == "only" else ""
            raise UsageError(f"set '{base}@{variation}' gives {key} twice{joined}.")
        given[key] = value
    only = given.pop("only").split("+") if "only" in given else []
    widths: dict[str, float] = {}
    for key, value in given.items():
        try:
            widths[key] = float(value)
        except ValueError:
            raise UsageError(f"{key}={value} in set '{base}@{variation}' is not a number.") from None
    ranges = AffineRange.around(**widths)
    name = varied_name(base, only="+".join(only), **widths)
    return {"name": name, "ranges": ranges.only(*only) if only else ranges}


def check_split(spec: SetSpec, split: str) -> Split:
    """The split as asked for, or the one that the set's name stands for.

    Raises
    ------
    UsageError
        There is no such split.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split '{split}': {nearest(split, SPLITS)}")
    return spec.split or split


def default_data_dir() -> Path:
    """Where data lie unless told otherwise: ``$AFFBENCH_DATA_DIR``, else ``data``."""
    return Path(os.environ.get("AFFBENCH_DATA_DIR") or "data")


def raw_dir(data_dir: Path, family: str) -> Path:
    """Where the downloaded files of a family lie."""
    return data_dir.expanduser() / "raw" / family


def sets_dir(data_dir: Path) -> Path:
    """Where converted sets lie."""
    return data_dir.expanduser() / "sets"


def set_inputs(spec: SetSpec, split: Split) -> dict[str, Any]:
    """All that determines the images of a set that affbench makes, but for the number of copies.

    The copies of a synthetic set run one after the other, so a set of fewer copies is the beginning of one of more.
    """
    inputs: dict[str, Any] = {"digits": _checksums(spec.family), "form": spec.form, "split": split}
    if spec.form in ("translated", "affine"):
        inputs["seed"] = _seed(split)
    if spec.form != "original":
        inputs["canvas"] = spec.canvas
    if spec.form == "affine":
        inputs["ranges"] = asdict(_ranges(spec))
    return inputs


def set_key(spec: SetSpec, split: Split, data_dir: Path) -> str:
    """The content key of a set; for the official ones, of the files that were fetched.

    Raises
    ------
    DataError
        An official set has not been fetched.
    """
    if spec.form != "official":
        return store.content_key("convert", _version(spec), set_inputs(spec, split))
    manifest = store.read_manifest(_official_path(spec, split, data_dir))
    if manifest is None:
        raise _missing(spec)
    return manifest.key


def is_earlier_edition(name: str, split: str, key: str) -> bool:
    """Whether a set that affbench makes had other images when it had this key: results on both cannot be compared."""
    try:
        spec = find_set(name)
        return spec.form != "official" and key != set_key(spec, check_split(spec, split), Path())
    except UsageError:
        return False


def _version(spec: SetSpec) -> int:
    return VERSION if spec.affine else PLACED_VERSION


def set_size(spec: SetSpec, split: Split, copies: int = COPIES) -> int | None:
    """Number of images of a set; None for official files, which know best themselves."""
    if spec.form == "official":
        return None
    return _SIZES[spec.family][split] * (copies if spec.form == "affine" else 1)


def image_count(spec: SetSpec, split: Split, data_dir: Path, copies: int = COPIES, limit: int | None = None) -> int:
    """Number of images that `load_dataset` would give.

    Raises
    ------
    UsageError
        The limit is less than 1.
    DataError, ArtefactError
        An official set has not been fetched, or cannot be read.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1; it is {limit}.")
    total = set_size(spec, split, copies)
    if total is None:
        path = _official_path(spec, split, data_dir)
        if store.read_manifest(path) is None:
            raise _missing(spec)
        total = hdf5.count_images(path)
    return total if limit is None else min(limit, total)


def set_path(spec: SetSpec, split: Split, data_dir: Path, copies: int = COPIES) -> Path:
    """Where the converted set lies, or would lie."""
    if spec.form == "official":
        return _official_path(spec, split, data_dir)
    many = f"-{copies}x" if spec.form == "affine" else ""
    key = store.content_key("convert", _version(spec), set_inputs(spec, split))
    return sets_dir(data_dir) / f"{spec.name}-{split}{many}-{key[:8]}.h5"


def ensure_set(spec: SetSpec, split: Split, data_dir: Path, copies: int = COPIES) -> Path:
    """The converted set, made from its digits if it is not there yet.

    Parameters
    ----------
    spec, split
        Which set.
    data_dir
        Folder of the data.
    copies
        Versions of each digit in a synthetic affine set.

    Returns
    -------
    Path
        The finished, verified HDF5 file.

    Raises
    ------
    DataError
        The files it is made from are missing or damaged.
    StorageError
        It cannot be written.
    """
    path = set_path(spec, split, data_dir, copies)
    if spec.form == "official":
        manifest = store.read_manifest(path)
        if manifest is None:
            raise _missing(spec)
        try:
            store.verify(path, manifest)
        except ArtefactError as error:
            name = spec.family if split == "test" else f"{spec.family}-{split}"
            raise ArtefactError(f"{error} 'affbench fetch {name}' converts it again.") from error
        return path
    inputs = set_inputs(spec, split) | ({"copies": copies} if spec.form == "affine" else {})
    return store.derive_file(
        path, "convert", _version(spec), inputs, lambda target: _make(target, spec, split, data_dir, copies)
    )


def load_dataset(
    name: str,
    split: str = "test",
    data_dir: Path | str | None = None,
    copies: int = COPIES,
    limit: int | None = None,
) -> Dataset:
    """Load a set; it is converted first if need be, but never downloaded.

    Parameters
    ----------
    name
        One of `set_names`, such as ``"mnist-translated"``, ``"affnist"`` or ``"affnist-synthetic@rotation=45"``.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    data_dir
        Folder of the data; ``$AFFBENCH_DATA_DIR`` or ``data`` when None.
    copies
        Versions of each digit in a synthetic affine set.
    limit
        Load the first `limit` images only.

    Returns
    -------
    Dataset
        Images uint8 (N, 40, 40), or (N, 28, 28) for original digits, with their labels; affine sets with the
        transformation of each image and the digit it came from.

    Raises
    ------
    UsageError
        There is no such set or split.
    DataError
        The set's digits have not been fetched.

    Examples
    --------
    >>> digits = load_dataset("mnist-translated-sample", limit=100)  # from the sample inside the package
    >>> digits.images.shape
    (100, 40, 40)
    """
    spec = find_set(name)
    part = check_split(spec, split)
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1; it is {limit}.")
    if limit is not None and spec.form == "affine":
        copies = min(copies, math.ceil(limit / _SIZES[spec.family][part]))
    path = ensure_set(spec, part, folder, copies)
    return hdf5.read_set(path, key=set_key(spec, part, folder), stop=limit)


def sample_of(spec: SetSpec, split: Split, data_dir: Path, digits: int, copies: int) -> Dataset:
    """The versions 0 to copies − 1 of the first digits of a synthetic affine set, without the rest of it."""
    images, labels = _digits(spec.family, split, data_dir)
    return synthesize(
        images[:digits],
        labels[:digits],
        copies,
        _seed(split),
        ranges=_ranges(spec),
        canvas=spec.canvas,
        name=spec.name,
        split=split,
    )


def originals_of(name: str, split: str, data_dir: Path) -> Dataset | None:
    """The 28×28 digits that `source_index` of an affine set counts in; None where they are not at hand."""
    spec = find_set(name)
    part = check_split(spec, split)
    try:
        if spec.form != "official":
            return load_dataset(spec.family, part, data_dir)
        attributes = hdf5.read_set(set_path(spec, part, data_dir), stop=1).attributes
        return None if str(attributes.get("order", UNPAIRED)).startswith(UNPAIRED) else mnist_digits(part, data_dir)
    except (ArtefactError, DataError):
        return None


def mnist_digits(split: Split, data_dir: Path) -> Dataset:
    """MNIST's test file, or its training file of 60,000 digits: what official affine sets are made from.

    Raises
    ------
    DataError
        MNIST has not been fetched, or is damaged.
    """
    whole: tuple[Split, ...] = ("test",) if split == "test" else ("validation", "train")
    parts = [_digits("mnist", part, data_dir) for part in whole]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset("mnist", split, images, labels)


def is_ready(spec: SetSpec, split: Split, data_dir: Path, copies: int = COPIES) -> bool:
    """Whether the converted set is there (its checksum is verified only when it is read)."""
    path = set_path(spec, split, data_dir, copies)
    try:
        return path.is_file() and store.read_manifest(path) is not None
    except ArtefactError:
        return False


def has_digits(family: str, data_dir: Path) -> bool:
    """Whether the files that the sets of a family are made from are there."""
    if family == SAMPLE:
        return True
    folder = raw_dir(data_dir, family)
    names = [(file.name, file.plain.name if file.plain else file.name) for file in _source(family).files]
    return all(any((folder / name).is_file() for name in pair) for pair in names)


def convertible(family: str) -> Iterable[tuple[SetSpec, Split]]:
    """What fetching a family converts at once: original, padded and translated digits, every split."""
    for spec in _SETS.values():
        if spec.family == family and spec.form in ("original", "padded", "translated"):
            for split in SPLITS:
                yield spec, split


def _make(target: Path, spec: SetSpec, split: Split, data_dir: Path, copies: int) -> None:
    images, labels = _digits(spec.family, split, data_dir)
    attributes = {
        "name": spec.name,
        "split": split,
        "source": _origin(spec.family),
        "sha256": json.dumps(_checksums(spec.family)),
        "license": _source(spec.family).license,
    }
    if spec.form == "affine":
        write_synthetic(
            target, images, labels, copies, _seed(split), attributes, ranges=_ranges(spec), canvas=spec.canvas
        )
        return
    if spec.form == "padded":
        images = placement.pad(images, spec.canvas)
    elif spec.form == "translated":
        images = placement.translate(images, spec.canvas, np.random.default_rng(_seed(split)))
    hdf5.write_set(target, Dataset(spec.name, split, images, labels), attributes)


def _digits(family: str, split: Split, data_dir: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Original digits of one split, from IDX files whose checksums are verified here."""
    image_name, label_name = _IDX["test" if split == "test" else "train"]
    if family == SAMPLE:
        with as_file(files("affbench.data") / "sample") as folder:
            images, labels = idx.read_pair(folder / image_name, folder / label_name)
    else:
        images, labels = idx.read_pair(*(_raw_file(family, name, data_dir) for name in (image_name, label_name)))
    if split == "test":
        return images, labels
    held_out = _VALIDATION[family]
    part = slice(held_out) if split == "validation" else slice(held_out, None)
    return images[part], labels[part]


def _raw_file(family: str, name: str, data_dir: Path) -> Path:
    """A downloaded file, its published checksum verified."""
    from affbench.data.fetch.files import find_file  # imports what downloads need, and few commands need that

    (file,) = (file for file in _source(family).files if file.name == name)
    found = find_file(file, raw_dir(data_dir, family))
    if found is None:
        path = raw_dir(data_dir, family) / name
        state = "damaged: its checksum is not the published one" if path.is_file() else "missing"
        raise DataError(f"{path} is {state}; 'affbench fetch {family}' downloads it (or --mirror FOLDER).")
    return found.path


@cache
def _checksums(family: str) -> dict[str, str]:
    """File name to checksum of the digits a family is made from: published ones, or those of the embedded files."""
    if family == SAMPLE:
        with as_file(files("affbench.data") / "sample") as folder:
            return {path.name: store.file_hash(path) for path in sorted(folder.glob("*.gz"))}
    return {file.name: str(file.md5) for file in _source(family).files}


def _origin(family: str) -> str:
    if family == SAMPLE:
        return "the sample of MNIST inside affbench"
    return _source(family).homepage


def _source(family: str) -> Source:
    return SOURCES["mnist" if family == SAMPLE else family]


def _seed(split: Split) -> int:
    """Placements and transformations of the splits are fixed for ever, and different."""
    return {"test": 0, "validation": 1, "train": 2}[split]


def _ranges(spec: SetSpec) -> AffineRange:
    return spec.ranges or AffineRange()


def _official_path(spec: SetSpec, split: Split, data_dir: Path) -> Path:
    return sets_dir(data_dir) / f"{spec.family}-{split}.h5"


def _missing(spec: SetSpec) -> DataError:
    ways = f"'affbench fetch {spec.family}' downloads it (or converts your own files with --mirror FOLDER)"
    if spec.family == "affnist":
        ways += "; '--set affnist-synthetic' tests on a synthetic set drawn in the same way"
    return DataError(f"the official set '{spec.name}' is not there: {ways}.")
