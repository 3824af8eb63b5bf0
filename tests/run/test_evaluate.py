from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SAMPLE, tiny_config
from torch import nn

from affbench.base import store
from affbench.base.config import override
from affbench.base.errors import AffbenchError, ArtefactError, DataError, UsageError
from affbench.base.progress import Progress
from affbench.base.statistics import wilson_interval
from affbench.base.workspace import Workspace
from affbench.data.dataset import Dataset
from affbench.data.sets import find_part, load_dataset
from affbench.experiment.housekeeping import read_status
from affbench.models import build_model
from affbench.run.evaluate import assess, evaluate, predict
from affbench.run.folder import WEIGHTS, Run, read_evaluation
from affbench.run.record import evaluate_run, is_evaluated, load_model, record_path
from affbench.run.train import train

AFFINE = "affnist-synthetic-sample"


class Oracle(nn.Module):
    """Knows the class of an image from its upper left pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 10).float()


def marked(labels: list[int], says: list[int]) -> Dataset:
    images = np.zeros((len(labels), 4, 4), np.uint8)
    images[:, 0, 0] = says
    return Dataset("marked", "test", images, np.array(labels, np.uint8))


def test_an_evaluation_prints_as_a_short_table_and_goes_into_json() -> None:
    result = evaluate(Oracle(), marked(labels=[0, 0, 1, 1], says=[0, 1, 1, 1]))
    low, high = wilson_interval(3 / 4, 4)
    assert str(result).splitlines()[:2] == [
        "marked, test split, 4 images",
        f"accuracy %  75.00, 95% interval over images [{100 * low:.2f}, {100 * high:.2f}]",
    ]
    assert repr(result) == str(result)
    content = json.loads(json.dumps(result.to_dict()))
    assert (content["n"], content["correct"], content["confusion"][0][:2]) == (4, 3, [1, 1])
    assert "predictions" not in content


def test_accuracy_and_confusion_are_counted_right() -> None:
    dataset = marked(labels=[0, 0, 1, 1, 1, 7], says=[0, 1, 1, 1, 2, 7])
    result = evaluate(Oracle(), dataset, batch_size=4)
    assert result.predictions.tolist() == [0, 1, 1, 1, 2, 7]
    assert (result.n, result.correct, result.accuracy) == (6, 4, pytest.approx(4 / 6))
    assert result.ci95 == pytest.approx(wilson_interval(4 / 6, 6))
    assert {(row.label, row.n, row.correct) for row in result.per_class} == {(0, 2, 1), (1, 3, 2), (7, 1, 1)}
    assert list(result.confusion[1]) == [0, 2, 1, 0, 0, 0, 0, 0, 0, 0]
    assert sum(map(sum, result.confusion)) == 6
    assert result.by_transformation is None
    assert result.ci95_clustered is None


def test_batch_size_and_mode_do_not_matter() -> None:
    dataset = load_dataset(SAMPLE, limit=70)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(1600, 10))
    model.train()
    one, other = evaluate(model, dataset, batch_size=7), evaluate(model, dataset, batch_size=70)
    assert (one.predictions == other.predictions).all()
    assert model.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_name_no_class_are_refused_with_their_number(value: float) -> None:
    class Spoiled(Oracle):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores = super().forward(images)
            return torch.where(scores.argmax(-1, keepdim=True) == 3, torch.full_like(scores, value), scores)

    with pytest.raises(AffbenchError, match=r"scores of 2 of 5 images of 'marked' are NaN or infinite"):
        evaluate(Spoiled(), marked([0] * 5, [3, 1, 3, 2, 0]), batch_size=2)


def test_class_that_is_ruled_out_by_minus_infinity_is_no_fault() -> None:
    class LogOracle(Oracle):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).log()

    assert evaluate(LogOracle(), marked([1, 2], [1, 3])).predictions.tolist() == [1, 3]


def test_of_equal_scores_the_lowest_class_counts() -> None:
    class Undecided(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0, 0.5]).expand(len(images), 10)

    assert evaluate(Undecided(), marked([4, 1], [0, 0])).predictions.tolist() == [1, 1]


class Averaging(nn.Module):
    """Takes away what the images of a batch have in common, as routing that is averaged over the batch does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = images.flatten(1)[:, 640:960:32]
        return scores - scores.mean(0)


class Noisy(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(images), 10)


