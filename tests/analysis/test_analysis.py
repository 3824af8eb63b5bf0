"""What capsules hold, where models fail, and what a sweep says about claims; references are written out here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import TINY_CAPSNET, TINY_CNN, tiny_config

from affbench.analysis import answers, capsules, claims, factors
from affbench.analysis.claims import judge_claims
from affbench.analysis.results import Result
from affbench.base.config import ModelConfig, TrainingConfig
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data import sets
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.models import build_model
from affbench.run.folder import Run
from affbench.run.train import train

AFFINE = "affnist-synthetic-sample"


@pytest.fixture
def capsnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("capsnet", **TINY_CAPSNET)


@pytest.fixture
def digits(data_dir: object) -> Dataset:
    return sets.load_dataset("mnist-padded-sample", "test", str(data_dir), limit=60)


@pytest.fixture
def run(workspace: Workspace) -> Run:
    return train(tiny_config(epochs=1), workspace)


def test_perturbation_without_offset_is_the_reconstruction(capsnet: torch.nn.Module, digits: Dataset) -> None:
    label = int(digits.labels[0])
    found = capsules.perturb(capsnet, digits.images[0], label)
    assert tuple(np.round(np.arange(-0.25, 0.26, 0.05), 2)) == capsules.OFFSETS
    assert found.shape == (16, 11, 40, 40)
    plain = capsules.reconstruct(capsnet, digits.images[:1], digits.labels[:1])[0]
    for dimension in range(16):
        np.testing.assert_allclose(255 * found[dimension, 5], plain, atol=0.51)


def test_perturbation_changes_one_dimension_only(capsnet: torch.nn.Module, digits: Dataset) -> None:
    label = int(digits.labels[0])
    (own,) = capsules.class_capsules(capsnet, digits.images[:1])
    own[label, 3] += 0.2
    expected = capsnet.decode(own[None], torch.tensor([label]))[0, 0]  # type: ignore[operator]
    found = capsules.perturb(capsnet, digits.images[0], label, (0.2,))
    np.testing.assert_allclose(found[3, 0], expected.detach(), atol=1e-6)


def test_variance_explained_is_the_correlation_ratio() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 50)
    values = np.stack([groups + rng.normal(size=200), rng.normal(size=200), np.ones(200)], axis=1)
    explained = capsules.variance_explained(values, groups)
    f = stats.f_oneway(*(values[groups == g, 0] for g in range(4))).statistic
    eta = 3 * f / (3 * f + 196)
    assert explained[0] == pytest.approx(1 - (1 - eta) * 199 / 196)
    assert explained[1] < 0.05
    assert explained[2] == 0


def test_equivariance_finds_the_factor_that_moves_a_capsule(digits: Dataset, data_dir: object) -> None:
    class Centroid(torch.nn.Module):
        def capsules(self, images: torch.Tensor) -> torch.Tensor:
            """Dimension 0 is where the ink is vertically, dimension 1 nothing."""
            rows = torch.arange(40.0)[:, None]
            where = (images[:, 0] * rows).sum((1, 2)) / images[:, 0].sum((1, 2))
            return torch.stack([where, torch.zeros_like(where)], -1)[:, None].expand(-1, 10, -1)

    originals = sets.load_dataset("mnist-sample", "test", str(data_dir), limit=60)
    found = capsules.equivariance(Centroid(), originals, [3, 7], per_class=2, copies=40)
    assert found.explained.shape == (2, 7, 2)
    assert (found.explained_whole.argmax(axis=1) == 4).all()  # vertical translation
    assert found.explained_whole[:, 4].min() > 0.8
    factor = TRANSFORM_COLUMNS.index("vertical_translation")
    np.testing.assert_allclose(np.diff(found.mean[factor, 0, :, 0]), 2, atol=0.05)
    neutral = capsules.GRID["vertical_translation"].index(0.0)
    assert found.moved[factor, 0, neutral] == pytest.approx(0, abs=1e-4)


def test_coupling_is_uniform_after_one_iteration_and_sharper_after_more(digits: Dataset) -> None:
    torch.manual_seed(0)
    one = build_model("capsnet", routings=1, **TINY_CAPSNET)
    three = build_model("capsnet", routings=3, **TINY_CAPSNET)
    with torch.no_grad():
        three.digits.weight.mul_(2000)  # type: ignore[union-attr,operator]
    uniform = capsules.coupling_entropy(one, digits.images)
    assert uniform.nats == pytest.approx(math.log(10), rel=1e-5)
    assert uniform.relative == pytest.approx(1, rel=1e-5)
    assert capsules.coupling_entropy(three, digits.images).relative < 0.999


def test_model_without_routed_capsules_is_refused_in_one_sentence(digits: Dataset) -> None:
    with pytest.raises(UsageError, match="CNN has no routed capsules, so there are no coupling coefficients"):
        capsules.coupling_entropy(build_model("cnn", **TINY_CNN), digits.images)


def test_mistakes_are_wrong_and_ranked(run: Run, workspace: Workspace) -> None:
    from affbench.run.record import load_model

    given = answers.read_answers(run, sets.find_part(AFFINE, copies=1, limit=200), workspace)
    found = answers.most_confident_mistakes(load_model(run), given, 12)
    assert len(found) == 12
    assert all(m.label == given.dataset.labels[m.index] != m.predicted == given.predictions[m.index] for m in found)
    assert [m.confidence for m in found] == sorted((m.confidence for m in found), reverse=True)
    assert all(m.confidence >= m.confidence_in_truth for m in found)


def test_positions_of_ink_and_of_translations() -> None:
    images = np.zeros((2, 40, 40), np.uint8)
    images[0, 0:4, 10:20] = 1  # rows 0 to 3, columns 10 to 19: centre (1.5, 14.5), the canvas's is (19.5, 19.5)
    images[1, 39, 39] = 1
    placed = answers.positions(Dataset("made", "test", images, np.zeros(2, np.uint8)))
    np.testing.assert_allclose(placed, [[-18, -5], [19.5, 19.5]])


def test_accuracy_by_position_counts_every_image_once() -> None:
    rng = np.random.default_rng(1)
    placed = rng.uniform(-9, 9, (500, 2)).astype(np.float32)
    right = np.abs(placed).max(1) < 6
    bins = answers.accuracy_by_position(right, placed, np.arange(500) // 2)
    assert sum(b.n for b in bins) == 500
    assert len(bins) == 25
    for own in bins:
        inside = max(map(abs, (*own.vertical, *own.horizontal))) <= 6
        assert own.accuracy is None or own.accuracy == float(inside)
        assert own.low is None or own.low <= own.accuracy <= own.high  # type: ignore[operator]


def test_factor_curve_is_kept_and_bins_hold_the_whole_set(run: Run, workspace: Workspace) -> None:
    curve = factors.factor_curve(run, "rotation", workspace, limit=300)
    assert curve.set == f"{AFFINE}@only=rotation,rotation=60"
    assert sum(point.n for point in curve.points) == 300
    assert (curve.points[0].low, curve.points[-1].high) == (-60, 60)
    saved = run.path / "factors" / "rotation.json"
    before = saved.stat().st_mtime_ns
    assert factors.factor_curve(run, "rotation", workspace, limit=300) == curve
    assert saved.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="there is no factor 'colour'"):
        factors.factor_curve(run, "colour", workspace)


def sweep(seeds: int, slope: float, gain: float) -> Iterator[Result]:
    rng = np.random.default_rng(5)
    for seed in range(seeds):
        for routings in (1, 2, 3, 5, 7, 10):
            loss = 0.1 * 2 ** (slope * math.log2(routings) + 0.002 * rng.normal())
            noise = 0.001 * rng.normal(size=3)
            accuracy = {
                "mnist-translated": 0.98 + noise[0],
                "affnist-synthetic": 0.70 + noise[1] + gain * (routings > 1),
            }
            gap = 0.01 + slope * 0.01 * math.log2(routings) + noise[2]
            run = SimpleNamespace(
                config=SimpleNamespace(model=ModelConfig(name="capsnet", options={"routings": routings}),
                                       training=TrainingConfig(seed=seed)),
                history=[SimpleNamespace(train_loss=loss, train_accuracy=0.9 + gap, validation_accuracy=0.9)],
            )  # fmt: skip
            yield Result("CapsNet", run, {name: SimpleNamespace(accuracy=own) for name, own in accuracy.items()})


def test_claims_that_the_data_contradict_or_support() -> None:
    by_claim = {own.claim: own for own in judge_claims(list(sweep(5, slope=0.5, gain=0.05)))}
    assert by_claim[claims.CONVERGE].verdict == "contradicted"
    assert by_claim[claims.CONVERGE].effect.mean == pytest.approx(100 * 0.5 * math.log(2), rel=0.02)
    assert by_claim[claims.OVERFIT].verdict == "supported"
    assert by_claim[claims.GENERALISE].verdict == "no evidence against"
    assert by_claim[claims.ROBUST].verdict == "contradicted"
    assert by_claim[claims.ROBUST].effect.mean == pytest.approx(5, abs=0.2)
    assert "Routing helps" in by_claim[claims.ROBUST].sentence


def test_claims_without_effect_stay_open_and_few_seeds_say_so() -> None:
    verdicts = {own.claim: own.verdict for own in judge_claims(list(sweep(4, slope=0.0, gain=0.0)))}
    assert verdicts[claims.CONVERGE] == "no evidence against"
    assert verdicts[claims.OVERFIT] == "no evidence for"
    assert verdicts[claims.ROBUST] == "no evidence against"
    for claim in judge_claims(list(sweep(2, slope=0.5, gain=0.05))):
        assert claim.verdict == "not enough seeds"
        assert "Not enough seeds" in claim.sentence
        assert claim.p is None
    assert judge_claims([]) == []
