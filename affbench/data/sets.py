"""Every set by name: what it is made of, under which key it is stored, and loading it.

Digits come in families (`FAMILIES`): ``mnist``, ``fashion-mnist``, and the embedded sample of MNIST (sets ending in
``-sample``), each as original 28×28 images, centred on the 40×40 canvas (``-padded``), placed at random on it
(``-translated``) or under random affine transformations (``affnist-synthetic``, ``fashion-mnist-affine``); and the
official affNIST and homNIST, which are only ever read from their own files.

A synthetic affine set can be varied in its name: ``affnist-synthetic@rotation=45,translation=0`` (half-widths of the
intervals, see `affbench.data.transform.AffineRange.around`), ``affnist-synthetic@only=rotation,rotation=60``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from affbench.base import store
from affbench.base.errors import ArtefactError, DataError, UsageError, nearest
from affbench.data import convert, hdf5
from affbench.data.convert import Form
from affbench.data.dataset import UNPAIRED, Dataset
from affbench.data.family import SPLITS as SPLITS
from affbench.data.family import Family, family_of_digits
from affbench.data.family import SetSpec as SetSpec
from affbench.data.family import Split as Split
from affbench.data.family import raw_dir as raw_dir
from affbench.data.family import sets_dir as sets_dir
from affbench.data.fetch import sources
from affbench.data.fetch.sources import Source
from affbench.data.placement import CANVAS
from affbench.data.synthesis import COPIES, synthesize, write_synthetic
from affbench.data.transform import AffineRange

SEEDS = {"test": 0, "validation": 1, "train": 2}  # placements and transformations are fixed for ever, and different
VERSION = 2  # of the conversion of affine sets: raised whenever the same digits would give other images
PLACED_VERSION = 1  # of all other sets, likewise


def default_data_dir() -> Path:
    """Where data lie unless told otherwise: ``$AFFBENCH_DATA_DIR``, else ``data``."""
    return Path(os.environ.get("AFFBENCH_DATA_DIR") or "data")


_MNIST = (50_000, 10_000, 10_000)  # images of train, validation (the first of the training files) and test
_EMBEDDED = replace(sources.MNIST, homepage="the sample of MNIST inside affbench")
_FAMILIES = (
    family_of_digits("mnist", sources.MNIST, _MNIST, "affnist-synthetic"),
    family_of_digits("mnist-sample", _EMBEDDED, (5_000, 1_000, 1_000), "affnist-synthetic", "-sample"),
    family_of_digits("fashion-mnist", sources.FASHION_MNIST, _MNIST, "fashion-mnist-affine"),
    Family(
        "affnist",
        (
            SetSpec("affnist", "affnist", "official"),
            SetSpec("affnist-validation", "affnist", "official", split="validation"),
            SetSpec("affnist-train", "affnist", "official", split="train"),
        ),
        sources.AFFNIST,
        write=convert.write_affnist,
    ),
    Family(
        "homnist",
        (SetSpec("homnist", "homnist", "official", split="test"),),
        {"homnist": (sources.HOMNIST,)},
        write=convert.write_homnist,
    ),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _FAMILIES}
"""All digits there are; a new family is a row here, and a reader where its files are of a new kind."""

_SETS = {spec.name: spec for family in _FAMILIES for spec in family.sets}
SOURCES: Mapping[str, tuple[Source, ...]] = {
    name: ways for family in _FAMILIES for name, ways in family.sources.items()
}
"""All that can be fetched, by name, with the ways to get it, best first."""


def sources_of(name: str) -> tuple[Source, ...]:
    """The ways to get what is fetched by this name, in the order in which they are tried; `UsageError` if none."""
    if name not in SOURCES:
        raise UsageError(f"no set called '{name}' can be fetched; {nearest(name, SOURCES)}.")
    return SOURCES[name]


def set_names() -> tuple[str, ...]:
    """Every name `find_set` knows, without the variations of synthetic sets."""
    return tuple(_SETS)


def find_set(name: str) -> SetSpec:
    """The set called `name`; `UsageError` where there is none, or it cannot be varied in this way."""
    base, at, variation = name.partition("@")
    if base not in _SETS:
        raise UsageError(f"unknown set '{name}': {nearest(base, _SETS)}")
    spec = _SETS[base]
    if at and spec.form != "affine":
        raise UsageError(f"set '{base}' cannot be varied ('@{variation}'): only synthetic affine sets can.")
    return _varied(spec, variation) if at else spec


def sibling(spec: SetSpec, *forms: Form) -> SetSpec:
    """The set of the same digits and canvas in one of some forms; `UsageError` where there is none."""
    for other in _SETS.values():
        if other.form in forms and (other.family, other.canvas) == (spec.digits, spec.canvas):
            return other
    size = f"{spec.canvas}×{spec.canvas}"
    raise UsageError(f"there is no {' or '.join(forms)} set of {size} images of the digits of '{spec.name}'.")


def varied_name(base: str, *, only: str | None = None, **half_widths: float | None) -> str:
    """The name of a synthetic set with other ranges; None leaves a factor as it is."""
    parts = [f"only={only}"] if only else []
    given = {key: repr(float(value)).removesuffix(".0") for key, value in half_widths.items() if value is not None}
    parts += [f"{key}={value}" for key, value in sorted(given.items())]
    return f"{base}@{','.join(parts)}" if parts else base


def _varied(spec: SetSpec, variation: str) -> SetSpec:
    given: dict[str, str] = {}
    known = ("only", "rotation", "shear", "expansion", "translation")
    for key, _, value in (part.partition("=") for part in variation.split(",")):
        if key not in known:
            raise UsageError(f"unknown variation '{key}' of set '{spec.name}': {nearest(key, known)}")
        if key in given:
            raise UsageError(f"set '{spec.name}@{variation}' gives {key} twice (several factors: only=rotation+shear).")
        given[key] = value
    only = given.pop("only", "")
    try:
        widths = {key: float(value) for key, value in given.items()}
    except ValueError as error:
        raise UsageError(f"what set '{spec.name}@{variation}' gives is not a number ({error}).") from None
    ranges = AffineRange.around(**widths)
    name = varied_name(spec.name, only=only, **widths)
    return replace(spec, name=name, ranges=ranges.only(*only.split("+")) if only else ranges)


@dataclass(frozen=True)
class SetPart:
    """Which images: a split of a set, or the beginning of it. `find_part` makes one from names."""

    spec: SetSpec  # the set
    split: Split  # the split
    copies: int = COPIES  # versions of each digit in a synthetic affine set; elsewhere of no meaning
    limit: int | None = None  # only the first `limit` images

    @property
    def name(self) -> str:
        """The set's name, variation included."""
        return self.spec.name

    @property
    def fetched_as(self) -> str:
        """What to fetch for it: its own split of official files, or all digits of its family."""
        named = f"{self.spec.family}-{self.split}"
        return named if named in SOURCES else self.spec.family

    @property
    def inputs(self) -> dict[str, Any]:
        """All that determines the images of a set that affbench makes, but for the number of copies.

        The copies of a synthetic set run one after the other, so a set of fewer copies is the beginning of one of more.
        """
        form = self.spec.form
        inputs: dict[str, Any] = {"digits": FAMILIES[self.spec.family].checksums, "form": form, "split": self.split}
        if form in ("translated", "affine"):
            inputs["seed"] = SEEDS[self.split]
        if form != "original":
            inputs["canvas"] = CANVAS
        if form == "affine":
            inputs["ranges"] = asdict(self.spec.ranges)
        return inputs

    @property
    def version(self) -> int:
        """Version of the conversion."""
        return VERSION if self.spec.affine else PLACED_VERSION

    def key(self, data_dir: Path) -> str:
        """The content key of the set; for official ones, of the files that were fetched (`DataError` before that)."""
        if self.spec.form != "official":
            return store.content_key("convert", self.version, self.inputs)
        return self._manifest(data_dir).key

    def _manifest(self, data_dir: Path) -> store.Manifest:
        """The manifest of an official set."""
        manifest = store.read_manifest(self.path(data_dir))
        if manifest is None:
            ways = f"'affbench fetch {self.spec.family}' downloads it (or converts your own files with --mirror FOLDER)"
            if self.spec.family == "affnist":
                ways += "; '--set affnist-synthetic' tests on a synthetic set drawn in the same way"
            raise DataError(f"the official set '{self.name}' is not there: {ways}.")
        return manifest

    @property
    def digits(self) -> int:
        """Number of original digits of the split."""
        return FAMILIES[self.spec.family].sizes[SPLITS.index(self.split)]

    @property
    def made_size(self) -> int | None:
        """Number of images of the whole split; None for official files, which know best themselves."""
        if self.spec.form == "official":
            return None
        return self.digits * (self.copies if self.spec.form == "affine" else 1)

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
        return min(self.copies, math.ceil(self.limit / self.digits))

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
        """The finished, verified HDF5 file, made from its digits if it is not there yet."""
        path, spec = self.path(data_dir), self.spec
        if spec.form == "official":
            try:
                store.verify(path, self._manifest(data_dir))
            except ArtefactError as error:
                raise ArtefactError(f"{error} 'affbench fetch {self.fetched_as}' converts it again.") from error
            return path
        family = FAMILIES[spec.family]
        seed, copies = SEEDS[self.split], self.made_copies
        about = convert.origin(self.name, self.split, family.source.homepage, family.checksums, family.source.license)
        inputs = self.inputs | ({"copies": copies} if spec.form == "affine" else {})

        def make(target: Path) -> None:
            digits = family.digits(self.split, data_dir)
            if spec.form == "affine":
                write_synthetic(target, *digits, copies, seed, about, ranges=spec.ranges)
            else:
                convert.write_placed(target, digits, spec.form, seed, about)

        return store.derive_file(path, "convert", self.version, inputs, make)

    def load(self, data_dir: Path) -> Dataset:
        """The images; errors as for `ensure`."""
        return hdf5.read_set(self.ensure(data_dir), key=self.key(data_dir), stop=self.limit)


