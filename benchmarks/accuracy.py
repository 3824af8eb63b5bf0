"""Does the fast path learn what the reference learns? Validation accuracy of both, over seeds.

    python benchmarks/accuracy.py --digits 10000 --epochs 3 --seeds 3

Trains a CapsNet of three eighths of the paper's width on translated MNIST (fetch it first; the sample otherwise): with
the reference routing, which forms every vote, and torch's convolutions in float32; with the fast routing and
convolutions in float32; and the same under bfloat16 autocast. Runs are ordinary cached runs. Prints a table of the best
validation accuracies and the differences to the reference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affbench.base.config import RunConfig
from affbench.base.statistics import seed_summary
from affbench.base.workspace import Workspace
from affbench.cli.console import ConsoleProgress, console
from affbench.data.sets import FAMILIES
from affbench.models.capsnet import CapsNet
from affbench.models.kernels.convolution import Conv2d
from affbench.models.routing import CapsuleLayer, dynamic_routing_reference
from affbench.run.train import train

WIDTHS = {"filters": 96, "primary_types": 12, "routings": 3}


class ReferenceLayer(CapsuleLayer):
    """The capsule layer as procedure 1 is written."""

    def forward(self, capsules: torch.Tensor) -> torch.Tensor:
        with torch.autocast(capsules.device.type, enabled=False):
            given = self.routing.iterations, self.routing.gradient
            return dynamic_routing_reference(capsules.float(), self.matrices, *given)


def reference_capsnet(canvas: int, **options: Any) -> CapsNet:
    """A CapsNet with the same initial weights as `CapsNet(canvas=canvas, **options)`, computed by the references."""
    model = CapsNet(canvas=canvas, **options)
    model.digits.__class__ = ReferenceLayer
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.__class__ = nn.Conv2d
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--results-dir", type=Path, default=Path("results"))
    given = parser.parse_args()
    train_set = "mnist-translated" if FAMILIES["mnist"].is_there(given.data_dir) else "mnist-translated-sample"
    kinds = {
        "reference, float32": ("accuracy:reference_capsnet", "float32"),
        "fast, float32": ("capsnet", "float32"),
        "fast, bfloat16": ("capsnet", "bfloat16"),
    }
    accuracies: dict[str, list[float]] = {}
    progress = ConsoleProgress(console(sys.stderr))
    workspace = Workspace(given.data_dir, given.results_dir, "auto", progress)
    for seed in range(given.seeds):
        for kind, (name, precision) in kinds.items():
            config = RunConfig.model_validate(
                {
                    "model": {"name": name, "options": WIDTHS},
                    "data": {"train_set": train_set, "limit": given.digits},
                    "training": {
                        "seed": seed,
                        "epochs": given.epochs,
                        "batch_size": given.batch_size,
                        "precision": precision,
                    },
                }
            )
            run = train(config, workspace)
            accuracies.setdefault(kind, []).append(run.selected.validation_accuracy)
    print(f"best validation accuracy % on {train_set}, {given.digits:,} digits, {given.epochs} epochs, by seed")
    reference = accuracies["reference, float32"]
    for kind, values in accuracies.items():
        summary = seed_summary(values)
        spread = "" if summary.sd is None else f" sd {100 * summary.sd:.2f}"
        difference = seed_summary([one - other for one, other in zip(values, reference, strict=True)])
        interval = "" if difference.low is None else f" [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
        print(
            f"{kind:20} {'  '.join(f'{100 * value:.2f}' for value in values)}   mean {100 * summary.mean:.2f}{spread}"
            f"   minus reference {100 * difference.mean:+.2f}{interval}"
        )


if __name__ == "__main__":
    main()
