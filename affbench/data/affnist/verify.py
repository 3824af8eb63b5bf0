"""Does an affine set follow the convention that `affbench.data.synthesis` documents, the official one?

A sample of cases is rendered again from the original digits and the stored transformations and compared with the stored
images. Where they disagree, other readings of the table are tried (`affbench.data.affnist.readings`), and what
disagrees is named.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from affbench.base.errors import DataError
from affbench.data.affnist.readings import (
    FACTORS,
    FIT,
    NEUTRAL,
    SEARCH_CASES,
    Agreement,
    Cases,
    Reading,
    explains,
    search,
)
from affbench.data.dataset import TRANSFORM_COLUMNS, UNPAIRED, Dataset
from affbench.data.transform import truncate

if TYPE_CHECKING:
    from rich.table import Table as RichTable

LABEL_FIT = 0.999
EQUAL_FIT = 0.85  # share of equal ink pixels; official images, their factors fitted, reach 0.90, under rounding 0.51
SHIFT = 0.1  # pixels; a mean displacement worth telling
WHOLE = 0.999  # share of translations that are whole pixels
MISNAMED = "by pixels, not by number"
FOLLOWED = 2000  # images whose ink tells it
FOLLOWS = 0.3  # correlation of the ink's position with the translations below which the table belongs to other images


@dataclass(frozen=True)
class FactorCheck:
    """What the images say about one factor."""

    factor: str  # one of `TRANSFORM_COLUMNS`
    # How the best reading takes it: ``"as documented"``, ``"clockwise"``, ``"stored in the column shear"``, …
    reading: str
    agrees: bool  # whether that is the documented one
    # Whether the images depend on the factor enough to tell; a factor that is neutral throughout is not
    determined: bool
    # Mean absolute pixel difference (0 to 255) under the best reading, with this factor inverted in it, and with this
    # factor neutral in it
    difference: float
    flipped_difference: float
    neutral_difference: float
    correlation: float  # correlation of pixels, likewise
    flipped_correlation: float
    neutral_correlation: float


@dataclass(frozen=True)
class VerificationReport:
    """How well a table explains the images it belongs to."""

    name: str  # the set
    split: str
    n: int  # cases rendered again
    difference: float  # mean absolute pixel difference (0 to 255) under the documented convention
    correlation: float  # correlation of the pixels of stored and rendered images under it, −1 to 1
    # Share of equal pixels among those with ink in either, under the best reading, with levels truncated as
    # documented and with levels rounded
    equal: float
    equal_rounded: float
    whole_translations: float  # share of cases whose two translations are whole pixels
    follows: float  # correlation of the ink's position with the translations, the larger of both axes, −1 to 1
    # "by number"; "by pixels" where a file counts in an order of its own; `MISNAMED` where a set that says
    # that its ``source_index`` counts in the order of the digits names others
    originals: str
    matrices: str  # what reading the set said of its stored matrices
    best_difference: float  # the same under the best reading found
    best_correlation: float
    label_agreement: float  # share of all images whose label is that of their original, 0 to 1
    # Mean displacement of the ink, stored minus rendered under the best reading, in pixels, (down, right)
    centroid_shift: tuple[float, float]
    # The correlation when the translations of the best reading are corrected by it: high where the table only counts
    # from another origin
    shifted_correlation: float
    factors: tuple[FactorCheck, ...]  # one check for each of `TRANSFORM_COLUMNS`

    @property
    def agrees(self) -> bool:
        """Whether the documented convention, and the labels, fit."""
        return self.correlation >= FIT and not self.disagreements

    @property
    def disagreements(self) -> tuple[str, ...]:
        """What does not follow the documented convention, one phrase each."""
        found = [
            f"{check.factor} is {check.reading}" for check in self.factors if check.determined and not check.agrees
        ]
        if self.whole_translations < WHOLE:
            found.append(f"translations are fractional in {1 - self.whole_translations:.1%} of the cases")
        if self.best_correlation >= FIT and self.equal < EQUAL_FIT:
            rounded = self.equal_rounded > self.equal
            found.append("grey levels are rounded, not truncated" if rounded else "grey levels are others")
        if max(map(abs, self.centroid_shift)) >= SHIFT and self.best_correlation >= FIT:
            found.append("translations count from another origin")
        if self.originals == MISNAMED:
            found.append("source_index names other digits")
        if self.label_agreement < LABEL_FIT:
            found.append("labels are not those of the originals")
        if self.matrices.startswith("disagree"):
            found.append(f"the stored matrices {self.matrices}")
        return tuple(found)

    @property
    def sentence(self) -> str:
        """The verdict in a sentence or two."""
        down, right = self.centroid_shift
        labels = f"{self.label_agreement:.2%} of the labels are those of the originals"
        measured = (
            f"{self.n:,} cases, {self.equal:.2%} of the ink's pixels equal, correlation {self.correlation:.4f}, mean "
            f"difference {self.difference:.2f} of 255, originals {self.originals}"
        )
        wrong = ", ".join(self.disagreements)
        if self.agrees:
            return f"The documented convention explains {self.name} ({measured}); {labels}."
        if self.best_correlation >= FIT and wrong:
            found = (
                f"{self.name} does not follow the documented convention ({measured}): {wrong}; "
                f"read so, the correlation is {self.best_correlation:.4f}"
            )
        elif self.shifted_correlation >= FIT:
            found = (
                f"The table of {self.name} counts its translations from another origin ({measured}): moved by "
                f"{down:+.2f} pixels down and {right:+.2f} right, the correlation is {self.shifted_correlation:.4f}"
            )
        elif self.follows < FOLLOWS:
            found = (
                f"The rows of the table of {self.name} belong to other images ({measured}): the ink does not lie where "
                f"the translations put it (correlation {self.follows:.2f}), as if the table were shuffled"
            )
        else:
            tried = f"; the best found ({wrong}) gives {self.best_correlation:.4f}" if wrong else ""
            found = (
                f"No reading of the table explains {self.name} (documented: {measured}{tried}), so its originals or "
                f"its convention are others"
            )
        return f"{found}; {labels}."

    def to_dict(self) -> dict[str, Any]:
        """All of it, with ``agrees``, ``disagreements`` and ``sentence``, ready for `json.dumps`."""
        said = {"agrees": self.agrees, "disagreements": list(self.disagreements), "sentence": self.sentence}
        return {**asdict(self), **said}

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

    `originals_images`: uint8 (M, H, W), which ``source_index`` counts in; `originals_labels`: uint8 (M,).
    """
    if dataset.transforms is None or dataset.source_index is None:
        raise DataError(f"{dataset.name} has no transformation table to verify.")
    if not len(dataset) or sample < 1:
        raise DataError(f"{dataset.name} cannot be verified on {min(len(dataset), sample)} cases.")
    n = min(sample, len(dataset))
    rows = np.sort(np.random.default_rng(seed).choice(len(dataset), n, replace=False))
    digits = Dataset("originals", dataset.split, originals_images, originals_labels)
    index = dataset.source_index
    known = int(index.min()) >= 0 and int(index.max()) < len(digits)
    cases = Cases(
        dataset.images[rows], dataset.labels[rows], dataset.transforms[rows], digits, index[rows] if known else None
    )
    follows = _follows(dataset)
    cases, best = _explain(cases, follows)
    documented, values = cases.compare(Reading()), best.apply(cases.table)
    levels = cases.levels(best, values)
    chosen, rounded = cases.agreement(truncate(levels)), cases.agreement(truncate(levels + 0.5))
    shift = _centroid_shift(cases.stored, truncate(levels))
    moved = values + np.array([0, 0, 0, 0, *shift])  # down, right: the last two columns
    named = np.ones(1) if cases.originals is None else originals_labels[index] == dataset.labels  # found by their label
    return VerificationReport(
        name=dataset.name,
        split=dataset.split,
        n=n,
        difference=documented.difference,
        correlation=documented.correlation,
        equal=chosen.equal,
        equal_rounded=rounded.equal,
        whole_translations=float(np.mean((cases.table[:, 4:] == np.rint(cases.table[:, 4:])).all(axis=1))),
        follows=follows,
        originals=_how_found(dataset, cases),
        matrices=str(dataset.attributes.get("matrices", "none in the file")),
        best_difference=chosen.difference,
        best_correlation=chosen.correlation,
        label_agreement=float(np.mean(named)),
        centroid_shift=shift,
        shifted_correlation=cases.agreement(truncate(cases.levels(best, moved))).correlation,
        factors=tuple(_check(cases, best, chosen, factor) for factor in range(FACTORS)),
    )


