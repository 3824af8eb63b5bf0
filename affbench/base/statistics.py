"""Intervals and tests for accuracies: of independent images, of many versions of one digit, and of several seeds.

Which one to use:

- images that are independent (one per original digit): `wilson_interval`, and `mcnemar` to compare two models;
- several versions of each original (affNIST has 32): `clustered_interval`, and `paired_difference` with ``cluster``;
- several seeds of one configuration: `seed_summary`;
- several comparisons at once: `holm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, stats

from affbench.base.errors import UsageError

_SMALLEST_P = 1e-12  # the exact randomisation distribution is summed in float64; tails below are rounding


@dataclass(frozen=True)
class ClusteredInterval:
    """An interval for an accuracy whose images come in clusters.

    Attributes
    ----------
    low, high
        Ends of the interval, 0 to 1.
    design_effect
        Variance of the accuracy over what it would be for as many independent images; see `design_effect`.
    """

    low: float
    high: float
    design_effect: float


@dataclass(frozen=True)
class McNemar:
    """McNemar's comparison of two models on the same independent images.

    Attributes
    ----------
    only_a, only_b
        Images that only the first, or only the second model gets right.
    p
        Exact two-sided p value of "both are right equally often".
    """

    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of one model minus that of another on the same images.

    Attributes
    ----------
    difference
        −1 to 1.
    low, high
        Ends of its interval.
    p
        Two-sided p value of "the two models are exchangeable", at least 1e-12.
    """

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class SeedSummary:
    """Values of one configuration over its seeds.

    Attributes
    ----------
    n
        Number of seeds.
    mean
        Arithmetic mean.
    sd
        Standard deviation with n − 1 in the denominator; None for one seed.
    low, high
        Ends of Student's t interval of the mean; None for one seed. It describes the spread over seeds and may
        reach beyond 0 or 1.
    minimum, maximum
        The range.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    minimum: float
    maximum: float


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence} is not between 0 and 1; give 0.95 for a 95% interval.")


def _wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 where the formula means them and rounding would miss them by 1e-17.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, without continuity correction; for independent images.

    Parameters
    ----------
    correct
        Images classified correctly, 0 to `n`.
    n
        Images, at least 1.
    confidence
        Between 0 and 1.

    Returns
    -------
    tuple of float
        Low and high end, 0 to 1.

    Raises
    ------
    UsageError
        A number is outside its range.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22, 1927.
    R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998,
    method 3.

    Examples
    --------
    >>> low, high = wilson_interval(81, 263)
    >>> f"{low:.4f} to {high:.4f}"
    '0.2553 to 0.3662'
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= correct <= n:
        raise UsageError(f"{correct} correct of {n} images is not possible: it takes 0 to n correct and n at least 1.")
    return _wilson(correct / n, n, confidence)


@dataclass(frozen=True)
class _Clusters:
    """Clusters, counted by kind: all clusters of one size and one sum are the same to a bootstrap.

    size, total
        float64 (T,): images of a cluster of each kind, and the sum of their values.
    count
        int64 (T,): clusters of each kind.
    """

    size: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]

    @property
    def clusters(self) -> int:
        return int(self.count.sum())

    @property
    def images(self) -> float:
        return float(self.count @ self.size)

    @property
    def mean(self) -> float:
        return float(self.count @ self.total) / self.images


def _gather(values: npt.NDArray[np.float64], cluster: npt.NDArray[np.int64] | None) -> _Clusters:
    """Sum integer-valued `values` (N,) by cluster and count the kinds of clusters."""
    if cluster is None:
        kinds, count = np.unique(values, return_counts=True)
        return _Clusters(np.ones_like(kinds), kinds, count)
    _, index = np.unique(cluster, return_inverse=True)
    pairs = np.stack([np.bincount(index), np.bincount(index, weights=values)], axis=1).astype(np.float64)
    kinds, count = np.unique(pairs, axis=0, return_counts=True)
    return _Clusters(kinds[:, 0], kinds[:, 1], count)


def _check_flags(name: str, flags: npt.ArrayLike, n: int | None = None) -> npt.NDArray[np.float64]:
    array = np.asarray(flags)
    if array.ndim != 1 or len(array) == 0:
        raise UsageError(f"{name} must be a list of at least one image, not an array of shape {array.shape}.")
    if n is not None and len(array) != n:
        raise UsageError(f"{name} has {len(array):,} images where {n:,} are expected; both must be the same images.")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise UsageError(f"{name} must hold true and false only: whether each image is classified correctly.")
    return array.astype(np.float64)


def _check_cluster(cluster: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
    array = np.asarray(cluster)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise UsageError(f"cluster must be {n:,} whole numbers, the original of every image.")
    return array.astype(np.int64)


def _bca(data: _Clusters, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean over images, resampling whole clusters."""
    if resamples < 100:
        raise UsageError(f"{resamples} resamples are too few for an interval; give at least 100.")
    rng = np.random.default_rng(seed)
    # Drawing C of C clusters with replacement is a multinomial draw over kinds of clusters, and there are few of those.
    drawn = rng.multinomial(data.clusters, data.count / data.clusters, size=resamples)
    means = (drawn @ data.total) / (drawn @ data.size)
    z0 = float(stats.norm.ppf(np.clip((np.mean(means < data.mean) + np.mean(means <= data.mean)) / 2, 1e-6, 1 - 1e-6)))
    left_out = (data.mean * data.images - data.total) / (data.images - data.size)  # jackknife, per kind
    away = np.average(left_out, weights=data.count) - left_out
    spread = float(data.count @ away**2)
    acceleration = float(data.count @ away**3) / (6 * spread**1.5) if spread > 0 else 0.0
    z = z0 + stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(means, stats.norm.cdf(z0 + z / (1 - acceleration * z)))
    return float(low), float(high)


