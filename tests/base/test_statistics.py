"""Intervals and tests against closed forms, published figures and simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from affbench.base.errors import UsageError
from affbench.base.statistics import (
    clustered_interval,
    holm,
    paired_difference,
    seed_summary,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17, 1998, table I, method 3 (score interval without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct / n, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_solves_its_equation() -> None:
    z = stats.norm.ppf(0.975)
    for correct, n in ((3, 7), (9923, 10_000), (1, 2)):
        for bound in wilson_interval(correct / n, n):
            assert abs(correct / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-9)


def test_wilson_interval_stays_within_its_range() -> None:
    assert wilson_interval(0.0, 10)[0] == 0
    assert wilson_interval(1.0, 10)[1] == 1


def affnist_like(rng: np.random.Generator, digits: int, versions: int = 32) -> tuple[np.ndarray, np.ndarray, float]:
    """Versions of one digit fail together: each digit has its own chance of being recognised."""
    chance = rng.beta(2.0, 0.6, digits)
    right = rng.random((digits, versions)) < chance[:, None]
    return right.ravel(), np.repeat(np.arange(digits), versions), 2.0 / 2.6


def test_clustered_interval_covers_what_it_says_and_wilson_does_not() -> None:
    rng = np.random.default_rng(1)
    simulations = 2000
    covered = naive = 0
    for _ in range(simulations):
        right, cluster, truth = affnist_like(rng, digits=150)
        interval = clustered_interval(right, cluster, resamples=400, seed=int(rng.integers(2**31)))
        low, high = wilson_interval(float(right.mean()), len(right))
        covered += interval[0] <= truth <= interval[1]
        naive += low <= truth <= high
    assert 0.93 <= covered / simulations <= 0.97
    assert naive / simulations < 0.6


def test_clustered_interval_repeats_and_knows_its_edges() -> None:
    right, cluster, _ = affnist_like(np.random.default_rng(0), digits=50)
    assert clustered_interval(right, cluster, seed=3) == clustered_interval(right, cluster, seed=3)
    whole = clustered_interval(np.ones(64, bool), np.repeat(np.arange(2), 32))
    assert whole[1] == 1
    with pytest.raises(UsageError):
        clustered_interval(right, cluster[:-1])


def test_clusters_of_one_image_give_about_wilsons_interval() -> None:
    right = np.random.default_rng(0).random(5000) < 0.9
    interval = clustered_interval(right, np.arange(5000))
    assert interval == pytest.approx(wilson_interval(float(right.mean()), 5000), abs=2e-3)


def test_paired_difference_is_exact_under_exchange_of_the_models() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(24) < 0.9, rng.random(24) < 0.5
    cluster = np.repeat(np.arange(8), 3)
    result = paired_difference(a, b, cluster)
    totals = (a.astype(int) - b.astype(int)).reshape(8, 3).sum(1)
    sums = [abs(np.dot(signs, totals)) for signs in itertools.product((-1, 1), repeat=8)]
    assert result.p == pytest.approx(np.mean(np.array(sums) >= abs(totals.sum())))
    assert result.difference == pytest.approx(totals.sum() / 24)
    assert result.low <= result.difference <= result.high


def test_paired_difference_of_independent_images_is_mcnemars() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.7
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    expected = stats.binomtest(min(only_a, only_b), only_a + only_b).pvalue
    assert paired_difference(a, b, np.arange(400)).p == pytest.approx(expected, abs=1e-9)
    same = paired_difference(a, a, np.arange(400))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_seed_summary_is_students() -> None:
    values = [0.79, 0.81, 0.80, 0.78]
    summary = seed_summary(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.low, summary.high) == pytest.approx(expected)
    assert summary.sd == pytest.approx(np.std(values, ddof=1))
    assert (summary.minimum, summary.maximum, summary.n) == (0.78, 0.81, 4)


def test_one_seed_says_nothing_of_the_spread() -> None:
    summary = seed_summary([0.5])
    assert (summary.mean, summary.sd, summary.low, summary.high) == (0.5, None, None, None)
    with pytest.raises(UsageError):
        seed_summary([])
    with pytest.raises(UsageError):
        seed_summary([0.5, math.nan])


def test_holm_is_the_step_down_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
