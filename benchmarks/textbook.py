"""CapsNet as most public code writes it: one prediction vector formed for every pair of capsules.

The yardstick of ``affbench bench``; nothing in the package imports it. The votes (B, J, N, D_out) come from a matrix
product broadcast over batch and capsule pairs, and every routing iteration reads them twice.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def squash(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    squashed: Tensor = norm**2 / (1 + norm**2) * vectors / (norm + 1e-8)
    return squashed


class TextbookCapsNet(nn.Module):
    """The same network as ``affbench.models.capsnet.CapsNet``, from the same sizes."""

    def __init__(
        self,
        canvas: int = 40,
        routings: int = 3,
        filters: int = 256,
        primary_types: int = 32,
        primary_dim: int = 8,
        digit_dim: int = 16,
        classes: int = 10,
        decoder: tuple[int, ...] = (512, 1024),
        reconstruction: float = 0.0005,
    ) -> None:
        super().__init__()
        side = (canvas - 8 - 9) // 2 + 1
        self.routings, self.primary_dim, self.reconstruction = routings, primary_dim, reconstruction
        self.conv = nn.Conv2d(1, filters, 9)
        self.primary = nn.Conv2d(filters, primary_types * primary_dim, 9, stride=2)
        self.weight = nn.Parameter(0.1 * torch.randn(classes, side * side * primary_types, digit_dim, primary_dim))
        sizes = (classes * digit_dim, *decoder, canvas * canvas)
        layers: list[nn.Module] = []
        for width, following in pairwise(sizes):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        u = self.primary(F.relu(self.conv(images)))
        types = u.shape[1] // self.primary_dim
        u = squash(u.view(len(images), -1, self.primary_dim) / types)
        votes = torch.matmul(self.weight, u[:, None, :, :, None]).squeeze(-1)  # (B, J, N, D_out)
        fixed = votes.detach()
        b = torch.zeros(votes.shape[:3], device=u.device)
        for _ in range(self.routings - 1):
            c = b.softmax(dim=1)
            v = squash((c[..., None] * fixed).sum(2, keepdim=True))
            b = b + (v * fixed).sum(-1)
        return squash((b.softmax(dim=1)[..., None] * votes).sum(2))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        v = self(images)
        lengths, truth = torch.linalg.vector_norm(v, dim=-1), F.one_hot(labels, v.shape[1])
        margin = truth * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - truth) * F.relu(lengths - 0.1) ** 2
        loss = margin.sum(1).mean()
        if self.reconstruction:
            pixels = self.decoder((v * truth[..., None]).flatten(1))
            loss = loss + self.reconstruction * F.mse_loss(pixels, images.flatten(1), reduction="sum") / len(images)
        return loss
