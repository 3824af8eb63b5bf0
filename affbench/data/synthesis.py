"""An affNIST-like set from any digits, with the table of the transformations that made it.

The convention
--------------
It is that of the official affNIST files, and everything in affbench that reads, writes or names a transformation means
this:

Axes
    One frame: x to the right (columns), y *down* (rows), in pixels. A pixel is its centre: pixel (row r, column c) of
    an H×W image lies at x = c − (W − 1)/2, y = r − (H − 1)/2, so the origin is the centre of the image, (13.5, 13.5)
    in a 28×28 digit and (19.5, 19.5) on a 40×40 canvas.
Order
    A point p of the digit goes to q = E·S·R·p + t on the canvas: rotation, then shear, then expansion, then
    translation.
Rotation
    R = [[cos θ, sin θ], [−sin θ, cos θ]], θ in degrees: positive is counter-clockwise as seen.
Shear
    S = [[1, 0], [s, 1]]: vertical, x·s is added to y, so that with a shear of 1 a horizontal line falls by 45°.
Expansion
    E = diag(horizontal, vertical): factors, 1 leaves the size as it is.
Translation
    t = (horizontal, vertical), whole pixels, right and down positive. With t = 0 the centre of the digit's image falls
    on the centre of the canvas, so the neutral transformation is the digit padded evenly.
Interpolation
    Bilinear, background 0 outside the digit's image: the canvas pixel at q takes the value at p = (E·S·R)⁻¹(q − t),
    computed in float64 and truncated to a whole level of 0 to 255. The table is rounded to float32 first, so that
    rendering again from the table gives the same bits.

Distribution
------------
The four shape factors are drawn uniformly from their ranges, then each translation, a whole number, uniformly over
those at which no rendered level above `FAINT` leaves the canvas (official images lose levels up to about 12.5 of 255
now and then; the limit is inferred from them and stated nowhere). A shape that fits nowhere on the canvas, never for
MNIST and the default ranges, is drawn again; a digit that 100 draws cannot place is an error.

Randomness
----------
Copy k of the digits takes its random numbers from a generator seeded by (seed, k), one row of six per digit. So the
first copies of a longer set are the shorter set, the first digits of a larger set are the smaller set, sets of the same
seed and different ranges share their random numbers, and no chunk size or thread count changes a bit.

T. Tieleman, "affNIST", https://www.cs.toronto.edu/~tijmen/affNIST/
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError, UsageError
from affbench.data import placement
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset, joined
from affbench.data.hdf5 import new_set
from affbench.data.placement import CANVAS
from affbench.data.transform import AFFNIST, CHUNK, AffineRange, affine_matrices, truncate, warp
from affbench.data.transform import render as render

COPIES = 32  # transformed versions of every digit in affNIST
FAINT = 12.75  # of 255: rendered levels up to this may leave the canvas; inferred from official images
MAX_DRAWS = 100

Images = npt.NDArray[np.uint8]
Digits: TypeAlias = "tuple[Images, Images]"


def synthesize_chunks(
    images: Images, labels: Images, copies: int, seed: int, ranges: AffineRange = AFFNIST, canvas: int = CANVAS
) -> Iterator[Dataset]:
    """Make an affNIST-like set part by part, so that it never has to fit in memory; arguments as of `synthesize`."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 3 or images.dtype != np.uint8 or not images.size:
        raise UsageError(f"images must be uint8 (N, H, W); they are {images.dtype} {images.shape}.")
    if labels.shape != (len(images),):
        raise UsageError(f"labels must be ({len(images)},), one an image; they are {labels.shape}.")
    for option, value, least in (("copies", copies, 1), ("seed", seed, 0), ("canvas", canvas, 1)):
        if value < least:
            raise UsageError(f"{option} must be {least} or more; it is {value}.")
    for copy in range(copies):
        for start in range(0, len(images), CHUNK):
            rows = slice(start, min(start + CHUNK, len(images)))
            transforms, rendered = _draw(images, rows, copy, seed, ranges, canvas)
            index = np.arange(rows.start, rows.stop, dtype=np.int32)
            classes = labels[rows].astype(np.uint8)
            yield Dataset("affnist-synthetic", "test", rendered, classes, transforms, index)


def synthesize(
    images: Images,
    labels: Images,
    copies: int = COPIES,
    seed: int = 0,
    *,
    ranges: AffineRange = AFFNIST,
    canvas: int = CANVAS,
) -> Dataset:
    """Make an affNIST-like set in memory.

    Parameters
    ----------
    images, labels
        Digits, uint8 (N, H, W), 28×28 for affNIST, and their classes, uint8 (N,).
    copies, seed
        Versions of each digit, and the seed of their random numbers.
    ranges
        What the factors are drawn from; affNIST's ranges by default.
    canvas
        Height and width of the result in pixels.

    Returns
    -------
    Dataset
        copies·N images, copy by copy, with ``transforms`` and ``source_index``.

    Examples
    --------
    >>> import numpy as np
    >>> synthesize(np.full((1, 28, 28), 255, np.uint8), np.array([1]), copies=3).images.shape
    (3, 40, 40)
    """
    return joined(list(synthesize_chunks(images, labels, copies, seed, ranges, canvas)))


