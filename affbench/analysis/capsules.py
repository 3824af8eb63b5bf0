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
from affbench.data.synthesis import AffineRange, render, synthesize
from affbench.models.routing import coupling_coefficients
from affbench.run.evaluate import answer_inputs, evaluating, load_model
from affbench.run.folder import Run

Floats = npt.NDArray[np.float32]

VERSION = 1  # of the stage "entropy": raised whenever the same model and images would give another one

OFFSETS = tuple(round(0.05 * step, 2) for step in range(-5, 6))  # those of CapsNet-Keras
GRID: dict[str, tuple[float, ...]] = {
    "rotation": tuple(15.0 * step for step in range(-4, 5)),
    "shear": tuple(round(0.15 * step, 2) for step in range(-4, 5)),
    "vertical_expansion": tuple(round(1 + 0.1 * step, 1) for step in range(-4, 5)),
    "horizontal_expansion": tuple(round(1 + 0.1 * step, 1) for step in range(-4, 5)),
    "vertical_translation": tuple(2.0 * step for step in range(-4, 5)),
    "horizontal_translation": tuple(2.0 * step for step in range(-4, 5)),
}
"""Values each factor takes in `equivariance`, wider than in affNIST; the neutral one is among them."""
BINS = 8  # of equal counts, per factor of the variance decomposition


@dataclass(frozen=True)
class Perturbation:
    """What the decoder draws when one dimension of a class capsule is changed.

    Attributes
    ----------
    label
        The class.
    image
        The digit that was looked at, uint8 (H, W).
    offsets
        What was added, (S,).
    drawn
        float32 (D, S, H, W) in [0, 1]: a row of pictures per dimension.
    """

    label: int
    image: npt.NDArray[np.uint8]
    offsets: tuple[float, ...]
    drawn: Floats


@dataclass(frozen=True)
class Curve:
    """How a class capsule moves while one factor of the transformation varies and all others are neutral.

    Attributes
    ----------
    factor
        One of `TRANSFORM_COLUMNS`.
    values
        Those of the factor, (V,).
    mean, sd
        float32 (K, V, D): mean and standard deviation over digits of each dimension of the true class' capsule.
    moved
        float32 (K, V): mean length of the capsule's change from the neutral transformation.
    """

    factor: str
    values: tuple[float, ...]
    mean: Floats
    sd: Floats
    moved: Floats


