"""Files as the official ones are, made here by a renderer of the tests' own: read, paired with MNIST, verified."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.ndimage

from affbench.data import sets
from affbench.data.affnist import export_mat, read_mat
from affbench.data.affnist.originals import pair
from affbench.data.affnist.verify import VerificationReport, verify_affnist
from affbench.data.convert import write_affnist
from affbench.data.dataset import UNPAIRED, Dataset
from affbench.data.hdf5 import read_set

DIGITS, VERSIONS, SAMPLE = 120, 2, 60
ATTRIBUTES = {"name": "affnist", "split": "test", "source": "here", "sha256": "", "license": "free"}


@pytest.fixture(scope="module")
def digits(data_dir: Path) -> Dataset:
    return sets.load_dataset("mnist-sample", data_dir=data_dir, limit=DIGITS)


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a file is made; by default as the official ones are."""

    turn: int = 1  # counter-clockwise
    vertical_shear: bool = True
    whole: bool = True
    quantise: Callable[[np.ndarray], np.ndarray] = np.floor

    def matrix(self, row: np.ndarray) -> np.ndarray:
        """2×3 on (row, column, 1), from the 28×28 digit to the canvas, by the formula."""
        rotation, shear, vertical, horizontal, down, right = row
        theta = self.turn * math.radians(rotation)
        turn = np.array([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]])
        lean = np.array([[1, 0], [shear, 1]]) if self.vertical_shear else np.array([[1, shear], [0, 1]])
        on_xy = np.diag([horizontal, vertical]) @ lean @ turn
        on_rows = on_xy[::-1, ::-1]
        return np.c_[on_rows, 19.5 + np.array([down, right]) - on_rows @ [13.5, 13.5]]

    def draw(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A row of the table and its image; no ink falls off."""
        shape = rng.uniform([-20, -0.2, 0.8, 0.8], [20, 0.2, 1.2, 1.2])
        while True:
            shift = rng.uniform(-10, 10, 2)
            row = np.r_[shape, np.rint(shift) if self.whole else shift]
            levels = self.levels(image, row)
            if (levels[0] <= 12.75).all() and levels.sum() > 0.99 * self.levels(image, np.r_[shape, 0, 0]).sum():
                return row, self.quantise(levels + 1e-9).astype(np.uint8)

    def levels(self, image: np.ndarray, row: np.ndarray) -> np.ndarray:
        matrix = self.matrix(row)
        back = np.linalg.inv(matrix[:, :2])
        return scipy.ndimage.affine_transform(
            np.pad(image.astype(float), 2), back, 2 - back @ matrix[:, 2], output_shape=(40, 40), order=1
        )

    def write(self, path: Path, digits: Dataset, order: np.ndarray, **changes: Any) -> Path:
        """One .mat file, all digits in the given order, version after version; ids count in that order."""
        rng = np.random.default_rng(0)
        sources = np.tile(order, VERSIONS)
        rows, images = map(np.array, zip(*(self.draw(digits.images[k], rng) for k in sources), strict=True))
        matrices = np.array([self.matrix(row) for row in rows])
        square = np.concatenate([matrices, np.tile([[[0, 0, 1]]], (len(rows), 1, 1))], axis=1)
        n = len(rows)
        content = {
            "matrix_old_to_new": matrices.reshape(n, 6).T,
            "matrix_new_to_old": np.linalg.inv(square)[:, :2].reshape(n, 6).T,
            "image": images.reshape(n, 1600).T,
            "index": np.arange(1, n + 1)[None],
            "label_one_of_n": np.eye(10, dtype=np.uint8)[digits.labels[sources]].T,
            "label_int": digits.labels[sources][None],
            "human_readable_transform": rows.T,
            "original_id": np.tile(np.arange(1, len(order) + 1), VERSIONS)[None],
        }
        for name, change in changes.items():
            content[name] = change(content[name])
        scipy.io.savemat(path, {"affNISTdata": content})
        return path


IN_ORDER = np.arange(DIGITS)
PERMUTED = np.random.default_rng(7).permutation(DIGITS)


def verified(read: Dataset, digits: Dataset) -> VerificationReport:
    return verify_affnist(read, digits, SAMPLE, seed=0)


@pytest.mark.parametrize("order", [IN_ORDER, PERMUTED], ids=["in MNIST's order", "permuted"])
def test_official_like_file_is_paired_and_verified(tmp_path: Path, digits: Dataset, order: np.ndarray) -> None:
    path = Convention().write(tmp_path / "test.mat", digits, order)
    read = read_mat(path)
    assert read.attributes["matrices"] == "agree with the table"
    assert read.source_index.tolist() == list(range(DIGITS)) * VERSIONS
    report = verified(read, digits)
    assert report.agrees, report.sentence
    assert report.equal > 0.99
    write_affnist(tmp_path / "set.h5", [path], ATTRIBUTES, digits)
    converted = read_set(tmp_path / "set.h5")
    assert np.array_equal(converted.source_index, np.tile(order, VERSIONS))  # in MNIST's order
    if order is PERMUTED:
        assert np.array_equal(converted.original_id, np.tile(np.arange(1, DIGITS + 1), VERSIONS))  # the file's own
    again = verified(converted, digits)
    assert again.agrees, again.sentence
    assert again.originals == "by number"


def test_originals_are_taken_from_their_own_file_where_there_is_one(tmp_path: Path, digits: Dataset) -> None:
    path = Convention().write(tmp_path / "test.mat", digits, PERMUTED)
    scipy.io.savemat(
        tmp_path / "originals.mat",
        {
            "affNISTdata": {
                "image": digits.images[PERMUTED].reshape(DIGITS, 784).T,
                "label_int": digits.labels[PERMUTED][None],
            }
        },
    )
    write_affnist(tmp_path / "set.h5", [path], ATTRIBUTES, digits, tmp_path / "originals.mat")
    converted = read_set(tmp_path / "set.h5")
    assert np.array_equal(converted.source_index, np.tile(PERMUTED, VERSIONS))
    assert converted.attributes["order"] == "found by the pixels of the file's originals"


def test_originals_that_are_not_there_leave_the_order_of_the_file(
    tmp_path: Path, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    path = Convention().write(tmp_path / "test.mat", digits, PERMUTED)
    others = dataclasses.replace(digits, images=digits.images[:, ::-1].copy())
    write_affnist(tmp_path / "set.h5", [path], ATTRIBUTES, others)
    converted = read_set(tmp_path / "set.h5")
    assert np.array_equal(converted.source_index, np.tile(np.arange(DIGITS), VERSIONS))
    assert str(converted.attributes["order"]).startswith(UNPAIRED)
    assert f"source_index of {path} counts {UNPAIRED}" in caplog.text


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (Convention(vertical_shear=False), "shear is horizontal"),
        (Convention(turn=-1), "rotation is clockwise"),
        (Convention(quantise=np.rint), "rounded, not truncated"),
        (Convention(whole=False), "translations are fractional in 100.0% of the cases"),
    ],
    ids=["horizontal shear", "clockwise", "rounded", "fractional"],
)
@pytest.mark.parametrize("order", [IN_ORDER, PERMUTED], ids=["in MNIST's order", "permuted"])
def test_other_convention_is_named(
    tmp_path: Path, digits: Dataset, made: Convention, named: str, order: np.ndarray
) -> None:
    report = verified(read_mat(made.write(tmp_path / "test.mat", digits, order)), digits)
    assert not report.agrees
    assert named in report.sentence


def swap(one: int, other: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(table: np.ndarray) -> np.ndarray:
        table = table.copy()
        table[[one, other]] = table[[other, one]]
        return table

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap(4, 5), "vertical_translation is stored in the column horizontal_translation"),
        (swap(2, 3), "vertical_expansion is stored in the column horizontal_expansion"),
        (lambda table: table[:, np.random.default_rng(1).permutation(table.shape[1])], "as if the table were shuffled"),
    ],
    ids=["translations", "expansions", "shuffled"],
)
@pytest.mark.parametrize("order", [IN_ORDER, PERMUTED], ids=["in MNIST's order", "permuted"])
def test_wrong_table_is_named(
    tmp_path: Path, digits: Dataset, change: Callable[[np.ndarray], np.ndarray], named: str, order: np.ndarray
) -> None:
    path = Convention().write(tmp_path / "test.mat", digits, order, human_readable_transform=change)
    read = read_mat(path)
    assert str(read.attributes["matrices"]).startswith("disagree with the table")
    report = verified(read, digits)
    assert not report.agrees
    assert named in report.sentence


def test_plain_loader_reads_what_is_exported(tmp_path: Path, digits: Dataset) -> None:
    """A loader of a few lines, as others write it: by position, indices from 1."""
    made = sets.sample_of(sets.find_part("affnist-synthetic-sample", copies=2), 60, tmp_path)
    export_mat(made, tmp_path / "test.mat")
    data = scipy.io.loadmat(tmp_path / "test.mat")["affNISTdata"][0, 0]
    images, labels = data[2].T.reshape(-1, 40, 40), data[5][0]
    table, originals = data[6].T, data[7][0] - 1
    read = read_mat(tmp_path / "test.mat")
    for mine, theirs in ((read.images, images), (read.labels, labels), (read.transforms, table)):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(read.source_index, originals)
    assert verified(read, digits).sentence.startswith("The documented convention explains affnist")
    convention = Convention()
    for k in range(0, len(images), 13):
        assert np.allclose(data[0].T[k].reshape(2, 3), convention.matrix(table[k]), rtol=0, atol=1e-9)
        levels = convention.levels(digits.images[originals[k]], table[k])
        assert (images[k] == np.floor(levels + 1e-6)).all()


def test_every_original_is_found_among_many_digits(data_dir: Path) -> None:
    many = sets.load_dataset("mnist-sample", split="test", data_dir=data_dir)
    made = sets.sample_of(sets.find_part("affnist-synthetic-sample", copies=3), len(many), data_dir)
    order = np.random.default_rng(3).permutation(len(many)).astype(np.int32)
    ids = np.tile(np.argsort(order), 3).astype(np.int32)  # original i of the file is digit order[i]
    found, _ = pair(made.images, dataclasses.replace(made, source_index=ids), many)
    assert np.array_equal(found, made.source_index)
