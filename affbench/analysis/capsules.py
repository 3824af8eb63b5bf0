"""What class capsules hold: reconstructions, perturbed dimensions, equivariance, and coupling entropy.

A model has class capsules where it has a method ``capsules(images)``, (B, 1, H, W) -> (B, K, D), and draws them where
it has ``decode(capsules, labels)`` -> (B, 1, H, W), as `affbench.models.capsnet.CapsNet` has.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from affbench.base.errors import UsageError
from affbench.base.workspace import Workspace
from affbench.data.batches import to_float
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.sets import SetPart
from affbench.data.synthesis import synthesize
from affbench.data.transform import render
from affbench.models.routing import coupling_coefficients
from affbench.run.evaluate import device_of, evaluating
from affbench.run.folder import Run
from affbench.run.record import measured

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Shares = npt.NDArray[np.float64]

OFFSETS = tuple(round(0.05 * step, 2) for step in range(-5, 6))  # those of CapsNet-Keras
NEUTRAL = {name: 1.0 if name.endswith("expansion") else 0.0 for name in TRANSFORM_COLUMNS}
GRID = {
    name: tuple(round(NEUTRAL[name] + step * number, 2) for number in range(-4, 5))
    for name, step in zip(TRANSFORM_COLUMNS, (15.0, 0.15, 0.1, 0.1, 2.0, 2.0), strict=True)
}
"""Values each factor takes in `equivariance`, wider than in affNIST; the neutral one is among them."""
BINS = 8  # of equal counts, per factor of the variance decomposition


@dataclass(frozen=True)
class Equivariance:
    """How the capsules of K classes answer to affine transformations of the input.

    While one factor takes the V values of `GRID` and all others are neutral, the mean over digits of the true class'
    capsule, its standard deviation, and the mean length of its change from neutral. From images in which all factors
    vary, the share of variance that each factor explains, the original digit as the seventh.
    """

    labels: tuple[int, ...]
    digits: int  # of each class
    mean: Floats  # (6, K, V, D), and so is the standard deviation
    sd: Floats
    moved: Floats  # (6, K, V)
    drawn: int  # images of each class in which all factors vary
    explained: Shares  # (K, 7, D), of each dimension
    explained_whole: Shares  # (K, 7), of the capsule as a whole


@dataclass(frozen=True)
class CouplingEntropy:
    """How evenly input capsules divide themselves among the J class capsules."""

    iterations: int
    images: int
    capsules: int
    nats: float  # mean entropy over images and input capsules, 0 to ln J
    relative: float  # to ln J: 1 for uniform coupling, 0 where each input capsule sends everything to one class
    sd: float  # of the images' own means, relative


def has_capsules(model: nn.Module) -> bool:
    """Whether a model has class capsules; layers of that name are none."""
    found = getattr(model, "capsules", None)
    return callable(found) and not isinstance(found, nn.Module)


def has_decoder(model: nn.Module) -> bool:
    """Whether a model has class capsules and draws them."""
    return has_capsules(model) and callable(getattr(model, "decode", None)) and getattr(model, "decoder", 0) is not None


def class_capsules(model: nn.Module, images: Images) -> Tensor:
    """The class capsules of images uint8 (N, H, W), computed on the model's device: float32 (N, K, D) on the CPU."""
    capsules: Any = model.capsules
    return batched(model, images, lambda part: capsules(part).float())


def reconstruct(model: nn.Module, images: Images, labels: npt.NDArray[Any]) -> Images:
    """Draw images (N, H, W) again, each from the capsule of the class given in `labels` (N,)."""
    drawn = _decode(model, class_capsules(model, images), torch.from_numpy(labels.astype(np.int64)))
    return np.clip(np.rint(255 * drawn), 0, 255).astype(np.uint8)


def perturb(model: nn.Module, image: Images, label: int, offsets: Sequence[float] = OFFSETS) -> Floats:
    """What is drawn when S offsets are added to each dimension of a class capsule in turn: (D, S, H, W) in [0, 1]."""
    (capsules,) = class_capsules(model, image[None])  # (K, D)
    dimensions, steps = capsules.shape[1], len(offsets)
    changed = capsules.repeat(dimensions, steps, 1, 1)  # (D, S, K, D)
    changed[:, :, label] += torch.eye(dimensions)[:, None] * torch.tensor(offsets)[:, None]
    drawn = _decode(model, changed.flatten(0, 1), torch.full((dimensions * steps,), label))
    return drawn.reshape(dimensions, steps, *drawn.shape[1:])


def _decode(model: nn.Module, capsules: Tensor, labels: Tensor) -> Floats:
    """What the decoder draws of some hundred capsules (N, K, D), each of one class: (N, H, W) in [0, 1]."""
    decode: Any = model.decode
    device = device_of(model)
    with torch.no_grad():
        drawn: Floats = decode(capsules.to(device), labels.to(device))[:, 0].float().cpu().numpy()
    return drawn


def of_class(digits: Dataset, label: int, most: int) -> npt.NDArray[np.intp]:
    """Which images are the first of a class, at most so many; `UsageError` where there are none."""
    found = np.flatnonzero(digits.labels == label)[:most]
    if not len(found):
        raise UsageError(f"there is no digit of class {label} among the first {len(digits):,} of '{digits.name}'.")
    return found