def find_part(name: str, split: str = "test", copies: int = COPIES, limit: int | None = None) -> SetPart:
    """A part of the set called `name`; `UsageError` where there is no such set or split, or the limit is below 1."""
    spec = find_set(name)
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1; it is {limit}.")
    if split not in SPLITS:
        raise UsageError(f"unknown split '{split}': {nearest(split, SPLITS)}")
    return SetPart(spec, spec.split or split, copies, limit)


def is_earlier_edition(name: str, split: str, key: str) -> bool:
    """Whether a set that affbench makes had other images when it had this key: results on both cannot be compared."""
    try:
        part = find_part(name, split)
        return part.spec.form != "official" and key != part.key(Path())
    except UsageError:
        return False


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
    images, labels = (values[:digits] for values in FAMILIES[part.spec.family].digits(part.split, data_dir))
    made = synthesize(images, labels, part.copies, SEEDS[part.split], ranges=part.spec.ranges)
    return replace(made, name=part.name, split=part.split)


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
    """MNIST's test file, or its training file of 60,000 digits: what official affine sets are made from."""
    whole: tuple[Split, ...] = ("test",) if split == "test" else ("validation", "train")
    parts = [FAMILIES["mnist"].digits(part, data_dir) for part in whole]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset("mnist", split, images, labels)
