"""The convolutional baselines of Sabour, Frosst and Hinton (2017): raw class scores, trained with cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from affbench.models.options import canvas_size, number, whole, wholes


class CNN(nn.Module):
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

    Raises
    ------
    UsageError
        If an option is out of range.
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
        super().__init__()
        canvas = canvas_size("the CNN", canvas, minimum=16)
        first, second = wholes("filters", filters, length=2)
        side = ((canvas - 4) // 2 - 4) // 2
        hidden = whole("hidden", hidden)
        self.features = nn.Sequential(
            nn.Conv2d(1, first, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(second * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(number("dropout", dropout, 0, below=1)),
            nn.Linear(hidden, whole("classes", classes)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Raw class scores: float32 (B, 1, H, W) in [0, 1] -> (B, K)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores


class SabourCNN(nn.Module):
    """The baseline of the paper's MNIST experiment, 35.4 million parameters on 28×28 images.

    Three 5×5 convolutions of stride 1, then two fully connected layers, the last with dropout. The paper does not
    name the padding; the published number of parameters results when the image keeps its size.

    Parameters
    ----------
    canvas
        Side of the square images.
    classes
        Number of classes, K.
    filters
        Filters of the three convolutions.
    hidden
        Units of the two fully connected layers.
    dropout
        Probability in [0, 1) that a unit of the last hidden layer is dropped in training.

    Raises
    ------
    UsageError
        If an option is out of range.
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
        super().__init__()
        canvas = canvas_size("the CNN", canvas, minimum=1)
        first, second, third = wholes("filters", filters, length=3)
        fourth, fifth = wholes("hidden", hidden, length=2)
        self.features = nn.Sequential(
            nn.Conv2d(1, first, 5, padding="same"),
            nn.ReLU(),
            nn.Conv2d(first, second, 5, padding="same"),
            nn.ReLU(),
            nn.Conv2d(second, third, 5, padding="same"),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(third * canvas * canvas, fourth),
            nn.ReLU(),
            nn.Linear(fourth, fifth),
            nn.ReLU(),
            nn.Dropout(number("dropout", dropout, 0, below=1)),
            nn.Linear(fifth, whole("classes", classes)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Raw class scores: float32 (B, 1, H, W) in [0, 1] -> (B, K)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores
