"""Ranks that respect the noise."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import make_run

from affbench.errors import UsageError
from affbench.leaderboard import leaderboard_table, leaderboards


def test_ranks_are_shared_where_intervals_overlap(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.89, 0.80, 0.60)):
        make_run(tmp_path / "runs", seed=seed, accuracy={"mnist-translated": accuracy})
    (board,) = leaderboards(tmp_path, "mnist-translated")
    assert [row.rank for row in board.rows] == [1, 1, 3, 4]
    assert [row.seed for row in board.rows] == [0, 1, 2, 3]
    assert all(row.low <= row.accuracy <= row.high for row in board.rows)
    shown = leaderboard_table(board).to_markdown()
    assert "99.23" in shown  # the paper's, below our own
    with pytest.raises(UsageError, match=r"no run in .* was tested on 'affnist'"):
        leaderboards(tmp_path, "affnist")
