from __future__ import annotations

import statistics
from typing import Any

import pytest
from conftest import SAMPLE, tiny_config

from affbench import sweep
from affbench.config import EvaluationConfig, RunConfig, override
from affbench.errors import AffbenchError, UsageError
from affbench.interrupt import Interrupted
from affbench.runs import Run, list_runs
from affbench.sweep import Cell, run_cells, sweep_cells
from affbench.training import train
from affbench.workspace import Workspace

ON_SAMPLE = EvaluationConfig(sets=(SAMPLE,), limit=200)


def test_cells_are_all_pairs_with_seeds_innermost() -> None:
    cells = sweep_cells(tiny_config(), [1, 3], [0, 4])
    pairs = [(cell.config.model.routings, cell.config.training.seed) for cell in cells]
    assert pairs == [(1, 0), (1, 4), (3, 0), (3, 4)]
    assert {cell.config.data.limit for cell in cells} == {96}


def test_sweep_summarises_the_cells_over_their_seeds(workspace: Workspace) -> None:
    result = run_cells(sweep_cells(tiny_config(epochs=1), [1, 2], [0, 1]), ON_SAMPLE, workspace)
    assert not result.failed
    assert [(cell.routings, cell.seed) for cell in result.cells] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(cell.seconds_per_epoch and cell.seconds_per_epoch > 0 for cell in result.cells)
    for row in result.summary:
        values = [cell.accuracy[SAMPLE] for cell in result.cells if cell.routings == row.routings]
        assert row.seeds == (0, 1)
        assert row.accuracy[SAMPLE].mean == pytest.approx(statistics.mean(values))
        assert row.accuracy[SAMPLE].sd == pytest.approx(statistics.stdev(values))
        assert (row.accuracy[SAMPLE].minimum, row.accuracy[SAMPLE].maximum) == (min(values), max(values))
    document = result.to_dict()
    assert {"model", "routings", "seed", "accuracy", "seconds_per_epoch"} <= document["cells"][0].keys()


def test_failing_cell_is_reported_and_the_others_finish(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_for_two(config: RunConfig, workspace: Workspace) -> Run:
        if config.model.routings == 2:
            raise AffbenchError("this one fails")
        return train(config, workspace)

    monkeypatch.setattr(sweep, "train", fails_for_two)
    result = run_cells(sweep_cells(tiny_config(epochs=1), [1, 2, 3], [0]), ON_SAMPLE, workspace)
    assert [cell.error for cell in result.cells] == [None, "this one fails", None]
    assert [row.routings for row in result.summary] == [1, 3]


def test_interrupted_sweep_goes_on_where_it_stopped(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = sweep_cells(tiny_config(epochs=1), [1, 2, 3], [0])
    trained: list[Any] = []

    def stops(config: RunConfig, workspace: Workspace) -> Run:
        if config.model.routings == 3 and len(trained) == 2:
            raise Interrupted("stopped")
        trained.append(config.model.routings)
        return train(config, workspace)

    monkeypatch.setattr(sweep, "train", stops)
    with pytest.raises(Interrupted):
        run_cells(cells, ON_SAMPLE, workspace)
    before = {run.name: (run.path / "manifest.json").stat().st_mtime_ns for run in list_runs(workspace.results)}
    assert len(before) == 2
    monkeypatch.setattr(sweep, "train", train)
    result = run_cells(cells, ON_SAMPLE, workspace)
    assert len(result.cells) == 3
    after = {run.name: (run.path / "manifest.json").stat().st_mtime_ns for run in list_runs(workspace.results)}
    assert before.items() <= after.items()


def test_mistake_in_the_last_cell_is_found_before_the_first_is_trained(workspace: Workspace) -> None:
    bad = override(tiny_config(), model={"name": "capsnet", "options": {"filterz": 1}})
    with pytest.raises(UsageError, match="no option 'filterz'"):
        run_cells([Cell("good", tiny_config()), Cell("bad", bad)], ON_SAMPLE, workspace)
    assert not list_runs(workspace.results)