def _linearised_variance(data: _Clusters) -> float:
    """Variance of the mean over images when clusters are sampled; the first-order (sandwich) estimate."""
    clusters = data.clusters
    residuals = data.total - data.mean * data.size
    return clusters / (clusters - 1) * float(data.count @ residuals**2) / data.images**2


def _design_effect(data: _Clusters) -> float:
    share = data.mean
    if share in (0.0, 1.0) or data.clusters == 1:
        return float(data.count @ data.size**2) / data.images
    return _linearised_variance(data) / (share * (1 - share) / data.images)


def design_effect(correct: npt.ArrayLike, cluster: npt.ArrayLike) -> float:
    """How many times larger the variance of an accuracy is than for as many independent images.

    Parameters
    ----------
    correct
        bool (N,), whether each image is classified correctly.
    cluster
        int (N,), the original of each image.

    Returns
    -------
    float
        About 1 for unrelated images, the cluster size for identical versions. Where it cannot be estimated (all
        images right, all wrong, or one cluster only) the largest it can be: the images' mean cluster size.

    Raises
    ------
    UsageError
        The arrays do not fit together.

    References
    ----------
    L. Kish, "Survey Sampling", 1965, section 5.4. J. N. K. Rao and A. J. Scott, "A simple method for the analysis of
    clustered binary data", Biometrics 48, 1992.
    """
    flags = _check_flags("correct", correct)
    return _design_effect(_gather(flags, _check_cluster(cluster, len(flags))))


