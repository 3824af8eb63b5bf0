"""Losses: the margin loss and the reconstruction error of CapsNet, and the one call that trains any model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affbench.base.errors import UsageError


def margin_loss(
    lengths: Tensor, labels: Tensor, present: float = 0.9, absent: float = 0.1, absent_weight: float = 0.5
) -> Tensor:
    """Equation 4 of Sabour et al. (2017): lengths (B, K) in [0, 1] and labels (B,) -> the mean over the batch."""
    truth = F.one_hot(labels, lengths.shape[-1]).to(lengths.dtype)
    too_short = F.relu(present - lengths).square()
    too_long = F.relu(lengths - absent).square()
    return (truth * too_short + absent_weight * (1 - truth) * too_long).sum(-1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"margin": margin_loss, "cross-entropy": F.cross_entropy}
"""Of class scores (B, K) and labels (B,), by the names that options give them."""


def reconstruction_error(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Sum of squared pixel differences, averaged over the batch: (B, …), (B, …) -> a scalar, in float32 at least."""
    difference = reconstructions.flatten(1).to(images.dtype) - images.flatten(1)
    return difference.square().sum() / len(images)


def loss_and_scores(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """The training loss of any model, a scalar, and its class scores (B, K), None for one that only brings ``loss``.

    A model has ``loss_and_scores(images, labels)``, or ``loss(images, labels)``, or neither: then the loss is the
    cross-entropy of ``model(images)``. Images are float32 (B, 1, H, W) in [0, 1], labels int64 (B,).
    """
    both = getattr(model, "loss_and_scores", None)
    if callable(both):
        answer = both(images, labels)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UsageError(f"the model's loss_and_scores must return (loss, scores), not {described(answer)}.")
        return _scalar(answer[0]), check_scores(answer[1], len(labels))
    own = getattr(model, "loss", None)
    if callable(own):
        return _scalar(own(images, labels)), None
    scores = check_scores(model(images), len(labels))
    return F.cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels), scores


def check_scores(output: object, images: int, classes: int | None = None) -> Tensor:
    """What a model returned for so many images, if it is class scores (B, K), K being `classes` where that is given."""
    hint = "return the scores alone, in training as well, and let a method loss(images, labels) see to the rest"
    if isinstance(output, Tensor):
        if output.shape == (images, classes or output.shape[-1]) and not output.is_complex():
            return output
        capsules = output.ndim == 3 and output.shape[1] == classes
        hint = "lengths of capsules, .norm(dim=-1), are scores" if capsules else "a real number for each of 10 classes"
    wanted = f"({images}, {classes or 'K'})"
    raise UsageError(f"the model must return class scores {wanted}, not {described(output)}: {hint}.")


def _scalar(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point():
        return loss
    raise UsageError(
        f"the model's loss(images, labels) must return a scalar tensor, the mean over the batch, not {described(loss)}."
    )


def described(value: object) -> str:
    """What somebody's code returned, in a few words."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}" + ("" if value.is_floating_point() else f" of {str(value.dtype)[6:]}")
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(repr, value))}"[:100]
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple) else "")
