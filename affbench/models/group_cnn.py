"""A CNN that knows turned features: convolutions over a group of rotations, as in Weiler and Cesa (2019), plain torch.

Sizes: B batch, F fields, each with G orientations, n circular harmonics on k×k pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affbench.base.errors import UsageError
from affbench.models.options import whole, wholes


class GroupCNN(nn.Module):
    """Six convolutions over C8, max-pooling twice, then the largest orientation, the mean position, and the classes.

    Where the canvas is a multiple of 4, scores are the same for an image and the image turned by 90°, up to rounding;
    turns by 45° change them by what the grid of pixels and the corners of the canvas make of them. An image costs 8.6
    billion multiplications with the defaults, eleven times CapsNet's: ``-o fields=6,8,9,9,16,24`` a sixteenth of that.

    Parameters
    ----------
    canvas, classes
        Side of the square images, at least 4 pixels; number of classes, K.
    orientations
        G, a multiple of 4: the group is C8 with the default.
    fields, kernels
        Fields of the six layers, each of G channels; sides of their filters, which are odd.

    Notes
    -----
    After the rotation-equivariant network of the paper, of which the fields, the first two kernels, max-pooling twice,
    group pooling and ELU are known. Ours, or unconfirmed: the other kernels, batch normalisation a field, where the
    pooling stands, padding that keeps the size, the mean over positions, no hidden layer, and which harmonics span the
    filters (:func:`harmonics`); so the number of parameters is not the published one (3,549,826 for C16).

    References
    ----------
    Weiler, Cesa (2019), General E(2)-Equivariant Steerable CNNs, NeurIPS, arXiv 1911.08251; Cohen, Welling (2016),
    Group Equivariant Convolutional Networks, ICML, arXiv 1602.07576.
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        orientations: int = 8,
        fields: Sequence[int] = (24, 32, 36, 36, 64, 96),
        kernels: Sequence[int] = (9, 7, 7, 7, 7, 5),
    ) -> None:
        super().__init__()
        whole("canvas", canvas, 4)
        if whole("orientations", orientations) % 4:
            raise UsageError(f"orientations must be a multiple of 4, so that turns by 90° count, not {orientations}.")
        widths, sides = wholes("fields", fields, length=6), wholes("kernels", kernels, length=6)
        layers: list[nn.Module] = []
        for place, (before, width, side) in enumerate(zip((0, *widths), widths, sides, strict=False)):
            layers += [GroupConv(before, width, side, orientations), nn.BatchNorm3d(width), nn.ELU()]
            if place in (1, 3):
                layers.append(nn.MaxPool3d((1, 2, 2)))
        self.fields = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], whole("classes", classes))

    def forward(self, images: Tensor) -> Tensor:
        """Raw class scores: float32 (B, 1, H, W) in [0, 1] -> (B, K)."""
        fields = self.fields(images[:, :, None])  # (B, F, G, H / 4, W / 4)
        scores: Tensor = self.classifier(fields.amax(2).mean((2, 3)))
        return scores


class GroupConv(nn.Module):
    """A convolution over positions and orientations: every filter in all G orientations.

    A filter that is turned looks at the orientations of the fields `before` it turned as well; there are none in an
    image, before = 0. ``weight`` holds coefficients of the harmonics, (F_out, F_in, G, n), or (F_out, 1, 1, n).
    """

    harmonics: Tensor

    def __init__(self, before: int, fields: int, kernel: int, orientations: int) -> None:
        super().__init__()
        self.register_buffer("harmonics", harmonics(kernel, orientations), persistent=False)
        shape = (before, orientations) if before else (1, 1)
        self.weight = nn.Parameter(torch.empty(fields, *shape, self.harmonics.shape[1]))
        nn.init.normal_(self.weight, std=(2 / self.weight[0].numel()) ** 0.5)

    def forward(self, fields: Tensor) -> Tensor:
        """(B, F_in, G, H, W), or images (B, 1, 1, H, W) -> (B, F_out, G, H, W)."""
        turns = len(self.harmonics)
        turned = torch.stack([self.weight.roll(turn, 2) for turn in range(turns)], 1)  # (F_out, G, F_in, G, n)
        filters = torch.einsum("ogihn,gnxy->ogihxy", turned, self.harmonics).flatten(2, 3).flatten(0, 1)
        maps: Tensor = F.conv2d(fields.flatten(1, 2), filters, padding=filters.shape[-1] // 2).unflatten(1, (-1, turns))
        return maps


def harmonics(kernel: int, orientations: int) -> Tensor:
    """Circular harmonics on k×k pixels in all orientations, (G, n, k, k), each of norm 1; G must be a multiple of 4.

    On rings of radius ρ = 0, 1, …, (k − 1)/2, Gaussian across with σ 0.6, cos mφ and sin mφ for m up to ρ: faster ones
    the grid would show otherwise after a turn by 45°. Quarter turns are exact, bit by bit.
    """
    if whole("each of kernels", kernel) % 2 == 0:
        raise UsageError(f"each of kernels must be odd, not {kernel}: its filters are turned about a pixel.")
    places = torch.arange(kernel, dtype=torch.float64, device="cpu") - kernel // 2
    y, x = torch.meshgrid(-places, places, indexing="ij")
    radius, angle = torch.hypot(x, y), torch.atan2(y, x)
    waves = []
    for ring in range(kernel // 2 + 1):
        across = torch.exp(-((radius - ring) ** 2) / (2 * 0.6**2))
        for m in range(ring + 1):
            own = across if m == 0 else torch.where(radius > 0, across, 0)  # what turns has no value at the centre
            phases = m * torch.stack([angle - 2 * math.pi * turn / orientations for turn in range(orientations // 4)])
            waves += [own * torch.cos(phases)] + [own * torch.sin(phases)] * (m > 0)
    quarter = torch.stack(waves, 1)  # (G / 4, n, k, k)
    quarter = quarter / torch.linalg.vector_norm(quarter[0], dim=(1, 2))[:, None, None]
    return torch.cat([torch.rot90(quarter, turns, (2, 3)) for turns in range(4)]).float()
