"""Every set by name: what it is made of, under which key it is stored, and loading it.

Digits come in families (`FAMILIES`): ``mnist``, ``fashion-mnist``, and the embedded sample of MNIST (sets ending in
``-sample``), each as original 28×28 images, centred on the 40×40 canvas (``-padded``), placed at random on it
(``-translated``) or under random affine transformations (``affnist-synthetic``, ``fashion-mnist-affine``); and the
official affNIST and homNIST, which are only ever read from their own files.

A synthetic affine set can be varied in its name: ``affnist-synthetic@rotation=45,translation=0`` (half-widths of the
intervals, see `affbench.data.transform.AffineRange.around`), ``affnist-synthetic@only=rotation,rotation=60``.
"""

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from affbench.base import store
from affbench.base.errors import ArtefactError, DataError, UsageError, nearest
from affbench.data import convert, hdf5
from affbench.data.convert import Digits, Form, Writer
from affbench.data.dataset import UNPAIRED, Dataset
from affbench.data.fetch import sources
from affbench.data.fetch.sources import Source
from affbench.data.placement import CANVAS, FRAME
from affbench.data.synthesis import COPIES, synthesize, write_synthetic
from affbench.data.transform import AFFNIST, AffineRange

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SEEDS = {"test": 0, "validation": 1, "train": 2}  # placements and transformations are fixed for ever, and different
VERSION = 2  # of the conversion of affine sets: raised whenever the same digits would give other images
PLACED_VERSION = 1  # of all other sets, likewise
SAMPLE = Path(__file__).parent / "sample"  # files of the digits that lie in the package


def default_data_dir() -> Path:
    """Where data lie unless told otherwise: ``$AFFBENCH_DATA_DIR``, else ``data``."""
    return Path(os.environ.get("AFFBENCH_DATA_DIR") or "data")


def raw_dir(data_dir: Path, family: str) -> Path:
    """Where the downloaded files of a family lie."""
    return data_dir.expanduser() / "raw" / family


def sets_dir(data_dir: Path) -> Path:
    """Where converted sets lie."""
    return data_dir.expanduser() / "sets"


@dataclass(frozen=True)
class SetSpec:
    """What a set is."""

    name: str  # the whole one, variation included
    family: str  # where its digits come from
    form: Form  # what is done to them
    split: Split | None = None  # the only one the name stands for (affnist-train); None for any
    ranges: AffineRange = AFFNIST  # of a synthetic affine set

    @property
    def canvas(self) -> int:
        """Height and width of the images in pixels."""
        return FRAME if self.form == "original" else CANVAS

    @property
    def affine(self) -> bool:
        """Whether the images were made by affine transformations."""
        return self.form in ("affine", "official")

    @property
    def digits(self) -> str:
        """The family of the original digits: that of MNIST for official sets, which are made from it."""
        return "mnist" if self.form == "official" else self.family


@dataclass(frozen=True)
class Family:
    """Digits, their files, and all sets that are made of them."""

    name: str  # also of the folder of its files and of the set of its original digits
    sets: tuple[SetSpec, ...]
    sources: Mapping[str, tuple[Source, ...]]  # what can be fetched, by name: the ways to get it, best first
    # Images of each split, validation being the first of the training files; official files know best themselves.
    sizes: Mapping[str, int] = field(default_factory=dict)
    read: Callable[[Callable[[str], Path], Literal["train", "test"]], Digits] = convert.read_idx  # digits' files
    write: Writer | None = None  # converts official files
    embedded: bool = False  # whether the files of the digits lie in the package

    @property
    def source(self) -> Source:
        """The files that the digits are read from."""
        return next(iter(self.sources.values()))[0]

    @cached_property
    def checksums(self) -> dict[str, str]:
        """File name to checksum of the digits' files: published ones, or those of the embedded files."""
        if self.embedded:
            return {path.name: store.file_hash(path) for path in sorted(SAMPLE.glob("*.gz"))}
        return {file.name: str(file.md5) for file in self.source.files}

    def is_there(self, data_dir: Path) -> bool:
        """Whether the files that the sets are made from are there; for official ones, whether any set is."""
        if self.write:
            return any((sets_dir(data_dir) / f"{self.name}-{split}.h5").is_file() for split in SPLITS)
        folder = raw_dir(data_dir, self.name)
        found = (any((folder / form.name).is_file() for form in file.forms) for file in self.source.files)
        return self.embedded or all(found)

    def digits(self, split: Split | None, data_dir: Path) -> Digits:
        """Original digits of a split, None for all of the training files, whose published checksums are verified."""

        def find(name: str) -> Path:
            if self.embedded:
                return SAMPLE / name
            from affbench.data.fetch.files import Fetcher  # imports what downloads need, and few commands need that

            path = raw_dir(data_dir, self.name) / name
            found = Fetcher(path.parent).find(next(file for file in self.source.files if file.name == name))
            if found is None:
                state = "damaged: its checksum is not the published one" if path.is_file() else "missing"
                raise DataError(f"{path} is {state}; 'affbench fetch {self.name}' downloads it (or --mirror FOLDER).")
            return found.path

        images, labels = self.read(find, "test" if split == "test" else "train")
        held_out = self.sizes["validation"]
        rows = {"validation": slice(held_out), "train": slice(held_out, None)}.get(split or "", slice(None))
        return images[rows], labels[rows]


