"""Losses: the margin loss and the reconstruction error of CapsNet, and the one call that trains any model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        loss, scores = both(images, labels)
        return loss, scores
    own = getattr(model, "loss", None)
    if callable(own):
        return own(images, labels), None
    scores = model(images)
    return F.cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels), scores
