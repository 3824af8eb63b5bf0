"""Maps of capsules cut into the receptive fields of a convolution: what capsule convolutions route from."""

from torch import Tensor


def receptive_fields(capsules: Tensor, kernel: int, stride: int = 1) -> Tensor:
    """Maps (B, H, W, N, D) -> (B, H', W', M, D), M = k·k·N children of each parent, place by place."""
    fields = capsules.unfold(1, kernel, stride).unfold(2, kernel, stride)  # (B, H', W', N, D, k, k)
    return fields.permute(0, 1, 2, 5, 6, 3, 4).flatten(3, 5)
