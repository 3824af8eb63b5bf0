"""Does a transformation table mean what `affbench.data.synthesis` documents?

The meaning of the official table is unconfirmed, so it is tested rather than assumed: a sample of cases is rendered
again from the original digits and the stored transformations and compared with the stored images. Where they disagree,
other readings of the table are tried, factors with the opposite sign and columns in another order, and the one that
explains the images is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations, permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.synthesis import CHUNK, affine_matrices, warp
from affbench.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table as RichTable

FIT = 0.98  # correlation from which a reading explains the images; bilinear variants stay well above
LABEL_FIT = 0.999
SEARCH_CASES = 48  # for single changes of the reading
START_CASES = 10  # for all orders and signs
STARTS = 4  # of which so many are followed
SHIFT = 0.1  # pixels; a mean displacement worth telling
EXPANSION_LIMITS = (0.05, 20.0)  # a value outside cannot be rendered, which only happens under a wrong reading

_FACTORS = len(TRANSFORM_COLUMNS)
_EXPANSIONS = tuple(name.endswith("expansion") for name in TRANSFORM_COLUMNS)
_NEUTRAL = tuple(1.0 if expansion else 0.0 for expansion in _EXPANSIONS)

Table = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Reading:
    """One way to read a stored table.

    Attributes
    ----------
    columns
        Which stored column each factor of `TRANSFORM_COLUMNS` is taken from.
    inverted
        Whether the factor has the opposite sign; for an expansion, is the reciprocal.
    """

    columns: tuple[int, ...] = tuple(range(_FACTORS))
    inverted: tuple[bool, ...] = (False,) * _FACTORS

    def apply(self, table: Table) -> npt.NDArray[np.float64]:
        """The table (N, 6) as documented, float64."""
        values = np.asarray(table, np.float64)[:, list(self.columns)]
        for factor in range(_FACTORS):
            if _EXPANSIONS[factor]:
                values[:, factor] = np.clip(values[:, factor], *EXPANSION_LIMITS)
                if self.inverted[factor]:
                    values[:, factor] = 1 / values[:, factor]
            elif self.inverted[factor]:
                values[:, factor] *= -1
        return values

    def describe(self, factor: int) -> str:
        """How a factor is read, such as ``"sign flipped"`` or ``"stored in the column shear"``."""
        parts = []
        if self.columns[factor] != factor:
            parts.append(f"stored in the column {TRANSFORM_COLUMNS[self.columns[factor]]}")
        if self.inverted[factor]:
            parts.append("inverted" if _EXPANSIONS[factor] else "sign flipped")
        return " and ".join(parts) or "as documented"


@dataclass(frozen=True)
class FactorCheck:
    """What the images say about one factor.

    Attributes
    ----------
    factor
        One of `TRANSFORM_COLUMNS`.
    reading
        How the best reading takes it: ``"as documented"``, ``"sign flipped"``, ``"stored in the column shear"``, ….
    agrees
        Whether that is the documented one.
    determined
        Whether the images depend on the factor enough to tell; a factor that is neutral throughout is not.
    difference, flipped_difference, neutral_difference
        Mean absolute pixel difference (0 to 255) under the best reading, with this factor inverted in it, and with
        this factor neutral in it.
    correlation, flipped_correlation, neutral_correlation
        Correlation of pixels, likewise.
    """

    factor: str
    reading: str
    agrees: bool
    determined: bool
    difference: float
    flipped_difference: float
    neutral_difference: float
    correlation: float
    flipped_correlation: float
    neutral_correlation: float


@dataclass(frozen=True)
class VerificationReport:
    """How well a table explains the images it belongs to.

    Attributes
    ----------
    name, split
        The set.
    n
        Cases rendered again.
    difference
        Mean absolute pixel difference (0 to 255) under the documented convention.
    correlation
        Correlation of the pixels of stored and rendered images under it, −1 to 1.
    best_difference, best_correlation
        The same under the best reading found.
    label_agreement
        Share of all images whose label is that of their original, 0 to 1.
    centroid_shift
        Mean displacement of the ink, stored minus rendered under the best reading, in pixels, (down, right).
    shifted_correlation
        The correlation when the translations of the best reading are corrected by it: high where the table only
        counts from another origin.
    factors
        One check for each of `TRANSFORM_COLUMNS`.
    """

    name: str
    split: str
    n: int
    difference: float
    correlation: float
    best_difference: float
    best_correlation: float
    label_agreement: float
    centroid_shift: tuple[float, float]
    shifted_correlation: float
    factors: tuple[FactorCheck, ...]

    @property
    def agrees(self) -> bool:
        """Whether the documented convention, and the labels, fit."""
        return (
            self.correlation >= FIT
            and self.label_agreement >= LABEL_FIT
            and max(map(abs, self.centroid_shift)) < SHIFT
            and all(factor.agrees for factor in self.factors if factor.determined)
        )

    @property
    def sentence(self) -> str:
        """The verdict in a sentence or two."""
        down, right = self.centroid_shift
        labels = f"{self.label_agreement:.2%} of the labels are those of the originals"
        measured = f"correlation {self.correlation:.4f}, mean difference {self.difference:.2f} of 255, {self.n:,} cases"
        if self.agrees:
            return f"The documented convention explains {self.name} ({measured}); {labels}."
        wrong = [f"{factor.factor} is {factor.reading}" for factor in self.factors if not factor.agrees]
        if self.best_correlation >= FIT and wrong:
            found = (
                f"The table of {self.name} does not follow the documented convention ({measured}): {', '.join(wrong)}; "
                f"read so, the correlation is {self.best_correlation:.4f}"
            )
        elif self.correlation >= FIT and max(abs(down), abs(right)) < SHIFT:
            found = f"The documented convention explains the images of {self.name} ({measured}), but not the labels"
        else:
            tried = f"; the best found ({', '.join(wrong)}) gives {self.best_correlation:.4f}" if wrong else ""
            found = (
                f"No reading of the table explains {self.name} (documented: {measured}{tried}), so its originals or "
                f"its convention are others"
            )
            if self.shifted_correlation >= FIT:
                found = (
                    f"The table of {self.name} counts its translations from another origin ({measured}): moved by "
                    f"{down:+.2f} pixels down and {right:+.2f} right, the correlation is {self.shifted_correlation:.4f}"
                )
        return f"{found}; {labels}."

    def to_dict(self) -> dict[str, Any]:
        """All of it, with ``agrees`` and ``sentence``, ready for `json.dumps`."""
        return {**asdict(self), "agrees": self.agrees, "sentence": self.sentence}

    def to_rich(self) -> RichTable:
        """A table for the terminal: how each factor reads, and what it does to the agreement."""
        from rich.table import Table

        table = Table(title=f"{self.name}, {self.split}: {self.n:,} cases rendered again")
        table.add_column("factor")
        table.add_column("reading")
        table.add_column("mean difference", justify="right")
        table.add_column("… inverted", justify="right")
        table.add_column("… neutral", justify="right")
        table.add_column("correlation", justify="right")
        for check in self.factors:
            table.add_row(
                check.factor.replace("_", " "),
                check.reading if check.determined else "no effect",
                f"{check.difference:.2f}",
                f"{check.flipped_difference:.2f}",
                f"{check.neutral_difference:.2f}",
                f"{check.correlation:.4f}",
            )
        return table


def verify_affnist(
    dataset: Dataset,
    originals_images: npt.NDArray[np.uint8],
    originals_labels: npt.NDArray[np.uint8],
    sample: int = 1000,
    seed: int = 0,
) -> VerificationReport:
    """Render a sample of an affine set again from its originals and its table, and compare.

    Parameters
    ----------
    dataset
        A set with ``transforms`` and ``source_index``.
    originals_images
        uint8 (M, H, W), which ``source_index`` counts in.
    originals_labels
        uint8 (M,).
    sample
        Cases to render; all when there are fewer.
    seed
        Which cases.

    Returns
    -------
    VerificationReport

    Raises
    ------
    DataError
        The set has no table, is empty, or points beyond the originals.
    """
    if dataset.transforms is None or dataset.source_index is None:
        raise DataError(f"{dataset.name} has no transformation table to verify.")
    if not len(dataset) or sample < 1:
        raise DataError(f"{dataset.name} cannot be verified on {min(len(dataset), sample)} cases.")
    index = dataset.source_index
    if int(index.min()) < 0 or int(index.max()) >= len(originals_images):
        raise DataError(
            f"{dataset.name} points to original {int(index.max()):,}, but there are {len(originals_images):,}; give "
            f"the digits of its own split."
        )
    n = min(sample, len(dataset))
    rows = np.sort(np.random.default_rng(seed).choice(len(dataset), n, replace=False))
    cases = _Cases(originals_images[index[rows]], dataset.transforms[rows], dataset.images[rows])
    documented = cases.compare(Reading())
    best = Reading()
    if documented.correlation < FIT or _improves(cases, Reading()):
        best = _search(cases)
    table = best.apply(cases.table)
    chosen = cases.compare_table(table)
    shift = _centroid_shift(cases.stored, cases.rendered(table))
    table[:, -2:] += shift  # down, right: the last two columns
    return VerificationReport(
        name=dataset.name,
        split=dataset.split,
        n=n,
        difference=documented.difference,
        correlation=documented.correlation,
        best_difference=chosen.difference,
        best_correlation=chosen.correlation,
        label_agreement=float(np.mean(originals_labels[index] == dataset.labels)),
        centroid_shift=shift,
        shifted_correlation=cases.compare_table(table).correlation,
        factors=tuple(_check(cases, best, chosen, factor) for factor in range(_FACTORS)),
    )


def verify_set(name: str, split: str, data_dir: Path, sample: int = 1000, seed: int = 0) -> VerificationReport:
    """`verify_affnist` for a set of the catalogue and the digits it was made from.

    Parameters
    ----------
    name, split
        Which set; it is converted if need be, but never downloaded.
    data_dir
        Folder of the data.
    sample, seed
        As for `verify_affnist`.

    Returns
    -------
    VerificationReport

    Raises
    ------
    UsageError
        There is no such set or split.
    DataError
        The set or its original digits have not been fetched, or there is no table to verify.
    """
    from affbench.data.catalogue import load_dataset, originals_of

    dataset = load_dataset(name, split, data_dir)
    if dataset.transforms is None:
        raise DataError(f"{name} has no transformation table to verify.")
    originals = originals_of(name, split, data_dir)
    if originals is None:
        raise DataError(f"{name} cannot be verified without its original digits; 'affbench fetch mnist' gets MNIST's.")
    return verify_affnist(dataset, originals.images, originals.labels, sample, seed)


@dataclass(frozen=True)
class _Agreement:
    difference: float
    correlation: float


@dataclass(frozen=True)
class _Cases:
    """Originals (n, H, W), their table (n, 6) and the stored images (n, C, C)."""

    originals: npt.NDArray[np.uint8]
    table: npt.NDArray[np.float32]
    stored: npt.NDArray[np.uint8]

    def head(self, n: int) -> _Cases:
        return _Cases(self.originals[:n], self.table[:n], self.stored[:n])

    def rendered(self, table: Table) -> npt.NDArray[np.uint8]:
        canvas = self.stored.shape[-1]
        matrices = affine_matrices(table)
        parts = [slice(start, start + CHUNK) for start in range(0, len(table), CHUNK)]
        return np.concatenate([warp(self.originals[part], matrices[part], canvas) for part in parts])

    def compare_table(self, table: Table) -> _Agreement:
        rendered = self.rendered(table).astype(np.float64).ravel()
        stored = self.stored.astype(np.float64).ravel()
        difference = float(np.abs(rendered - stored).mean())
        rendered -= rendered.mean()
        stored -= stored.mean()
        scale = float(np.sqrt((rendered @ rendered) * (stored @ stored)))
        return _Agreement(difference, float(rendered @ stored) / scale if scale else float(not difference))

    def compare(self, reading: Reading) -> _Agreement:
        return self.compare_table(reading.apply(self.table))


def _inverted(reading: Reading, factor: int) -> Reading:
    flags = list(reading.inverted)
    flags[factor] = not flags[factor]
    return Reading(reading.columns, tuple(flags))


def _swapped(reading: Reading, one: int, other: int) -> Reading:
    columns = list(reading.columns)
    columns[one], columns[other] = columns[other], columns[one]
    return Reading(tuple(columns), reading.inverted)


def _neighbours(reading: Reading) -> list[Reading]:
    """All readings that differ by one inversion or one swap of columns."""
    inverted = [_inverted(reading, factor) for factor in range(_FACTORS)]
    return inverted + [_swapped(reading, *pair) for pair in combinations(range(_FACTORS), 2)]


def _improves(cases: _Cases, reading: Reading) -> bool:
    """Whether a single change explains the images clearly better; small factors hardly touch the correlation."""
    few = cases.head(SEARCH_CASES)
    here = few.compare(reading).difference
    return any(few.compare(other).difference < 0.8 * here for other in _neighbours(reading))


def _climb(cases: _Cases, reading: Reading) -> tuple[float, Reading]:
    """Take the best single change for as long as one helps; the correlation reached, and the reading."""
    # By correlation: the difference is small, too, where a wrong reading moves all ink off the canvas.
    here = cases.compare(reading).correlation
    while True:
        found = [(cases.compare(other).correlation, other) for other in _neighbours(reading)]
        best, other = max(found, key=lambda pair: pair[0])
        if best <= here + 1e-6:
            return here, reading
        here, reading = best, other


def _search(cases: _Cases) -> Reading:
    """The reading that explains the images best."""
    few = cases.head(SEARCH_CASES)
    here, reading = _climb(few, Reading())
    if here >= FIT:
        return reading
    # A single change may not help where several are needed: start again from the best of all orders and signs.
    fewer = cases.head(START_CASES)
    starts = [(fewer.compare(start).correlation, start) for start in _starts(cases.table)]
    for _, start in sorted(starts, key=lambda pair: -pair[0])[:STARTS]:
        found, other = _climb(few, start)
        if found > here:
            here, reading = found, other
        if here >= FIT:
            break
    return reading


def _starts(table: Table) -> Iterator[Reading]:
    """All orders of the columns in which expansions are possible ones, with all signs of the other factors."""
    low, high = EXPANSION_LIMITS
    possible = np.all((table >= low) & (table <= high), axis=0)
    for order in permutations(range(_FACTORS)):
        if all(possible[order[factor]] for factor in range(_FACTORS) if _EXPANSIONS[factor]):
            for signs in product((False, True), repeat=_FACTORS):
                if not any(sign and expansion for sign, expansion in zip(signs, _EXPANSIONS, strict=True)):
                    yield Reading(order, signs)


def _check(cases: _Cases, best: Reading, chosen: _Agreement, factor: int) -> FactorCheck:
    flipped = cases.compare(_inverted(best, factor))
    table = best.apply(cases.table)
    table[:, factor] = _NEUTRAL[factor]
    neutral = cases.compare_table(table)
    determined = neutral.difference > chosen.difference * 1.01 + 0.01
    reading = best.describe(factor)
    return FactorCheck(
        factor=TRANSFORM_COLUMNS[factor],
        reading=reading,
        agrees=reading == "as documented",
        determined=determined,
        difference=chosen.difference,
        flipped_difference=flipped.difference,
        neutral_difference=neutral.difference,
        correlation=chosen.correlation,
        flipped_correlation=flipped.correlation,
        neutral_correlation=neutral.correlation,
    )


def _centroid_shift(stored: npt.NDArray[np.uint8], rendered: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Mean displacement of the centre of the ink from rendered to stored, (down, right), where there is ink."""
    both = np.any(stored, axis=(1, 2)) & np.any(rendered, axis=(1, 2))
    if not both.any():
        return (0.0, 0.0)
    down, right = (_centroids(stored[both]) - _centroids(rendered[both])).mean(axis=0)
    return (float(down), float(right))


def _centroids(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    ink = images.astype(np.float64)
    axis = np.arange(images.shape[-1])
    total = ink.sum(axis=(1, 2))
    return np.stack([(ink.sum(axis=2) @ axis) / total, (ink.sum(axis=1) @ axis) / total], axis=1)
