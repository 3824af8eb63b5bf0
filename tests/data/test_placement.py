from __future__ import annotations

import numpy as np
import torch

from affbench.data import placement as canvas


def digits(n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (n, 28, 28), dtype=np.uint8)


def test_padded_digit_lies_in_the_middle_of_the_canvas() -> None:
    images = digits()
    padded = canvas.pad(images, 40)
    assert padded.shape == (5, 40, 40)
    assert (padded[:, 6:34, 6:34] == images).all()
    assert padded.sum() == images.sum()


def test_translated_digit_keeps_every_pixel_and_its_shape() -> None:
    images = digits(200)
    translated = canvas.translate(images, 40, np.random.default_rng(1))
    for image, moved in zip(images, translated, strict=True):
        rows, columns = np.flatnonzero(moved.any(1)), np.flatnonzero(moved.any(0))
        assert (moved[rows[0] : rows[0] + 28, columns[0] : columns[0] + 28] == image).all()
        assert moved.sum() == image.sum()


def test_translation_is_uniform_over_the_169_offsets() -> None:
    images = np.ones((169 * 60, 28, 28), np.uint8)
    translated = canvas.translate(images, 40, np.random.default_rng(2))
    offsets = translated.any(2).argmax(1) * 13 + translated.any(1).argmax(1)
    counts = np.bincount(offsets, minlength=169)
    chi_squared = ((counts - 60) ** 2 / 60).sum()
    assert len(counts) == 169
    assert chi_squared < 168 + 4 * np.sqrt(2 * 168)


def test_what_is_shifted_off_the_canvas_is_cut_off() -> None:
    images = digits(1)
    placed = canvas.place(canvas.frame(images), np.array([0]), np.array([[-2, 3]]), np.arange(28))[0]
    assert (placed[:26, 3:] == images[0, 2:, :25]).all()
    assert not placed[26:].any()
    assert not placed[:, :3].any()


def test_torch_and_numpy_place_alike() -> None:
    framed, index = canvas.frame(digits()), np.array([4, 0, 4])
    offsets = np.array([[0, 12], [6, 6], [-3, 15]])
    expected = canvas.place(framed, index, offsets, np.arange(40))
    placed = canvas.place(
        torch.from_numpy(framed), torch.from_numpy(index), torch.from_numpy(offsets), torch.arange(40)
    )
    assert (placed.numpy() == expected).all()
