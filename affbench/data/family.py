"""A family of digits: its files, and the sets that are made of them. The table of families is `affbench.data.sets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from affbench.base import store
from affbench.base.errors import DataError
from affbench.data import convert
from affbench.data.convert import Digits, Form, Writer
from affbench.data.fetch.sources import Source
from affbench.data.placement import CANVAS, FRAME
from affbench.data.transform import AFFNIST, AffineRange

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SAMPLE = Path(__file__).parent / "sample"  # files of the digits that lie in the package


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
    """Digits, and all sets that are made of them."""

    name: str  # also of the folder of its files and of the set of its original digits
    sets: tuple[SetSpec, ...]
    sources: Mapping[str, tuple[Source, ...]]  # what can be fetched, by name: the ways to get it, best first
    # Images of train, validation (the first of the training files) and test; official files know best themselves.
    sizes: tuple[int, ...] = ()
    read: Callable[[Callable[[str], Path], Literal["train", "test"]], Digits] = convert.read_idx  # digits' files
    write: Writer | None = None  # converts official files
    embedded: Source | None = None  # of digits whose files lie in the package

    @property
    def source(self) -> Source:
        """The files that the digits are read from."""
        return self.embedded or next(iter(self.sources.values()))[0]

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
        needed = () if self.embedded else self.source.files
        return all(any((folder / form.name).is_file() for form in file.forms) for file in needed)

    def digits(self, split: Split, data_dir: Path) -> Digits:
        """Original digits of one split, from files whose checksums are verified here."""

        def find(name: str) -> Path:
            return SAMPLE / name if self.embedded else self._downloaded(name, raw_dir(data_dir, self.name))

        images, labels = self.read(find, "test" if split == "test" else "train")
        held_out = self.sizes[SPLITS.index("validation")]
        rows = {"test": slice(None), "validation": slice(held_out), "train": slice(held_out, None)}[split]
        return images[rows], labels[rows]

    def _downloaded(self, name: str, folder: Path) -> Path:
        """A downloaded file, its published checksum verified."""
        from affbench.data.fetch.files import find_file  # imports what downloads need, and few commands need that

        found = find_file(next(file for file in self.source.files if file.name == name), folder)
        if found is None:
            state = "damaged: its checksum is not the published one" if (folder / name).is_file() else "missing"
            raise DataError(
                f"{folder / name} is {state}; 'affbench fetch {self.name}' downloads it (or --mirror FOLDER)."
            )
        return found.path


def family_of_digits(name: str, source: Source, sizes: tuple[int, ...], affine: str, suffix: str = "") -> Family:
    """Digits in four files like MNIST's and the four sets that are made of them; with a suffix, inside the package."""
    stem = name.removesuffix(suffix)
    forms: dict[Form, str] = {
        "original": stem,
        "padded": f"{stem}-padded",
        "translated": f"{stem}-translated",
        "affine": affine,
    }
    sets = tuple(SetSpec(f"{called}{suffix}", name, form) for form, called in forms.items())
    return Family(name, sets, {} if suffix else {name: (source,)}, sizes, embedded=source if suffix else None)
