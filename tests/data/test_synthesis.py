"""The synthetic affNIST, against renderings and figures computed without it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from affbench.base.errors import DataError, UsageError
from affbench.data import sets, synthesis
from affbench.data.dataset import TRANSFORM_COLUMNS
from affbench.data.hdf5 import read_set
from affbench.data.synthesis import FAINT, render, synthesize, synthesize_chunks, write_synthetic
from affbench.data.transform import AffineRange, old_to_new

NEUTRAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
ATTRIBUTES = {"name": "made", "split": "test", "source": "here", "sha256": "", "license": "free"}


@pytest.fixture(scope="module")
def digits(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    dataset = sets.load_dataset("mnist-sample", data_dir=data_dir, limit=100)
    return dataset.images, dataset.labels


def transform(**factors: float) -> np.ndarray:
    row = dict(zip(TRANSFORM_COLUMNS, NEUTRAL, strict=True)) | factors
    return np.array([[row[name] for name in TRANSFORM_COLUMNS]], np.float32)


def dot(row: int, column: int) -> np.ndarray:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, row, column] = 200
    return image


def linear(row: np.ndarray) -> np.ndarray:
    """E·S·R of one row of the table, on (x, y), y down: from the formula, not from the package."""
    rotation, shear, vertical, horizontal = (float(value) for value in row[:4])
    theta = math.radians(rotation)
    turn = np.array([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]])
    return np.diag([horizontal, vertical]) @ np.array([[1, 0], [shear, 1]]) @ turn


def by_definition(image: np.ndarray, row: np.ndarray, canvas: int = 40) -> np.ndarray:
    """Levels pixel by pixel in float64, before truncation, with scipy's interpolation."""
    backward = np.linalg.inv(linear(row))
    down, right = (float(value) for value in row[4:])
    centre_in, centre_out = (len(image) - 1) / 2, (canvas - 1) / 2
    rows, columns = np.mgrid[:canvas, :canvas]
    x, y = columns - centre_out - right, rows - centre_out - down
    source_x = backward[0, 0] * x + backward[0, 1] * y + centre_in
    source_y = backward[1, 0] * x + backward[1, 1] * y + centre_in
    padded = np.pad(image.astype(np.float64), 2)  # so that ink at the edge fades into the background, not into itself
    return scipy.ndimage.map_coordinates(padded, [source_y + 2, source_x + 2], order=1, mode="constant", cval=0.0)


def test_rendering_is_the_convention_truncated(digits: tuple[np.ndarray, np.ndarray]) -> None:
    made = synthesize(digits[0][:40], digits[1][:40], copies=1, seed=5)
    for image, row, rendered in zip(digits[0], made.transforms, made.images, strict=False):
        levels = by_definition(image, row)
        clear = np.abs(levels - np.rint(levels)) > 1e-6  # elsewhere the last bit decides
        assert (rendered[clear] == np.floor(levels[clear])).all()
        assert np.abs(rendered[~clear] - levels[~clear]).max() <= 1 + 1e-6


def test_table_row_gives_the_official_matrix() -> None:
    row = [5.59376482, -0.18365336, 0.84202952, 0.80801291, -8, -8]  # one row of the official test.mat, and its matrix
    matrix = [0.82294617, -0.23598164, 3.57597884, 0.07876073, 0.80416517, -0.41949964]
    assert old_to_new(np.array([row])).ravel() == pytest.approx(matrix, abs=1e-6)


