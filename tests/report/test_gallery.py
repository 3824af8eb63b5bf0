"""``affbench figure``: a PNG and a CSV of its numbers, from runs to files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY_CNN, Affbench, tiny_config

from affbench.base.config import ModelConfig
from affbench.base.workspace import Workspace
from affbench.report.drawing import sheet
from affbench.run.train import train

AFFINE = "affnist-synthetic-sample"


def drawn(ended: Any) -> list[dict[str, str]]:
    """The rows of a figure's CSV, its PNG looked at."""
    assert ended.status == 0, ended.stderr
    assert Path(ended.document["figure"]).read_bytes().startswith(b"\x89PNG")
    with Path(ended.document["data"]).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        (["reconstructions"], 50),
        (["perturb", "--digit", "5"], 16 * 11),
        (["equivariance", "--digit", "3", "--per-class", "1"], 6 * 9 * 17 + 7 * 17),
        (["equivariance", "--per-class", "1"], 10 * (6 * 9 * 17 + 7 * 17)),
        (["wrong", "--set", AFFINE, "--copies", "1", "--limit", "200", "--count", "13"], 13),
        (["positions", "--set", AFFINE, "--copies", "1", "--limit", "200"], None),
        (["factors", "--factor", "rotation", "--factor", "shear", "--limit", "100"], 24),
    ],
)
def test_figures_of_a_capsnet(affbench: Affbench, workspace: Workspace, command: list[str], rows: int | None) -> None:
    train(tiny_config(epochs=1), workspace)
    content = drawn(affbench("figure", *command, "--json", "--device", "cpu"))
    assert rows is None or len(content) == rows
    if command[0] == "positions":
        assert sum(int(row["n"]) for row in content) == 200


def test_figures_of_a_model_without_capsules(affbench: Affbench, workspace: Workspace, tmp_path: Path) -> None:
    config = tiny_config(epochs=1)
    train(config.model_copy(update={"model": ModelConfig(name="cnn", options=TINY_CNN)}), workspace)
    options = ("--set", "mnist-translated-sample", "--limit", "200", "--output", str(tmp_path))
    wrong = drawn(affbench("figure", "wrong", *options, "--json", "--device", "cpu"))
    assert len(wrong) == 20
    for command in (["perturb"], ["reconstructions"], ["equivariance"]):
        ended = affbench("figure", *command, "--device", "cpu")
        assert ended.status == 2
        assert "which has no class capsules" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["perturb", "--digit", "12"], "there is no digit of class 12"),
        (["perturb", "--run", "nothing"], "there is no finished run 'nothing'"),
        (["wrong", "--set", "afnist"], "unknown set 'afnist'"),
        (["factors", "--factor", "colour"], "there is no factor 'colour'"),
    ],
)
def test_bad_input_is_one_sentence(
    affbench: Affbench, workspace: Workspace, command: list[str], complaint: str
) -> None:
    train(tiny_config(epochs=1), workspace)
    ended = affbench("figure", *command, "--device", "cpu")
    assert ended.status == 2
    assert complaint in " ".join(ended.stderr.split())


def test_sheet_puts_pictures_in_their_places() -> None:
    tiles = np.arange(1, 7, dtype=np.uint8).reshape(2, 3, 1, 1) * np.ones((1, 1, 2, 2), np.uint8)
    expected = [[1, 1, 0, 2, 2, 0, 3, 3]] * 2 + [[0] * 8] + [[4, 4, 0, 5, 5, 0, 6, 6]] * 2
    np.testing.assert_array_equal(sheet(tiles, gap=1), expected)