def _family_of_digits(stem: str, source: Source, sizes: tuple[int, int, int], affine: str, suffix: str = "") -> Family:
    """Digits in four files like MNIST's and the four sets that are made of them; with a suffix, inside the package."""
    name, plain = f"{stem}{suffix}", (stem, f"{stem}-padded", f"{stem}-translated", affine)
    forms: tuple[Form, ...] = ("original", "padded", "translated", "affine")
    sets = tuple(SetSpec(f"{called}{suffix}", name, form) for called, form in zip(plain, forms, strict=True))
    return Family(name, sets, {name: (source,)}, dict(zip(SPLITS, sizes, strict=True)), embedded=bool(suffix))


_MNIST = (50_000, 10_000, 10_000)
_EMBEDDED = replace(sources.MNIST, homepage="the sample of MNIST inside affbench")
_ROWS = (
    _family_of_digits("mnist", sources.MNIST, _MNIST, "affnist-synthetic"),
    _family_of_digits("mnist", _EMBEDDED, (5_000, 1_000, 1_000), "affnist-synthetic", "-sample"),
    _family_of_digits("fashion-mnist", sources.FASHION_MNIST, _MNIST, "fashion-mnist-affine"),
    Family(
        "affnist",
        (
            SetSpec("affnist", "affnist", "official"),
            SetSpec("affnist-validation", "affnist", "official", "validation"),
            SetSpec("affnist-train", "affnist", "official", "train"),
        ),
        sources.AFFNIST,
        write=convert.write_affnist,
    ),
    Family(
        "homnist",
        (SetSpec("homnist", "homnist", "official", "test"),),
        {"homnist": (sources.HOMNIST,)},
        write=convert.write_homnist,
    ),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ROWS}
"""All digits there are; a new family is a row here, and a reader where its files are of a new kind."""

SETS: Mapping[str, SetSpec] = {spec.name: spec for family in _ROWS for spec in family.sets}
"""All sets by name, without the variations of synthetic ones."""

SOURCES = {name: ways for family in _ROWS if not family.embedded for name, ways in family.sources.items()}
"""All that can be fetched, by name, with the ways to get it, best first."""


def find_set(name: str) -> SetSpec:
    """The set called `name`; `UsageError` where there is none, or it cannot be varied in this way."""
    base, at, variation = name.partition("@")
    if base not in SETS:
        raise UsageError(f"unknown set '{name}': {nearest(base, SETS)}")
    spec = SETS[base]
    if not at:
        return spec
    if spec.form != "affine":
        raise UsageError(f"set '{base}' cannot be varied ('@{variation}'): only synthetic affine sets can.")
    pairs = [part.partition("=")[::2] for part in variation.split(",")]
    given, known = dict(pairs), ("only", "rotation", "shear", "expansion", "translation")
    for key in given:
        if key not in known:
            raise UsageError(f"unknown variation '{key}' of set '{base}': {nearest(key, known)}")
    if len(given) < len(pairs):
        raise UsageError(f"set '{name}' gives a factor twice (several: only=rotation+shear).")
    only = given.pop("only", "")
    try:
        widths = {key: float(value) for key, value in given.items()}
    except ValueError as error:
        raise UsageError(f"what set '{name}' gives is not a number ({error}).") from None
    ranges = AffineRange.around(**widths)
    varied = varied_name(base, only=only, **widths)
    return replace(spec, name=varied, ranges=ranges.only(*only.split("+")) if only else ranges)