@dataclass(frozen=True)
class Equivariance:
    """How class capsules answer to affine transformations of the input.

    Attributes
    ----------
    labels
        The classes, (K,).
    digits
        Digits per class behind the curves.
    curves
        One per factor.
    drawn
        Transformed images per class behind the shares of variance.
    explained
        float64 (K, F, D): share of the variance of each dimension that each factor explains, the factors in the order
        of `TRANSFORM_COLUMNS` and the original digit last (F = 7); what is missing to 1 are interactions.
    explained_whole
        float64 (K, F): the same for the capsule as a whole, all dimensions together.
    """

    labels: tuple[int, ...]
    digits: int
    curves: tuple[Curve, ...]
    drawn: int
    explained: npt.NDArray[np.float64]
    explained_whole: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CouplingEntropy:
    """How evenly input capsules divide themselves among the class capsules.

    Attributes
    ----------
    iterations
        Of the routing.
    images, capsules
        What the mean is over.
    nats
        Mean entropy of the coupling coefficients of an input capsule, 0 to ln J.
    relative
        `nats` / ln J: 1 for uniform coupling, 0 where each input capsule sends everything to one class.
    sd
        Standard deviation over images of the image's own mean, relative as well.
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


def class_capsules(model: nn.Module, images: npt.NDArray[np.uint8], batch_size: int = 256) -> Tensor:
    """The class capsules of images, computed on the model's device.

    Parameters
    ----------
    model
        A model with class capsules.
    images
        uint8 (N, H, W).
    batch_size
        Images at once.

    Returns
    -------
    Tensor
        float32 (N, K, D), on the CPU.

    Raises
    ------
    UsageError
        The model has no class capsules.
    """
    capsules = _method(model, "capsules", "class capsules")
    return _batched(model, images, batch_size, lambda part: capsules(part).float())


def reconstruct(
    model: nn.Module, images: npt.NDArray[np.uint8], labels: npt.NDArray[Any], batch_size: int = 256
) -> npt.NDArray[np.uint8]:
    """Draw images again from the capsule of the class given for each.

    Parameters
    ----------
    model
        A model with class capsules and a decoder.
    images
        uint8 (N, H, W).
    labels
        Whose capsule to draw, whole numbers (N,).
    batch_size
        Images at once.

    Returns
    -------
    numpy.ndarray
        uint8 (N, H, W).

    Raises
    ------
    UsageError
        The model has no class capsules or no decoder.
    """
    decode = decoder_of(model)
    capsules = class_capsules(model, images, batch_size)
    device = _device(model)
    with torch.no_grad():
        parts = [
            decode(part.to(device), chosen.to(device)).float().cpu()
            for part, chosen in zip(
                capsules.split(batch_size), torch.from_numpy(labels.astype(np.int64)).split(batch_size), strict=True
            )
        ]
    drawn: npt.NDArray[np.uint8] = (torch.cat(parts)[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return drawn


def perturb(
    model: nn.Module, image: npt.NDArray[np.uint8], label: int, offsets: Sequence[float] = OFFSETS
) -> Perturbation:
    """Change each dimension of a class capsule in turn and draw what comes of it.

    Parameters
    ----------
    model
        A model with class capsules and a decoder.
    image
        The digit, uint8 (H, W).
    label
        Whose capsule is changed.
    offsets
        What is added to a dimension.

    Returns
    -------
    Perturbation

    Raises
    ------
    UsageError
        The model has no class capsules or no decoder, or no capsule of that class.

    References
    ----------
    Sabour, Frosst, Hinton (2017), Dynamic Routing Between Capsules, section 5.1 and figure 4.
    """
    decode = decoder_of(model)
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
    """How the capsule of the true class moves as the input rotates, shears, scales and shifts.

    The curves vary one factor at a time over `GRID`. The shares of variance come from images whose factors are all
    drawn at once and independently from affNIST's ranges, so they can be compared and add up to at most about 1: the
    correlation ratio η² = SS_between / SS_total of a one-way layout over `BINS` bins of the factor (and over the
    original digit), adjusted for what as many bins explain by chance (ε², clipped at 0). A factor's share is its
    main effect: a dimension that answers to rotation in one digit and against it in another shows none.

    Parameters
    ----------
    model
        A model with class capsules.
    digits
        Original 28×28 digits.
    labels
        Classes to look at.
    per_class
        Digits of each class.
    copies
        Transformed versions of each for the shares of variance, at least 2.
    canvas
        Height and width of the model's images in pixels.

    Returns
    -------
    Equivariance

    Raises
    ------
    UsageError
        The model has no class capsules, or there is no digit of a class.

    References
    ----------
    R. A. Fisher, "Statistical Methods for Research Workers", 1925, chapter VII (the correlation ratio). T. L. Kelley,
    "An unbiased correlation ratio measure", PNAS 21, 1935 (the adjustment).
    """
    _method(model, "capsules", "class capsules")
    chosen = []
    for label in labels:
        index = np.flatnonzero(digits.labels == label)[:per_class]
        if not len(index):
            raise UsageError(f"there is no digit of class {label} among the {len(digits):,} of '{digits.name}'.")
        chosen.append(index)
    curves = []
    for factor, values in GRID.items():
        parts = [
            _curve(model, digits.images[own], label, factor, values, canvas) for own, label in _pairs(chosen, labels)
        ]
        mean, sd, moved = (np.stack(part) for part in zip(*parts, strict=True))
        curves.append(Curve(factor, values, mean, sd, moved))
    explained, whole = [], []
    for own, label in _pairs(chosen, labels):
        drawn = synthesize(digits.images[own], digits.labels[own], max(2, copies), ranges=AffineRange(), canvas=canvas)
        each, together = _explained(class_capsules(model, drawn.images)[:, label].numpy(), drawn)
        explained.append(each)
        whole.append(together)
    return Equivariance(
        labels=tuple(labels),
        digits=min(map(len, chosen)),
        curves=tuple(curves),
        drawn=min(map(len, chosen)) * max(2, copies),
        explained=np.stack(explained),
        explained_whole=np.stack(whole),
    )


def variance_explained(values: npt.ArrayLike, groups: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Share of the variance of each column that group membership explains, adjusted for chance: ε², 0 to 1.

    Parameters
    ----------
    values
        (N, D).
    groups
        Whole numbers (N,): the group of each row.

    Returns
    -------
    numpy.ndarray
        float64 (D,); 0 for a column that does not vary.

    References
    ----------
    As for `equivariance`.
    """
    between, total, chance = _sums(np.asarray(values, np.float64), np.asarray(groups))
    return _adjusted(between, total, chance)


