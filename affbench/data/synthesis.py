"""An affNIST-like set from any digits, with the table of the transformations that made it.

The convention
--------------
Everything that reads or writes a transformation table in affbench means this:

Axes
    One frame: x to the right (columns), y *down* (rows), in pixels. A pixel is its centre: pixel (row r, column c) of
    an H×W image lies at x = c − (W − 1)/2, y = r − (H − 1)/2, so the origin is the centre of the image, (13.5, 13.5)
    in a 28×28 digit and (19.5, 19.5) on a 40×40 canvas.
Order
    A point p of the digit goes to q = E·S·R·p + t on the canvas: rotation, then shear, then expansion, then
    translation.
Rotation
    R = [[cos θ, −sin θ], [sin θ, cos θ]], θ in degrees. It carries the x axis towards the y axis: positive is
    clockwise as seen, as in ``torchvision.transforms.functional.affine``.
Shear
    S = [[1, s], [0, 1]]: horizontal, s pixels to the right for each pixel down; a shear of 1 leans a square by 45°.
Expansion
    E = diag(horizontal, vertical): factors, 1 leaves the size as it is.
Translation
    t = (horizontal, vertical) in pixels, right and down positive, not necessarily whole. With t = 0 the centre
    of the digit's image falls on the centre of the canvas, so the neutral transformation is the digit padded evenly.
Interpolation
    Bilinear, background 0 outside the digit's image: the canvas pixel at q takes the value at p = (E·S·R)⁻¹(q − t).
    Computed in float64, rounded to the nearest of 0 to 255. The table is rounded to float32 first, so that
    rendering again from the table gives the same bits.

Distribution
------------
The four shape factors are drawn uniformly from their ranges, then the translation uniformly from the placements that
keep the whole digit on the canvas: no canvas pixel that any ink would reach lies outside. The ranges default to those
of affNIST as they are widely quoted; they, the order and the signs are unconfirmed for the official files, which is
why `affbench.data.verification` exists.

Where ranges are widened, or ink fills the image, some shapes fit nowhere on the canvas. Such a draw is made again, so
that the result is uniform over the transformations that fit; a digit that 100 draws cannot place is an error. For
MNIST and the default ranges every first draw fits.

Randomness
----------
Copy k of the digits takes its numbers from a generator seeded by (seed, k), one row of six per digit. So the first
copies of a longer set are the shorter set, the first digits of a larger set are the smaller set, sets of the same seed
and different ranges share their random numbers, and no chunk size or thread count changes a bit.

References
----------
T. Tieleman, "affNIST", https://www.cs.toronto.edu/~tijmen/affNIST/
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.hdf5 import SetWriter
from affbench.errors import DataError, UsageError

CANVAS = 40  # pixels; the size of affNIST
COPIES = 32  # transformed versions of every digit in affNIST
CHUNK = 1024  # images rendered at once: 26 MB of sampling positions at 40×40
MAX_DRAWS = 100

Range = tuple[float, float]


@dataclass(frozen=True)
class AffineRange:
    """The interval each factor is drawn from, uniformly; the defaults are affNIST's (widely quoted, unconfirmed).

    Attributes
    ----------
    rotation
        Degrees, within ±360.
    shear
        Horizontal shear, pixels per pixel.
    vertical_expansion, horizontal_expansion
        Factors, 0.1 to 10.
    vertical_translation, horizontal_translation
        Pixels; what keeps the whole digit on the canvas is always a bound, and with None it is the only one.

    Raises
    ------
    UsageError
        A bound is not a finite number, the bounds are in the wrong order, or a factor is beyond what can be rendered.
    """

    rotation: Range = (-20.0, 20.0)
    shear: Range = (-0.2, 0.2)
    vertical_expansion: Range = (0.8, 1.2)
    horizontal_expansion: Range = (0.8, 1.2)
    vertical_translation: Range | None = None
    horizontal_translation: Range | None = None

    def __post_init__(self) -> None:
        limits = {"rotation": (-360.0, 360.0), "vertical_expansion": (0.1, 10.0), "horizontal_expansion": (0.1, 10.0)}
        for field in fields(self):
            interval = getattr(self, field.name)
            if interval is None and field.name.endswith("translation"):
                continue
            try:
                low, high = (float(bound) for bound in interval)
            except (TypeError, ValueError):
                raise UsageError(f"{field.name} must be two numbers, low and high; it is {interval!r}.") from None
            smallest, largest = limits.get(field.name, (-math.inf, math.inf))
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise UsageError(f"{field.name} must be a finite interval, low to high; it is {low:g} to {high:g}.")
            if low < smallest or high > largest:
                raise UsageError(
                    f"{field.name} must lie within {smallest:g} to {largest:g}; it is {low:g} to {high:g}."
                )
            object.__setattr__(self, field.name, (low, high))

    @classmethod
    def around(
        cls,
        *,
        rotation: float = 20.0,
        shear: float = 0.2,
        expansion: float = 0.2,
        translation: float | None = None,
    ) -> Self:
        """Intervals given by their half-widths around the neutral transformation; 0 switches a factor off.

        Parameters
        ----------
        rotation
            Degrees either way.
        shear
            Either way.
        expansion
            Both expansions are drawn from 1 − `expansion` to 1 + `expansion`.
        translation
            Pixels either way, on both axes; None for wherever the digit fits.

        Raises
        ------
        UsageError
            A half-width is negative, not finite or too large.
        """
        for name, value in (("rotation", rotation), ("shear", shear), ("expansion", expansion)):
            if not value >= 0:
                raise UsageError(f"{name} must not be negative; it is {value:g}.")
        if translation is not None and not translation >= 0:
            raise UsageError(f"translation must not be negative; it is {translation:g}.")
        shift = None if translation is None else (-translation, translation)
        size = (1 - expansion, 1 + expansion)
        return cls((-rotation, rotation), (-shear, shear), size, size, shift, shift)

    def only(self, *factors: str) -> Self:
        """These ranges for the named factors, every other factor neutral: a one-factor set.

        Parameters
        ----------
        factors
            Names of `TRANSFORM_COLUMNS`.

        Raises
        ------
        UsageError
            There is no such factor.
        """
        for name in factors:
            if name not in TRANSFORM_COLUMNS:
                raise UsageError(f"there is no factor {name!r}; the factors are {', '.join(TRANSFORM_COLUMNS)}.")
        neutral = {
            name: (1.0, 1.0) if name.endswith("expansion") else (0.0, 0.0)
            for name in TRANSFORM_COLUMNS
            if name not in factors
        }
        return replace(self, **neutral)


def linear_maps(transforms: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The linear part E·S·R of each transformation, acting on (x, y).

    Parameters
    ----------
    transforms
        Floating point (N, 6), columns as `TRANSFORM_COLUMNS`.

    Returns
    -------
    numpy.ndarray
        float64 (N, 2, 2).
    """
    rotation, shear, vertical, horizontal = np.asarray(transforms, np.float64).T[:4]
    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    maps = np.empty((len(transforms), 2, 2))
    maps[:, 0, 0] = horizontal * (cos + shear * sin)
    maps[:, 0, 1] = horizontal * (shear * cos - sin)
    maps[:, 1, 0] = vertical * sin
    maps[:, 1, 1] = vertical * cos
    return maps


