"""Does an affine set follow the convention that `affbench.data.synthesis` documents, the official one?

A sample of cases is rendered again from the original digits and the stored transformations and compared with the stored
images. Where they disagree, other readings of the table are tried (factors with the opposite sign, columns exchanged,
the shear along the other axis), and what disagrees is named. The originals are those that the set names, or, where
these do not fit, the digits of the same label that the images show when they are brought back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.affnist.originals import Images, brought_back, equal_ink, nearest
from affbench.data.dataset import TRANSFORM_COLUMNS, UNPAIRED, Dataset
from affbench.data.transform import NEUTRAL, affine_matrices, render_matrices

FIT = 0.98  # correlation from which a reading explains the images; bilinear variants stay well above
ALL = 0.999  # share of labels, and of translations, from which all count as right, and as whole pixels
EQUAL_FIT = 0.85  # share of equal ink pixels; official images, their factors fitted, reach 0.90, under rounding 0.51
SHIFT = 0.1  # pixels; a mean displacement worth telling
FOLLOWED = 2000  # images whose ink tells whether the rows of the table are theirs
FOLLOWS = 0.3  # correlation of the ink's position with the translations below which the table belongs to other images
MISNAMED = "by pixels, not by number"
SEARCH_CASES = 48  # for single changes of the reading
STARTS = 9  # readings from which single changes are followed, until one fits
EXPANSION_LIMITS = (0.05, 20.0)  # a value outside cannot be rendered, which only happens under a wrong reading

FACTORS = range(len(TRANSFORM_COLUMNS))
EXPANSIONS = tuple(name.endswith("expansion") for name in TRANSFORM_COLUMNS)
SHEAR = 1

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """One way to read a stored table; by default the documented one."""

    columns: tuple[int, ...] = tuple(FACTORS)  # which stored column each factor of `TRANSFORM_COLUMNS` is taken from
    inverted: tuple[bool, ...] = (False,) * len(FACTORS)  # whether it has the opposite sign, or is the reciprocal
    horizontal_shear: bool = False  # whether y·shear is added to x, not x·shear to y

    def apply(self, table: npt.NDArray[np.floating[Any]]) -> Values:
        """The table (N, 6) in the order and with the signs of the documented one."""
        values = np.asarray(table, np.float64)[:, list(self.columns)]
        values[:, EXPANSIONS] = np.clip(values[:, EXPANSIONS], *EXPANSION_LIMITS)
        for factor in np.flatnonzero(self.inverted):
            values[:, factor] = 1 / values[:, factor] if EXPANSIONS[factor] else -values[:, factor]
        return values

    def matrices(self, values: Values) -> Values:
        """The transformations (N, 3, 3) of a table as `apply` gives it."""
        if not self.horizontal_shear:
            return affine_matrices(values)
        shear, vertical, horizontal = values[:, SHEAR : SHEAR + 3].T
        matrices = affine_matrices(values * (1, 0, 1, 1, 1, 1))
        matrices[:, 0, :2] += (shear * horizontal / vertical)[:, None] * matrices[:, 1, :2]
        return matrices

    def describe(self, factor: int) -> str:
        """How a factor is read, such as ``"clockwise"`` or ``"stored in the column shear"``."""
        parts = []
        if self.columns[factor] != factor:
            parts.append(f"stored in the column {TRANSFORM_COLUMNS[self.columns[factor]]}")
        if self.inverted[factor]:
            parts.append("inverted" if EXPANSIONS[factor] else "clockwise" if factor == 0 else "sign flipped")
        if self.horizontal_shear and factor == SHEAR:
            parts.append("horizontal (y·shear added to x)")
        return " and ".join(parts) or "as documented"

    def neighbours(self) -> Iterator[Reading]:
        """All readings that differ by one inversion, one exchange of columns, or the axis of the shear."""
        for factor in FACTORS:
            yield replace(self, inverted=tuple(flag != (k == factor) for k, flag in enumerate(self.inverted)))
        for one, other in combinations(FACTORS, 2):
            columns = list(self.columns)
            columns[one], columns[other] = columns[other], columns[one]
            yield replace(self, columns=tuple(columns))
        yield replace(self, horizontal_shear=not self.horizontal_shear)


@dataclass(frozen=True)
class Agreement:
    """How well rendered images agree with the stored ones."""

    difference: float  # mean absolute pixel difference, 0 to 255
    correlation: float  # of the pixels, −1 to 1
    equal: float  # share of equal pixels among those with ink in either, 0 to 1
    shift: tuple[float, float]  # mean displacement of the centre of the ink (down, right), where there is ink in both


@dataclass(frozen=True)
class Cases:
    """Stored images with their labels and table, and the digits they were made from."""

    stored: Dataset
    digits: Dataset
    named: bool  # whether ``source_index`` names the digits; else they are to be found by the pixels

    def head(self, n: int) -> Cases:
        """The first n cases."""
        return replace(self, stored=self.stored.rows(slice(n)))

    def compare(self, reading: Reading, values: Values | None = None, added: float = 0.0) -> Agreement:
        """How well a reading explains the stored images, or `values` in its place; `added`: to the levels rendered."""
        stored, (table, chosen) = self.stored.images, self.stored.table
        matrices = reading.matrices(reading.apply(table))
        if not self.named:
            chosen = nearest(brought_back(stored, matrices), self.stored.labels, stored, matrices, self.digits)[0]
        if values is not None:
            matrices = reading.matrices(values)
        rendered = render_matrices(self.digits.images[chosen], matrices, self.stored.canvas, added)
        there, made = (images.astype(np.float64).ravel() for images in (stored, rendered))
        difference = float(np.abs(made - there).mean())
        made, there = made - made.mean(), there - there.mean()
        scale = float(np.sqrt((made @ made) * (there @ there)))
        correlation = float(made @ there) / scale if scale else float(not difference)
        shift, both = np.zeros(2), stored.any(axis=(1, 2)) & rendered.any(axis=(1, 2))
        if both.any():
            shift = (_centroids(stored[both]) - _centroids(rendered[both])).mean(axis=0)
        return Agreement(difference, correlation, float(equal_ink(stored, rendered).mean()), (shift[0], shift[1]))


@dataclass(frozen=True)
class FactorCheck:
    """What the images say about one factor."""

    factor: str  # one of `TRANSFORM_COLUMNS`
    reading: str  # the best one: ``"as documented"``, ``"clockwise"``, ``"stored in the column shear"``, …, "no effect"
    agrees: bool  # whether that is the documented one, or the factor is neutral throughout and so has no effect
    neutral_difference: float  # mean absolute pixel difference (0 to 255) with the factor neutral in the best reading


@dataclass(frozen=True)
class VerificationReport:
    """How well a table explains the images it belongs to."""

    name: str  # the set
    split: str
    n: int  # cases rendered again
    difference: float  # mean absolute pixel difference (0 to 255) under the documented convention
    correlation: float  # correlation of the pixels of stored and rendered images under it, −1 to 1
    equal: float  # share of equal pixels among those with ink in either, under the best reading, levels truncated
    equal_rounded: float  # the same, levels rounded
    whole_translations: float  # share of cases whose two translations are whole pixels
    follows: float  # correlation of the ink's position with the translations, the larger of both axes, −1 to 1
    originals: str  # "by number"; "by pixels" where a file counts in an order of its own; `MISNAMED` if it should not
    matrices: str  # what reading the set said of its stored matrices
    best_difference: float  # the same under the best reading found
    best_correlation: float
    label_agreement: float  # share of all images whose label is that of their original, 0 to 1
    centroid_shift: tuple[float, float]  # mean (down, right) of the ink in pixels, stored minus rendered as read best
    shifted_correlation: float  # with the translations corrected by it; high where they count from another origin
    factors: tuple[FactorCheck, ...]  # one check for each of `TRANSFORM_COLUMNS`

    @property
    def agrees(self) -> bool:
        """Whether the documented convention, and the labels, fit."""
        return not self.disagreements

    @property
    def disagreements(self) -> tuple[str, ...]:
        """What does not follow the documented convention, one phrase each."""
        fits, (down, right) = self.best_correlation >= FIT, self.centroid_shift
        moved = max(abs(down), abs(right)) >= SHIFT if fits else self.shifted_correlation >= FIT
        lost, shuffled, fractional = not (fits or moved), self.follows < FOLLOWS, self.whole_translations < ALL
        grey = "rounded, not truncated" if self.equal_rounded > self.equal else "others"
        said = {
            f"translations are fractional in {1 - self.whole_translations:.1%} of the cases": fractional,
            f"grey levels are {grey}": fits and self.equal < EQUAL_FIT,
            f"translations count from another origin ({down:+.2f} pixels down, {right:+.2f} right)": moved,
            "the ink does not lie where the table puts it, as if the table were shuffled": lost and shuffled,
            "no reading of the table explains the images": lost and not shuffled,
            "source_index names other digits": self.originals == MISNAMED,
            "labels are not those of the originals": self.label_agreement < ALL,
            f"the stored matrices {self.matrices}": self.matrices.startswith("disagree"),
        }
        factors = [f"{check.factor} is {check.reading}" for check in self.factors if not check.agrees]
        return (*factors, *(words for words, wrong in said.items() if wrong))

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        measured = (
            f"{self.n:,} cases, {self.equal:.2%} of the ink's pixels equal, correlation {self.correlation:.4f}, mean "
            f"difference {self.difference:.2f} of 255, originals {self.originals}"
        )
        labels = f"{self.label_agreement:.2%} of the labels are those of the originals"
        if self.agrees:
            return f"The documented convention explains {self.name} ({measured}); {labels}."
        at_best = max(self.best_correlation, self.shifted_correlation)
        return (
            f"{self.name} does not follow the documented convention ({measured}): {', '.join(self.disagreements)}; "
            f"read so, the correlation is {at_best:.4f}; {labels}."
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, with ``agrees``, ``disagreements`` and ``sentence``, ready for `json.dumps`."""
        said = {"agrees": self.agrees, "disagreements": list(self.disagreements), "sentence": self.sentence}
        return {**asdict(self), **said}


