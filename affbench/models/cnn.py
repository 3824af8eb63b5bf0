"""The convolutional baselines of Sabour, Frosst and Hinton (2017) and of Gu, Tresp and Hu (2021).

All give raw class scores and are trained with cross-entropy.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from affbench.base.errors import UsageError
from affbench.models.kernels.convolution import Conv2d
from affbench.models.options import choice, number, whole, wholes


class _Network(nn.Module):
    """Convolutional layers, and those that make class scores of their features."""

    def __init__(self, features: Sequence[nn.Module], classifier: Sequence[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Raw class scores: float32 (B, 1, H, W) in [0, 1] -> (B, K)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores


class CNN(_Network):
    """The baseline the paper's authors compared with CapsNet on affNIST.

    Two 5×5 convolutions without padding, each followed by ReLU and 2×2 max-pooling, then a hidden layer with ReLU and
    dropout. With the defaults it has about 16 million parameters on a 40×40 canvas.

    Parameters
    ----------
    canvas
        Side of the square images, at least 16 pixels.
    classes
        Number of classes, K.
    filters
        Filters of the two convolutions.
    hidden
        Units of the hidden layer.
    dropout
        Probability in [0, 1) that a hidden unit is dropped in training.
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        filters: Sequence[int] = (512, 256),
        hidden: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        canvas = whole("canvas", canvas, 16)
        first, second = wholes("filters", filters, length=2)
        side = ((canvas - 4) // 2 - 4) // 2
        features = _convolutions(first, second)
        inner = [nn.Linear(second * side * side, whole("hidden", hidden)), nn.ReLU(), _dropout(dropout)]
        super().__init__(features, [nn.Flatten(), *inner, nn.Linear(hidden, whole("classes", classes))])


class _Pooled(_Network):
    """Convolutional layers, pooling over all positions, and what follows."""

    pooling: str = "average"

    def forward(self, images: Tensor) -> Tensor:
        """Raw class scores: float32 (B, 1, H, W) in [0, 1] -> (B, K), float32 also under autocast."""
        features = self.features(images)
        # What remains after pooling is too little to gain from low precision, and the scores are better for it.
        with torch.autocast(images.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            pooled = features.mean((2, 3)) if self.pooling == "average" else features.amax((2, 3))
            scores: Tensor = self.classifier(pooled)
        return scores


class GlobalPoolingCNN(_Pooled):
    """The affNIST baseline, :class:`CNN`, with one change: global pooling in place of flattening.

    What follows the convolutions then no longer knows where on the canvas a feature was found. With the defaults it
    has 3.6 million parameters on any canvas, against the baseline's 16.1 million on 40×40. ``filters=(64, 64, 128)``,
    ``pooling="max"`` and ``hidden=0`` make a network of 0.18 million.

    Parameters
    ----------
    canvas, classes, dropout
        As those of :class:`CNN`.
    filters
        Filters of the convolutions, at least two. The first two are the baseline's; any further ones are 3×3 with ReLU
        and keep the size.
    pooling
        ``"average"`` or ``"max"`` over all positions.
    hidden
        Units of the hidden layer, which drops out; 0 for none: the classes are then computed from the pooled features.

    References
    ----------
    Lin, Chen, Yan (2013), Network In Network, arXiv 1312.4400, section 3.2, for global average pooling. The network
    itself is affbench's.
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        filters: Sequence[int] = (512, 256),
        pooling: str = "average",
        hidden: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        whole("canvas", canvas, 16)
        widths = wholes("filters", filters)
        if len(widths) < 2:
            raise UsageError(f"filters must list at least 2 whole numbers, not {filters!r}.")
        features = _convolutions(*widths[:2])
        for width, following in pairwise(widths[1:]):
            features += [Conv2d(width, following, 3, padding=1), nn.ReLU()]
        classes, hidden, drop = whole("classes", classes), whole("hidden", hidden, minimum=0), _dropout(dropout)
        inner = [nn.Linear(widths[-1], hidden), nn.ReLU(), drop] if hidden else []
        super().__init__(features, [*inner, nn.Linear(hidden or widths[-1], classes)])
        self.pooling = choice("pooling", pooling, ("average", "max"))


class ConvNetAvg(_Pooled):
    """ConvNet-Avg: the two convolutions of CapsNet, averaged over all positions, and the classes.

    With the defaults it has 5,332,234 parameters on any canvas. Not confirmed are the ReLU after the second
    convolution, without which it would be linear up to the classes, and cross-entropy as its loss.

    Parameters
    ----------
    canvas, classes
        Side of the square images, at least twice the kernel less one; number of classes, K.
    kernel, filters
        Side of the filters, of which the paper compares 3 to 11; filters of the convolutions of stride 1 and 2.

    References
    ----------
    Gu, Tresp, Hu (2021), Capsule Network is Not More Robust than Convolutional Network, CVPR, arXiv 2103.15459.
    """

    def __init__(
        self, *, canvas: int = 40, classes: int = 10, kernel: int = 9, filters: Sequence[int] = (256, 256)
    ) -> None:
        whole("canvas", canvas, 2 * whole("kernel", kernel) - 1)
        first, second = wholes("filters", filters, length=2)
        features = [Conv2d(1, first, kernel), nn.ReLU(), Conv2d(first, second, kernel, stride=2), nn.ReLU()]
        super().__init__(features, [nn.Linear(second, whole("classes", classes))])


class ConvNetFC(_Network):
    """ConvNet-FC, the 35.4 million parameters that the literature compares with CapsNet on a 40×40 canvas.

    Three convolutions of stride 1, then two fully connected layers, the last with dropout: the layers of
    :class:`SabourCNN` without padding, 35,445,522 parameters with the defaults. That Gu et al. kept the dropout of
    Sabour et al. is not confirmed.

    Parameters
    ----------
    canvas, classes, dropout
        As those of :class:`CNN`; the canvas has at least 13 pixels for 5×5 convolutions without padding.
    kernel, padding
        Side of all filters, of which the paper compares 3, 5 and 7; zeros around their input, none in the paper.
    filters
        Filters of the three convolutions.
    hidden
        Units of the two fully connected layers.

    References
    ----------
    Gu, Tresp, Hu (2021), Capsule Network is Not More Robust than Convolutional Network, CVPR, arXiv 2103.15459.
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        kernel: int = 5,
        padding: int = 0,
        filters: Sequence[int] = (256, 256, 128),
        hidden: Sequence[int] = (328, 192),
        dropout: float = 0.5,
    ) -> None:
        lost = 3 * (whole("kernel", kernel) - 1 - 2 * whole("padding", padding, minimum=0))  # pixels at the borders
        side = whole("canvas", canvas, max(1, lost + 1)) - lost
        fourth, fifth = wholes("hidden", hidden, length=2)
        features: list[nn.Module] = []
        for width, following in pairwise((1, *wholes("filters", filters, length=3))):
            features += [Conv2d(width, following, kernel, padding=padding), nn.ReLU()]
        inner = [nn.Linear(filters[-1] * side * side, fourth), nn.ReLU(), nn.Linear(fourth, fifth), nn.ReLU()]
        classifier = [nn.Flatten(), *inner, _dropout(dropout), nn.Linear(fifth, whole("classes", classes))]
        super().__init__(features, classifier)


class SabourCNN(ConvNetFC):
    """The baseline of the paper's MNIST experiment, 35.4 million parameters on 28×28 images.

    :class:`ConvNetFC` with 5×5 convolutions. The paper does not name the padding; the published
    number of parameters results when the image keeps its size. On a 40×40 canvas that makes 69.7 million: what the
    literature compares with CapsNet there, at 35.4 million, is :class:`ConvNetFC` itself.

    Parameters
    ----------
    canvas, classes, filters, hidden, dropout
        As those of ConvNetFC.
    """

    def __init__(
        self,
        *,
        canvas: int = 28,
        classes: int = 10,
        filters: Sequence[int] = (256, 256, 128),
        hidden: Sequence[int] = (328, 192),
        dropout: float = 0.5,
    ) -> None:
        options = {"filters": filters, "hidden": hidden, "dropout": dropout}
        super().__init__(canvas=canvas, classes=classes, kernel=5, padding=2, **options)  # type: ignore[arg-type]


def _convolutions(first: int, second: int) -> list[nn.Module]:
    """The two of the affNIST baseline: 5×5 without padding, ReLU, 2×2 max-pooling."""
    return [
        *(Conv2d(1, first, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2)),
    ]


def _dropout(probability: float) -> nn.Dropout:
    return nn.Dropout(number("dropout", probability, 0, below=1))
