"""Published results that a report shows beside its own, each with how well it is confirmed."""

from __future__ import annotations

from dataclasses import dataclass

STATED = "stated in the paper"
QUOTED = "widely quoted, not re-checked"
SECOND_HAND = "the paper's, as quoted by CapsNet-Keras"
PROJECT = "stated by the project"


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes
    ----------
    year, method
        What reached it.
    set
        What it was tested on: an affbench set, or words where it is none.
    value, sd
        In `unit`; `sd` over trials where it is given.
    unit
        ``"accuracy %"`` or ``"error %"``.
    status
        How well it is confirmed: `STATED`, `QUOTED`, `SECOND_HAND` or `PROJECT`.
    source
        Where it was published.
    routings, reconstruction
        The cell of the ablation it belongs to; None elsewhere.
    """

    year: int
    method: str
    set: str
    value: float
    unit: str
    status: str
    source: str
    sd: float | None = None
    routings: int | None = None
    reconstruction: bool | None = None


_SABOUR = "Sabour, Frosst, Hinton 2017, arXiv 1710.09829"
_KERAS = "X. Guo, CapsNet-Keras"
_ACCURACY, _ERROR = "accuracy %", "error %"

AFFNIST = (
    Published(2017, "CNN baseline", "affnist", 66.0, _ACCURACY, STATED, _SABOUR),
    Published(2017, "CapsNet, dynamic routing", "affnist", 79.0, _ACCURACY, STATED, _SABOUR),
    Published(2018, "Group-equivariant capsules", "affnist", 89.1, _ACCURACY, QUOTED, "Lenssen et al. 2018"),
    Published(2018, "Sparse unsupervised capsules", "affnist", 90.1, _ACCURACY, QUOTED, "Rawlinson et al. 2018"),
    Published(2018, "EM routing", "affnist", 93.1, _ACCURACY, QUOTED, "Hinton et al. 2018"),
    Published(2019, "Stacked capsule autoencoders", "affnist", 92.2, _ACCURACY, QUOTED, "Kosiorek et al. 2019"),
    Published(2020, "Aff-CapsNet, no routing", "affnist", 93.21, _ACCURACY, STATED, "Gu and Tresp, CVPR 2020"),
    Published(2020, "Variational Bayes routing", "affnist", 98.1, _ACCURACY, QUOTED, "Ribeiro et al. 2020"),
)
"""Accuracy on affNIST after training on padded and translated MNIST only."""

TRANSLATED = (
    Published(2017, "CNN baseline", "mnist-translated", 99.22, _ACCURACY, STATED, _SABOUR),
    Published(2017, "CapsNet, dynamic routing", "mnist-translated", 99.23, _ACCURACY, STATED, _SABOUR),
)
"""Accuracy on translated digits of the two models that the affNIST comparison is about."""

SYNTHETIC = (
    Published(
        2026, "Small CapsNet", "another synthetic affNIST", 85.5, _ACCURACY, PROJECT, "cybertronai/hinton-problems #49"
    ),
    Published(2026, "CNN", "another synthetic affNIST", 87.5, _ACCURACY, PROJECT, "cybertronai/hinton-problems #49"),
)
"""A reproduction on its own, weaker synthetic set, in which the gap did not replicate."""

ABLATION = tuple(
    Published(2017, method, "mnist", value, _ERROR, status, source, sd, routings, reconstruction)
    for method, status, source, cells in (
        ("CapsNet", SECOND_HAND, _SABOUR, ((0.34, 0.032), (0.29, 0.011), (0.35, 0.036), (0.25, 0.005))),
        ("CapsNet-Keras", PROJECT, _KERAS, ((0.39, 0.024), (0.36, 0.009), (0.40, 0.016), (0.34, 0.016))),
    )
    for (routings, reconstruction), (value, sd) in zip(
        ((1, False), (1, True), (3, False), (3, True)), cells, strict=True
    )
)
"""Test error on centred MNIST with shifts up to 2 pixels, mean and standard deviation of 3 trials."""


def published_for(name: str) -> tuple[Published, ...]:
    """The published accuracies to show beside our own on a set; the official figures for any affNIST-like set.

    Parameters
    ----------
    name
        Name of a set.

    Returns
    -------
    tuple of Published
        Oldest first; empty where nothing is published.
    """
    base = name.partition("@")[0].removesuffix("-sample")
    return {"affnist": AFFNIST, "affnist-synthetic": AFFNIST + SYNTHETIC, "mnist-translated": TRANSLATED}.get(base, ())
