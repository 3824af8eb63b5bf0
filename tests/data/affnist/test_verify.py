"""Verification must praise a right table, and name what is wrong with a wrong one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from affbench.base.errors import DataError
from affbench.data import sets
from affbench.data.affnist.verify import VerificationReport, verify_affnist, verify_set
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.synthesis import synthesize

SAMPLE = 40


@pytest.fixture(scope="module")
def originals(data_dir: Path) -> Dataset:
    return sets.load_dataset("mnist-sample", data_dir=data_dir, limit=300)


@pytest.fixture(scope="module")
def made(originals: Dataset) -> Dataset:
    return synthesize(originals.images, originals.labels, copies=1, seed=0)


def verified(made: Dataset, originals: Dataset) -> VerificationReport:
    return verify_affnist(made, originals, SAMPLE, seed=0)


def with_table(made: Dataset, change: object) -> Dataset:
    table = made.transforms.copy()
    change(table)  # type: ignore[operator]
    return dataclasses.replace(made, transforms=table)


def test_synthetic_set_agrees_perfectly(made: Dataset, originals: Dataset) -> None:
    report = verified(made, originals)
    assert report.agrees
    assert report.difference == 0
    assert report.equal == 1
    assert report.correlation == pytest.approx(1)
    assert report.label_agreement == 1
    assert "explains" in report.sentence
    assert json.loads(json.dumps(report.to_dict()))["agrees"] is True


@pytest.mark.parametrize("column", [0, 1, 4, 5])
def test_flipped_sign_is_named(made: Dataset, originals: Dataset, column: int) -> None:
    def flip(table: np.ndarray) -> None:
        table[:, column] *= -1

    report = verified(with_table(made, flip), originals)
    assert not report.agrees
    wrong = [check.factor for check in report.factors if not check.agrees]
    assert wrong == [TRANSFORM_COLUMNS[column]]
    assert TRANSFORM_COLUMNS[column] in report.sentence
    assert report.best_correlation > report.correlation


@pytest.mark.parametrize("pair", [(2, 3), (4, 5)])
def test_exchanged_columns_are_named(made: Dataset, originals: Dataset, pair: tuple[int, int]) -> None:
    def swap(table: np.ndarray) -> None:
        table[:, pair] = table[:, pair[::-1]]

    report = verified(with_table(made, swap), originals)
    assert not report.agrees
    wrong = {check.factor for check in report.factors if not check.agrees}
    assert {TRANSFORM_COLUMNS[column] for column in pair} <= wrong


def test_table_of_other_images_is_found_out(made: Dataset, originals: Dataset) -> None:
    def shuffle(table: np.ndarray) -> None:
        np.random.default_rng(0).shuffle(table)

    report = verified(with_table(made, shuffle), originals)
    assert not report.agrees
    assert report.best_correlation < 0.9


def test_wrong_labels_are_found_out(made: Dataset, originals: Dataset) -> None:
    report = verified(dataclasses.replace(made, labels=(made.labels + 1) % 10), originals)
    assert not report.agrees
    assert report.label_agreement == 0
    assert "labels are not those of the originals" in report.sentence


def test_wrong_source_index_is_found_out(made: Dataset, originals: Dataset) -> None:
    report = verified(dataclasses.replace(made, source_index=np.roll(made.source_index, 1)), originals)
    assert not report.agrees
    assert "source_index names other digits" in report.sentence


def test_set_without_table_has_nothing_to_verify(data_dir: Path) -> None:
    with pytest.raises(DataError, match="no transformation table"):
        verify_set("mnist-translated-sample", "test", data_dir)


def test_set_of_the_catalogue_is_verified_by_name(data_dir: Path) -> None:
    report = verify_set("affnist-synthetic-sample", "test", data_dir, sample=50)
    assert report.agrees
    assert report.n == 50
