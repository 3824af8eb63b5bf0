from __future__ import annotations

import numpy as np
import torch

from affbench.data.batches import Augmentation, TrainingBatches, stream_seed, to_float
from affbench.data.dataset import Dataset


def batches(seed: int = 0, augmentation: Augmentation | None = None, n: int = 100, size: int = 32) -> TrainingBatches:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    digits = Dataset("digits", "train", images, (np.arange(n) % 10).astype(np.uint8))
    return TrainingBatches(digits, augmentation or Augmentation(40, 6), size, seed, torch.device("cpu"))


def drawn(made: TrainingBatches, epoch: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*made.epoch(epoch, start), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_pixels_become_floats_from_zero_to_one() -> None:
    images = to_float(torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8))
    assert images.shape == (1, 1, 2, 2)
    assert torch.allclose(images.flatten(), torch.tensor([0, 1, 0.2, 0.4]))


def test_epoch_shows_every_digit_once() -> None:
    made = batches()
    images, labels = drawn(made, 0)
    assert len(made) == 4
    assert images.shape == (100, 1, 40, 40)
    assert torch.bincount(labels).tolist() == [10] * 10
    ink = sorted((images * 255).round().sum((1, 2, 3)).long().tolist())
    assert ink == sorted(np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8).sum((1, 2)).tolist())


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = drawn(batches(), 0)[0]
    assert torch.equal(first, drawn(batches(), 0)[0])
    assert not torch.equal(first, drawn(batches(), 1)[0])
    assert not torch.equal(first, drawn(batches(seed=1), 0)[0])


def test_epoch_goes_on_in_the_middle() -> None:
    whole, rest = drawn(batches(), 3)[0], drawn(batches(), 3, start=2)[0]
    assert torch.equal(whole[64:], rest)


def test_no_shift_leaves_digits_in_the_middle() -> None:
    images, _ = drawn(batches(augmentation=Augmentation(40, 0)), 0)
    assert not images[:, :, :6].any()
    assert not images[..., 34:].any()


def test_two_pixel_shifts_reach_every_offset_and_none_beyond() -> None:
    ones = Dataset("ones", "train", np.full((2000, 28, 28), 255, np.uint8), np.zeros(2000, np.uint8))
    made = TrainingBatches(ones, Augmentation(40, 2), 500, 0, torch.device("cpu"))
    images, _ = drawn(made, 0)
    rows = images[:, 0].any(2).int().argmax(1)
    columns = images[:, 0].any(1).int().argmax(1)
    assert sorted(set(zip(rows.tolist(), columns.tolist(), strict=True))) == [
        (row, column) for row in range(4, 9) for column in range(4, 9)
    ]


def test_mirroring_turns_about_half_of_the_digits() -> None:
    half = np.zeros((1000, 28, 28), np.uint8)
    half[:, :, :14] = 255
    digits = Dataset("half", "train", half, np.zeros(1000, np.uint8))
    made = TrainingBatches(digits, Augmentation(28, 0, flip=True), 100, 0, torch.device("cpu"))
    images, _ = drawn(made, 0)
    mirrored = int((images[:, 0, 0, 0] == 0).sum())
    assert 430 < mirrored < 570
    assert (images.sum((1, 2, 3)) == 28 * 14).all()


def test_stream_seeds_do_not_collide() -> None:
    seeds = {stream_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
