"""Published results that a report shows beside its own, each with how well it is confirmed: ``published.csv``."""

import csv
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from pydantic import TypeAdapter

from affbench.base.config import DataConfig
from affbench.data.placement import FRAME
from affbench.data.sets import find_set

Protocol = Literal["translated", "centred", "unknown"]
"""The digits that a network was trained on: moved over a larger canvas, or not (but for jitter)."""


@dataclass(frozen=True)
class Published:
    """One published accuracy in percent, with its standard deviation over trials where it is given."""

    year: int
    method: str
    set: str  # one of affbench's, or words where it is none
    value: float
    status: str  # how well the figure is confirmed
    source: str
    parameters: str = ""
    protocol: Protocol = "translated"  # digits it was trained on
    matched: bool = False  # whether it was tested where it had the accuracy of the others on translated digits
    note: str = ""
    sd: float | None = None
    study: str = ""  # the series of variants that it belongs to: shown beside runs that make it again only

    @property
    def trained(self) -> str:
        """How it was trained, in words."""
        where = "not known" if self.protocol == "unknown" else f"{self.protocol} digits"
        return ", ".join(filter(None, (where, "matched" if self.matched else "", self.note)))


_LINES = (files("affbench.analysis") / "published.csv").read_text(encoding="utf-8").splitlines()
_ROWS = [{name: text for name, text in row.items() if text} for row in csv.DictReader(_LINES)]
PUBLISHED = TypeAdapter(tuple[Published, ...]).validate_python(_ROWS)
_SHOWN = {"affnist-synthetic": ("affnist", "another synthetic affNIST")}  # sets whose own figures nobody published
METHODS = frozenset(row.method for row in PUBLISHED)


def published_for(name: str, method: str = "") -> tuple[Published, ...]:
    """The published accuracies to show beside our own on a set, or those of one method; official ones for affNIST's."""
    base = name.partition("@")[0].removesuffix("-sample")
    found = (row for row in PUBLISHED if row.set in _SHOWN.get(base, (base,)))
    return tuple(row for row in found if (row.method == method if method else not row.study))


def protocol(data: DataConfig) -> Protocol:
    """The protocol of a training."""
    spec = find_set(data.train_set)
    moved = spec.form == "translated" if data.shift is None else data.shift > 0
    return "translated" if moved and spec.canvas > FRAME else "centred"