def verify_set(name: str, split: str, data_dir: Path, sample: int = 1000, seed: int = 0) -> VerificationReport:
    """`verify_affnist` for a set by name and the digits it was made from."""
    from affbench.data.sets import find_part, has_digits, mnist_digits, originals_of

    part = find_part(name, split)
    dataset = part.load(data_dir)
    if dataset.transforms is None:
        raise DataError(f"{name} has no transformation table to verify.")
    originals = originals_of(part, data_dir)
    if originals is None and has_digits("mnist", data_dir):  # an official set that was not paired with them
        originals = mnist_digits(part.split, data_dir)
    if originals is None:
        raise DataError(f"{name} cannot be verified without its original digits; 'affbench fetch mnist' gets MNIST's.")
    return verify_affnist(dataset, originals.images, originals.labels, sample, seed)


def _how_found(dataset: Dataset, cases: Cases) -> str:
    if cases.originals is not None:
        return "by number"
    return "by pixels" if str(dataset.attributes.get("order", "")).startswith(UNPAIRED) else MISNAMED


def _explain(cases: Cases, follows: float) -> tuple[Cases, Reading]:
    """The reading that explains the cases, with the originals as the set numbers them or found by their pixels."""
    by_pixels = replace(cases, originals=None)
    choices = [by_pixels] if cases.originals is None else [cases, by_pixels]
    for given in choices:
        if explains(given, Reading()):
            return given, Reading()
    if follows < FOLLOWS:
        return cases, Reading()
    nearest = max(choices, key=lambda given: given.head(SEARCH_CASES).compare(Reading()).correlation)
    reading = search(nearest)
    fits = [given for given in choices if given.compare(reading).correlation >= FIT]
    return (fits or [nearest])[0], reading


def _follows(dataset: Dataset) -> float:
    """How far the ink lies where the table puts it, whatever the columns and signs of the translations."""
    rows = np.linspace(0, len(dataset) - 1, min(FOLLOWED, len(dataset))).astype(int)
    rows = rows[dataset.images[rows].any(axis=(1, 2))]
    if len(rows) < 3:
        return 1.0
    with np.errstate(invalid="ignore"):  # a constant column
        both = np.corrcoef(_centroids(dataset.images[rows]).T, dataset.table[0][rows].T)[:2, 2:]
    return float(np.nan_to_num(np.abs(both), nan=1.0).max())


def _check(cases: Cases, best: Reading, chosen: Agreement, factor: int) -> FactorCheck:
    flipped = cases.compare(best.with_inverted(factor))
    values = best.apply(cases.table)
    values[:, factor] = NEUTRAL[factor]
    neutral = cases.agreement(truncate(cases.levels(best, values)))
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
