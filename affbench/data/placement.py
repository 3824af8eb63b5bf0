"""Where digits are placed on the canvas.

A digit comes in its 28×28 frame. An *offset* (row, column) is where the frame's upper left pixel lands on the canvas;
it may be negative, and what then lies outside the canvas is cut off. On a 40×40 canvas the centred offset is
(6, 6), and the 13×13 offsets from (0, 0) to (12, 12) keep the whole frame on it (the authors' ``--pad=6 --shift=6``).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

CANVAS = 40  # pixels; the size of affNIST
FRAME = 28  # pixels; the size of an original digit

Array = Any  # numpy.ndarray or torch.Tensor: both index and clip alike


def centred(canvas: int, frame: int) -> int:
    """The offset, along one axis, of a frame in the middle of the canvas; both in pixels."""
    return (canvas - frame) // 2


def place(framed: Array, index: Array, offsets: Array, span: Array) -> Array:
    """Place digits on the canvas, by one gather: uint8 (B, H, H), of the same kind and on the same device as `framed`.

    `framed`: uint8 (N, F + 2, F + 2), digits with a border of one background pixel, from which whatever lies outside is
    read; `index`: which digits, int64 (B,); `offsets`: (row, column) of each frame, int64 (B, 2); `span`: 0 … H − 1.
    """
    last = framed.shape[-1] - 1
    rows = (span - offsets[:, :1] + 1).clip(0, last)
    columns = (span - offsets[:, 1:] + 1).clip(0, last)
    placed: Any = framed[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return placed


def frame(digits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Give digits (N, F, F) the border of background pixels that `place` wants: (N, F + 2, F + 2)."""
    return np.pad(digits, ((0, 0), (1, 1), (1, 1)))


def pad(digits: npt.NDArray[np.uint8], canvas: int) -> npt.NDArray[np.uint8]:
    """Digits (N, F, F) in the middle of the canvas: uint8 (N, canvas, canvas)."""
    before = centred(canvas, digits.shape[-1])
    after = canvas - digits.shape[-1] - before
    return np.pad(digits, ((0, 0), (before, after), (before, after)))


def translate(digits: npt.NDArray[np.uint8], canvas: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Digits (N, F, F) at random over all offsets that keep their frame on the canvas: uint8 (N, canvas, canvas)."""
    offsets = rng.integers(0, canvas - digits.shape[-1] + 1, size=(len(digits), 2))
    placed: npt.NDArray[np.uint8] = place(frame(digits), np.arange(len(digits)), offsets, np.arange(canvas))
    return placed
