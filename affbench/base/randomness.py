"""Random numbers of torch, NumPy and Python: seeded together, and kept, so that a run goes on with the same ones."""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WORDS = len(random.getstate()[1])


def seed_all(seed: int) -> None:
    """Seed every generator that a model may draw from, on every device."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the one that models of others draw from


def random_state(device: torch.device) -> list[Tensor]:
    """The states of all generators, as tensors on the CPU; the last is that of a CUDA device, where it is one."""
    _, words, gauss = random.getstate()
    _, key, *rest = np.random.get_state()  # noqa: NPY002
    numbers = [*words, math.nan if gauss is None else gauss, *key, *rest]  # whole numbers of 32 bits are exact
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), torch.tensor(numbers, dtype=torch.float64), *on_device]


def restore_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Go on drawing where `random_state` was taken, on whatever device."""
    torch.set_rng_state(state[0])
    numbers = state[1].tolist()
    words, gauss = tuple(map(int, numbers[:_WORDS])), numbers[_WORDS]
    random.setstate((3, words, None if math.isnan(gauss) else gauss))
    *key, position, has_gauss, cached = numbers[_WORDS + 1 :]
    state_of_numpy = ("MT19937", np.array(key, np.uint32), int(position), int(has_gauss), cached)
    np.random.set_state(state_of_numpy)  # noqa: NPY002
    if device.type == "cuda" and len(state) > 2:
        torch.cuda.set_rng_state(state[2], device)