@pytest.mark.parametrize("model", [Averaging(), Noisy()])
def test_answers_that_depend_on_the_batch_or_on_chance_are_said(model: nn.Module) -> None:
    dataset = load_dataset(SAMPLE, limit=70)
    with pytest.warns(UserWarning, match="the model's answers depend on what else is in the batch, or on chance"):
        result = evaluate(model, dataset)
    assert result.warning is not None
    said: list[str] = []
    progress = Progress()
    progress.note = said.append  # type: ignore[method-assign]
    assert evaluate(model, dataset, progress=progress).warning is not None
    assert said[0].startswith("warning: the model's answers depend")


def test_answers_that_depend_on_the_image_alone_are_not_suspected() -> None:
    dataset = load_dataset(SAMPLE, limit=70)
    for name in ("capsnet", "aff-capsnet", "cnn"):
        assert evaluate(build_model(name), dataset, precision="bfloat16").warning is None
    result = evaluate(build_model("cnn-gap"), dataset)
    assert (result.warning, result.precision) == (None, "float32")


def test_every_module_is_left_in_the_mode_it_was_in() -> None:
    frozen = nn.BatchNorm2d(1).eval()
    model = nn.Sequential(frozen, nn.Dropout(), nn.Flatten(), nn.Linear(16, 10))
    evaluate(model, marked([1, 2], [1, 2]))
    assert [module.training for module in model.modules()] == [True, False, True, True, True]


def test_model_can_be_trained_after_it_was_evaluated() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lazy = nn.LazyLinear(10)
            self.grid: torch.Tensor | None = None

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.grid is None:
                self.grid = torch.ones_like(images[:1]) * 2
            return self.lazy((images * self.grid).flatten(1))

    model = Keeping()
    evaluate(model, marked([1, 2], [1, 2]))
    model(torch.rand(3, 1, 4, 4)).sum().backward()
    assert model.lazy.weight.grad is not None


def test_model_may_ask_for_the_gradient_of_its_input() -> None:
    class Saliency(Oracle):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images.requires_grad_()
            (slope,) = torch.autograd.grad((images[:, 0, 0, 0] ** 2).sum(), images)
            return super().forward(slope / 2)

    assert evaluate(Saliency(), marked([1, 2], [1, 2])).accuracy == 1


