"""CapsNet as compact public code writes it: einsum for votes and agreement, gradients through every iteration.

A second yardstick, ``affbench bench --textbook benchmarks/einsum.py``: autograd keeps each iteration's coupling
coefficients and weighted votes, and both passes go through all of them.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, einsum, nn


def squash(vectors: Tensor) -> Tensor:
    square = einsum("...d,...d->...", vectors, vectors)[..., None]
    return square / (1 + square) * vectors / (square + 1e-8).sqrt()


class TextbookCapsNet(nn.Module):
    """The network of ``affbench.models.capsnet.CapsNet``, from the same sizes."""

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
        self.routings, self.types, self.reconstruction = routings, primary_types, reconstruction
        self.conv = nn.Conv2d(1, filters, 9)
        self.primary = nn.Conv2d(filters, primary_types * primary_dim, 9, stride=2)
        self.weight = nn.Parameter(0.1 * torch.randn(side * side * primary_types, classes, digit_dim, primary_dim))
        layers: list[nn.Module] = []
        for width, following in pairwise((classes * digit_dim, *decoder, canvas * canvas)):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        maps = self.primary(F.relu(self.conv(images))).unflatten(1, (self.types, -1))  # (B, T, D, H, W)
        u = squash(einsum("btdhw->bthwd", maps).flatten(1, 3))
        votes = einsum("njod,bnd->bnjo", self.weight, u)
        b = torch.zeros(votes.shape[:3], device=votes.device)
        for iteration in range(self.routings):
            v = squash(einsum("bnj,bnjo->bjo", b.softmax(dim=2), votes))
            if iteration + 1 < self.routings:
                b = b + einsum("bjo,bnjo->bnj", v, votes)
        return v

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        v = self(images)
        lengths, truth = torch.linalg.vector_norm(v, dim=-1), F.one_hot(labels, v.shape[1])
        margin = truth * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - truth) * F.relu(lengths - 0.1) ** 2
        loss = margin.sum(1).mean()
        if self.reconstruction:
            pixels = self.decoder((v * truth[..., None]).flatten(1))
            loss = loss + self.reconstruction * F.mse_loss(pixels, images.flatten(1), reduction="sum") / len(images)
        return loss