def verify_affnist(dataset: Dataset, originals: Dataset, sample: int = 1000, seed: int = 0) -> VerificationReport:
    """Render a sample of an affine set again from its originals, which ``source_index`` counts in, and compare."""
    index = dataset.table[1]
    if not len(dataset) or sample < 1:
        raise DataError(f"{dataset.name} cannot be verified on {min(len(dataset), sample)} cases.")
    rows = np.sort(np.random.default_rng(seed).choice(len(dataset), min(sample, len(dataset)), replace=False))
    cases = Cases(dataset.rows(rows), originals, bool(index.min() >= 0 and index.max() < len(originals)))
    follows = _follows(dataset)
    cases, best = _explain(cases, follows)
    documented, chosen = cases.compare(Reading()), cases.compare(best)
    unpaired = str(dataset.attributes.get("order", "")).startswith(UNPAIRED)
    right = originals.labels[index] == dataset.labels if cases.named else np.ones(1)  # found by their label
    table = cases.stored.table[0]
    values, whole = best.apply(table), (table[:, 4:] == np.rint(table[:, 4:])).all(axis=1)
    moved = values + np.array([0, 0, 0, 0, *chosen.shift])  # down, right: the last two columns
    return VerificationReport(
        name=dataset.name,
        split=dataset.split,
        n=len(rows),
        difference=documented.difference,
        correlation=documented.correlation,
        equal=chosen.equal,
        equal_rounded=cases.compare(best, added=0.5).equal,
        whole_translations=float(whole.mean()),
        follows=follows,
        originals="by number" if cases.named else "by pixels" if unpaired else MISNAMED,
        matrices=str(dataset.attributes.get("matrices", "none in the file")),
        best_difference=chosen.difference,
        best_correlation=chosen.correlation,
        label_agreement=float(np.mean(right)),
        centroid_shift=chosen.shift,
        shifted_correlation=cases.compare(best, moved).correlation,
        factors=tuple(_check(cases, best, values, chosen, factor) for factor in FACTORS),
    )


