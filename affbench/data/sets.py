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
    """The split as asked for, or the one that the set's name stands for; `UsageError` where there is none."""
    if split not in SPLITS:
        raise UsageError(f"unknown split '{split}': {nearest(split, SPLITS)}")
    return spec.split or split


@dataclass(frozen=True)
class SetPart:
    """Which images: a split of a set, or the beginning of it. `find_part` makes one from names.

    Attributes
    ----------
    spec
        The set.
    split
        The split.
    copies
        Versions of each digit in a synthetic affine set; elsewhere of no meaning.
    limit
        Only the first `limit` images.
    """

    spec: SetSpec
    split: Split
    copies: int = COPIES
    limit: int | None = None

    @property
    def name(self) -> str:
        """The set's name, variation included."""
        return self.spec.name

    @property
    def inputs(self) -> dict[str, Any]:
        """All that determines the images of a set that affbench makes, but for the number of copies.

        The copies of a synthetic set run one after the other, so a set of fewer copies is the beginning of one of more.
        """
        form = self.spec.form
        inputs: dict[str, Any] = {"digits": _checksums(self.spec.family), "form": form, "split": self.split}
        if form in ("translated", "affine"):
            inputs["seed"] = _seed(self.split)
        if form != "original":
            inputs["canvas"] = self.spec.canvas
        if form == "affine":
            inputs["ranges"] = asdict(_ranges(self.spec))
        return inputs

    def key(self, data_dir: Path) -> str:
        """The content key of the set; for official ones, of the files that were fetched (`DataError` before that)."""
        if self.spec.form != "official":
            return store.content_key("convert", _version(self.spec), self.inputs)
        manifest = store.read_manifest(self.path(data_dir))
        if manifest is None:
            raise _missing(self.spec)
        return manifest.key

    @property
    def made_size(self) -> int | None:
        """Number of images of the whole split; None for official files, which know best themselves."""
        if self.spec.form == "official":
            return None
        return _SIZES[self.spec.family][self.split] * (self.copies if self.spec.form == "affine" else 1)

    def size(self, data_dir: Path) -> int:
        """Number of images that `load` gives; raises as `load` where an official set has to be asked."""
        total = self.made_size
        if total is None:
            self.key(data_dir)
            total = hdf5.count_images(self.path(data_dir))
        return total if self.limit is None else min(self.limit, total)

    @property
    def made_copies(self) -> int:
        """The copies that the first `limit` images take."""
        if self.limit is None or self.spec.form != "affine":
            return self.copies
        return min(self.copies, math.ceil(self.limit / _SIZES[self.spec.family][self.split]))

    def path(self, data_dir: Path) -> Path:
        """Where the converted set lies, or would lie."""
        folder = sets_dir(data_dir)
        if self.spec.form == "official":
            return folder / f"{self.spec.family}-{self.split}.h5"
        many = f"-{self.made_copies}x" if self.spec.form == "affine" else ""
        return folder / f"{self.name}-{self.split}{many}-{self.key(data_dir)[:8]}.h5"

    def is_ready(self, data_dir: Path) -> bool:
        """Whether the converted set is there (its checksum is verified only when it is read)."""
        path = self.path(data_dir)
        try:
            return path.is_file() and store.read_manifest(path) is not None
        except ArtefactError:
            return False

    def ensure(self, data_dir: Path) -> Path:
        """The finished, verified HDF5 file, made from its digits if it is not there yet.

        Raises
        ------
        DataError
            The files it is made from are missing or damaged.
        StorageError
            It cannot be written.
        """
        path = self.path(data_dir)
        if self.spec.form == "official":
            manifest = store.read_manifest(path)
            if manifest is None:
                raise _missing(self.spec)
            try:
                store.verify(path, manifest)
            except ArtefactError as error:
                name = self.spec.family if self.split == "test" else f"{self.spec.family}-{self.split}"
                raise ArtefactError(f"{error} 'affbench fetch {name}' converts it again.") from error
            return path
        inputs = self.inputs | ({"copies": self.made_copies} if self.spec.form == "affine" else {})
        return store.derive_file(
            path, "convert", _version(self.spec), inputs, lambda target: _make(target, self, data_dir)
        )

    def load(self, data_dir: Path) -> Dataset:
        """The images; errors as for `ensure`."""
        return hdf5.read_set(self.ensure(data_dir), key=self.key(data_dir), stop=self.limit)


