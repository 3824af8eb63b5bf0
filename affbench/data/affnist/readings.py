"""Other ways to read a table of transformations, and which of them explains the images.

Where an affine set does not follow the convention of `affbench.data.synthesis`, what it follows is found by trying:
factors with the opposite sign, columns exchanged, the shear along the other axis. The originals are those that the set
names, or, where these do not fit, the digits of the same label that the images show when they are brought back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from affbench.data.affnist.originals import Images, brought_back, equal_ink, nearest
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.transform import CHUNK, affine_matrices, linear_maps, truncate, warp

FIT = 0.98  # correlation from which a reading explains the images; bilinear variants stay well above
SEARCH_CASES = 48  # for single changes of the reading
START_CASES = 10  # for all orders and signs
STARTS = 4  # of which so many are followed
EXPANSION_LIMITS = (0.05, 20.0)  # a value outside cannot be rendered, which only happens under a wrong reading

FACTORS = len(TRANSFORM_COLUMNS)
EXPANSIONS = tuple(name.endswith("expansion") for name in TRANSFORM_COLUMNS)
NEUTRAL = tuple(1.0 if expansion else 0.0 for expansion in EXPANSIONS)
_SHEAR = TRANSFORM_COLUMNS.index("shear")

Table = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Reading:
    """One way to read a stored table."""

    # Which stored column each factor of `TRANSFORM_COLUMNS` is taken from
    columns: tuple[int, ...] = tuple(range(FACTORS))
    # Whether the factor has the opposite sign; for an expansion, is the reciprocal
    inverted: tuple[bool, ...] = (False,) * FACTORS
    horizontal_shear: bool = False  # whether y·shear is added to x, not x·shear to y

    def apply(self, table: Table) -> npt.NDArray[np.float64]:
        """The table (N, 6) in the order and with the signs of the documented one, float64."""
        values = np.asarray(table, np.float64)[:, list(self.columns)]
        for factor in range(FACTORS):
            if EXPANSIONS[factor]:
                values[:, factor] = np.clip(values[:, factor], *EXPANSION_LIMITS)
                if self.inverted[factor]:
                    values[:, factor] = 1 / values[:, factor]
            elif self.inverted[factor]:
                values[:, factor] *= -1
        return values

    def matrices(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The transformations (N, 3, 3) of a table as `apply` gives it."""
        matrices = affine_matrices(values)
        if self.horizontal_shear:
            alone = [np.tile(NEUTRAL, (len(values), 1)) for _ in range(3)]
            for one, factors in zip(alone, ([2, 3], [1], [0]), strict=True):
                one[:, factors] = values[:, factors]
            expansion, shear, rotation = map(linear_maps, alone)
            matrices[:, :2, :2] = expansion @ shear.transpose(0, 2, 1) @ rotation
        return matrices

    def describe(self, factor: int) -> str:
        """How a factor is read, such as ``"clockwise"`` or ``"stored in the column shear"``."""
        parts = []
        if self.columns[factor] != factor:
            parts.append(f"stored in the column {TRANSFORM_COLUMNS[self.columns[factor]]}")
        if self.inverted[factor]:
            flipped = "clockwise" if factor == 0 else "sign flipped"
            parts.append("inverted" if EXPANSIONS[factor] else flipped)
        if self.horizontal_shear and factor == _SHEAR:
            parts.append("horizontal (y·shear added to x)")
        return " and ".join(parts) or "as documented"

    def with_inverted(self, factor: int) -> Reading:
        """The same with one factor the other way round."""
        flags = list(self.inverted)
        flags[factor] = not flags[factor]
        return replace(self, inverted=tuple(flags))

    def neighbours(self) -> list[Reading]:
        """All readings that differ by one inversion, one exchange of columns, or the axis of the shear."""
        near = [self.with_inverted(factor) for factor in range(FACTORS)]
        for one, other in combinations(range(FACTORS), 2):
            columns = list(self.columns)
            columns[one], columns[other] = columns[other], columns[one]
            near.append(replace(self, columns=tuple(columns)))
        return [*near, replace(self, horizontal_shear=not self.horizontal_shear)]