def write_synthetic(
    path: Path, digits: Digits, copies: int, seed: int, attributes: Mapping[str, Any], ranges: AffineRange = AFFNIST
) -> None:
    """Make an affNIST-like set straight into a converted file."""
    described = {**attributes, "copies": copies, "seed": seed, "ranges": json.dumps(asdict(ranges))}
    with new_set(path, copies * len(digits[0]), CANVAS, described, affine=True) as writer:
        for part in synthesize_chunks(*digits, copies, seed, ranges):
            writer.append(part)


def _draw(
    images: Images, rows: slice, copy: int, seed: int, ranges: AffineRange, canvas: int
) -> tuple[npt.NDArray[np.float32], Images]:
    """Transformations (n, 6) of some rows of all images, and the images (n, canvas, canvas) that they make."""
    digits = images[rows]
    transforms = np.empty((len(digits), len(TRANSFORM_COLUMNS)), np.float32)
    rendered = np.empty((len(digits), canvas, canvas), np.uint8)
    shape = np.array([ranges.rotation, ranges.shear, ranges.vertical_expansion, ranges.horizontal_expansion])
    pending = np.arange(len(digits))
    for attempt in range(MAX_DRAWS):
        # Every attempt draws for all digits, so that the numbers of one never depend on the fate of another.
        uniform = np.random.default_rng((seed, copy, attempt)).random((len(images), transforms.shape[1]))[rows][pending]
        drawn = np.zeros((len(pending), transforms.shape[1]), np.float32)
        drawn[:, :4] = shape[:, 0] + uniform[:, :4] * (shape[:, 1] - shape[:, 0])
        unmoved, low, high = _unmoved(digits[pending], drawn, canvas)
        for axis, limits in enumerate((ranges.vertical_translation, ranges.horizontal_translation)):
            if limits is not None:
                low[:, axis] = np.maximum(low[:, axis], math.ceil(limits[0]))
                high[:, axis] = np.minimum(high[:, axis], math.floor(limits[1]))
        fits = (low <= high).all(axis=1)
        drawn[:, 4:] = low + np.floor(uniform[:, 4:] * (high - low + 1))
        offsets = drawn[fits, 4:].astype(np.int64) + placement.centred(canvas, unmoved.shape[-1])
        placed = placement.place(placement.frame(unmoved), np.flatnonzero(fits), offsets, np.arange(canvas))
        transforms[pending[fits]], rendered[pending[fits]] = drawn[fits], placed
        pending = pending[~fits]
        if not len(pending):
            return transforms, rendered
    raise DataError(
        f"digit {rows.start + pending[0]} does not fit wholly on a {canvas}×{canvas} canvas under these ranges in "
        f"{MAX_DRAWS} draws; narrow the ranges or take a larger canvas."
    )


def _unmoved(
    images: Images, transforms: npt.NDArray[np.float32], canvas: int
) -> tuple[Images, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images rendered before any translation, and the lowest and highest (down, right) that keep them on the canvas.

    They come on a canvas of their own, as large as the farthest ink needs: what is moved by whole pixels need not be
    rendered again. A placement keeps an image on the canvas when no level above `FAINT` falls off.
    """
    matrices = affine_matrices(transforms)
    size = canvas + 2 * max(0, math.ceil(_reach(images, matrices) - (canvas - 1) / 2))
    step = max(1, CHUNK * CANVAS**2 // size**2)  # so that wide ranges take no more memory
    unmoved = np.empty((len(images), size, size), np.uint8)
    first, last = np.empty((2, len(images), 2), np.int64)  # (row, column) with ink, or the middle where there is none
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        levels = warp(images[part], matrices[part], size)
        unmoved[part] = truncate(levels)
        for axis in range(2):
            ink: npt.NDArray[np.bool_] = np.any(levels > FAINT, axis=2 - axis)
            first[part, axis] = np.where(ink.any(axis=1), ink.argmax(axis=1), size // 2)
            last[part, axis] = np.where(ink.any(axis=1), size - 1 - ink[:, ::-1].argmax(axis=1), size // 2)
    centred = placement.centred(canvas, size)
    return unmoved, -centred - first, canvas - 1 - centred - last


def _reach(images: Images, matrices: npt.NDArray[np.float64]) -> float:
    """How far from the centre of the canvas, along an axis, any ink lies, in pixels."""
    ends = []
    for axis in (1, 2):  # by column for x, by row for y
        ink = np.any(images, axis=axis)
        size = ink.shape[1]
        first, last = ink.argmax(axis=1) - 1, size - ink[:, ::-1].argmax(axis=1)  # ink spreads by under one pixel
        ends.append(np.stack([first, last], axis=1) - (size - 1) / 2)
    x, y = ends
    corners = np.stack([x[:, [0, 0, 1, 1]], y[:, [0, 1, 0, 1]]], axis=1)  # (N, 2, 4)
    return float(np.abs(matrices[:, :2, :2] @ corners).max(initial=0.0))
