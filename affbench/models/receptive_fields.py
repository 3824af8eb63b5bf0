"""Maps of capsules cut into the receptive fields of a convolution: what capsule convolutions route from."""

import torch.nn.functional as F
from torch import Tensor


def receptive_fields(capsules: Tensor, kernel: int, stride: int = 1, padding: int = 0) -> Tensor:
    """N types of capsules of D dimensions at each position, (B, N, D, H, W) -> (B, P, M, D), as in a convolution.

    P = H'·W' parents' positions, row by row, each with its M = k·k·N children, offset by offset, and at each all types.
    Around the map there are zeros.
    """
    batch, types, dim = capsules.shape[:3]
    patches = F.unfold(capsules.flatten(1, 2), kernel, padding=padding, stride=stride)  # (B, N·D·k·k, P)
    patches = patches.view(batch, types, dim, kernel * kernel, -1)
    fields: Tensor = patches.permute(0, 4, 3, 1, 2).flatten(2, 3)
    return fields


def as_map(capsules: Tensor) -> Tensor:
    """Capsules at the P positions of a square map, (B, P, J, D) -> (B, J, D, H', W')."""
    side = round(capsules.shape[1] ** 0.5)
    maps: Tensor = capsules.permute(0, 2, 3, 1).unflatten(3, (side, side))
    return maps
