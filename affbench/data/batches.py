"""Batches made on the device: the set lives there as uint8, and digits are placed afresh in every epoch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from affbench.data import placement
from affbench.data.dataset import Dataset


def to_float(images: Tensor) -> Tensor:
    """uint8 (B, H, W) to float32 (B, 1, H, W) in [0, 1]."""
    return images.unsqueeze(1).float().div_(255)


@dataclass(frozen=True)
class Augmentation:
    """How a training digit reaches the canvas."""

    canvas: int  # height and width of the canvas in pixels
    shift: int  # offsets are uniform over −shift … shift pixels around the centre, in each direction
    flip: bool = False  # mirror left to right with probability 1/2


class TrainingBatches:
    """Shuffled batches of digits at random offsets, the same for the same seed and epoch on every device.

    All of an epoch is drawn on the CPU by (seed, epoch) alone, so it can be made again without the ones before it.
    """

    def __init__(
        self, digits: Dataset, augmentation: Augmentation, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self._framed = torch.from_numpy(placement.frame(digits.images)).to(device)
        self._labels = torch.from_numpy(digits.labels.astype(np.int64)).to(device)
        self._span = torch.arange(augmentation.canvas, device=device)
        self._centre = placement.centred(augmentation.canvas, digits.canvas)
        self._augmentation, self._batch_size, self._seed, self._device = augmentation, batch_size, seed, device

    def __len__(self) -> int:
        return -(-len(self._labels) // self._batch_size)

    @property
    def images(self) -> int:
        """Images an epoch."""
        return len(self._labels)

    def epoch(self, number: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, or of a part of it: images float32 (B, 1, H, H) in [0, 1], and labels int64 (B,)."""
        generator = torch.Generator().manual_seed(stream_seed(self._seed, number))
        shift, count = self._augmentation.shift, self.images
        order = torch.randperm(count, generator=generator).to(self._device)
        offsets = torch.randint(-shift, shift + 1, (count, 2), generator=generator).to(self._device) + self._centre
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(self._device)
        for batch in range(start, len(self) if stop is None else stop):
            part = slice(batch * self._batch_size, (batch + 1) * self._batch_size)
            index = order[part]
            images = to_float(placement.place(self._framed, index, offsets[part], self._span))
            if self._augmentation.flip:
                images = torch.where(mirrored[part, None, None, None], images.flip(-1), images)
            yield images, self._labels[index]


def stream_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch of one run, far from those of other epochs and runs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