@dataclass(frozen=True)
class Agreement:
    """How well rendered images agree with the stored ones."""

    difference: float  # mean absolute pixel difference, 0 to 255
    correlation: float  # of the pixels, −1 to 1
    equal: float  # share of equal pixels among those with ink in either, 0 to 1


@dataclass(frozen=True)
class Cases:
    """Stored images (n, C, C) with their labels (n,) and rows of the table (n, 6).

    ``originals`` (n,) are their digits, None where these are to be found by the pixels.
    """

    stored: Images
    labels: Images
    table: npt.NDArray[np.float32]
    digits: Dataset
    originals: npt.NDArray[np.int32] | None

    def head(self, n: int) -> Cases:
        """The first n cases."""
        known = None if self.originals is None else self.originals[:n]
        return replace(self, stored=self.stored[:n], labels=self.labels[:n], table=self.table[:n], originals=known)

    @cached_property
    def level_of(self) -> npt.NDArray[np.float64]:
        """The stored images as numbers."""
        return self.stored.astype(np.float64)

    def sources(self, reading: Reading) -> npt.NDArray[np.int32]:
        """The digit of each case."""
        if self.originals is not None:
            return self.originals
        matrices = reading.matrices(reading.apply(self.table))
        return nearest(brought_back(self.stored, matrices), self.labels, self.stored, matrices, self.digits)[0]

    def levels(self, reading: Reading, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The images as the table's values, read so, would have made them, before truncation."""
        images, matrices = self.digits.images[self.sources(reading)], reading.matrices(values)
        parts = [slice(start, start + CHUNK) for start in range(0, len(images), CHUNK)]
        return np.concatenate([warp(images[part], matrices[part], self.stored.shape[-1]) for part in parts])

    def agreement(self, rendered: Images) -> Agreement:
        """How well rendered images agree with the stored ones."""
        there, made = self.level_of.ravel(), rendered.astype(np.float64).ravel()
        difference = float(np.abs(made - there).mean())
        made, there = made - made.mean(), there - there.mean()
        scale = float(np.sqrt((made @ made) * (there @ there)))
        correlation = float(made @ there) / scale if scale else float(not difference)
        return Agreement(difference, correlation, float(equal_ink(self.stored, rendered).mean()))

    def compare(self, reading: Reading) -> Agreement:
        """How well a reading explains the stored images."""
        return self.agreement(truncate(self.levels(reading, reading.apply(self.table))))


def explains(cases: Cases, reading: Reading) -> bool:
    """Whether a reading fits, and no single change fits clearly better; small factors hardly touch the correlation."""
    if cases.compare(reading).correlation < FIT:
        return False
    few = cases.head(SEARCH_CASES)
    here = few.compare(reading).difference
    return not any(few.compare(other).difference < 0.8 * here for other in reading.neighbours())


def search(cases: Cases) -> Reading:
    """The reading that explains the cases best."""
    here, reading = _climb(cases.head(SEARCH_CASES), Reading())
    if here >= FIT:
        return reading
    # A single change may not help where several are needed: start again from the best of all orders and signs.
    fewer = cases.head(START_CASES)
    starts = [(fewer.compare(start).correlation, start) for start in _starts(cases.table)]
    for _, start in sorted(starts, key=lambda pair: -pair[0])[:STARTS]:
        found, other = _climb(cases.head(SEARCH_CASES), start)
        if found > here:
            here, reading = found, other
        if here >= FIT:
            break
    return reading


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


def _starts(table: Table) -> Iterator[Reading]:
    """All orders of the columns in which expansions are possible ones, with all signs of the other factors."""
    low, high = EXPANSION_LIMITS
    possible = np.all((table >= low) & (table <= high), axis=0)
    for order in permutations(range(FACTORS)):
        if all(possible[order[factor]] for factor in range(FACTORS) if EXPANSIONS[factor]):
            for signs in product((False, True), repeat=FACTORS):
                if not any(sign and expansion for sign, expansion in zip(signs, EXPANSIONS, strict=True)):
                    yield Reading(order, signs)
