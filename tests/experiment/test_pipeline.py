from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import SAMPLE, TINY_CAPSNET, TINY_CNN, tiny_config, trainings

from affbench.base import store
from affbench.base.config import EvaluationConfig, Pipeline, override
from affbench.base.errors import AffbenchError, DataError, StorageError, UsageError
from affbench.base.workspace import Workspace
from affbench.data import sets
from affbench.experiment import pipeline as stages
from affbench.experiment.pipeline import (
    from_pipeline,
    from_sweep,
    plan_experiment,
    report_all,
    report_dir,
    run_experiment,
)
from affbench.report.sections import capsules, entropy, factors, mistakes, positions, samples
from affbench.run.folder import list_runs
from affbench.run.record import evaluate_run
from affbench.run.train import train

AFFINE = "affnist-synthetic-sample"


def tiny_pipeline(**changes: Any) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "tiny",
            "title": "A tiny pipeline",
            "note": "Far too small to mean anything.",
            "data": {"train_set": SAMPLE, "limit": 64},
            "training": {"epochs": 1, "batch_size": 32, "precision": "float32"},
            "evaluation": {"sets": [SAMPLE, AFFINE], "copies": 1},
            "runs": [
                {"model": "capsnet", "label": "CapsNet", "routings": 2, "options": TINY_CAPSNET},
                {"model": "cnn", "label": "CNN", "options": TINY_CNN},
            ],
        }
        | changes
    )