def clustered_interval(
    correct: npt.ArrayLike, cluster: npt.ArrayLike, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> ClusteredInterval:
    """Interval of an accuracy when several images come from one original: bootstrap over originals.

    Parameters
    ----------
    correct
        bool (N,), whether each image is classified correctly.
    cluster
        int (N,), the original of each image; originals are resampled whole, with all their images.
    confidence
        Between 0 and 1.
    resamples
        Bootstrap samples, at least 100.
    seed
        Seeds the resampling; the same data and seed give the same interval.

    Returns
    -------
    ClusteredInterval
        The bias-corrected and accelerated interval, and the design effect. Where the spread between originals cannot
        be estimated (all images right, all wrong, or all originals alike) it is Wilson's interval with the number of
        originals for n, the cautious choice.

    Raises
    ------
    UsageError
        The arrays do not fit together or a number is outside its range.

    References
    ----------
    B. Efron, "Better bootstrap confidence intervals", J. Am. Stat. Assoc. 82, 1987. C. A. Field and A. H. Welsh,
    "Bootstrapping clustered data", J. R. Stat. Soc. B 69, 2007.
    """
    _check_confidence(confidence)
    flags = _check_flags("correct", correct)
    data = _gather(flags, _check_cluster(cluster, len(flags)))
    effect = _design_effect(data)
    if len(data.count) == 1 or data.mean in (0.0, 1.0):
        low, high = _wilson(data.mean, data.clusters, confidence)
    else:
        low, high = _bca(data, confidence, resamples, seed)
    return ClusteredInterval(low, high, effect)


def mcnemar(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> McNemar:
    """McNemar's exact test that two models are right equally often, on the same independent images.

    Not for several versions of one digit, which are not independent: `paired_difference` with ``cluster`` is.

    Parameters
    ----------
    correct_a, correct_b
        bool (N,), whether each model classifies each image correctly.

    Returns
    -------
    McNemar
        Discordant images each way and the exact two-sided binomial p value (1 without discordant images).

    Raises
    ------
    UsageError
        The arrays are not of the same images.

    References
    ----------
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; the exact form follows F. Mosteller, Biometrics 8, 1952.
    """
    a = _check_flags("correct_a", correct_a)
    b = _check_flags("correct_b", correct_b, len(a))
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    p = min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(only_a, only_b, p)


def paired_difference(
    correct_a: npt.ArrayLike,
    correct_b: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> PairedDifference:
    """Accuracy of model a minus that of model b on the same images, with interval and p value.

    The interval is a bootstrap over originals, as `clustered_interval`; the p value is that of the exact randomisation
    test which exchanges the two models' answers original by original. Without clusters it is McNemar's.

    Parameters
    ----------
    correct_a, correct_b
        bool (N,), whether each model classifies each image correctly.
    cluster
        int (N,), the original of each image; None where every image is an original.
    confidence, resamples, seed
        As for `clustered_interval`.

    Returns
    -------
    PairedDifference
        Interval and p value. Models that agree on every image have difference 0, interval [0, 0] and p 1.

    Raises
    ------
    UsageError
        The arrays do not fit together or a number is outside its range.

    References
    ----------
    As for `clustered_interval`; for the test, R. A. Fisher, "The Design of Experiments", 1935, section 21.
    """
    _check_confidence(confidence)
    a = _check_flags("correct_a", correct_a)
    b = _check_flags("correct_b", correct_b, len(a))
    data = _gather(a - b, None if cluster is None else _check_cluster(cluster, len(a)))
    low, high = _bca(data, confidence, resamples, seed) if len(data.count) > 1 else (data.mean, data.mean)
    return PairedDifference(data.mean, low, high, _randomisation_p(data))


def _randomisation_p(data: _Clusters) -> float:
    """P(|Σ ±d| ≥ |Σ d|) for fair independent signs on the clusters' differences d, exact up to rounding."""
    steps = np.abs(data.total).astype(np.int64)
    reach = int(data.count @ steps)
    observed = abs(round(float(data.count @ data.total)))
    if observed == 0:
        return 1.0
    # A sign ±d has the characteristic function cos(td); the product over clusters is real and even, and its inverse
    # transform over 2·reach + 1 points is the distribution of the sum, without wrapping round.
    size = 2 * reach + 1
    angles = 2 * np.pi * np.arange(reach + 1) / size
    characteristic = np.ones(reach + 1)
    for step in np.unique(steps[steps > 0]):
        characteristic *= np.cos(angles * step) ** int(data.count[steps == step].sum())
    probability = fft.irfft(characteristic, size)
    return float(np.clip(2 * probability[observed : reach + 1].sum(), _SMALLEST_P, 1.0))


def seed_summary(values: Sequence[float], confidence: float = 0.95) -> SeedSummary:
    """Mean, standard deviation, t interval and range of one figure over seeds.

    Parameters
    ----------
    values
        One value per seed, in any unit; at least one.
    confidence
        Between 0 and 1.

    Returns
    -------
    SeedSummary
        Standard deviation and interval are None for a single seed: one run says nothing of their size.

    Raises
    ------
    UsageError
        No value is given, or one is not finite.

    References
    ----------
    "Student" (W. S. Gosset), "The probable error of a mean", Biometrika 6, 1908.
    """
    _check_confidence(confidence)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise UsageError("a summary over seeds takes one finite value per seed, and at least one.")
    n, mean = len(array), float(array.mean())
    if n == 1:
        return SeedSummary(1, mean, None, None, None, mean, mean)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return SeedSummary(n, mean, sd, mean - half, mean + half, float(array.min()), float(array.max()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that keep the chance of any false finding below the level.

    Parameters
    ----------
    p_values
        0 to 1, one per comparison, in any order.

    Returns
    -------
    list of float
        Adjusted p values in the same order; compare each with the level, such as 0.05.

    Raises
    ------
    UsageError
        A value is not between 0 and 1.

    References
    ----------
    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6, 1979.

    Examples
    --------
    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise UsageError("Holm's correction takes p values between 0 and 1.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]
