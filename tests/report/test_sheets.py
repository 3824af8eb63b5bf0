from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affbench.base.errors import DataError
from affbench.data import sets
from affbench.data.dataset import Dataset
from affbench.report.sheets import factor_histograms, sample_sheet


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), np.float64)


def test_sheet_of_a_plain_set_shows_dark_ink_on_white(tmp_path: Path, data_dir: Path) -> None:
    dataset = sets.load_dataset("mnist-translated-sample", data_dir=data_dir)
    shown = pixels(sample_sheet(dataset, tmp_path / "sheet.png").path)
    assert min(shown.shape) > 400
    assert shown.mean() > 200
    assert shown.min() < 40
    assert (tmp_path / "sheet.png").stat().st_size < 400_000


def test_sheet_of_an_affine_set_has_originals_and_versions(tmp_path: Path, data_dir: Path) -> None:
    part = sets.find_part("affnist-synthetic-sample", copies=5)
    dataset = sets.sample_of(part, 60, data_dir)
    originals = sets.load_dataset("mnist-sample", data_dir=data_dir).images
    with_originals = pixels(sample_sheet(dataset, tmp_path / "sheet.png", originals, rows=4, columns=6).path)
    without = pixels(sample_sheet(dataset, tmp_path / "plain.png", rows=4, columns=6).path)
    assert with_originals.shape != without.shape
    assert with_originals.mean() > 200


def test_histograms_show_six_factors(tmp_path: Path, data_dir: Path) -> None:
    part = sets.find_part("affnist-synthetic-sample", copies=5)
    dataset = sets.sample_of(part, 60, data_dir)
    assert pixels(factor_histograms(dataset, tmp_path / "histograms.png").path).min() < 120


def test_sets_that_cannot_be_shown_are_said(tmp_path: Path) -> None:
    empty = Dataset("nothing", "test", np.zeros((0, 40, 40), np.uint8), np.zeros(0, np.uint8))
    with pytest.raises(DataError, match="is empty"):
        sample_sheet(empty, tmp_path / "sheet.png")
    plain = Dataset("plain", "test", np.zeros((3, 40, 40), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="plain"):
        factor_histograms(plain, tmp_path / "histograms.png")
    assert list(tmp_path.iterdir()) == []
