"""Efficient-CapsNet, as in Mazzia, Salvetti and Chiaberge (2021): few capsules, routed once by self-attention."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from affbench.base.errors import UsageError
from affbench.models.capsnet import CapsuleNetwork, pixel_decoder
from affbench.models.kernels.convolution import Conv2d
from affbench.models.options import number, whole, wholes


class EfficientCapsNet(CapsuleNetwork):
    """Four convolutions, capsules of whole maps, and classes routed by self-attention, with CapsNet's decoder and loss.

    With the defaults 161,824 parameters without the decoder on 28×28 images, as published, and 180,256 on a 40×40
    canvas, whose last map is 15×15.

    Parameters
    ----------
    canvas, classes
        Side of the square images, at least 11 pixels; number of classes, K.
    reconstruction
        Weight of the mean squared pixel error in the loss, not of the sum; 0 builds a network without a decoder.
    filters
        Filters of the four convolutions; the last are divided into the primary capsules.
    primary_dim, digit_dim, decoder
        Dimensions of the primary capsules; those of the class capsules; units of the decoder's hidden layers.

    Notes
    -----
    The authors' code (EscVM/Efficient-CapsNet) trains with Adam at 5e-4 · 0.97 an epoch in batches of 16, and rotates,
    squeezes and erases digits, which affNIST's rule does not allow: none of that is in this network. Batch
    normalisation has torch's constants.

    References
    ----------
    Mazzia, Salvetti, Chiaberge (2021), Efficient-CapsNet: capsule network with self-attention routing, Scientific
    Reports 11.
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        reconstruction: float = 0.392,
        filters: Sequence[int] = (32, 64, 64, 128),
        primary_dim: int = 8,
        digit_dim: int = 16,
        decoder: Sequence[int] = (512, 1024),
    ) -> None:
        side = (whole("canvas", canvas, 11) - 11) // 2 + 1
        widths, dim = wholes("filters", filters, length=4), whole("primary_dim", primary_dim)
        if widths[-1] % dim:
            raise UsageError(f"the last of filters, {widths[-1]}, must be a multiple of primary_dim, {dim}.")
        layers: list[nn.Module] = []
        for before, width, kernel, stride in zip((1, *widths), widths, (5, 3, 3, 3), (1, 1, 1, 2), strict=False):
            convolution = Conv2d(before, width, kernel, stride=stride)
            nn.init.kaiming_normal_(convolution.weight)
            layers += [convolution, nn.ReLU(), nn.BatchNorm2d(width)]
        layers += [Conv2d(width, width, side, groups=width), nn.Flatten(), nn.Unflatten(1, (-1, dim)), Squash()]
        digits = SelfAttentionRouting(width // dim, dim, whole("classes", classes), whole("digit_dim", digit_dim))
        weight = number("reconstruction", reconstruction, 0) / canvas**2
        drawing = pixel_decoder(classes * digit_dim, decoder, canvas * canvas) if weight else None
        super().__init__(nn.Sequential(*layers), digits, drawing, weight)


class SelfAttentionRouting(nn.Module):
    """Coupling by how well the vote of a capsule agrees with those of all, without iterations (section 3.2).

    ``weight`` is W, (J, N, D_out, D_in), and ``bias`` (J, N) is added to every coupling.
    """

    def __init__(self, in_capsules: int, in_dim: int, out_capsules: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_capsules, in_capsules, out_dim, in_dim))
        nn.init.trunc_normal_(self.weight, std=(2 / (out_capsules * in_capsules * in_dim)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_capsules, in_capsules))
        self.squash = Squash()

    def forward(self, capsules: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, J, D_out)."""
        with torch.autocast(capsules.device.type, enabled=False):
            votes = torch.einsum("jnoi,bni->bjno", self.weight, capsules.to(self.weight.dtype))
            # Σ_k ⟨u_i, u_k⟩ = ⟨u_i, Σ_k u_k⟩
            agreement = (votes * votes.sum(2, keepdim=True)).sum(-1) / votes.shape[-1] ** 0.5
            c = agreement.softmax(1) + self.bias
            routed: Tensor = self.squash((c[..., None] * votes).sum(2))
            return routed


class Squash(nn.Module):
    """Scale capsules of length n to 1 − e⁻ⁿ; a zero capsule stays, with the identity as its derivative."""

    def forward(self, capsules: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D), float32 at least."""
        capsules = capsules.to(torch.promote_types(capsules.dtype, torch.float32))
        n = torch.linalg.vector_norm(capsules, dim=-1, keepdim=True).clamp_min(1e-7)
        squashed: Tensor = capsules * (-torch.expm1(-n) / n)
        return squashed