def coupling_entropy(model: nn.Module, images: npt.NDArray[np.uint8], batch_size: int = 64) -> CouplingEntropy:
    """The mean entropy of the coupling coefficients after the last routing iteration.

    Parameters
    ----------
    model
        A model whose ``primary(images)`` are the input capsules and whose ``digits`` route them, as those of
        `affbench.models.capsnet.CapsNet`.
    images
        uint8 (N, H, W), at least one.
    batch_size
        Images at once.

    Returns
    -------
    CouplingEntropy

    Raises
    ------
    UsageError
        The model does not route, or there are no images.
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

    per_image = _batched(model, images, batch_size, entropy).double()
    most = math.log(size[1])
    return CouplingEntropy(
        iterations=iterations,
        images=len(images),
        capsules=size[0],
        nats=float(per_image.mean()),
        relative=float(per_image.mean() / most),
        sd=float(per_image.std() / most) if len(images) > 1 else 0.0,
    )


def run_entropy(run: Run, part: SetPart, workspace: Workspace) -> CouplingEntropy:
    """`coupling_entropy` of a finished run on test images; kept in the run's folder and answered from there.

    Raises
    ------
    UsageError
        The model does not route.
    DataError, ArtefactError
        The set or the checkpoint is missing or damaged.
    """
    inputs = answer_inputs(run, part, workspace.data) | {"limit": part.limit}

    def make(target: Path) -> None:
        images = part.load(workspace.data).images
        found = coupling_entropy(load_model(run, resolve_device(workspace.device)), images)
        target.write_text(json.dumps(asdict(found)), encoding="utf-8")

    path = store.derive_file(run.path / "entropy" / f"{part.name}.json", "entropy", VERSION, inputs, make)
    return CouplingEntropy(**json.loads(path.read_text(encoding="utf-8")))


def decoder_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The method that draws a class capsule.

    Raises
    ------
    UsageError
        The model has no class capsules or no decoder.
    """
    _method(model, "capsules", "class capsules")
    if not has_decoder(model):
        raise UsageError(
            f"this {type(model).__name__} has no decoder to draw capsules with: it was built with reconstruction = 0."
        )
    return _method(model, "decode", "decoder")


def _pairs(chosen: Sequence[npt.NDArray[np.intp]], labels: Sequence[int]) -> list[tuple[npt.NDArray[np.intp], int]]:
    return list(zip(chosen, labels, strict=True))


def _curve(
    model: nn.Module, images: npt.NDArray[np.uint8], label: int, factor: str, values: Sequence[float], canvas: int
) -> tuple[Floats, Floats, Floats]:
    """Mean (V, D), standard deviation (V, D) and length of the movement (V,) of the capsule of `label`."""
    neutral = np.array([1.0 if name.endswith("expansion") else 0.0 for name in TRANSFORM_COLUMNS])
    table = np.tile(neutral, (len(values) + 1, 1))
    table[:-1, TRANSFORM_COLUMNS.index(factor)] = values  # the last row stays neutral
    rendered = np.concatenate([render(np.repeat(image[None], len(table), 0), table, canvas) for image in images])
    capsules = class_capsules(model, rendered)[:, label].view(len(images), len(table), -1)
    moved = torch.linalg.vector_norm(capsules[:, :-1] - capsules[:, -1:], dim=-1).mean(0)
    varied = capsules[:, :-1]
    return varied.mean(0).numpy(), varied.std(0, correction=0).numpy(), moved.numpy()


def _explained(capsules: Floats, drawn: Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Shares of variance per factor and dimension (F, D), and per factor of the whole capsule (F,)."""
    assert drawn.transforms is not None  # noqa: S101 - synthetic sets have them
    assert drawn.source_index is not None  # noqa: S101
    groups = [_bins(column) for column in drawn.transforms.T] + [drawn.source_index]
    parts = [_sums(capsules.astype(np.float64), group) for group in groups]
    return (
        np.stack([_adjusted(*part) for part in parts]),
        np.array([float(_adjusted(between.sum(), total.sum(), chance)) for between, total, chance in parts]),
    )


def _bins(values: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Which of `BINS` bins of equal counts each value is in."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    bins: npt.NDArray[np.intp] = order * BINS // len(values)
    return bins


def _sums(values: npt.NDArray[np.float64], groups: npt.NDArray[Any]) -> tuple[Any, Any, float]:
    """Sums of squares between groups and in all, (D,), and the ratio N − 1 to N − G that corrects for chance."""
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    centred = values - values.mean(0)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, index, centred)
    between = (sums**2 / counts[:, None]).sum(0)
    return between, (centred**2).sum(0), (len(values) - 1) / max(len(values) - len(counts), 1)


def _adjusted(between: Any, total: Any, chance: float) -> npt.NDArray[np.float64]:
    share = np.divide(between, total, out=np.zeros_like(np.asarray(total, np.float64)), where=np.asarray(total) > 0)
    return np.where(np.asarray(total) > 0, np.clip(1 - chance * (1 - share), 0.0, 1.0), 0.0)


def _method(model: nn.Module, name: str, what: str) -> Callable[..., Tensor]:
    found = getattr(model, name, None)
    if not callable(found):
        raise UsageError(
            f"{type(model).__name__} has no {what}; a CapsNet has, such as 'affbench train --model capsnet'."
        )
    return found  # type: ignore[no-any-return]


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _batched(
    model: nn.Module, images: npt.NDArray[np.uint8], batch_size: int, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply a function to float images in batches, on the model's device, in evaluation mode; result on the CPU."""
    device = _device(model)
    with evaluating(model):
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(batch_size)
        return torch.cat([function(to_float(part.to(device))).cpu() for part in parts])
