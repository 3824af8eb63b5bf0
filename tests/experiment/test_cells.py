from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SAMPLE, Affbench, tiny_config, trainings

from affbench.base.config import EvaluationConfig
from affbench.base.errors import AffbenchError
from affbench.base.interrupt import Interrupted
from affbench.base.workspace import Workspace
from affbench.experiment import cells as sweep
from affbench.experiment.cells import run_cells
from affbench.experiment.pipeline import from_sweep
from affbench.run.folder import Run, list_runs
from affbench.run.plan import Plan
from affbench.run.train import train

ON_SAMPLE = EvaluationConfig(sets=(SAMPLE,), limit=200)


def test_cells_are_all_pairs_with_seeds_innermost(workspace: Workspace) -> None:
    cells = from_sweep(tiny_config(), [1, 3], [0, 4], ON_SAMPLE, workspace).cells
    pairs = [(cell.plan.config.model.routings, cell.plan.config.training.seed) for cell in cells]
    assert pairs == [(1, 0), (1, 4), (3, 0), (3, 4)]
    assert {cell.plan.config.data.limit for cell in cells} == {96}


def test_failing_cell_is_reported_and_the_others_finish(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_for_two(plan: Plan, workspace: Workspace, **kept: Any) -> Run:
        if plan.config.model.routings == 2:
            raise AffbenchError("this one fails")
        return train(plan, workspace, **kept)

    monkeypatch.setattr(sweep, "train", fails_for_two)
    result = run_cells(
        from_sweep(tiny_config(epochs=1), [1, 2, 3], [0], ON_SAMPLE, workspace).cells, ON_SAMPLE, workspace
    )
    assert [cell.error for cell in result] == [None, "this one fails", None]


def test_interrupted_sweep_goes_on_where_it_stopped(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = from_sweep(tiny_config(epochs=1), [1, 2, 3], [0], ON_SAMPLE, workspace).cells
    trained: list[Any] = []

    def stops(plan: Plan, workspace: Workspace, **kept: Any) -> Run:
        if plan.config.model.routings == 3 and len(trained) == 2:
            raise Interrupted("stopped")
        trained.append(plan.config.model.routings)
        return train(plan, workspace, **kept)

    monkeypatch.setattr(sweep, "train", stops)
    with pytest.raises(Interrupted):
        run_cells(cells, ON_SAMPLE, workspace)
    before = {run.name: (run.path / "manifest.json").stat().st_mtime_ns for run in list_runs(workspace.results)}
    assert len(before) == 2
    monkeypatch.setattr(sweep, "train", train)
    result = run_cells(cells, ON_SAMPLE, workspace)
    assert len(result) == 3
    after = {run.name: (run.path / "manifest.json").stat().st_mtime_ns for run in list_runs(workspace.results)}
    assert before.items() <= after.items()


def test_mistake_in_the_last_run_is_found_before_the_first_is_trained(
    workspace: Workspace, tmp_path: Path, affbench: Affbench
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(
        'title = "Wrong"\n[[runs]]\nmodel = "cnn"\n[[runs]]\nmodel = "capsnet"\noptions = { filterz = 1 }\n'
    )
    ended = affbench("run", str(file), "--device", "cpu")
    assert ended.status == 2
    assert "no option 'filterz'" in " ".join(ended.stderr.split())
    assert not list_runs(workspace.results)


def test_any_error_in_a_cell_is_its_own(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **kept: Any) -> Run:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much.")

    monkeypatch.setattr(sweep, "train", out_of_memory)
    result = run_cells(from_sweep(tiny_config(), [1], [0], ON_SAMPLE, workspace).cells, ON_SAMPLE, workspace)
    assert [cell.error for cell in result] == ["OutOfMemoryError: CUDA out of memory."]


def test_two_sweeps_at_once_train_the_cells_they_share_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trainings(monkeypatch)
    results: dict[int, Any] = {}

    def start(number: int, routings: list[int]) -> None:
        results[number] = run_cells(
            from_sweep(tiny_config(epochs=1), routings, [0], ON_SAMPLE, workspace).cells, ON_SAMPLE, workspace
        )

    threads = [threading.Thread(target=start, args=(0, [1, 2])), threading.Thread(target=start, args=(1, [3, 2, 1]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == len(set(trained)) == 3
    shared = [{cell.routings: cell.accuracy for cell in result} for result in results.values()]
    assert shared[0][2] == shared[1][2]
    assert shared[0][1] == shared[1][1]


def test_threads_of_a_run_are_as_asked_and_recorded(workspace: Workspace) -> None:
    before = torch.get_num_threads()
    result = run_cells(
        from_sweep(tiny_config(epochs=1), [1], [0], ON_SAMPLE, workspace).cells,
        ON_SAMPLE,
        workspace,
        threads=before + 1,
    )
    assert torch.get_num_threads() == before
    (run,) = list_runs(workspace.results)
    assert run.name == result[0].run
    assert run.environment.threads == before + 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--engine", "rai"), "--engine rai is unknown: did you mean 'ray'?"),
        (("--ray-address", "auto"), "--ray-address and --gpus-per-run go with --engine ray"),
        (("--gpus-per-run", "0.5"), "--ray-address and --gpus-per-run go with --engine ray"),
    ],
)
def test_options_of_engines_are_checked(affbench: Affbench, options: tuple[str, ...], complaint: str) -> None:
    ended = affbench("sweep", *options)
    assert ended.status == 2
    assert complaint in " ".join(ended.stderr.split())
