"""What class capsules hold: reconstructions, perturbed dimensions, equivariance, and coupling entropy.

A model has class capsules where it has a method ``capsules(images)``, (B, 1, H, W) -> (B, K, D), and draws them where
it has ``decode(capsules, labels)`` -> (B, 1, H, W), as `affbench.models.capsnet.CapsNet` has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from affbench.base import store
from affbench.base.device import resolve_device
from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.batches import to_float
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.sets import SetPart
from affbench.data.synthesis import synthesize
from affbench.data.transform import AffineRange, render
from affbench.models.routing import coupling_coefficients
from affbench.run.evaluate import evaluating
from affbench.run.folder import Run
from affbench.run.plan import answers_recipe
from affbench.run.record import load_model

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Shares = npt.NDArray[np.float64]

OFFSETS = tuple(round(0.05 * step, 2) for step in range(-5, 6))  # those of CapsNet-Keras
_STEPS = range(-4, 5)
GRID: dict[str, tuple[float, ...]] = {
    "rotation": tuple(15.0 * step for step in _STEPS),
    "shear": tuple(round(0.15 * step, 2) for step in _STEPS),
    "vertical_expansion": tuple(round(1 + 0.1 * step, 1) for step in _STEPS),
    "horizontal_expansion": tuple(round(1 + 0.1 * step, 1) for step in _STEPS),
    "vertical_translation": tuple(2.0 * step for step in _STEPS),
    "horizontal_translation": tuple(2.0 * step for step in _STEPS),
}
"""Values each factor takes in `equivariance`, wider than in affNIST; the neutral one is among them."""
BINS = 8  # of equal counts, per factor of the variance decomposition


@dataclass(frozen=True)
class Perturbation:
    """What the decoder draws when the capsule of class `label` has each of `offsets` added to one dimension.

    `image` is the digit, uint8 (H, W); `drawn` is float32 (D, S, H, W) in [0, 1], a row of pictures per dimension.
    """

    label: int
    image: Images
    offsets: tuple[float, ...]
    drawn: Floats


@dataclass(frozen=True)
class Curve:
    """How the true class' capsule moves while one factor takes V `values` and all others are neutral.

    `mean` and `sd` over digits are float32 (K, V, D); `moved`, the mean length of the change from neutral, (K, V).
    """

    factor: str
    values: tuple[float, ...]
    mean: Floats
    sd: Floats
    moved: Floats


@dataclass(frozen=True)
class Equivariance:
    """How the capsules of K classes answer to affine transformations of the input.

    A curve per factor over so many `digits` a class; and from `drawn` images a class the share of variance that each
    factor explains, in the order of `TRANSFORM_COLUMNS` and the original digit last (F = 7): of each dimension,
    `explained` (K, F, D), and of the capsule as a whole, `explained_whole` (K, F). What is missing to 1 are
    interactions.
    """

    labels: tuple[int, ...]
    digits: int
    curves: tuple[Curve, ...]
    drawn: int
    explained: Shares
    explained_whole: Shares


@dataclass(frozen=True)
class CouplingEntropy:
    """How evenly input capsules divide themselves among the J class capsules.

    `nats` is the mean entropy over images and input capsules, 0 to ln J; `relative` the same over ln J: 1 for uniform
    coupling, 0 where each input capsule sends everything to one class; `sd` that of the images' own means, relative.
    """

    iterations: int
    images: int
    capsules: int
    nats: float
    relative: float
    sd: float


def has_capsules(model: nn.Module) -> bool:
    """Whether a model has class capsules."""
    return callable(getattr(model, "capsules", None))


def has_decoder(model: nn.Module) -> bool:
    """Whether a model has class capsules and draws them."""
    return has_capsules(model) and callable(getattr(model, "decode", None)) and getattr(model, "decoder", 0) is not None


def class_capsules(model: nn.Module, images: Images) -> Tensor:
    """The class capsules of images uint8 (N, H, W), computed on the model's device: float32 (N, K, D) on the CPU."""
    capsules = _method(model, "capsules", "class capsules")
    return batched(model, images, lambda part: capsules(part).float())