def find_part(name: str, split: str = "test", copies: int = COPIES, limit: int | None = None) -> SetPart:
    """A part of the set called `name`; `UsageError` where there is no such set or split, or the limit is below 1."""
    spec = find_set(name)
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1; it is {limit}.")
    return SetPart(spec, check_split(spec, split), copies, limit)


def default_data_dir() -> Path:
    """Where data lie unless told otherwise: ``$AFFBENCH_DATA_DIR``, else ``data``."""
    return Path(os.environ.get("AFFBENCH_DATA_DIR") or "data")


def raw_dir(data_dir: Path, family: str) -> Path:
    """Where the downloaded files of a family lie."""
    return data_dir.expanduser() / "raw" / family


def sets_dir(data_dir: Path) -> Path:
    """Where converted sets lie."""
    return data_dir.expanduser() / "sets"


def is_earlier_edition(name: str, split: str, key: str) -> bool:
    """Whether a set that affbench makes had other images when it had this key: results on both cannot be compared."""
    try:
        part = find_part(name, split)
        return part.spec.form != "official" and key != part.key(Path())
    except UsageError:
        return False


def _version(spec: SetSpec) -> int:
    return VERSION if spec.affine else PLACED_VERSION


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
    part = find_part(name, split, copies, limit)
    return part.load(default_data_dir() if data_dir is None else Path(data_dir))


def sample_of(part: SetPart, digits: int, data_dir: Path) -> Dataset:
    """The versions of the first `digits` digits of a synthetic affine set, without the rest of it."""
    images, labels = _digits(part.spec.family, part.split, data_dir)
    return synthesize(
        images[:digits],
        labels[:digits],
        part.copies,
        _seed(part.split),
        ranges=_ranges(part.spec),
        canvas=part.spec.canvas,
        name=part.name,
        split=part.split,
    )


def originals_of(part: SetPart, data_dir: Path) -> Dataset | None:
    """The 28×28 digits that `source_index` of an affine set counts in; None where they are not at hand."""
    try:
        if part.spec.form != "official":
            return load_dataset(part.spec.family, part.split, data_dir)
        attributes = hdf5.read_set(part.path(data_dir), stop=1).attributes
        unpaired = str(attributes.get("order", UNPAIRED)).startswith(UNPAIRED)
        return None if unpaired else mnist_digits(part.split, data_dir)
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


def has_digits(family: str, data_dir: Path) -> bool:
    """Whether the files that the sets of a family are made from are there."""
    if family == SAMPLE:
        return True
    folder = raw_dir(data_dir, family)
    names = [(file.name, file.plain.name if file.plain else file.name) for file in _source(family).files]
    return all(any((folder / name).is_file() for name in pair) for pair in names)


def convertible(family: str) -> Iterable[SetPart]:
    """What fetching a family converts at once: original, padded and translated digits, every split."""
    for spec in _SETS.values():
        if spec.family == family and spec.form in ("original", "padded", "translated"):
            for split in SPLITS:
                yield SetPart(spec, split)


def _make(target: Path, part: SetPart, data_dir: Path) -> None:
    spec, seed = part.spec, _seed(part.split)
    images, labels = _digits(spec.family, part.split, data_dir)
    attributes = {
        "name": spec.name,
        "split": part.split,
        "source": _origin(spec.family),
        "sha256": json.dumps(_checksums(spec.family)),
        "license": _source(spec.family).license,
    }
    if spec.form == "affine":
        ranges = _ranges(spec)
        write_synthetic(target, images, labels, part.made_copies, seed, attributes, ranges=ranges, canvas=spec.canvas)
        return
    if spec.form == "padded":
        images = placement.pad(images, spec.canvas)
    elif spec.form == "translated":
        images = placement.translate(images, spec.canvas, np.random.default_rng(seed))
    hdf5.write_set(target, Dataset(spec.name, part.split, images, labels), attributes)


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


def _missing(spec: SetSpec) -> DataError:
    ways = f"'affbench fetch {spec.family}' downloads it (or converts your own files with --mirror FOLDER)"
    if spec.family == "affnist":
        ways += "; '--set affnist-synthetic' tests on a synthetic set drawn in the same way"
    return DataError(f"the official set '{spec.name}' is not there: {ways}.")