def affine_matrices(transforms: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The whole transformations as homogeneous matrices on (x, y, 1), digit to canvas.

    Parameters
    ----------
    transforms
        Floating point (N, 6), columns as `TRANSFORM_COLUMNS`.

    Returns
    -------
    numpy.ndarray
        float64 (N, 3, 3).
    """
    matrices = np.tile(np.eye(3), (len(transforms), 1, 1))
    matrices[:, :2, :2] = linear_maps(transforms)
    matrices[:, 0, 2] = transforms[:, 5]
    matrices[:, 1, 2] = transforms[:, 4]
    return matrices


def warp(
    images: npt.NDArray[np.uint8], matrices: npt.NDArray[np.float64], canvas: int = CANVAS
) -> npt.NDArray[np.uint8]:
    """Render images under homogeneous transformations, bilinearly.

    Parameters
    ----------
    images
        uint8 (N, H, W).
    matrices
        float64 (N, 3, 3), invertible and affine, from image to canvas on (x, y, 1) in the frame of the convention
        above.
    canvas
        Height and width of the result in pixels.

    Returns
    -------
    numpy.ndarray
        uint8 (N, canvas, canvas).
    """
    import torch  # seconds to import, and only rendering needs it
    from torch.nn.functional import grid_sample

    height, width = images.shape[1:]
    a, b, c, d = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1]
    determinant = a * d - b * c
    axis = np.arange(canvas) - (canvas - 1) / 2
    x = axis - matrices[:, 0, 2, None]  # (N, canvas), by column
    y = axis - matrices[:, 1, 2, None]  # (N, canvas), by row
    # grid_sample wants positions scaled to −1 … 1 between the centres of the first and the last pixel.
    across, down = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    grid = np.empty((len(images), canvas, canvas, 2))
    np.add(
        ((d / determinant * across)[:, None] * x)[:, None, :],
        ((-b / determinant * across)[:, None] * y)[:, :, None],
        out=grid[..., 0],
    )
    np.add(
        ((-c / determinant * down)[:, None] * x)[:, None, :],
        ((a / determinant * down)[:, None] * y)[:, :, None],
        out=grid[..., 1],
    )
    # In float64 a last-bit difference between machines moves a pixel across a rounding boundary about once in 10¹².
    sampled = grid_sample(
        torch.from_numpy(images.astype(np.float64))[:, None],
        torch.from_numpy(grid),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    rendered: npt.NDArray[np.uint8] = sampled[:, 0].round().to(torch.uint8).numpy()
    return rendered


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
    rendered = np.empty((len(images), canvas, canvas), np.uint8)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        rendered[part] = warp(images[part], affine_matrices(transforms[part]), canvas)
    return rendered


def draw_transforms(
    images: npt.NDArray[np.uint8], copy: int, seed: int, ranges: AffineRange | None = None, canvas: int = CANVAS
) -> npt.NDArray[np.float32]:
    """Draw one transformation for each image.

    Parameters
    ----------
    images
        uint8 (N, H, W); where their ink lies bounds the translation.
    copy
        Which version of the images this is, from 0.
    seed
        0 or more.
    ranges
        What to draw from; affNIST's ranges by default.
    canvas
        Height and width of the canvas in pixels.

    Returns
    -------
    numpy.ndarray
        float32 (N, 6), columns as `TRANSFORM_COLUMNS`.

    Raises
    ------
    DataError
        An image fits nowhere on the canvas.
    """
    return _draw(_outlines(images), copy, seed, ranges or AffineRange(), canvas)


def synthesize_chunks(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    copies: int = COPIES,
    seed: int = 0,
    *,
    ranges: AffineRange | None = None,
    canvas: int = CANVAS,
    name: str = "affnist-synthetic",
    split: str = "test",
    chunk: int = CHUNK,
) -> Iterator[Dataset]:
    """Make an affNIST-like set part by part, so that it never has to fit in memory.

    Parameters
    ----------
    images
        uint8 (N, H, W) digits, 28×28 for affNIST.
    labels
        uint8 (N,).
    copies
        Versions of every digit. The set runs copy by copy: all digits in their first version, then all in their
        second, …, as the official batches do.
    seed
        0 or more; the same seed gives the same bits.
    ranges
        What to draw from; affNIST's ranges by default.
    canvas
        Height and width of the images in pixels.
    name, split
        What the set is called.
    chunk
        Images rendered at once; of no consequence for the result.

    Yields
    ------
    Dataset
        The next images, at most `chunk`, with ``transforms`` and ``source_index``.

    Raises
    ------
    UsageError
        An argument is out of its range.
    DataError
        A digit fits nowhere on the canvas.
    """
    images = np.asarray(images)
    labels = np.asarray(labels)
    if images.ndim != 3 or images.dtype != np.uint8 or not images.size:
        raise UsageError(f"images must be uint8 (N, H, W); they are {images.dtype} {images.shape}.")
    if labels.shape != (len(images),):
        raise UsageError(f"labels must be ({len(images)},), one an image; they are {labels.shape}.")
    for option, value, least in (("copies", copies, 1), ("seed", seed, 0), ("canvas", canvas, 1), ("chunk", chunk, 1)):
        if value < least:
            raise UsageError(f"{option} must be {least} or more; it is {value}.")
    return _chunks(images, labels.astype(np.uint8), copies, seed, ranges or AffineRange(), canvas, name, split, chunk)


def synthesize(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    copies: int = COPIES,
    seed: int = 0,
    *,
    ranges: AffineRange | None = None,
    canvas: int = CANVAS,
    name: str = "affnist-synthetic",
    split: str = "test",
) -> Dataset:
    """Make an affNIST-like set in memory; parameters and errors as for `synthesize_chunks`.

    Returns
    -------
    Dataset
        copies·N images, copy by copy, with ``transforms`` and ``source_index``.

    Examples
    --------
    >>> import numpy as np
    >>> digit = np.zeros((1, 28, 28), np.uint8)
    >>> digit[0, 8:20, 13:15] = 255
    >>> made = synthesize(digit, np.array([1]), copies=3, seed=0)
    >>> made.images.shape, made.transforms.shape, made.source_index.tolist()
    ((3, 40, 40), (3, 6), [0, 0, 0])
    """
    parts = synthesize_chunks(
        images, labels, copies, seed, ranges=ranges, canvas=canvas, name=name, split=split, chunk=CHUNK
    )
    n = copies * len(images)
    rendered = np.empty((n, canvas, canvas), np.uint8)
    classes = np.empty(n, np.uint8)
    transforms = np.empty((n, len(TRANSFORM_COLUMNS)), np.float32)
    source_index = np.empty(n, np.int32)
    start = 0
    for part in parts:
        assert part.transforms is not None  # noqa: S101 - for the type checker
        assert part.source_index is not None  # noqa: S101
        rows = slice(start, start + len(part))
        rendered[rows], classes[rows] = part.images, part.labels
        transforms[rows], source_index[rows] = part.transforms, part.source_index
        start += len(part)
    return Dataset(name, split, rendered, classes, transforms, source_index)


def write_synthetic(
    path: Path,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    copies: int,
    seed: int,
    attributes: Mapping[str, Any],
    *,
    ranges: AffineRange | None = None,
    canvas: int = CANVAS,
) -> None:
    """Make an affNIST-like set straight into a converted file.

    Parameters
    ----------
    path
        The file to write (a temporary path; `affbench.store` puts it in place).
    images, labels, copies, seed, ranges, canvas
        As for `synthesize_chunks`.
    attributes
        File attributes, as for `affbench.data.hdf5.SetWriter`; ``copies``, ``seed`` and ``ranges`` (as JSON) are added.

    Raises
    ------
    UsageError
        An argument is out of its range.
    DataError
        A digit fits nowhere on the canvas.
    """
    ranges = ranges or AffineRange()
    parts = synthesize_chunks(images, labels, copies, seed, ranges=ranges, canvas=canvas)
    described = {**attributes, "copies": copies, "seed": seed, "ranges": json.dumps(asdict(ranges))}
    with SetWriter(path, copies * len(images), canvas, described, affine=True) as writer:
        for part in parts:
            writer.append(part.images, part.labels, part.transforms, part.source_index)


def _chunks(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    copies: int,
    seed: int,
    ranges: AffineRange,
    canvas: int,
    name: str,
    split: str,
    chunk: int,
) -> Iterator[Dataset]:
    outlines = _outlines(images)
    for copy in range(copies):
        transforms = _draw(outlines, copy, seed, ranges, canvas)
        for start in range(0, len(images), chunk):
            rows = slice(start, min(start + chunk, len(images)))
            yield Dataset(
                name,
                split,
                images=render(images[rows], transforms[rows], canvas),
                labels=labels[rows],
                transforms=transforms[rows],
                source_index=np.arange(rows.start, rows.stop, dtype=np.int32),
            )


def _outlines(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The leftmost and the rightmost ink of every row: (N, 2H, 2) positions (x, y) about the centre of the image.

    The extremes of any linear function over the ink are among them. A row without ink repeats another point of the
    digit; an image without ink is its centre.
    """
    n, height, width = images.shape
    ink = images > 0
    inked = np.any(ink, axis=2)  # (N, H)
    x = np.concatenate([ink.argmax(axis=2), width - 1 - ink[:, :, ::-1].argmax(axis=2)], axis=1) - (width - 1) / 2
    y = np.tile(np.arange(height) - (height - 1) / 2, (n, 2))
    points = np.stack([x, y], axis=2).astype(np.float32)
    first = points[np.arange(n), inked.argmax(axis=1)]  # (N, 2)
    first[~inked.any(axis=1)] = 0
    return np.where(np.tile(inked, 2)[:, :, None], points, first[:, None])


def _placements(
    outlines: npt.NDArray[np.float32], maps: npt.NDArray[np.float64], canvas: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The lowest and highest translation (N, 2) along (x, y) that keep all ink on the canvas.

    Bilinear interpolation spreads the ink of a pixel over the image of the open square that reaches one
    pixel to each side of its centre; it may reach up to, not including, the first pixel beyond the canvas.
    """
    low = np.empty((len(maps), 2))
    high = np.empty((len(maps), 2))
    reach = (canvas + 1) / 2
    for axis in range(2):
        along = maps[:, axis, 0, None] * outlines[:, :, 0] + maps[:, axis, 1, None] * outlines[:, :, 1]
        spread = np.abs(maps[:, axis]).sum(axis=1)
        low[:, axis] = -reach - (along.min(axis=1) - spread)
        high[:, axis] = reach - (along.max(axis=1) + spread)
    return low, high


def _draw(
    outlines: npt.NDArray[np.float32], copy: int, seed: int, ranges: AffineRange, canvas: int
) -> npt.NDArray[np.float32]:
    """`draw_transforms` from the outlines of the images."""
    n = len(outlines)
    transforms = np.empty((n, len(TRANSFORM_COLUMNS)), np.float32)
    shape = np.array([ranges.rotation, ranges.shear, ranges.vertical_expansion, ranges.horizontal_expansion])
    everywhere = (-math.inf, math.inf)
    shift = np.array([ranges.horizontal_translation or everywhere, ranges.vertical_translation or everywhere])
    pending = np.arange(n)
    for attempt in range(MAX_DRAWS):
        # Every attempt draws for all digits, so that the numbers of one never depend on the fate of another.
        uniform = np.random.default_rng((seed, copy, attempt)).random((n, len(TRANSFORM_COLUMNS)))[pending]
        drawn = np.zeros((len(pending), len(TRANSFORM_COLUMNS)), np.float32)
        drawn[:, :4] = shape[:, 0] + uniform[:, :4] * (shape[:, 1] - shape[:, 0])
        low, high = _placements(outlines[pending], linear_maps(drawn), canvas)
        low, high = np.maximum(low, shift[:, 0]), np.minimum(high, shift[:, 1])
        fits = (low <= high).all(axis=1)
        drawn[:, 4] = low[:, 1] + uniform[:, 4] * (high[:, 1] - low[:, 1])
        drawn[:, 5] = low[:, 0] + uniform[:, 5] * (high[:, 0] - low[:, 0])
        transforms[pending[fits]] = drawn[fits]
        pending = pending[~fits]
        if not len(pending):
            return transforms
    raise DataError(
        f"digit {pending[0]} does not fit wholly on a {canvas}×{canvas} canvas under these ranges in {MAX_DRAWS} draws "
        f"({len(pending):,} of {n:,} digits do not); narrow the ranges or take a larger canvas."
    )