def verify_set(name: str, split: str, data_dir: Path, sample: int = 1000, seed: int = 0) -> VerificationReport:
    """`verify_affnist` for a set by name and the digits it was made from."""
    from affbench.data.sets import find_part, made_from

    part = find_part(name, split)
    dataset = part.load(data_dir)
    _ = dataset.table  # a set without one has nothing to verify
    return verify_affnist(dataset, made_from(part, data_dir), sample, seed)


def _check(cases: Cases, best: Reading, values: Values, chosen: Agreement, factor: int) -> FactorCheck:
    without = np.where(np.equal(FACTORS, factor), NEUTRAL, values)
    neutral = cases.compare(best, without).difference
    determined = neutral > chosen.difference * 1.01 + 0.01
    reading = best.describe(factor) if determined else "no effect"
    return FactorCheck(TRANSFORM_COLUMNS[factor], reading, reading in ("as documented", "no effect"), neutral)


def _explain(cases: Cases, follows: float) -> tuple[Cases, Reading]:
    """The reading that explains the cases, with the originals as the set numbers them or found by their pixels."""
    choices = [cases, replace(cases, named=False)] if cases.named else [cases]
    for given in choices:
        few = given.head(SEARCH_CASES)
        better = 0.8 * few.compare(Reading()).difference  # small factors hardly correlate, so the difference decides
        fits = given.compare(Reading()).correlation >= FIT
        if fits and not any(few.compare(other).difference < better for other in Reading().neighbours()):
            return given, Reading()
    if follows < FOLLOWS:
        return cases, Reading()
    likely = max(choices, key=lambda given: given.head(SEARCH_CASES).compare(Reading()).correlation)
    reading = _search(likely)
    return next((given for given in choices if given.compare(reading).correlation >= FIT), likely), reading