def test_images_are_pinned_for_a_gpu_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once would be a copy of the whole set in memory that cannot be swapped."""
    pinned: list[int] = []

    class OnGpu(Oracle):
        def parameters(self, recurse: bool = True) -> Any:
            return iter([SimpleNamespace(device=torch.device("cuda"))])

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda part: pinned.append(len(part)) or part)
    monkeypatch.setattr(torch.Tensor, "to", lambda part, *place, **_: part if place[0] != torch.uint8 else part.byte())
    dataset = marked(labels=[0, 0, 1, 1, 1, 7], says=[0, 1, 1, 1, 2, 7])
    assert predict(OnGpu(), dataset, batch_size=4)[0].tolist() == [0, 1, 1, 1, 2, 7]
    assert pinned == [4, 2]


def test_clustered_interval_is_wider_when_versions_of_a_digit_fail_together() -> None:
    rng = np.random.default_rng(0)
    source = np.tile(np.arange(100, dtype=np.int32), 32)
    right = rng.random(100)[source] < 0.7
    dataset = marked([1] * 3200, np.where(right, 1, 2).tolist())
    dataset = dataclasses.replace(dataset, source_index=source)
    result = evaluate(Oracle(), dataset)
    assert result.n_originals == 100
    assert result.ci95_clustered is not None
    width, clustered = result.ci95[1] - result.ci95[0], result.ci95_clustered[1] - result.ci95_clustered[0]
    assert clustered > 4 * width


def test_transformation_bins_hold_every_image_once() -> None:
    transforms = np.random.default_rng(0).uniform(-20, 20, (400, 6)).astype(np.float32)
    right = transforms[:, 0] > 0
    dataset = dataclasses.replace(marked([1] * 400, np.where(right, 1, 2).tolist()), transforms=transforms)
    bins = evaluate(Oracle(), dataset).by_transformation
    assert bins is not None
    assert next(iter(bins)) == "rotation"
    for rows in bins.values():
        assert sum(row.n for row in rows) == 400
        assert len(rows) == 8
    assert bins["rotation"][0].accuracy == 0
    assert bins["rotation"][-1].accuracy == 1
    for row in bins["rotation"]:
        inside = (transforms[:, 0] >= row.low) & (transforms[:, 0] < row.high)
        assert int(inside.sum()) == row.n
    assert [row.low for row in bins["rotation"]] == [-20, -15, -10, -5, 0, 5, 10, 15]


def test_constant_factor_is_one_bin() -> None:
    dataset = dataclasses.replace(marked([1, 2], [1, 2]), transforms=np.zeros((2, 6), np.float32))
    bins = assess(dataset, np.array([1, 2], np.uint8), np.ones(2, np.float32)).by_transformation
    assert bins is not None
    assert [(row.low, row.high, row.n) for row in bins["shear"]] == [(0, 0, 2)]


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (nn.Flatten(), r"must return class scores \(6, 10\), not \(6, 16\)"),
        (nn.Linear(3, 10), "cannot take the 4×4 images of 'marked'"),
    ],
)
def test_model_that_does_not_fit_is_one_clear_sentence(model: nn.Module, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        evaluate(model, marked([0] * 6, [0] * 6))


@pytest.fixture
def run(workspace: Workspace) -> Run:
    return train(tiny_config(epochs=1), workspace)


def test_record_and_predictions_agree_with_the_model(run: Run, workspace: Workspace) -> None:
    record = evaluate_run(run, find_part(AFFINE, copies=2), workspace)
    dataset = load_dataset(AFFINE, data_dir=workspace.data, copies=2)
    direct = evaluate(load_model(run), dataset)
    assert record == read_evaluation(record_path(run, AFFINE))
    assert record.n == 2000
    assert record.n_originals == 1000
    assert record.accuracy == direct.accuracy
    assert (record.precision, record.warning) == (direct.precision, None) == ("float32", None)
    assert record.ci95_clustered is not None
    assert record.checkpoint_sha256 == store.file_hash(run.path / WEIGHTS)
    with h5py.File(run.path / f"predictions-{AFFINE}.h5") as file:
        assert (file["predictions"][:] == direct.predictions).all()
        assert (file["labels"][:] == dataset.labels).all()
    keys = {"set", "run", "model", "routings", "seed", "n", "accuracy", "accuracy_ci95", "per_class"}
    assert keys | {"checkpoint_sha256"} <= json.loads(record_path(run, AFFINE).read_text()).keys()


def test_second_evaluation_is_answered_from_disk(
    run: Run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_evaluated(run, find_part(SAMPLE), workspace)
    record = evaluate_run(run, find_part(SAMPLE), workspace)
    monkeypatch.setattr("affbench.run.record.load_model", None)
    assert evaluate_run(run, find_part(SAMPLE), workspace) == record
    assert is_evaluated(run, find_part(SAMPLE), workspace)


def test_limited_evaluation_never_replaces_a_longer_one(run: Run, workspace: Workspace) -> None:
    short = evaluate_run(run, find_part(SAMPLE, limit=100), workspace)
    assert (short.n, short.limit) == (100, 100)
    whole = evaluate_run(run, find_part(SAMPLE), workspace)
    assert whole.n == 1000
    again = evaluate_run(run, find_part(SAMPLE, limit=100), workspace)
    assert (again.n, again.correct, again.confusion) == (100, short.correct, short.confusion)
    assert read_evaluation(record_path(run, SAMPLE)) == whole


def test_fewer_copies_are_answered_from_more(run: Run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    one = evaluate_run(run, find_part(AFFINE, copies=1), workspace)
    evaluate_run(run, find_part(AFFINE, copies=2), workspace)
    monkeypatch.setattr("affbench.run.record.load_model", None)
    again = evaluate_run(run, find_part(AFFINE, copies=1), workspace)
    assert (again.n, again.copies, again.correct) == (1000, 1, one.correct)


@pytest.mark.parametrize("damage", ["record", "predictions"])
def test_damaged_evaluation_is_made_again(run: Run, workspace: Workspace, damage: str) -> None:
    record = evaluate_run(run, find_part(SAMPLE), workspace)
    path = record_path(run, SAMPLE) if damage == "record" else run.path / f"predictions-{SAMPLE}.h5"
    path.write_bytes(path.read_bytes()[:-20])
    again = evaluate_run(run, find_part(SAMPLE), workspace)
    assert again.correct == record.correct
    assert read_evaluation(record_path(run, SAMPLE)).predictions_sha256 == again.predictions_sha256


EDITS = [
    ("config.toml", "seed = 0", "seed = 7"),
    ("history.csv", "1.0,3,", "1.0,4,"),
    ("environment.json", '"seed": 0', '"seed": 7'),
    (f"eval-{SAMPLE}.json", '"seed": 0', '"seed": 7'),
    (f"eval-{SAMPLE}.json", '"split": "test"', '"split": "train"'),
    ("manifest.json", '"seed": 0', '"seed": 7'),
    ("manifest.json", '"bytes": ', '"bytes": 1'),
]


@pytest.mark.parametrize(("file", "old", "new"), EDITS)
def test_edited_files_are_not_believed(run: Run, workspace: Workspace, file: str, old: str, new: str) -> None:
    record = evaluate_run(run, find_part(SAMPLE, limit=50), workspace)
    text = (run.path / file).read_text()
    assert old in text
    (run.path / file).write_text(text.replace(old, new))
    if not file.startswith("eval"):
        (state,) = read_status(workspace.data, workspace.results).runs
        assert re.match(r"damaged: .* is damaged(, or not of this version of affbench)?: it", state.state)
        assert (state.validation_accuracy, state.accuracy) == (None, {})
        return
    with pytest.raises(ArtefactError, match="was edited after it was written"):
        _ = Run(run.path).evaluations
    assert evaluate_run(run, find_part(SAMPLE, limit=50), workspace).split == record.split
    assert Run(run.path).evaluations[SAMPLE].seed == 0


def test_record_that_its_predictions_contradict_is_made_again(run: Run, workspace: Workspace) -> None:
    record = evaluate_run(run, find_part(SAMPLE, limit=50), workspace)
    better = [tuple(sum(row) if i == j else 0 for j in range(10)) for i, row in enumerate(record.confusion)]
    classes = [row.model_copy(update={"correct": row.n, "accuracy": 1.0}) for row in record.per_class]
    perfect = {
        "correct": 50,
        "accuracy": 1.0,
        "ci95": (0.9, 1.0),
        "confusion": (*better,),
        "per_class": (*classes,),
    }
    store.write_json(record_path(run, SAMPLE), record.model_copy(update=perfect).document())
    assert Run(run.path).evaluations[SAMPLE].accuracy == 1
    assert not is_evaluated(run, find_part(SAMPLE, limit=50), workspace)
    assert evaluate_run(run, find_part(SAMPLE, limit=50), workspace).correct == record.correct


def test_code_that_was_edited_since_is_said_and_makes_another_record(
    run: Run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = evaluate_run(run, find_part(SAMPLE, limit=50), workspace)
    assert record.code == store.read_manifest(run.path).inputs["code"]  # type: ignore[union-attr]
    notes: list[str] = []
    listener = Progress()
    monkeypatch.setattr(listener, "note", notes.append)
    monkeypatch.setattr("affbench.run.plan.model_code", lambda _: "another")
    again = evaluate_run(run, find_part(SAMPLE, limit=50), dataclasses.replace(workspace, progress=listener))
    assert (again.code, again.key != record.key) == ("another", True)
    assert "the code of 'capsnet' was edited since it was trained; it is tested with the code as it is now" in notes[0]


def test_truncated_checkpoint_is_one_clear_error(run: Run, workspace: Workspace) -> None:
    path = run.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match=r"model.safetensors is damaged: its size or sha256"):
        evaluate_run(run, find_part(SAMPLE), workspace)
    assert not record_path(run, SAMPLE).exists()


@pytest.mark.parametrize("content", ["other architecture", "no safetensors"])
def test_foreign_checkpoint_is_one_clear_error(run: Run, workspace: Workspace, content: str) -> None:
    path = run.path / WEIGHTS
    if content == "other architecture":
        tensors = {name: torch.zeros(3, *tensor.shape) for name, tensor in load_file(path).items()}
        save_file(tensors, path)
    else:
        path.write_bytes(b"\xff" * 1000)
    manifest = store.read_manifest(run.path)
    assert manifest is not None
    store.seal(run.path, "train", 1, manifest.inputs, list(manifest.files))
    with pytest.raises(ArtefactError, match=r"holds another architecture than capsnet|is not a readable checkpoint"):
        evaluate_run(run, find_part(SAMPLE), workspace)


def test_set_of_another_size_is_refused(run: Run, workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"takes 40×40 images, but set 'mnist-sample' has 28×28 ones"):
        evaluate_run(run, find_part("mnist-sample"), workspace)


def test_missing_official_set_is_never_replaced(run: Run, workspace: Workspace) -> None:
    with pytest.raises(DataError, match=r"'affbench fetch affnist' .*affnist-synthetic"):
        evaluate_run(run, find_part("affnist"), workspace)
    assert not list(run.path.glob("eval-*"))


def test_unfinished_run_is_not_evaluated(run: Run, workspace: Workspace) -> None:
    store.manifest_path(run.path).unlink()
    with pytest.raises(ArtefactError, match="is not finished; 'affbench train --resume'"):
        evaluate_run(run, find_part(SAMPLE), workspace)


def test_evaluation_follows_the_checkpoint(run: Run, workspace: Workspace, tmp_path: Path) -> None:
    other = train(override(tiny_config(epochs=1, seed=5)), workspace)
    assert evaluate_run(run, find_part(SAMPLE), workspace).key != evaluate_run(other, find_part(SAMPLE), workspace).key
