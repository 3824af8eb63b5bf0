"""Ranks that respect the noise, the checks of committed runs, the front door, and models of other packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny import SAMPLE, Affbench, tiny_config

import affbench as package
from affbench.base import store
from affbench.base.errors import ArtefactError, UsageError
from affbench.base.workspace import Workspace
from affbench.data.sets import find_part, load_dataset
from affbench.experiment.reference import PUBLISHED, REPORTS, publish, validate_reference
from affbench.run.folder import list_runs
from affbench.run.record import evaluate_run
from affbench.run.train import train

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
AFFINE = "affnist-synthetic-sample"


def test_reference_runs_are_whole() -> None:
    assert (REFERENCE / "README.md").is_file()
    for folder in sorted(
        path for path in REFERENCE.iterdir() if path.is_dir() and path.name not in (REPORTS, PUBLISHED)
    ):
        assert validate_reference(folder).name == folder.name


def test_without_evaluations_there_is_no_leaderboard(affbench: Affbench) -> None:
    ended = affbench("leaderboard")
    assert ended.status == 1
    assert "was tested on a set yet" in " ".join(ended.stderr.split())


@pytest.fixture
def reference(workspace: Workspace, affbench: Affbench) -> Path:
    """A folder as a pull request would bring it."""
    run = train(tiny_config(epochs=1), workspace)
    evaluate_run(run, find_part(SAMPLE, limit=100), workspace)
    assert affbench("leaderboard", "--add", run.name).status == 0
    return workspace.results / "reference" / run.name


def test_added_run_comes_without_predictions_and_replaces_an_earlier_one(
    reference: Path, workspace: Workspace, affbench: Affbench
) -> None:
    assert not list(reference.glob("predictions-*"))
    (reference / "history.csv").write_text("changed")
    (workspace.results / "reference" / "reports" / "study").mkdir(parents=True)
    assert affbench("leaderboard", "--add", reference.name).status == 0
    assert validate_reference(reference).name == reference.name
    assert sorted(path.name for path in reference.parent.iterdir()) == sorted([reference.name, "reports"])


def test_run_without_evaluation_is_not_added(workspace: Workspace, affbench: Affbench) -> None:
    run = train(tiny_config(epochs=1), workspace)
    ended = affbench("leaderboard", "--add", run.name)
    assert ended.status == 1
    assert "holds no eval-SET.json" in " ".join(ended.stderr.split())
    assert not (workspace.results / "reference" / run.name).exists()


def test_committed_run_is_valid_and_listed(reference: Path, affbench: Affbench) -> None:
    assert validate_reference(reference).name == reference.name
    document = affbench("leaderboard", "--set", SAMPLE, "--json").document
    (board,) = document["leaderboards"]
    assert [(row["run"], row["origin"], row["rank"]) for row in board["rows"]] == [(reference.name, "reference", 1)]


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("history.csv", lambda text: text + "x", "damaged"),
        (f"eval-{SAMPLE}.json", lambda text: text.replace('"n": 100,', '"n": 99,', 1), "n = 99"),
        (f"eval-{SAMPLE}.json", lambda text: text.replace('"device": "cpu"', '"device": "cuda"'), "was edited after"),
        (f"eval-{SAMPLE}.json", lambda _: "{}", "is not what affbench writes there"),
        ("notes.txt", lambda _: "hello", "does not belong"),
        ("model.safetensors", lambda _: "x" * 1_000_001, "have at most 1,000,000"),
        ("manifest.json", lambda _: None, "has no manifest.json"),
    ],
)  # fmt: skip
def test_reference_that_is_not_right_is_refused(reference: Path, file: str, change: object, complaint: str) -> None:
    path = reference / file
    content = change(path.read_text() if path.is_file() else "")  # type: ignore[operator]
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(ArtefactError, match=complaint):
        validate_reference(reference)


def test_benchmark_in_three_lines(data_dir: Path) -> None:
    model = package.build_model("cnn", filters=(4, 4), hidden=8)
    standing = package.benchmark(model, sets=(SAMPLE, AFFINE), data_dir=data_dir, copies=2, limit=150)
    assert [score.n for score in standing.scores] == [150, 150]
    assert standing[AFFINE].ci95[0] <= standing[AFFINE].accuracy <= standing[AFFINE].ci95[1]
    assert any(entry.value == 79.0 for entry in standing[AFFINE].published)
    assert "CapsNet, dynamic routing" in str(standing)
    with pytest.raises(UsageError, match="unknown set"):
        package.benchmark(model, sets=("minst",), data_dir=data_dir)


def test_trained_network_is_loaded_by_the_beginning_of_its_name(reference: Path, workspace: Workspace) -> None:
    results = workspace.results
    (own,) = list_runs(results)
    dataset = load_dataset(SAMPLE, "test", workspace.data, limit=100)
    expected = own.evaluations[SAMPLE].accuracy
    with pytest.raises(ArtefactError, match=rf"run {own.name} was published without its checkpoint; 'affbench train"):
        package.load_model(f"reference/{own.name}", results_dir=results)
    shutil.copy(own.path / "model.safetensors", reference)
    shutil.copytree(own.path, reference.parent / "renamed-seed7")
    for name in (own.name, "caps", f"reference/{own.name[:9]}", "renamed"):
        model = package.load_model(name, results_dir=results)
        assert not model.training
        assert package.evaluate(model, dataset).accuracy == expected
    with pytest.raises(UsageError, match=r"there is no finished run 'cnn' in .*results: "):
        package.load_model("cnn", results_dir=results)
    with pytest.raises(UsageError, match=rf"^ could mean {own.name}, renamed-seed7; give more of the name\.$"):
        package.load_model("reference/", results_dir=results)


def test_model_of_an_installed_package(
    tmp_path: Path, affbench: Affbench, monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> None:
    wheel = tmp_path / "dummy_digits-1.0-py3-none-any.whl"
    source = (
        "from torch import nn\n\n\nclass Linear(nn.Sequential):\n"
        "    def __init__(self, *, canvas=40, hidden=8):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(canvas * canvas, hidden), nn.ReLU(), nn.Linear(hidden, 10))\n"
    )
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("dummy_digits.py", source)
        info = "dummy_digits-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: dummy-digits\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/entry_points.txt", "[affbench.models]\ndummy-linear = dummy_digits:Linear\n")
        file.writestr(f"{info}/RECORD", "")
    home = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(home)]
    subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True)
    monkeypatch.syspath_prepend(home)

    options = ("--train-set", SAMPLE, "--limit", "96", "--epochs", "1", "--device", "cpu")
    trained = affbench("train", "--model", "dummy-linear", "-o", "hidden=4", *options, "--json")
    assert trained.status == 0, trained.stderr
    assert trained.document["run"].startswith("dummy-linear-seed0-")
    tested = affbench("eval", "--set", AFFINE, "--copies", "1", "--limit", "100", "--device", "cpu", "--json")
    assert tested.document["model"] == "dummy-linear"
    (board,) = affbench("leaderboard", "--json").document["leaderboards"]
    assert (board["rows"][0]["model"], board["rows"][0]["rank"]) == ("dummy-linear", 1)
    standing = package.benchmark("dummy-linear", sets=(SAMPLE,), data_dir=data_dir, limit=50)
    assert json.loads(json.dumps(standing[SAMPLE].n)) == 50


def test_a_published_checkpoint_is_half_as_large_and_what_it_says_is_of_that_file(
    workspace: Workspace, affbench: Affbench
) -> None:
    run = train(tiny_config(epochs=1), workspace)
    full = evaluate_run(run, find_part(AFFINE, limit=100), workspace)
    assert affbench("leaderboard", "--publish", run.name).status == 0
    folder = workspace.results / "reference"
    weights = folder / "weights" / f"{run.name}.safetensors"
    assert weights.stat().st_size < 0.6 * (run.path / "model.safetensors").stat().st_size
    published = validate_reference(folder / run.name)
    record = published.evaluations[AFFINE]
    assert record.checkpoint_sha256 == store.file_hash(weights) != full.checkpoint_sha256
    assert (record.n, record.run) == (100, run.name)
    assert sorted(path.name for path in published.path.iterdir()) == sorted(
        ["config.toml", "environment.json", f"eval-{AFFINE}.json", "history.csv", "manifest.json"]
    )
    again = affbench("leaderboard", "--add", run.name)  # which would leave it beside a manifest of the larger one
    assert again.status == 2
    assert "is published with another checkpoint" in again.stderr
    shutil.rmtree(run.path)
    model = package.load_model("capsnet", results_dir=workspace.results)
    dataset = load_dataset(AFFINE, limit=100, data_dir=workspace.data)
    assert package.evaluate(model, dataset).correct == record.correct
    shown = affbench("eval", "--run", "reference/capsnet", "--set", AFFINE, "--limit", "100", "--json").document
    assert (shown["correct"], shown["run"]) == (record.correct, f"reference-{run.name}")
    copy = workspace.results / "runs" / shown["run"] / "model.safetensors"
    written = copy.stat().st_mtime_ns
    assert affbench("eval", "--run", "reference/capsnet", "--set", AFFINE, "--limit", "100").status == 0
    assert copy.stat().st_mtime_ns == written
    copy.write_bytes(b"damaged")
    assert affbench("eval", "--run", "reference/capsnet", "--set", AFFINE, "--limit", "100").status == 0
    assert copy.read_bytes() == weights.read_bytes()
    assert not list(published.path.glob("predictions-*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="is damaged"):
        package.load_model("reference/capsnet", results_dir=workspace.results)


def test_published_checkpoints_are_few(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tiny_config(epochs=1), workspace)
    monkeypatch.setattr("affbench.experiment.reference.MAX_PUBLISHED", 1000)
    with pytest.raises(UsageError, match=r"bytes in all; at most 1,000 may"):
        publish(run, workspace)
    assert not (workspace.results / "reference").exists()
