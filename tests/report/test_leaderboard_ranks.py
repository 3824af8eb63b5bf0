"""Ranks that respect the noise."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import make_run, record

from affbench.base import store
from affbench.base.errors import UsageError
from affbench.experiment.reference import leaderboards
from affbench.report.terminal import leaderboard_tables


def test_ranks_are_shared_where_intervals_overlap(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.89, 0.80, 0.60)):
        make_run(tmp_path / "runs", seed=seed, accuracy={"mnist-translated": accuracy})
    (board,) = leaderboards(tmp_path, "mnist-translated")
    assert [row.rank for row in board.rows] == [1, 1, 3, 4]
    assert [row.seed for row in board.rows] == [0, 1, 2, 3]
    assert all(row.low <= row.accuracy <= row.high for row in board.rows)
    ours, published = leaderboard_tables(board)
    assert [row[0].text for row in ours.rows] == ["1", "1", "3", "4"]
    assert "99.23" in [row[-1].text for row in published.rows]  # the paper's
    with pytest.raises(UsageError, match=r"no run in .* was tested on 'affnist'"):
        leaderboards(tmp_path, "affnist")


def test_a_terminal_of_80_columns_shows_names_whole_and_published_rows_in_one_line(tmp_path: Path) -> None:
    name = "aff-capsnet-seed0-7c30d4a4"
    make_run(tmp_path / "runs", seed=0, accuracy={"affnist": 0.9}, name=name)
    matched = make_run(tmp_path / "runs", seed=1, accuracy={"affnist": 0.8}, stop_at=0.985)
    (board,) = leaderboards(tmp_path)
    printed = io.StringIO()
    for table in leaderboard_tables(board):
        Console(file=printed, width=80).print(table)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if name in line]
    at = next(number for number, line in enumerate(lines) if matched.run.name in line)
    assert "matched at 98.5%" in lines[at + 1]
    for other in board.published:
        assert [line for line in lines if line.startswith(f"{other.method} ") and f" {other.value:g}" in line]
    assert any(f"{other.value:g}*" in printed.getvalue() for other in board.published)  # not checked at its source


def test_a_network_trained_on_centred_digits_is_marked(tmp_path: Path) -> None:
    for seed, data in enumerate(({"train_set": "mnist-translated"}, {"train_set": "mnist-padded", "shift": 0})):
        make_run(tmp_path / "runs", seed=seed, accuracy={"affnist": 0.9 - 0.2 * seed}, data=data)
    (board,) = leaderboards(tmp_path)
    names = [row[1].text for row in leaderboard_tables(board)[0].rows]
    assert ["trained on centred digits" in name for name in names] == [False, True]


def test_a_warning_stands_under_the_table_and_names_the_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", seed=seed, accuracy={"mnist-translated": 0.9}).run for seed in range(2)]
    warned = runs[1].evaluations["mnist-translated"].model_copy(update={"warning": "the answers depend on the batch."})
    store.write_json(runs[1].path / "eval-mnist-translated.json", warned.document())
    (board,) = leaderboards(tmp_path)
    assert {row.run: row.warning for row in board.rows} == {runs[0].name: None, runs[1].name: warned.warning}
    lines = leaderboard_tables(board)[0].caption.split("\n")
    assert lines[1:] == [f"Warning, {runs[1].name}: the answers depend on the batch."]


def test_what_cannot_be_read_is_left_out_and_a_copy_counts_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", seed=seed, accuracy={"mnist-translated": 0.9}).run for seed in range(3)]
    path = runs[1].path / "environment.json"
    path.write_text(path.read_text() + " ")
    shutil.copytree(runs[2].path, tmp_path / "runs" / f"{runs[2].name}.bak")
    (board,) = leaderboards(tmp_path)
    assert sorted(row.run for row in board.rows) == sorted([runs[0].name, runs[2].name])
    assert "is damaged" in leaderboard_tables(board)[0].caption
    assert f"Run {runs[2].name}.bak is left out: it is a copy of {runs[2].name}." in board.left_out


def test_other_numbers_of_images_are_said(tmp_path: Path) -> None:
    for seed, copies in ((0, 8), (1, 16)):
        run = make_run(tmp_path / "runs", seed=seed, accuracy={}).run
        tested = record(run.path, run.config, "affnist", 0.7, 64 * copies, copies)
        store.write_json(run.path / "eval-affnist.json", tested.document())
    (board,) = leaderboards(tmp_path)
    assert "Not all were tested on as many images" in leaderboard_tables(board)[0].caption