def sibling(spec: SetSpec, *forms: Form) -> SetSpec:
    """The set of the same digits and canvas in one of some forms; `UsageError` where there is none."""
    for other in SETS.values():
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
    def family(self) -> Family:
        """The digits that it is made of."""
        return FAMILIES[self.spec.family]

    @property
    def fetched_as(self) -> str:
        """What to fetch for it: its own split of official files, or all digits of its family."""
        named = f"{self.family.name}-{self.split}"
        return named if named in SOURCES else self.family.name

    @property
    def inputs(self) -> dict[str, Any]:
        """All that determines the images of a set that affbench makes, but the copies: fewer are the first of more."""
        form = self.spec.form
        inputs: dict[str, Any] = {"digits": self.family.checksums, "form": form, "split": self.split}
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
            ways = f"'affbench fetch {self.family.name}' downloads it (or converts your own files with --mirror FOLDER)"
            if self.family.name == "affnist":
                ways += "; '--set affnist-synthetic' tests on a synthetic set drawn in the same way"
            raise DataError(f"the official set '{self.name}' is not there: {ways}.")
        return manifest

    @property
    def made_size(self) -> int | None:
        """Number of images of the whole split; None for official files, which know best themselves."""
        digits = self.family.sizes.get(self.split)
        return digits if digits is None or self.spec.form != "affine" else digits * self.copies

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
        return min(self.copies, math.ceil(self.limit / self.family.sizes[self.split]))

    def path(self, data_dir: Path) -> Path:
        """Where the converted set lies, or would lie."""
        folder = sets_dir(data_dir)
        if self.spec.form == "official":
            return folder / f"{self.family.name}-{self.split}.h5"
        many = f"-{self.made_copies}x" if self.spec.form == "affine" else ""
        return folder / f"{self.name}-{self.split}{many}-{self.key(data_dir)[:8]}.h5"

    def is_ready(self, data_dir: Path) -> bool:
        """Whether the converted set is there (its checksum is verified only when it is read)."""
        path = self.path(data_dir)
        with contextlib.suppress(ArtefactError):
            return path.is_file() and store.read_manifest(path) is not None
        return False

    def ensure(self, data_dir: Path) -> Path:
        """The finished, verified HDF5 file, made from its digits if it is not there yet."""
        path, spec, family = self.path(data_dir), self.spec, self.family
        if spec.form == "official":
            try:
                store.verify(path, self._manifest(data_dir))
            except ArtefactError as error:
                raise ArtefactError(f"{error} 'affbench fetch {self.fetched_as}' converts it again.") from error
            return path
        seed, copies = SEEDS[self.split], self.made_copies
        about = convert.origin(self.name, self.split, family.source.homepage, family.checksums, family.source.license)
        inputs = self.inputs | ({"copies": copies} if spec.form == "affine" else {})

        def make(target: Path) -> None:
            digits = family.digits(self.split, data_dir)
            if spec.form == "affine":
                write_synthetic(target, digits, copies, seed, about, spec.ranges)
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
    with contextlib.suppress(UsageError):
        part = find_part(name, split)
        return part.spec.form != "official" and key != part.key(Path())
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
        One of `SETS`, such as ``"mnist-translated"``, ``"affnist"`` or ``"affnist-synthetic@rotation=45"``.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    data_dir
        Folder of the data; ``$AFFBENCH_DATA_DIR`` or ``data`` when None.
    copies
        Versions of each digit in a synthetic affine set.
    limit
        Load the first `limit` images only.

    Raises
    ------
    UsageError
        There is no such set or split.
    DataError
        The set's digits have not been fetched.

    Examples
    --------
    >>> load_dataset("mnist-translated-sample", limit=100).images.shape  # from the sample inside the package
    (100, 40, 40)
    """
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    return find_part(name, split, copies, limit).load(folder)


def sample_of(part: SetPart, digits: int, data_dir: Path) -> Dataset:
    """The versions of the first `digits` digits of a synthetic affine set, without the rest of it."""
    images, labels = (values[:digits] for values in part.family.digits(part.split, data_dir))
    made = synthesize(images, labels, part.copies, SEEDS[part.split], ranges=part.spec.ranges)
    return replace(made, name=part.name, split=part.split)


def originals_of(part: SetPart, data_dir: Path) -> Dataset | None:
    """The 28×28 digits that `source_index` of an affine set counts in; None where they are not at hand."""
    with contextlib.suppress(ArtefactError, DataError):
        official = part.spec.form == "official"
        order = hdf5.read_set(part.path(data_dir), stop=1).attributes.get("order", UNPAIRED) if official else ""
        return None if str(order).startswith(UNPAIRED) else made_from(part, data_dir)
    return None


def made_from(part: SetPart, data_dir: Path) -> Dataset:
    """The digits of an affine set: those of the split; for official ones MNIST's test file, or training file, whole."""
    if part.spec.form != "official":
        return load_dataset(part.spec.family, part.split, data_dir)
    images, labels = FAMILIES["mnist"].digits("test" if part.split == "test" else None, data_dir)
    return Dataset("mnist", part.split, images, labels)
