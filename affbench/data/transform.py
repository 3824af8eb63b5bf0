"""What an affine transformation is, and what it does to an image, by the convention of `affbench.data.synthesis`."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from affbench.base.errors import UsageError, nearest
from affbench.data.dataset import TRANSFORM_COLUMNS
from affbench.data.placement import CANVAS, FRAME

CHUNK = 1024  # images rendered at once: 26 MB of sampling positions at 40×40
_LAST_BITS = 1e-6  # of a level: what is whole in exact arithmetic is not truncated to the level below

NEUTRAL = tuple(1.0 if name.endswith("expansion") else 0.0 for name in TRANSFORM_COLUMNS)
"""The transformation that changes nothing but pads the digit."""

Range = tuple[float, float]
_LIMITS = {"rotation": (-360.0, 360.0), "vertical_expansion": (0.1, 10.0), "horizontal_expansion": (0.1, 10.0)}
_FINITE = float(np.finfo(float).max)


@dataclass(frozen=True)
class AffineRange:
    """The interval each factor is drawn from, uniformly; the defaults are affNIST's."""

    rotation: Range = (-20.0, 20.0)  # degrees, counter-clockwise, within ±360
    shear: Range = (-0.2, 0.2)  # vertical shear, pixels down per pixel to the right
    vertical_expansion: Range = (0.8, 1.2)  # factors, 0.1 to 10
    horizontal_expansion: Range = (0.8, 1.2)
    # Whole pixels; what keeps the digit on the canvas is always a bound, and with None it is the only one
    vertical_translation: Range | None = None
    horizontal_translation: Range | None = None

    def __post_init__(self) -> None:
        for name, interval in asdict(self).items():
            if interval is None and name.endswith("translation"):
                continue
            low, high = interval
            smallest, largest = _LIMITS.get(name, (-_FINITE, _FINITE))
            if not smallest <= low <= high <= largest:  # also not a number
                within = f", within {smallest:g} to {largest:g}" if name in _LIMITS else ""
                raise UsageError(f"{name} must be a finite interval, low to high{within}; it is {low:g} to {high:g}.")
            if name.endswith("translation") and math.floor(high) < math.ceil(low):
                raise UsageError(f"{name} counts whole pixels, and there is none from {low:g} to {high:g}.")

    @classmethod
    def around(
        cls, *, rotation: float = 20.0, shear: float = 0.2, expansion: float = 0.2, translation: float | None = None
    ) -> Self:
        """Intervals given by their half-widths around the neutral transformation; 0 switches a factor off."""
        given = {"rotation": rotation, "shear": shear, "expansion": expansion, "translation": translation}
        for name, value in given.items():
            if value is not None and not value >= 0:
                raise UsageError(f"{name} must not be negative; it is {value:g}.")
        shift = None if translation is None else (-translation, translation)
        size = (1 - expansion, 1 + expansion)
        return cls((-rotation, rotation), (-shear, shear), size, size, shift, shift)

    def only(self, *factors: str) -> Self:
        """These ranges for the named factors, every other factor neutral: a one-factor set."""
        for name in factors:
            if name not in TRANSFORM_COLUMNS:
                raise UsageError(f"there is no factor '{name}': {nearest(name, TRANSFORM_COLUMNS)}")
        neutral = zip(TRANSFORM_COLUMNS, NEUTRAL, strict=True)
        return replace(self, **{name: (value, value) for name, value in neutral if name not in factors})


AFFNIST = AffineRange()


def affine_matrices(transforms: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The transformations (N, 6) as homogeneous matrices (N, 3, 3) on (x, y, 1), digit to canvas: E·S·R and t."""
    rotation, shear, vertical, horizontal, down, right = np.asarray(transforms, np.float64).T
    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    matrices = np.tile(np.eye(3), (len(transforms), 1, 1))
    matrices[:, 0] = np.stack([horizontal * cos, horizontal * sin, right], axis=1)
    matrices[:, 1] = np.stack([vertical * (shear * cos - sin), vertical * (shear * sin + cos), down], axis=1)
    return matrices


def old_to_new(transforms: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The transformations (N, 6) as official files store them: float64 (N, 2, 3) on (row, column, 1), pixels from 0."""
    matrices = affine_matrices(transforms)[:, [1, 0]][:, :, [1, 0, 2]]  # on (y, x, 1) about the centres
    matrices[:, :, 2] += (CANVAS - 1) / 2 - matrices[:, :, :2].sum(axis=2) * (FRAME - 1) / 2
    return matrices


def warp(
    images: npt.NDArray[np.uint8], matrices: npt.NDArray[np.float64], canvas: int = CANVAS
) -> npt.NDArray[np.float64]:
    """Sample images (N, H, W) bilinearly under invertible affine matrices (N, 3, 3), from image to canvas on (x, y, 1).

    Gives float64 (N, canvas, canvas), the levels before truncation, 0 to 255.
    """
    import torch  # seconds to import, and only rendering needs it
    from torch.nn.functional import grid_sample

    height, width = images.shape[1:]
    a, b, c, d = matrices[:, :2, :2].reshape(-1, 4).T[..., None, None]
    determinant = a * d - b * c
    axis = np.arange(canvas) - (canvas - 1) / 2
    x = axis[None, None, :] - matrices[:, 0, 2, None, None]  # (N, 1, canvas), by column
    y = axis[None, :, None] - matrices[:, 1, 2, None, None]  # (N, canvas, 1), by row
    # grid_sample wants positions scaled to −1 … 1 between the centres of the first and the last pixel.
    across, down = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    grid = np.empty((len(images), canvas, canvas, 2))
    np.add(d / determinant * across * x, -b / determinant * across * y, out=grid[..., 0])
    np.add(-c / determinant * down * x, a / determinant * down * y, out=grid[..., 1])
    # In float64 a last-bit difference between machines moves a pixel to another level about once in 10¹².
    sampled = grid_sample(
        torch.from_numpy(images.astype(np.float64))[:, None],
        torch.from_numpy(grid),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    return np.asarray(sampled[:, 0].numpy())


def truncate(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Levels as whole ones, 0 to 255, cut off and not rounded."""
    return (levels + _LAST_BITS).astype(np.uint8)


def render(
    images: npt.NDArray[np.uint8], transforms: npt.NDArray[np.floating[Any]], canvas: int = CANVAS
) -> npt.NDArray[np.uint8]:
    """Render each image under its own transformation, by the convention above.

    Parameters
    ----------
    images
        uint8 (N, H, W).
    transforms
        Floating point (N, 6), columns as `TRANSFORM_COLUMNS`.
    canvas
        Height and width of the result in pixels.

    Returns
    -------
    numpy.ndarray
        uint8 (N, canvas, canvas).
    """
    return render_matrices(images, affine_matrices(transforms), canvas)


def render_matrices(
    images: npt.NDArray[np.uint8], matrices: npt.NDArray[np.float64], canvas: int = CANVAS, added: float = 0.0
) -> npt.NDArray[np.uint8]:
    """The same from matrices (N, 3, 3); what is `added` to the levels before truncation would round them at 0.5."""
    rendered = np.empty((len(images), canvas, canvas), np.uint8)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        rendered[part] = truncate(warp(images[part], matrices[part], canvas) + added)
    return rendered
