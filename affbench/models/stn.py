"""A spatial transformer in front of the CNN, as in Jaderberg, Simonyan, Zisserman and Kavukcuoglu (2015)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affbench.models.cnn import CNN
from affbench.models.kernels.convolution import Conv2d
from affbench.models.options import whole, wholes


class SpatialTransformerCNN(nn.Module):
    """The affNIST baseline looking at images that a spatial transformer has straightened.

    A small localisation network reads an affine transformation off the image; the image is sampled anew accordingly,
    bilinearly, and classified by :class:`affbench.models.cnn.CNN`. It starts out as the identity: an untrained network
    gives the scores of its classifier alone. With the defaults it has 16.2 million parameters on a 40×40 canvas, 30,286
    of them in the localisation network. The paper's network for distorted MNIST has a smaller classifier; here it is
    the one that the other models are compared with, so that the transformer is the only difference.

    Parameters
    ----------
    localisation, localisation_hidden
        Filters of the two 5×5 convolutions of the localisation network; its hidden units.
    canvas, classes, filters, hidden, dropout
        The classifier's, see :class:`affbench.models.cnn.CNN`.

    Attributes
    ----------
    transformer : SpatialTransformer
    classifier : CNN
        May be replaced by any model of (B, 1, H, W).

    References
    ----------
    Jaderberg, Simonyan, Zisserman, Kavukcuoglu (2015), Spatial Transformer Networks, arXiv 1506.02025, sections 3 and
    4.1.
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        localisation: Sequence[int] = (20, 20),
        localisation_hidden: int = 20,
        filters: Sequence[int] = (512, 256),
        hidden: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.transformer = SpatialTransformer(canvas, localisation, localisation_hidden)
        self.classifier: nn.Module = CNN(
            canvas=canvas, classes=classes, filters=filters, hidden=hidden, dropout=dropout
        )

    def forward(self, images: Tensor) -> Tensor:
        """Raw class scores: float32 (B, 1, H, W) in [0, 1] -> (B, K), float32 also under autocast."""
        scores: Tensor = self.classifier(self.transformer(images))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))


class SpatialTransformer(nn.Module):
    """Sample each image anew, under an affine transformation that a localisation network predicts from it.

    Its two 5×5 convolutions, each followed by 2×2 max-pooling and ReLU, and a hidden layer lead to the six numbers of
    the transformation; the last layer starts with zero weights and the identity as its bias. 20 filters and 20 hidden
    units are what the paper's appendix is widely quoted to use for distorted MNIST; re-implementations agree on the
    convolutions but not on the hidden layer and on further pooling. Not checked at the source.
    """

    def __init__(self, canvas: int, filters: Sequence[int] = (20, 20), hidden: int = 20) -> None:
        super().__init__()
        canvas = whole("canvas", canvas, 16)
        first, second = wholes("localisation", filters, length=2)
        side = ((canvas - 4) // 2 - 4) // 2
        regression = nn.Linear(whole("localisation_hidden", hidden), 6)
        nn.init.zeros_(regression.weight)
        with torch.no_grad():
            regression.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        self.localisation = nn.Sequential(
            *(Conv2d(1, first, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(Conv2d(first, second, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(second * side * side, hidden), nn.ReLU(), regression),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 1, H, W), black where the source lies outside the image."""
        theta: Tensor = self.localisation(images)
        # A_θ of the paper's equation 1 maps the place of a pixel in the output to its source in the image, both with
        # coordinates from −1 to 1. In bfloat16 one near the border would be off by a twentieth of a pixel.
        with torch.autocast(images.device.type, enabled=False):
            theta = theta.to(torch.promote_types(theta.dtype, torch.float32)).view(-1, 2, 3)
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            return F.grid_sample(images.to(grid.dtype), grid, mode="bilinear", align_corners=False)
