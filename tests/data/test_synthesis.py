"""The synthetic affNIST, against renderings and figures computed without it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from affbench.data import catalogue
from affbench.data.dataset import TRANSFORM_COLUMNS
from affbench.data.hdf5 import read_set
from affbench.data.synthesis import (
    AffineRange,
    draw_transforms,
    render,
    synthesize,
    synthesize_chunks,
    write_synthetic,
)
from affbench.errors import DataError, UsageError

NEUTRAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
ATTRIBUTES = {"name": "made", "split": "test", "source": "here", "sha256": "", "license": "free"}


@pytest.fixture(scope="module")
def digits(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    dataset = catalogue.load_dataset("mnist-sample", data_dir=data_dir, limit=100)
    return dataset.images, dataset.labels


def transform(**factors: float) -> np.ndarray:
    row = dict(zip(TRANSFORM_COLUMNS, NEUTRAL, strict=True)) | factors
    return np.array([[row[name] for name in TRANSFORM_COLUMNS]], np.float32)


def dot(row: int, column: int) -> np.ndarray:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, row, column] = 200
    return image


def by_definition(image: np.ndarray, row: np.ndarray, canvas: int = 40) -> np.ndarray:
    """Pixel by pixel from the convention as it is documented, with scipy's interpolation."""
    rotation, shear, vertical, horizontal, down, right = (float(value) for value in row)
    theta = math.radians(rotation)
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    forward = np.diag([horizontal, vertical]) @ np.array([[1, shear], [0, 1]]) @ turn  # on (x, y)
    backward = np.linalg.inv(forward)
    centre_in, centre_out = (len(image) - 1) / 2, (canvas - 1) / 2
    rows, columns = np.mgrid[:canvas, :canvas]
    x, y = columns - centre_out - right, rows - centre_out - down
    source_x = backward[0, 0] * x + backward[0, 1] * y + centre_in
    source_y = backward[1, 0] * x + backward[1, 1] * y + centre_in
    padded = np.pad(image.astype(np.float64), 2)  # so that ink at the edge fades into the background, not into itself
    return scipy.ndimage.map_coordinates(padded, [source_y + 2, source_x + 2], order=1, mode="constant", cval=0.0)


def test_rendering_agrees_with_the_documented_convention(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images = digits[0][:20]
    transforms = draw_transforms(images, copy=0, seed=5)
    rendered = render(images, transforms)
    for image, row, made in zip(images, transforms, rendered, strict=True):
        assert np.abs(by_definition(image, row) - made).max() <= 0.5 + 1e-6


def test_neutral_transformation_is_the_padded_digit(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images = digits[0][:5]
    rendered = render(images, np.repeat(transform(), 5, axis=0))
    assert (rendered == np.pad(images, ((0, 0), (6, 6), (6, 6)))).all()


@pytest.mark.parametrize(
    ("factors", "row", "column"),
    [
        ({}, 10 + 6, 20 + 6),
        ({"vertical_translation": 3, "horizontal_translation": -5}, 19, 21),
        # A quarter turn carries right to down: (x, y) = (6.5, −3.5) goes to (3.5, 6.5).
        ({"rotation": 90}, 26, 23),
        ({"rotation": 180}, 23, 13),
        ({"horizontal_expansion": -1 + 2.0}, 16, 26),
        # x = 6.5 + 1 · (−3.5) = 3: between columns 22 and 23 of the canvas.
        ({"shear": 1.0}, 16, (22, 23)),
        ({"vertical_expansion": 3.0}, 9, 26),
    ],
)
def test_single_pixel_lands_where_the_convention_says(
    factors: dict[str, float], row: int, column: int | tuple[int, int]
) -> None:
    made = render(dot(10, 20), transform(**factors))[0]
    columns = (column,) if isinstance(column, int) else column
    brightest = made.max()
    for each in columns:
        assert made[row, each] == brightest
    assert made[row, list(columns)].sum() >= 198 if "expansion" not in str(factors) else brightest == 200


def test_half_pixel_shift_shares_the_ink_between_neighbours() -> None:
    made = render(dot(10, 20), transform(horizontal_translation=0.5))[0]
    assert (made[16, 26], made[16, 27]) == (100, 100)
    assert made.sum() == 200


def test_no_ink_is_lost_on_the_canvas(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images = digits[0]
    for copy in range(4):
        transforms = draw_transforms(images, copy, seed=3)
        on_canvas = render(images, transforms).astype(np.int64).sum((1, 2))
        everywhere = render(images, transforms, canvas=100).astype(np.int64).sum((1, 2))
        assert (on_canvas == everywhere).all()


def test_distribution_is_the_documented_one(digits: tuple[np.ndarray, np.ndarray]) -> None:
    transforms = np.concatenate([draw_transforms(digits[0], copy, seed=0) for copy in range(100)])
    for column, (low, high) in enumerate([(-20, 20), (-0.2, 0.2), (0.8, 1.2), (0.8, 1.2)]):
        shares = (transforms[:, column] - low) / (high - low)
        assert shares.min() >= -1e-6
        assert shares.max() <= 1 + 1e-6
        counts = np.histogram(shares, bins=20, range=(0, 1))[0]
        expected = len(shares) / 20
        assert ((counts - expected) ** 2 / expected).sum() < 19 + 5 * math.sqrt(2 * 19)
    # Digits fill about 20 of 28 pixels, so they may move by about 10 pixels either way.
    assert 9 < np.abs(transforms[:, 4:]).max() < 20
    assert np.abs(transforms[:, 4:].mean(0)).max() < 2


def test_translation_reaches_the_edges_of_the_canvas() -> None:
    images = np.repeat(dot(14, 14), 2000, axis=0)
    made = synthesize(
        images, np.zeros(2000, np.uint8), 1, 0, ranges=AffineRange.around(rotation=0, shear=0, expansion=0)
    )
    rows, columns = made.images.any(2), made.images.any(1)
    assert rows[:, 0].any()
    assert rows[:, -1].any()
    assert columns[:, 0].any()
    assert columns[:, -1].any()


def test_same_seed_gives_the_same_bits_whatever_the_chunk(digits: tuple[np.ndarray, np.ndarray]) -> None:
    whole = synthesize(*digits, copies=2, seed=7)
    again = synthesize(*digits, copies=2, seed=7)
    parts = list(synthesize_chunks(*digits, copies=2, seed=7, chunk=33))
    assert (whole.images == again.images).all()
    assert (np.concatenate([part.images for part in parts]) == whole.images).all()
    other = synthesize(*digits, copies=2, seed=8)
    assert (whole.transforms != other.transforms).any()


def test_fewer_copies_and_digits_are_the_beginning_of_more(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    whole = synthesize(images, labels, copies=3, seed=0)
    fewer = synthesize(images, labels, copies=1, seed=0)
    assert (whole.images[: len(images)] == fewer.images).all()
    smaller = synthesize(images[:10], labels[:10], copies=2, seed=0)
    assert (smaller.images[10:] == whole.images[len(images) : len(images) + 10]).all()


def test_layout_is_that_of_affnist(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    made = synthesize(images, labels, copies=2, seed=0)
    assert made.images.shape == (200, 40, 40)
    assert made.source_index is not None
    assert made.source_index.tolist() == [*range(100), *range(100)]
    assert (made.labels == np.tile(labels, 2)).all()
    assert made.transforms is not None
    assert (made.transforms.dtype, made.transforms.shape) == (np.float32, (200, 6))


def test_rendering_again_from_the_table_gives_the_same_bits(digits: tuple[np.ndarray, np.ndarray]) -> None:
    made = synthesize(*digits, copies=1, seed=2)
    assert made.transforms is not None
    assert (render(digits[0], made.transforms) == made.images).all()


def test_factors_can_be_widened_and_switched_off(digits: tuple[np.ndarray, np.ndarray]) -> None:
    wide = synthesize(*digits, copies=5, seed=0, ranges=AffineRange.around(rotation=45)).transforms
    still = synthesize(*digits, copies=5, seed=0, ranges=AffineRange.around(translation=0)).transforms
    turned = synthesize(*digits, copies=5, seed=0, ranges=AffineRange.around(rotation=60).only("rotation")).transforms
    assert wide is not None
    assert still is not None
    assert turned is not None
    assert 40 < np.abs(wide[:, 0]).max() <= 45
    assert (still[:, 4:] == 0).all()
    assert np.abs(turned[:, 0]).max() > 50
    assert (turned[:, 1:] == np.array(NEUTRAL[1:], np.float32)).all()


def test_written_set_is_the_one_in_memory(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    write_synthetic(tmp_path / "made.h5", *digits, 2, 4, ATTRIBUTES)
    written, made = read_set(tmp_path / "made.h5"), synthesize(*digits, copies=2, seed=4)
    assert (written.images == made.images).all()
    assert made.transforms is not None
    assert (written.transforms == made.transforms).all()
    assert written.attributes["copies"] == 2


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: AffineRange(rotation=(5, -5)), "rotation must be a finite interval, low to high"),
        (lambda: AffineRange(vertical_expansion=(0, 1)), "vertical_expansion must lie within 0.1 to 10"),
        (lambda: AffineRange.around(shear=-1), "shear must not be negative"),
        (lambda: AffineRange().only("colour"), "there is no factor 'colour'"),
        (lambda: synthesize(dot(1, 1), np.zeros(1, np.uint8), copies=0, seed=0), "copies must be 1 or more"),
        (lambda: synthesize(dot(1, 1), np.zeros(2, np.uint8), copies=1, seed=0), "labels must be"),
        (lambda: synthesize(dot(1, 1).astype(float), np.zeros(1), copies=1, seed=0), "images must be uint8"),
    ],
)
def test_mistakes_are_one_clear_sentence(make: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        make()  # type: ignore[operator]


def test_digit_that_fits_nowhere_is_an_error() -> None:
    full = np.full((1, 28, 28), 255, np.uint8)
    with pytest.raises(DataError, match="does not fit wholly on a 20×20 canvas"):
        synthesize(full, np.zeros(1, np.uint8), copies=1, seed=0, canvas=20)
