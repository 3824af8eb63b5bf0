"""CapsNet as in Sabour, Frosst and Hinton (2017), for any canvas, and the parts it is composed of."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affbench.base.errors import UsageError
from affbench.models.kernels.convolution import Conv2d
from affbench.models.loss import LOSSES, reconstruction_error
from affbench.models.options import choice, flag, number, whole, wholes
from affbench.models.routing import CapsuleLayer, squash


class CapsuleNetwork(nn.Module):
    """Primary capsules, a layer of class capsules whose lengths are the scores, and perhaps a decoder.

    Each part may be any module of the shapes below, such as ``PrimaryCapsules(network, dim)`` with a network of your
    own. The loss is that of the classes plus the weighted sum of squared pixel errors.

    Parameters
    ----------
    primary
        Images float32 (B, 1, H, W) in [0, 1] to primary capsules (B, N, D_in).
    digits
        Primary capsules to class capsules (B, K, D).
    decoder
        The class capsules (B, K·D) to pixels (B, H·W) in [0, 1]; None for a network without.
    reconstruction, conditional, loss
        As those of :class:`CapsNet`.
    """

    def __init__(
        self,
        primary: nn.Module,
        digits: nn.Module,
        decoder: nn.Module | None = None,
        reconstruction: float = 0.0005,
        conditional: bool = True,
        loss: str = "margin",
    ) -> None:
        super().__init__()
        self.reconstruction = number("reconstruction", reconstruction, 0)
        self.conditional = flag("conditional", conditional)
        self.class_loss = LOSSES[choice("loss", loss, LOSSES)]
        self.primary, self.digits, self.decoder = primary, digits, decoder

    def capsules(self, images: Tensor) -> Tensor:
        """The class capsules: float32 (B, 1, H, W) in [0, 1] -> (B, K, D)."""
        capsules: Tensor = self.digits(self.primary(images))
        return capsules

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, the lengths of the class capsules: float32 (B, 1, H, W) in [0, 1] -> (B, K) in [0, 1)."""
        return _lengths(self.capsules(images))

    def decode(self, capsules: Tensor, labels: Tensor) -> Tensor:
        """Draw what a class capsule (unconditionally: all) describes: (B, K, D), (B,) -> (B, 1, H, W) in [0, 1]."""
        if self.decoder is None:
            raise UsageError("this network has no decoder: build it with a reconstruction weight above 0.")
        if self.conditional:
            capsules = capsules * F.one_hot(labels, capsules.shape[1]).to(capsules.dtype)[..., None]
        pixels: Tensor = self.decoder(capsules.flatten(1))
        side = round(pixels.shape[1] ** 0.5)
        return pixels.view(-1, 1, side, side)

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, 1, H, W) drawn again from the capsule of their label, or of the predicted class without labels."""
        capsules = self.capsules(images)
        return self.decode(capsules, _lengths(capsules).argmax(-1) if labels is None else labels)

    def loss_and_scores(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, H, W), labels (B,) -> the training loss, and class scores (B, K) from the same pass."""
        capsules = self.capsules(images)
        scores = _lengths(capsules)
        loss = self.class_loss(scores, labels)
        if self.decoder is not None:
            loss = loss + self.reconstruction * reconstruction_error(self.decode(capsules, labels), images)
        return loss, scores

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The training loss alone."""
        return self.loss_and_scores(images, labels)[0]


class CapsNet(CapsuleNetwork):
    """A capsule network: two convolutions, squashed primary capsules, routed class capsules, and a decoder.

    With the defaults it is the network of the paper: 8.2 million parameters on 28×28 images (6.8 without the
    decoder), 13.5 million and 4,608 primary capsules on a 40×40 canvas.

    Parameters
    ----------
    canvas
        Side of the square images, at least twice the kernel less one, in pixels.
    classes
        Number of classes, K.
    routings
        Routing iterations; with one, coupling is uniform: the network without routing.
    routing_gradient
        ``"last"`` or ``"all"``: whether gradients flow through every iteration, as in the authors' code.
    reconstruction
        Weight of the sum of squared pixel errors in the loss; 0 builds a network without a decoder.
    conditional
        Whether the decoder sees the capsule of the label alone, all others masked, or all of them.
    loss
        ``"margin"``, or ``"cross-entropy"`` with the lengths as raw scores.
    squash
        False leaves primary and class capsules as long as they are; which of them the ablation of Gu et al. (2021)
        leaves so is not confirmed. Routing then forms the votes.
    kernel
        Side of the filters of both convolutions; Gu et al. (2021) compare 3, 5, 7, 9 and 11.
    filters
        Filters of the first convolution.
    primary_types, primary_dim
        The second convolution yields ``primary_types`` capsules of ``primary_dim`` dimensions at each position.
    digit_dim
        Dimensions of the class capsules, D.
    decoder
        Units of the decoder's hidden layers.

    Attributes
    ----------
    primary : PrimaryCapsules
        ``primary.network`` may be replaced by any module of the same output shape.
    digits : CapsuleLayer

    References
    ----------
    Sabour, Frosst, Hinton (2017), Dynamic Routing Between Capsules, arXiv 1710.09829, sections 4 and 4.1; Gu, Tresp, Hu
    (2021), Capsule Network is Not More Robust than Convolutional Network, arXiv 2103.15459, for kernels and ablation.
    """

    digits: CapsuleLayer

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        routings: int = 3,
        routing_gradient: str = "last",
        reconstruction: float = 0.0005,
        conditional: bool = True,
        loss: str = "margin",
        squash: bool = True,
        kernel: int = 9,
        filters: int = 256,
        primary_types: int = 32,
        primary_dim: int = 8,
        digit_dim: int = 16,
        decoder: Sequence[int] = (512, 1024),
    ) -> None:
        canvas = whole("canvas", canvas, 2 * whole("kernel", kernel) - 1)
        primary = convolutional_primary(filters, primary_types, primary_dim, kernel, squash)
        side = (canvas - 2 * kernel + 1) // 2 + 1
        sizes = side * side * primary_types, primary_dim, whole("classes", classes), whole("digit_dim", digit_dim)
        digits = CapsuleLayer(*sizes, routings, routing_gradient, squash)
        drawing = pixel_decoder(classes * digit_dim, decoder, canvas * canvas) if reconstruction else None
        super().__init__(primary, digits, drawing, reconstruction, conditional, loss)


class PrimaryCapsules(nn.Module):
    """The channels of a convolutional network (B, 1, H, W) -> (B, T·D, H', W'), grouped into capsules and squashed.

    Channels of T types are first multiplied by 1/T, as in the authors' released code, where the primary capsules share
    each input equally among their types (tensorflow/models, research/capsules). It could be absorbed into the
    convolution's weights, so the networks are those of the paper; but without it the first optimiser steps at the
    usual learning rate drive every class capsule of the full-size network to length 1, and training stalls.
    """

    def __init__(self, network: nn.Module, dim: int, squashed: bool = True) -> None:
        super().__init__()
        self.network = network
        self.dim = dim
        self.squashed = flag("squash", squashed)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, N, D) with N = T·H'·W', type by type, float32 at least."""
        channels: Tensor = self.network(images)
        grouped = channels.unflatten(1, (-1, self.dim)).transpose(1, 2)  # (B, D, T, H', W')
        grouped = grouped / grouped.shape[2]
        # Stored with the capsules' axis last, as the fast routing wants it.
        capsules = grouped.reshape(len(channels), self.dim, -1).transpose(1, 2)
        return squash(capsules) if self.squashed else capsules


def convolutional_primary(filters: int, types: int, dim: int, kernel: int, squashed: bool) -> PrimaryCapsules:
    """The primary capsules of the paper: a k×k convolution with ReLU, and one of stride 2 for T capsules a position."""
    filters, types, dim = whole("filters", filters), whole("primary_types", types), whole("primary_dim", dim)
    layers = (Conv2d(1, filters, kernel), nn.ReLU(), Conv2d(filters, types * dim, kernel, stride=2))
    return PrimaryCapsules(nn.Sequential(*layers), dim, squashed)


def pixel_decoder(inputs: int, hidden: Sequence[int], pixels: int) -> nn.Sequential:
    """Fully connected layers (B, inputs) -> (B, pixels) in [0, 1]: ReLU between them, a sigmoid at the end."""
    layers: list[nn.Module] = []
    for width, following in pairwise((inputs, *wholes("decoder", hidden), pixels)):
        layers += [nn.Linear(width, following), nn.ReLU()]
    layers[-1] = nn.Sigmoid()
    return nn.Sequential(*layers)


def _lengths(capsules: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(capsules, dim=-1)
    return lengths