@pytest.fixture
def unillustrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, which take most of their time."""
    pictures = (mistakes.section, positions.section, capsules.section, entropy.section, samples.section)
    monkeypatch.setattr(stages, "PLAIN", [section for section in stages.PLAIN if section not in pictures])


def states(pipeline: Pipeline, workspace: Workspace) -> set[tuple[str, str]]:
    return {(step.stage, step.state) for step in plan_experiment(from_pipeline(pipeline, workspace), workspace)}


def written(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("unillustrated")
def test_pipeline_does_everything_once(workspace: Workspace) -> None:
    assert {state for stage, state in states(tiny_pipeline(), workspace) if stage != "convert"} == {"to do"}
    assert not workspace.results.exists()
    first = run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    assert {state for _, state in states(tiny_pipeline(), workspace)} == {"cached"}
    before = written(workspace.results)
    second = run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    assert written(workspace.results) == before
    assert [cell.run for cell in second.cells] == [cell.run for cell in first.cells]
    assert second.report.table == first.report.table


def test_report_names_models_sets_and_the_note(workspace: Workspace) -> None:
    outcome = run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    for page in (outcome.report.markdown, outcome.report.html):
        text = page.read_text()
        assert "Far too small to mean anything" in text
        for word in ("CapsNet", "CNN", SAMPLE, AFFINE):
            assert word in text
    pictures = {path.name for path in (report_dir(workspace.results, "tiny") / "figures").iterdir()}
    assert {f"sample-{SAMPLE}.png", f"sample-{AFFINE}.png", f"factors-{AFFINE}.png"} <= pictures
    assert len([name for name in pictures if name.startswith("reconstructions-capsnet") and name.endswith(".png")]) == 1


@pytest.mark.usefixtures("unillustrated")
def test_only_what_changed_is_done_again(workspace: Workspace) -> None:
    run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    more = tiny_pipeline(seeds=[0, 1])
    steps = plan_experiment(from_pipeline(more, workspace), workspace)
    assert [step.state for step in steps if step.stage == "train"] == ["cached", "to do", "cached", "to do"]
    assert [step.state for step in steps if step.stage == "report"] == ["to do"]
    run_experiment(from_pipeline(more, workspace), workspace)
    assert len(list_runs(workspace.results)) == 4


@pytest.mark.usefixtures("unillustrated")
def test_damaged_report_is_written_again(workspace: Workspace) -> None:
    outcome = run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    outcome.report.html.write_text("half")
    assert ("report", "to do") in states(tiny_pipeline(), workspace)
    run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    assert "</html>" in outcome.report.html.read_text()


@pytest.mark.usefixtures("unillustrated")
def test_what_strangers_wrote_is_neither_replaced_nor_lost(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = report_dir(workspace.results, "tiny")
    store.write_text(folder / "thesis.tex", "years of work")
    trained = trainings(monkeypatch)
    with pytest.raises(StorageError, match=r"reports/tiny was not written by affbench; move it away, or choose"):
        run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    assert not trained
    (folder / "thesis.tex").rename(workspace.results / "thesis.tex")
    run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    store.write_text(folder / "mine" / "thesis.tex", "years of work")
    run_experiment(from_pipeline(tiny_pipeline(title="Another"), workspace), workspace)
    assert (folder / "mine" / "thesis.tex").read_text() == "years of work"
    assert "Another" in (folder / "report.md").read_text()


def test_missing_digits_are_said_before_anything_starts(tmp_path: Path) -> None:
    empty = Workspace(tmp_path / "data", tmp_path / "results", "cpu")
    pipeline = tiny_pipeline(data={"train_set": "mnist-translated"}, evaluation={"sets": ["affnist"]})
    missing = [step.what for step in plan_experiment(from_pipeline(pipeline, empty), empty) if step.state == "missing"]
    assert missing == ["mnist (train)", "mnist-translated (validation)", "affnist (test)"]
    with pytest.raises(DataError, match=r"'tiny' needs 'mnist', .*: run 'affbench fetch mnist affnist' first"):
        run_experiment(from_pipeline(pipeline, empty), empty)
    assert not list_runs(empty.results)
    assert not sets.sets_dir(empty.data).exists()


def test_sets_that_do_not_fit_the_model_are_refused(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"trained on 'mnist-translated-sample' \(40×40\) cannot be tested on 'mnist-"):
        plan_experiment(from_pipeline(tiny_pipeline(evaluation={"sets": ["mnist-sample"]}), workspace), workspace)


@pytest.mark.usefixtures("unillustrated")
def test_failed_run_is_reported_with_the_others_and_its_report_is_not_final(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_for_cnn(plan: Any, workspace: Workspace, **kept: Any) -> Any:
        if plan.config.model.name == "cnn":
            raise AffbenchError("no luck")
        return train(plan, workspace, **kept)

    monkeypatch.setattr("affbench.experiment.cells.train", fails_for_cnn)
    outcome = run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    assert [cell.error for cell in outcome.cells] == [None, "no luck"]
    assert len(outcome.report.table.rows) == 1
    assert ("report", "to do") in states(tiny_pipeline(), workspace)


def test_sweep_report_has_the_figure_of_accuracy_against_routing(workspace: Workspace) -> None:
    evaluation = EvaluationConfig(sets=(SAMPLE,), limit=100)
    outcome = run_experiment(from_sweep(tiny_config(epochs=1), [1, 3], [0], evaluation, workspace), workspace)
    folder = report_dir(workspace.results, "sweep-capsnet")
    assert outcome.report.html.parent == folder
    assert [path.name for path in (folder / "figures").glob("*routing*.png")]


@pytest.mark.usefixtures("unillustrated")
def test_sweep_summarises_the_cells_over_their_seeds(workspace: Workspace) -> None:
    evaluation = EvaluationConfig(sets=(SAMPLE,), limit=100)
    experiment = from_sweep(tiny_config(epochs=1), [1, 2], [0, 1], evaluation, workspace)
    document = run_experiment(experiment, workspace).to_dict()
    cells = document["cells"]
    assert [(cell["routings"], cell["seed"]) for cell in cells] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(cell["seconds_per_epoch"] > 0 for cell in cells)
    for row in document["summary"]:
        values = [cell["accuracy"][SAMPLE] for cell in cells if cell["routings"] == row["routings"]]
        assert row["seeds"] == [0, 1]
        assert row["accuracy"][SAMPLE]["mean"] == pytest.approx(statistics.mean(values))
        assert row["accuracy"][SAMPLE]["sd"] == pytest.approx(statistics.stdev(values))
        assert [row["accuracy"][SAMPLE][key] for key in ("minimum", "maximum")] == [min(values), max(values)]


def test_sweep_in_which_nothing_finished_is_an_error(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **kept: Any) -> Any:
        raise AffbenchError("no luck")

    monkeypatch.setattr("affbench.experiment.cells.train", fails)
    with pytest.raises(AffbenchError, match=r"no cell of 'sweep-capsnet' finished; the first one .* no luck"):
        run_experiment(from_sweep(tiny_config(), [1], [0], EvaluationConfig(sets=(SAMPLE,)), workspace), workspace)


@pytest.mark.usefixtures("unillustrated")
def test_report_over_all_runs(workspace: Workspace) -> None:
    with pytest.raises(AffbenchError, match="no finished run"):
        report_all(workspace)
    run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    report = report_all(workspace)
    assert report.html == workspace.results / "reports" / "all" / "report.html"
    assert len(report.table.rows) == 2


def test_a_run_that_cannot_be_read_does_not_end_the_report_over_all_others(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from affbench.models.cnn import CNN\ndef make(canvas): return CNN(canvas=canvas, filters=(2, 2), hidden=4)\n"
    )
    (tmp_path / "gone_model.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    gone = train(override(tiny_config(epochs=1), model={"name": "gone_model:make"}), workspace)
    whole = train(tiny_config(epochs=1), workspace)
    later = train(tiny_config(epochs=1, seed=1), workspace)
    evaluate_run(gone, sets.find_part(SAMPLE, limit=50), workspace)
    evaluate_run(whole, sets.find_part(SAMPLE, limit=50), workspace)
    (later.path / "config.toml").write_text(
        (later.path / "config.toml").read_text().replace("seed = 1", "seed = 1\nhue = 2")
    )
    manifest = later.manifest
    assert manifest is not None
    store.seal(later.path, "train", 1, manifest.inputs, list(manifest.files))
    (tmp_path / "gone_model.py").unlink()
    monkeypatch.delitem(sys.modules, "gone_model")
    text = report_all(workspace).markdown.read_text()
    assert f"Run {later.name} is left out: unknown key 'training.hue'" in text
    assert "Pictures of gone\\_model:make, seed 0 are left out: model 'gone\\_model:make' cannot be imported" in text
    assert "Reconstructions by capsnet, seed 0" in text


@pytest.mark.usefixtures("unillustrated")
def test_later_evaluation_of_more_images_leaves_rows_comparable(workspace: Workspace) -> None:
    small = tiny_pipeline(evaluation={"sets": [AFFINE], "copies": 1, "limit": 60})
    first = run_experiment(from_pipeline(small, workspace), workspace).report.table
    run = next(run for run in list_runs(workspace.results) if run.name.startswith("cnn"))
    evaluate_run(run, sets.find_part(AFFINE, copies=2, limit=1500), workspace)
    assert run_experiment(from_pipeline(small, workspace), workspace).report.table.rows == first.rows
    assert report_all(workspace).table.rows[0][-1].text in {row[-1].text for row in first.rows}


@pytest.mark.usefixtures("unillustrated")
def test_code_that_makes_a_report_is_part_of_its_key(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run_experiment(from_pipeline(tiny_pipeline(), workspace), workspace)
    monkeypatch.setattr(stages, "report_code", lambda: "of another program")
    assert ("report", "to do") in states(tiny_pipeline(), workspace)


def test_matched_runs_cost_no_training_and_stand_beside_the_best(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trainings(monkeypatch)
    monkeypatch.setattr(factors, "EXPLAINED_DIGITS", 50)
    matched = tiny_pipeline(matched=[0.05, 0.06], explain=True, training={"epochs": 2})
    outcome = run_experiment(from_pipeline(matched, workspace), workspace)
    assert [cell.label for cell in outcome.cells] == [
        f"{label}{kept}" for label in ("CapsNet", "CNN") for kept in ("", ", matched at 5%", ", matched at 6%")
    ]
    assert len(trained) == 2
    assert len(list_runs(workspace.results)) == 6
    page = outcome.report.html.read_text()
    for section in ("Matched accuracy", "Pair by pair", "One factor at a time", "Variance explained", "Samples of the"):
        assert section in page
