"""CapsNet as compact public code writes it: einsum for votes and agreement, gradients through every iteration.

A second yardstick, ``affbench bench --textbook benchmarks/einsum.py``: autograd keeps each iteration's coupling
coefficients and weighted votes, and both passes go through all of them.
"""

import textbook
import torch
import torch.nn.functional as F
from torch import Tensor, einsum


class TextbookCapsNet(textbook.TextbookCapsNet):
    """The other yardstick's network and loss, routed in this way."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.primary(F.relu(self.conv(images))).unflatten(1, (-1, self.primary_dim))  # (B, T, D, H, W)
        u = textbook.squash(einsum("btdhw->bthwd", maps).flatten(1, 3) / maps.shape[1])
        votes = einsum("jnod,bnd->bnjo", self.weight, u)
        b = torch.zeros(votes.shape[:3], device=votes.device)
        for iteration in range(self.routings):
            v = textbook.squash(einsum("bnj,bnjo->bjo", b.softmax(dim=2), votes))
            if iteration + 1 < self.routings:
                b = b + einsum("bjo,bnjo->bnj", v, votes)
        return v
