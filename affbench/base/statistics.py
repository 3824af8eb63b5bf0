"""Intervals (all of 95%) and tests for accuracies.

`wilson_interval` is for independent images, `clustered_interval` and `paired_difference` for several versions of each
original (affNIST has 32), `seed_summary` for several seeds, `holm` for several comparisons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, special

from affbench.base.errors import UsageError

CONFIDENCE = 0.95
_SMALLEST_P = 1e-12  # the exact randomisation distribution is summed in float64; tails below are rounding


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of one model minus another's on the same images, and the p value of "they are exchangeable"."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class SeedSummary:
    """Values over seeds: n − 1 in `sd`; `sd` and Student's interval of the mean are None for a single seed."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    minimum: float
    maximum: float


@dataclass(frozen=True)
class _Clusters:
    """Clusters by kind, since all of one size and one sum are the same to a bootstrap: size, total and count (T,)."""

    size: npt.NDArray[np.float64]  # images of a cluster
    total: npt.NDArray[np.float64]  # sum of their values
    count: npt.NDArray[np.int64]  # clusters of this kind

    @property
    def mean(self) -> float:
        return float(self.count @ self.total) / float(self.count @ self.size)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share, 0 to 1, of n independent images, without continuity correction."""
    z = float(special.ndtri((1 + CONFIDENCE) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 where the formula means them and rounding would miss them by 1e-17.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def clustered_interval(
    correct: npt.ArrayLike, cluster: npt.ArrayLike, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Interval of an accuracy when several images come from one original: a bootstrap over originals.

    Takes whether each image is right, bool (N,), and its original, int (N,), which is resampled whole. Where the spread
    between originals cannot be estimated (all images right, all wrong, or all originals alike) the interval is Wilson's
    with the number of originals for n, the cautious choice. Efron, J. Am. Stat. Assoc. 82, 1987; Field and Welsh, J. R.
    Stat. Soc. B 69, 2007.
    """
    data = _gather(np.asarray(correct, np.float64), cluster)
    if len(data.count) == 1 or data.mean in (0.0, 1.0):
        return wilson_interval(data.mean, int(data.count.sum()))
    return _bca(data, resamples, seed)


def paired_difference(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, cluster: npt.ArrayLike) -> PairedDifference:
    """Accuracy of model a minus that of model b, both bool (N,), with the original of each image, int (N,).

    The interval is a bootstrap over originals, as `clustered_interval`; the p value that of the exact randomisation
    test which exchanges the two models' answers original by original (Fisher, The Design of Experiments, 1935, section
    21). With one image an original it is McNemar's.
    """
    a, b = np.asarray(correct_a, np.float64), np.asarray(correct_b, np.float64)
    data = _gather(a - b, cluster)
    low, high = _bca(data, resamples=4000, seed=0) if len(data.count) > 1 else (data.mean, data.mean)
    return PairedDifference(data.mean, low, high, _randomisation_p(data))


def seed_summary(values: Sequence[float]) -> SeedSummary:
    """Mean, standard deviation, Student's t interval and range of one figure over seeds, in any unit."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise UsageError("a summary over seeds takes one finite value per seed, and at least one.")
    n, mean = len(array), float(array.mean())
    if n == 1:
        return SeedSummary(1, mean, None, None, None, mean, mean)
    sd = float(array.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n)
    return SeedSummary(n, mean, sd, mean - half, mean + half, float(array.min()), float(array.max()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values in the same order, adjusted so that each is compared with 0.05 itself."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def _gather(values: npt.NDArray[np.float64], cluster: npt.ArrayLike) -> _Clusters:
    """Sum integer-valued `values` (N,) by cluster and count the kinds of clusters."""
    originals = np.asarray(cluster)
    if values.ndim != 1 or not len(values) or originals.shape != values.shape:
        raise UsageError(f"every image has one original, not {values.shape} images with {originals.shape} originals.")
    _, index = np.unique(originals, return_inverse=True)
    pairs = np.stack([np.bincount(index), np.bincount(index, weights=values)], axis=1).astype(np.float64)
    kinds, count = np.unique(pairs, axis=0, return_counts=True)
    return _Clusters(kinds[:, 0], kinds[:, 1], count)


def _bca(data: _Clusters, resamples: int, seed: int) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean over images, resampling whole clusters."""
    clusters, images = int(data.count.sum()), float(data.count @ data.size)
    # Drawing C of C clusters with replacement is a multinomial draw over kinds of clusters, and there are few of those.
    drawn = np.random.default_rng(seed).multinomial(clusters, data.count / clusters, size=resamples)
    means = (drawn @ data.total) / (drawn @ data.size)
    z0 = float(special.ndtri(np.clip((np.mean(means < data.mean) + np.mean(means <= data.mean)) / 2, 1e-6, 1 - 1e-6)))
    left_out = (data.mean * images - data.total) / (images - data.size)  # jackknife, per kind
    away = np.average(left_out, weights=data.count) - left_out
    spread = float(data.count @ away**2)
    acceleration = float(data.count @ away**3) / (6 * spread**1.5) if spread > 0 else 0.0
    z = z0 + special.ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.quantile(means, special.ndtr(z0 + z / (1 - acceleration * z)))
    return float(low), float(high)


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
