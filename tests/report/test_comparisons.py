"""Models at matched accuracy, and pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run

from affbench.analysis.comparison import compare
from affbench.analysis.results import Group, LabelledRun, Results, read_results
from affbench.base.errors import ArtefactError
from affbench.base.statistics import paired_difference
from affbench.report.sections import matched, pairs
from affbench.report.table import Table
from affbench.run.folder import Run
from affbench.run.record import predictions_path

AFFINE = "affnist-synthetic"


def group(runs: list[LabelledRun]) -> Group:
    (own,) = read_results(runs).groups
    return own


def matched_tables(results: Results) -> tuple[Table, ...]:
    section = matched.section(results, Path())
    assert section is not None
    return section.tables


def several(folder: Path, label: str, shares: list[float], stop_at: float | None = None) -> list[LabelledRun]:
    return [
        make_run(folder, label, seed=seed, accuracy={AFFINE: share}, stop_at=stop_at, model=label.lower().split(",")[0])
        for seed, share in enumerate(shares)
    ]


def test_difference_is_that_of_the_accuracies_and_keeps_versions_of_a_digit_together(tmp_path: Path) -> None:
    first = group(several(tmp_path, "capsnet", [0.80, 0.82]))
    second = group(several(tmp_path, "cnn", [0.70, 0.74]))
    found = compare(first, second, AFFINE)
    assert found is not None
    assert found.over_seeds.n == 2
    assert (found.n, found.n_originals) == (640, 80)
    assert found.over_digits.difference == pytest.approx(0.09, abs=2e-3)
    assert found.over_seeds.mean == pytest.approx(found.over_digits.difference)
    right = [np.concatenate([_right(result.run) for result in own.results]) for own in (first, second)]
    assert found.over_digits == paired_difference(*right, np.tile(np.arange(640) // 8, 2))


def _right(run: Run) -> np.ndarray:
    import h5py

    with h5py.File(predictions_path(run, AFFINE), "r") as file:
        return file["predictions"][:] == file["labels"][:]


def test_only_common_seeds_and_the_same_images_are_compared(tmp_path: Path) -> None:
    first = group(several(tmp_path, "capsnet", [0.8, 0.8]))
    second = group(several(tmp_path, "cnn", [0.7, 0.7, 0.7]))
    found = compare(first, second, AFFINE)
    assert found is not None
    assert found.over_seeds.n == 2
    assert compare(first, second, "mnist-translated") is None
    assert compare(first, group(several(tmp_path, "cnn-gap", [0.7] * 4)[3:]), AFFINE) is None


def test_damaged_predictions_are_named_and_missing_ones_left_out(tmp_path: Path) -> None:
    runs = [*several(tmp_path, "capsnet", [0.8]), *several(tmp_path, "cnn", [0.7])]
    path = predictions_path(runs[0].run, AFFINE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=r"predictions-affnist-synthetic.h5 is damaged; 'affbench eval --run"):
        compare(group(runs[:1]), group(runs[1:]), AFFINE)
    section = pairs.section(read_results(runs), tmp_path)
    assert not section.tables
    assert "is damaged" in section.problems[0]
    path.unlink()
    section = pairs.section(read_results(runs), tmp_path)
    assert (section.tables, section.problems) == ((), ())


def test_verdicts_say_how_far_they_reach(tmp_path: Path) -> None:
    def verdict(name: str, ours: list[float], theirs: list[float]) -> str:
        runs = [*several(tmp_path / name, "capsnet", ours), *several(tmp_path / name, "cnn", theirs)]
        (table,) = pairs.section(read_results(runs), tmp_path).tables
        return table.rows[0][-1].text

    assert verdict("clear", [0.90, 0.91, 0.92], [0.60, 0.61, 0.62]) == "capsnet ahead"
    assert verdict("behind", [0.60, 0.61, 0.62], [0.90, 0.91, 0.92]) == "cnn ahead"
    assert verdict("none", [0.80, 0.81, 0.80], [0.80, 0.80, 0.81]) == "no difference shown"
    assert verdict("one", [0.90], [0.60]) == "capsnet ahead, with this seed"
    assert verdict("seeds", [0.95, 0.70, 0.80], [0.60, 0.69, 0.81]) == "capsnet ahead; other seeds may differ"


def test_matched_runs_are_compared_with_matched_ones_and_stand_over_the_best(tmp_path: Path) -> None:
    runs = []
    for label in ("capsnet", "cnn"):
        runs += several(tmp_path, label, [0.80, 0.81])
        for stop_at, accuracies in ((0.95, [0.75, 0.76]), (0.97, [0.78, 0.79])):
            runs += several(tmp_path, f"{label}, matched at {100 * stop_at:g}%", accuracies, stop_at=stop_at)
    results = read_results(runs)
    (table,) = matched_tables(results)
    assert [row[0].text for row in table.rows] == ["capsnet"] * 3 + ["cnn"] * 3
    assert [row[1].text.split("\n")[0] for row in table.rows] == ["matched at 95%", "matched at 97%", "best"] * 2
    assert [row[4].text[:3] for row in table.rows[:3]] == ["75.", "78.", "80."]
    (pair_table,) = pairs.section(results, tmp_path).tables
    assert [(row[0].text, row[1].text) for row in pair_table.rows] == [
        ("capsnet\nminus cnn", kept) for kept in ("best", "matched at 95%", "matched at 97%")
    ]


def test_there_is_no_matched_table_without_a_target(tmp_path: Path) -> None:
    assert matched.section(read_results(several(tmp_path, "capsnet", [0.8])), tmp_path) is None


def test_sets_that_no_matched_model_was_tested_on_are_left_out(tmp_path: Path) -> None:
    runs = several(tmp_path, "capsnet, matched at 95%", [0.75], stop_at=0.95)
    runs.append(make_run(tmp_path, "cnn", model="cnn", accuracy={"mnist": 0.99}))
    (table,) = matched_tables(read_results(runs))
    assert [column.split("\n")[0] for column in table.columns[4:]] == [AFFINE]