def _search(cases: Cases) -> Reading:
    """The reading that explains the cases best: reached from the documented one, or from other orders at random."""
    few, rng = cases.head(SEARCH_CASES), np.random.default_rng(0)
    best = _climb(few, Reading())
    for _ in range(1, STARTS):  # no single change may help where several are needed
        if best[0] < FIT:
            start = Reading(tuple(rng.permutation(FACTORS).tolist()))
            best = max(best, _climb(few, start), key=lambda reached: reached[0])
    return best[1]


def _climb(cases: Cases, reading: Reading) -> tuple[float, Reading]:
    """Take the best single change for as long as one helps; the correlation reached, and the reading."""
    # By correlation: the difference is small, too, where a wrong reading moves all ink off the canvas.
    here = cases.compare(reading).correlation
    while True:
        found = [(cases.compare(other).correlation, other) for other in reading.neighbours()]
        best, other = max(found, key=lambda pair: pair[0])
        if best <= here + 1e-6:
            return here, reading
        here, reading = best, other


def _follows(dataset: Dataset) -> float:
    """How far the ink lies where the table puts it, whatever the columns and signs of the translations."""
    rows = np.linspace(0, len(dataset) - 1, min(FOLLOWED, len(dataset))).astype(int)
    rows = rows[dataset.images[rows].any(axis=(1, 2))]
    if len(rows) < 3:
        return 1.0
    with np.errstate(invalid="ignore"):  # a constant column
        both = np.corrcoef(_centroids(dataset.images[rows]).T, dataset.table[0][rows].T)[:2, 2:]
    return float(np.nan_to_num(np.abs(both), nan=1.0).max())


def _centroids(images: Images) -> Values:
    ink, axis = images.astype(np.float64), np.arange(images.shape[-1])
    total = ink.sum(axis=(1, 2))
    return np.stack([(ink.sum(axis=2) @ axis) / total, (ink.sum(axis=1) @ axis) / total], axis=1)