def test_neutral_transformation_is_the_padded_digit(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images = digits[0][:5]
    rendered = render(images, np.repeat(transform(), 5, axis=0))
    assert (rendered == np.pad(images, ((0, 0), (6, 6), (6, 6)))).all()


@pytest.mark.parametrize(
    ("factors", "row", "column"),
    [
        ({}, 10 + 6, 20 + 6),
        ({"vertical_translation": 3, "horizontal_translation": -5}, 19, 21),
        # A quarter turn, counter-clockwise, carries right to up: (x, y) = (6.5, −3.5) goes to (−3.5, −6.5).
        ({"rotation": 90}, 13, 16),
        ({"rotation": 180}, 23, 13),
        ({"horizontal_expansion": -1 + 2.0}, 16, 26),
        # y = −3.5 + 1 · 6.5 = 3: between rows 22 and 23 of the canvas.
        ({"shear": 1.0}, (22, 23), 26),
        ({"vertical_expansion": 3.0}, 9, 26),
    ],
)
def test_single_pixel_lands_where_the_convention_says(
    factors: dict[str, float], row: int | tuple[int, int], column: int
) -> None:
    made = render(dot(10, 20), transform(**factors))[0]
    rows = (row,) if isinstance(row, int) else row
    brightest = made.max()
    for each in rows:
        assert made[each, column] == brightest
    assert made[list(rows), column].sum() == 200 if "expansion" not in str(factors) else brightest == 200


def test_levels_are_truncated_not_rounded() -> None:
    image = dot(10, 20) // 200 * 203
    made = render(image, transform(horizontal_translation=0.5))[0]
    assert (made[16, 26], made[16, 27]) == (101, 101)  # half of 203 each
    assert made.sum() == 202


def test_whole_levels_survive_truncation() -> None:
    flat = np.full((1, 28, 28), 253, np.uint8)
    made = render(flat, transform(rotation=90, horizontal_expansion=1.1))[0]
    assert (made[8:32, 6:34] == 253).all()


def test_translations_are_whole_pixels_uniform_over_what_keeps_the_ink() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[10:14, 12] = 200  # four pixels down; beside the canvas's edge it may stand on
    image[10:14, 13] = 12  # too faint to count
    copies = 60
    transforms = synthesize(
        np.repeat(image[None], 500, axis=0),
        np.zeros(500, np.uint8),
        copies,
        0,
        ranges=AffineRange.around(rotation=0).only("vertical_translation", "horizontal_translation"),
    ).transforms
    moves = transforms[:, 4:]
    assert (moves == np.rint(moves)).all()
    rows, columns = (np.unique(move, return_counts=True) for move in moves.T)
    # The ink is in rows 16 to 19 and column 18 of the padded digit.
    assert rows[0].tolist() == list(range(-16, 21))
    assert columns[0].tolist() == list(range(-18, 22))
    for counts in (rows[1], columns[1]):
        expected = 500 * copies / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * math.sqrt(2 * len(counts))


def test_no_ink_above_the_limit_is_lost(digits: tuple[np.ndarray, np.ndarray]) -> None:
    made = synthesize(*digits, copies=4, seed=3)
    lost = 0
    for image, row in zip(np.tile(digits[0], (4, 1, 1)), made.transforms, strict=True):
        outside = by_definition(image, row, canvas=100)
        outside[30:70, 30:70] = 0
        assert outside.max() <= FAINT
        lost += outside.max() >= 1
    assert 0.02 < lost / len(made) < 0.15  # faint ink is, now and then, as in the official files


def test_distribution_is_the_documented_one(digits: tuple[np.ndarray, np.ndarray]) -> None:
    transforms = synthesize(*digits, copies=100, seed=0).transforms
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


def test_same_seed_gives_the_same_bits_whatever_the_chunk(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = synthesize(*digits, copies=2, seed=7)
    again = synthesize(*digits, copies=2, seed=7)
    monkeypatch.setattr(synthesis, "CHUNK", 33)
    parts = list(synthesize_chunks(*digits, copies=2, seed=7))
    assert len(parts) == 2 * math.ceil(len(digits[0]) / 33)
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
    assert made.source_index.tolist() == [*range(100), *range(100)]
    assert (made.labels == np.tile(labels, 2)).all()
    assert (made.transforms.dtype, made.transforms.shape) == (np.float32, (200, 6))


def test_rendering_again_from_the_table_gives_the_same_bits(digits: tuple[np.ndarray, np.ndarray]) -> None:
    made = synthesize(*digits, copies=1, seed=2)
    assert (render(digits[0], made.transforms) == made.images).all()


def test_factors_can_be_widened_and_switched_off(digits: tuple[np.ndarray, np.ndarray]) -> None:
    wide = synthesize(*digits, copies=5, seed=0, ranges=AffineRange.around(rotation=45)).transforms
    still = synthesize(*digits, copies=5, seed=0, ranges=AffineRange.around(translation=0)).transforms
    turned = synthesize(*digits, copies=5, seed=0, ranges=AffineRange.around(rotation=60).only("rotation")).transforms
    assert 40 < np.abs(wide[:, 0]).max() <= 45
    assert (still[:, 4:] == 0).all()
    assert np.abs(turned[:, 0]).max() > 50
    assert (turned[:, 1:] == np.array(NEUTRAL[1:], np.float32)).all()


def test_written_set_is_the_one_in_memory(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> None:
    write_synthetic(tmp_path / "made.h5", digits, 2, 4, ATTRIBUTES)
    written, made = read_set(tmp_path / "made.h5"), synthesize(*digits, copies=2, seed=4)
    assert (written.images == made.images).all()
    assert (written.transforms == made.transforms).all()
    assert written.attributes["copies"] == 2


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: AffineRange(rotation=(5, -5)), "rotation must be a finite interval, low to high"),
        (lambda: AffineRange(vertical_expansion=(0, 1)), "vertical_expansion must be .* within 0.1 to 10;"),
        (lambda: AffineRange(shear=(1, float("inf"))), "shear must be a finite interval, low to high; it is 1 to inf"),
        (lambda: AffineRange.around(shear=-1), "shear must not be negative"),
        (
            lambda: AffineRange(vertical_translation=(0.2, 0.8)),
            "counts whole pixels, and there is none from 0.2 to 0.8",
        ),
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
