"""A model and an amount of data that train in a moment, and how a command ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from affbench.base.config import RunConfig

if TYPE_CHECKING:
    from torch import nn

SAMPLE = "mnist-translated-sample"
TINY_CAPSNET = {"filters": 4, "primary_types": 2, "decoder": [8, 8]}
TINY_CNN = {"filters": [4, 4], "hidden": 8}


def tiny_config(**training: Any) -> RunConfig:
    """A CapsNet and an amount of data that train in a moment."""
    return RunConfig.model_validate(
        {
            "model": {"name": "capsnet", "options": TINY_CAPSNET},
            "data": {"train_set": SAMPLE, "limit": 96},
            "training": {"epochs": 2, "batch_size": 32, "precision": "float32"} | training,
        }
    )


def laid_out_otherwise(canvas: int, **options: Any) -> nn.Module:
    """A CapsNet with channels-last convolutions, as on CUDA, and a capsule layer that is a part of a larger tensor."""
    import torch
    from torch import nn

    from affbench.models import build_model

    model = build_model("capsnet", canvas=canvas, **options).to(memory_format=torch.channels_last)
    weight = model.digits.weight.detach()
    larger = torch.zeros(*weight.shape[:-1], 2 * weight.shape[-1])
    larger[..., ::2] = weight
    model.digits.weight = nn.Parameter(larger[..., ::2])
    return model


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are trained from now on."""
    from affbench.run import (
        train as training,  # not above: conftest decides on the threads of torch before it is imported
    )

    trained: list[str] = []
    run = training._Training.run

    def counting(self: Any) -> None:
        trained.append(self.plan.folder.name)
        run(self)

    monkeypatch.setattr(training._Training, "run", counting)
    return trained


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The JSON document on standard output."""
        return json.loads(self.stdout)


Affbench = Callable[..., Ended]
