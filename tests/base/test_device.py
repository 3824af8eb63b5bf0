from __future__ import annotations

import pytest
import torch

from affbench.base.device import resolve_device


def test_numbered_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs and Triton's kernels go to the current device, whichever one their tensors are on."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    assert resolve_device("cuda") == torch.device("cuda")
    assert chosen == [torch.device("cuda:1")]
