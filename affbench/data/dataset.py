"""A set of labelled images in memory, as every later stage receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError

CLASSES = 10

TRANSFORM_UNITS = {
    "rotation": "degrees counter-clockwise",
    "shear": "pixels down per pixel right",
    "vertical_expansion": "factor",
    "horizontal_expansion": "factor",
    "vertical_translation": "pixels down",
    "horizontal_translation": "pixels right",
}
"""Unit of each factor of an affine transformation, for headings and axes."""

TRANSFORM_COLUMNS = tuple(TRANSFORM_UNITS)

UNPAIRED = "as the file counts, MNIST's digits not found"
"""The attribute ``order`` of official sets whose ``source_index`` does not count in MNIST's order begins so."""


@dataclass(frozen=True)
class Dataset:
    """Labelled images, with the affine transformation of each where there is one."""

    name: str  # of the set, such as "mnist-translated"
    split: str  # "train", "validation" or "test"
    images: npt.NDArray[np.uint8]  # (N, H, W), 0 background to 255 ink
    labels: npt.NDArray[np.uint8]  # (N,), classes 0 to 9
    transforms: npt.NDArray[np.float32] | None = None  # (N, 6) in the order of `TRANSFORM_COLUMNS`
    # (N,), index of the original digit from 0, None where every image is an original. It counts in the digits of the
    # set's split; for the official affNIST in MNIST's test file, or training file of 60,000 digits.
    source_index: npt.NDArray[np.int32] | None = None
    # (N,), for official files the number that the file itself gives the original, from 1, in an order of its own
    original_id: npt.NDArray[np.int32] | None = None
    key: str = ""  # content key of the converted set; "" for a set made by hand
    attributes: dict[str, Any] = field(default_factory=dict)  # origin: ``source``, ``license`` and the like

    def __len__(self) -> int:
        return len(self.images)

    @property
    def canvas(self) -> int:
        """Height and width of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def table(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Transformations and source indices, which always come together; `DataError` where there are none."""
        if self.transforms is None or self.source_index is None:
            raise DataError(f"{self.name} has no transformation table.")
        return self.transforms, self.source_index

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that the set has, by name, a row an image."""
        names = ("images", "labels", "transforms", "source_index", "original_id")
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    def rows(self, part: slice | npt.NDArray[np.intp]) -> Dataset:
        """Some of the images as a set."""
        taken: dict[str, Any] = {name: values[part] for name, values in self.arrays.items()}
        return replace(self, **taken)


def joined(parts: Sequence[Dataset]) -> Dataset:
    """The images of all parts of a set as one, called as the first."""
    arrays: dict[str, Any] = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return replace(parts[0], **arrays)
