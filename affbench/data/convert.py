"""From fetched files to a converted set: digits placed or transformed, official files as they are."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from affbench.data import hdf5, idx, placement
from affbench.data.affnist import convert_mat, convert_npz, read_homnist
from affbench.data.dataset import Dataset
from affbench.data.placement import CANVAS

Form = Literal["original", "padded", "translated", "affine", "official"]
Digits: TypeAlias = "tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]"  # images (N, 28, 28) and labels (N,)
# Converts official files: target, files, attributes of the set, and, where at hand, the digits that its images were
# made from, and a file of its own originals.
Writer: TypeAlias = Callable[[Path, Sequence[Path], Mapping[str, Any], Dataset | None, Path | None], None]

ORIGINALS_VERSION = 2  # of how affNIST's own originals are used


def read_idx(file: Callable[[str], Path], kind: Literal["train", "test"]) -> Digits:
    """All digits of MNIST's training or test files, or of files called like them; `file` finds one by its name."""
    stem = "t10k" if kind == "test" else "train"
    return idx.read_pair(file(f"{stem}-images-idx3-ubyte.gz"), file(f"{stem}-labels-idx1-ubyte.gz"))


def write_placed(target: Path, digits: Digits, form: Form, seed: int, attributes: Mapping[str, Any]) -> None:
    """Write digits as they are, centred on the canvas, or placed at random on it."""
    images, labels = digits
    if form == "padded":
        images = placement.pad(images, CANVAS)
    elif form == "translated":
        images = placement.translate(images, CANVAS, np.random.default_rng(seed))
    hdf5.write_set(target, Dataset(str(attributes["name"]), str(attributes["split"]), images, labels), attributes)


def write_affnist(
    target: Path, files: Sequence[Path], attributes: Mapping[str, Any], digits: Dataset | None, originals: Path | None
) -> None:
    """Convert a split of affNIST."""
    if files[0].suffix == ".npz":
        convert_npz(files[0], files[1], target, attributes)
        return
    place = files[0] if len(files) == 1 else files[0].parent  # batches lie in a folder of their own, as 1.mat, 2.mat, …
    convert_mat(place, target, attributes, digits, originals)


def write_homnist(target: Path, files: Sequence[Path], attributes: Mapping[str, Any], *_: object) -> None:
    """Convert homNIST."""
    hdf5.write_set(target, read_homnist(files[0]), attributes)


def origin(name: str, split: str, source: str, checksums: Mapping[str, str], license: str) -> dict[str, str]:
    """The attributes that say where a set comes from."""
    return {"name": name, "split": split, "source": source, "sha256": json.dumps(checksums), "license": license}