def reconstruct(model: nn.Module, images: Images, labels: npt.NDArray[Any]) -> Images:
    """Draw images (N, H, W) again, each from the capsule of the class given in `labels` (N,)."""
    decode = _decoder(model)
    device = _device(model)
    chosen = torch.from_numpy(labels.astype(np.int64))
    parts = zip(class_capsules(model, images).split(256), chosen.split(256), strict=True)
    with torch.no_grad():
        drawn = torch.cat([decode(part.to(device), own.to(device)).float().cpu() for part, own in parts])
    pictures: Images = (drawn[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return pictures


def perturb(model: nn.Module, image: Images, label: int, offsets: Sequence[float] = OFFSETS) -> Perturbation:
    """Change each dimension of a class capsule in turn and draw what comes of it.

    As in Sabour, Frosst, Hinton (2017), Dynamic Routing Between Capsules, section 5.1 and figure 4.
    """
    decode = _decoder(model)
    (capsules,) = class_capsules(model, image[None])  # (K, D)
    if not 0 <= label < len(capsules):
        raise UsageError(f"there is no class {label}: the model has classes 0 to {len(capsules) - 1}.")
    dimensions, steps = capsules.shape[1], len(offsets)
    changed = capsules.expand(dimensions, steps, *capsules.shape).clone()  # (D, S, K, D)
    for dimension in range(dimensions):
        changed[dimension, :, label, dimension] += torch.tensor(offsets)
    with torch.no_grad():
        flat = changed.flatten(0, 1).to(_device(model))
        drawn = decode(flat, torch.full((len(flat),), label, device=flat.device)).float().cpu()
    return Perturbation(label, image, tuple(offsets), drawn.view(dimensions, steps, *drawn.shape[-2:]).numpy())


def equivariance(
    model: nn.Module, digits: Dataset, labels: Sequence[int], *, per_class: int = 20, copies: int = 32, canvas: int = 40
) -> Equivariance:
    """How the capsule of the true class moves as the input (original 28×28 digits) rotates, shears, scales and shifts.

    The curves vary one factor at a time over `GRID`. The shares of variance come from images whose factors are all
    drawn at once and independently from affNIST's ranges, so they can be compared and add up to at most about 1, see
    `variance_explained`. A factor's share is its main effect: a dimension that answers to rotation in one digit and
    against it in another shows none.
    """
    _method(model, "capsules", "class capsules")
    chosen = {label: np.flatnonzero(digits.labels == label)[:per_class] for label in labels}
    for label, index in chosen.items():
        if not len(index):
            raise UsageError(f"there is no digit of class {label} among the {len(digits):,} of '{digits.name}'.")
    curves = []
    for factor, values in GRID.items():
        parts = [_curve(model, digits.images[own], label, factor, canvas) for label, own in chosen.items()]
        curves.append(Curve(factor, values, *(np.stack(part) for part in zip(*parts, strict=True))))
    copies, shares = max(2, copies), []
    for label, own in chosen.items():
        drawn = synthesize(digits.images[own], digits.labels[own], copies, ranges=AffineRange(), canvas=canvas)
        capsules = class_capsules(model, drawn.images)[:, label].numpy()
        shares.append([variance_explained(capsules, groups) for groups in _groups(drawn)])
    least = min(map(len, chosen.values()))
    return Equivariance(
        labels=tuple(labels),
        digits=least,
        curves=tuple(curves),
        drawn=least * copies,
        explained=np.stack([[each for each, _ in own] for own in shares]),
        explained_whole=np.array([[together for _, together in own] for own in shares]),
    )


def variance_explained(values: npt.ArrayLike, groups: npt.ArrayLike) -> tuple[Shares, float]:
    """Share of the variance of (N, D) values that groups (N,) explain: of each column, and of all together; 0 to 1.

    The correlation ratio η² = SS_between / SS_total of a one-way layout (R. A. Fisher, "Statistical Methods for
    Research Workers", 1925, chapter VII), adjusted for what as many groups explain by chance: ε², clipped at 0 (T. L.
    Kelley, "An unbiased correlation ratio measure", PNAS 21, 1935). What does not vary has share 0.
    """
    values = np.asarray(values, np.float64)
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    centred = values - values.mean(0)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, index, centred)
    between, total = (sums**2 / counts[:, None]).sum(0), (centred**2).sum(0)
    chance = (len(values) - 1) / max(len(values) - len(counts), 1)

    def adjusted(part: Any, whole: Any) -> Shares:
        share = np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
        return np.where(whole > 0, np.clip(1 - chance * (1 - share), 0.0, 1.0), 0.0)

    return adjusted(between, total), float(adjusted(between.sum(), np.asarray(total.sum())))


def coupling_entropy(model: nn.Module, images: Images) -> CouplingEntropy:
    """The mean entropy of the coupling coefficients after the last routing iteration, over images (N, H, W).

    The model's ``primary(images)`` are the input capsules and its ``digits`` route them, as in `CapsNet`.
    """
    primary, layer = getattr(model, "primary", None), getattr(model, "digits", None)
    matrices: Any = getattr(layer, "matrices", None)
    iterations = getattr(layer, "iterations", None)
    if not isinstance(primary, nn.Module) or not isinstance(iterations, int) or matrices is None:
        raise UsageError(f"{type(model).__name__} has no routed capsules, so there are no coupling coefficients.")
    if not len(images):
        raise UsageError("coupling entropy takes at least one image.")
    size = [0, 0]

    def entropy(part: Tensor) -> Tensor:
        c = coupling_coefficients(primary(part), matrices, iterations)  # (B, N, J)
        size[:] = c.shape[1:]
        nats: Tensor = torch.special.entr(c).sum(-1).mean(-1)
        return nats

    per_image = batched(model, images, entropy, 64).double()
    most = math.log(size[1])
    mean, sd = float(per_image.mean()), float(per_image.std() / most) if len(images) > 1 else 0.0
    return CouplingEntropy(iterations, len(images), size[0], mean, float(per_image.mean() / most), sd)


def run_entropy(run: Run, part: SetPart, workspace: Workspace) -> CouplingEntropy:
    """`coupling_entropy` of a finished run on some images; kept in its folder and answered from there."""
    recipe = answers_recipe("entropy", run, part, workspace.data)

    def make(target: Path) -> None:
        images = part.load(workspace.data).images
        found = coupling_entropy(load_model(run, resolve_device(workspace.device)), images)
        target.write_text(json.dumps(asdict(found)), encoding="utf-8")

    path = store.derive_file(run.path / "entropy" / f"{part.name}.json", *recipe, make)
    return CouplingEntropy(**json.loads(path.read_text(encoding="utf-8")))


def batched(model: nn.Module, images: Images, function: Callable[[Tensor], Tensor], size: int = 256) -> Tensor:
    """Apply a function to float images in batches, on the model's device, in evaluation mode; result on the CPU."""
    device = _device(model)
    with evaluating(model):
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(size)
        return torch.cat([function(to_float(part.to(device))).cpu() for part in parts])


def _curve(model: nn.Module, images: Images, label: int, factor: str, canvas: int) -> tuple[Floats, Floats, Floats]:
    """Mean (V, D), standard deviation (V, D) and length of the movement (V,) of the capsule of `label` over a grid."""
    values = GRID[factor]
    neutral = np.array([1.0 if name.endswith("expansion") else 0.0 for name in TRANSFORM_COLUMNS])
    table = np.tile(neutral, (len(values) + 1, 1))
    table[:-1, TRANSFORM_COLUMNS.index(factor)] = values  # the last row stays neutral
    rendered = np.concatenate([render(np.repeat(image[None], len(table), 0), table, canvas) for image in images])
    capsules = class_capsules(model, rendered)[:, label].view(len(images), len(table), -1)
    varied = capsules[:, :-1]
    moved = torch.linalg.vector_norm(varied - capsules[:, -1:], dim=-1).mean(0)
    return varied.mean(0).numpy(), varied.std(0, correction=0).numpy(), moved.numpy()


def _groups(drawn: Dataset) -> list[npt.NDArray[Any]]:
    """Which of `BINS` bins of equal counts each image is in by each factor, and its original digit last."""
    transforms, source_index = drawn.table
    ranks = transforms.argsort(0, kind="stable").argsort(0, kind="stable")
    return [*(ranks * BINS // len(drawn)).T, source_index]


def _decoder(model: nn.Module) -> Callable[..., Tensor]:
    _method(model, "capsules", "class capsules")
    if not has_decoder(model):
        raise UsageError(
            f"this {type(model).__name__} has no decoder to draw capsules with: it was built with reconstruction = 0."
        )
    return _method(model, "decode", "decoder")


def _method(model: nn.Module, name: str, what: str) -> Callable[..., Tensor]:
    found: Any = getattr(model, name, None)
    if not callable(found):
        raise UsageError(
            f"{type(model).__name__} has no {what}; a CapsNet has, such as 'affbench train --model capsnet'."
        )
    return found  # type: ignore[no-any-return]


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