def equivariance(
    model: nn.Module, digits: Dataset, labels: Sequence[int], *, per_class: int = 20, copies: int = 32, canvas: int = 40
) -> Equivariance:
    """How the capsule of the true class moves as the input (original 28×28 digits) rotates, shears, scales and shifts.

    The curves vary one factor at a time over `GRID`; for the shares of variance all are drawn at once and independently
    from affNIST's ranges. A share is a main effect: a dimension that answers to rotation in one digit and against it in
    another shows none.
    """
    chosen = {label: of_class(digits, label, per_class) for label in labels}
    curves = [
        _curve(model, digits.images[own], label, factor, canvas) for factor in GRID for label, own in chosen.items()
    ]
    mean, sd, moved = (
        np.stack(part).reshape(len(GRID), len(chosen), *part[0].shape) for part in zip(*curves, strict=True)
    )
    shares = []
    for label, own in chosen.items():
        drawn = synthesize(digits.images[own], digits.labels[own], copies, canvas=canvas)
        transforms, source_index = drawn.table
        ranks = transforms.argsort(0, kind="stable").argsort(0, kind="stable")
        groups = (*(ranks * BINS // len(drawn)).T, source_index)  # bins of equal counts by each factor, then the digit
        capsules = class_capsules(model, drawn.images)[:, label].numpy()
        shares.append([variance_explained(capsules, each) for each in groups])
    explained = np.array(shares)  # (K, F, D + 1)
    least = min(map(len, chosen.values()))
    return Equivariance(tuple(labels), least, mean, sd, moved, least * copies, explained[..., :-1], explained[..., -1])


def variance_explained(values: npt.ArrayLike, groups: npt.ArrayLike) -> Shares:
    """Share of the variance of (N, D) values that groups (N,) explain, 0 to 1: (D + 1,), each column's and the whole's.

    The correlation ratio ε² (T. L. Kelley, PNAS 21, 1935): SS_between / SS_total, adjusted for what as many groups
    explain by chance, and clipped at 0. What does not vary has share 0.
    """
    values = np.asarray(values, np.float64)
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    centred = values - values.mean(0)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, index, centred)
    between, total = (sums**2 / counts[:, None]).sum(0), (centred**2).sum(0)
    between, total = np.append(between, between.sum()), np.append(total, total.sum())
    chance = (len(values) - 1) / max(len(values) - len(counts), 1)
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    return np.where(total > 0, np.clip(1 - chance * (1 - share), 0.0, 1.0), 0.0)


def _curve(model: nn.Module, images: Images, label: int, factor: str, canvas: int) -> tuple[Floats, Floats, Floats]:
    """Mean (V, D), standard deviation (V, D) and length of the movement (V,) of the capsule of `label` over a grid."""
    values = GRID[factor]
    table = np.tile(list(NEUTRAL.values()), (len(values) + 1, 1))
    table[:-1, TRANSFORM_COLUMNS.index(factor)] = values  # the last row stays neutral
    rendered = np.concatenate([render(np.repeat(image[None], len(table), 0), table, canvas) for image in images])
    capsules = class_capsules(model, rendered)[:, label].view(len(images), len(table), -1)
    varied = capsules[:, :-1]
    moved = torch.linalg.vector_norm(varied - capsules[:, -1:], dim=-1).mean(0)
    return varied.mean(0).numpy(), varied.std(0, correction=0).numpy(), moved.numpy()


def coupling_entropy(model: nn.Module, images: Images) -> CouplingEntropy:
    """The entropy of the coupling coefficients after the last iteration; ``primary`` and ``digits`` as in `CapsNet`."""
    primary, layer = getattr(model, "primary", None), getattr(model, "digits", None)
    matrices: Any = getattr(layer, "matrices", None)  # (N, J, D_out, D_in)
    iterations = getattr(getattr(layer, "routing", None), "iterations", None)
    if not isinstance(primary, nn.Module) or not isinstance(iterations, int) or matrices is None:
        raise UsageError(f"{type(model).__name__} has no routed capsules, so there are no coupling coefficients.")

    def entropy(part: Tensor) -> Tensor:
        c = coupling_coefficients(primary(part), matrices, iterations)  # (B, N, J)
        nats: Tensor = torch.special.entr(c).sum(-1).mean(-1)
        return nats

    per_image = batched(model, images, entropy, 64).double()
    most, mean = math.log(matrices.shape[1]), per_image.mean()
    sd = float(per_image.std() / most) if len(images) > 1 else 0.0
    return CouplingEntropy(iterations, len(images), len(matrices), float(mean), float(mean / most), sd)


def run_entropy(run: Run, part: SetPart, workspace: Workspace) -> CouplingEntropy:
    """`coupling_entropy` of a finished run on some images; kept in its folder and answered from there."""
    kept = measured(
        "entropy", part.name, run, part, workspace, lambda model, data: asdict(coupling_entropy(model, data.images))
    )
    return CouplingEntropy(**kept)


def batched(model: nn.Module, images: Images, function: Callable[[Tensor], Tensor], size: int = 256) -> Tensor:
    """Apply a function to float images in batches, on the model's device, in evaluation mode; result on the CPU."""
    device = device_of(model)
    with evaluating(model):
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(size)
        return torch.cat([function(to_float(part.to(device))).cpu() for part in parts])
