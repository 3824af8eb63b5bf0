"""Losses: the margin loss and the reconstruction error of CapsNet, and the one call that trains any model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affbench.base.errors import UsageError


def margin_loss(
    lengths: Tensor, labels: Tensor, present: float = 0.9, absent: float = 0.1, absent_weight: float = 0.5
) -> Tensor:
    """Margin loss: the sum over classes, averaged over the batch.

    Parameters
    ----------
    lengths
        Lengths of the class capsules, (B, K) in [0, 1].
    labels
        True classes, int64 (B,).
    present, absent
        The margins m+ and m−: a capsule of the true class should be longer than the one, others shorter than the
        other.
    absent_weight
        λ, the weight of the classes that are absent.

    Returns
    -------
    Tensor
        A scalar.

    References
    ----------
    Sabour, Frosst, Hinton (2017), Dynamic Routing Between Capsules, equation 4.
    """
    truth = F.one_hot(labels, lengths.shape[-1]).to(lengths.dtype)
    too_short = F.relu(present - lengths).square()
    too_long = F.relu(lengths - absent).square()
    return (truth * too_short + absent_weight * (1 - truth) * too_long).sum(-1).mean()


def reconstruction_error(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Sum of squared pixel differences, averaged over the batch: (B, …), (B, …) -> a scalar, in float32 at least."""
    difference = reconstructions.flatten(1).to(images.dtype) - images.flatten(1)
    return difference.square().sum() / len(images)


def loss_and_scores(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """The training loss of any model, and its class scores where they come for free.

    Parameters
    ----------
    model
        A model with ``loss_and_scores(images, labels)``, or with ``loss(images, labels)``, or with neither: then the
        loss is the cross-entropy of ``model(images)``.
    images
        float32 (B, 1, H, W) in [0, 1].
    labels
        int64 (B,).

    Returns
    -------
    tuple
        The scalar loss, and the scores (B, K) or None for a model that only brings ``loss``.
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
    """What a model returned for so many images, if it is class scores (B, K), of as many classes where that is given.

    Raises
    ------
    UsageError
        It is something else.
    """
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
