"""Does a device compute what it should? The parts of affbench that differ by device, against float64 and the CPU.

    python benchmarks/correctness.py --device cuda

Prints a line for each comparison and ends with status 1 if one is out of its bounds:

- dynamic routing, values and gradients, against procedure 1 in float64; on CUDA also the Triton kernels alone, and
  whether they are used;
- loss and gradients of every kind of network in float32, against the same network in float64;
- the training step as it is taken on the device, against the plain one, and whether CUDA replays it from a graph;
- the same seed trained on the device and on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from affbench.base.config import RunConfig
from affbench.base.device import device_name, resolve_device
from affbench.base.workspace import Workspace
from affbench.cli.console import ConsoleProgress, console
from affbench.models import build_model
from affbench.models.kernels.layout import prepare
from affbench.models.kernels.routing_fast import KERNEL_TOLERANCE, kernel_error
from affbench.models.loss import loss_and_scores
from affbench.models.routing import dynamic_routing, dynamic_routing_reference
from affbench.run.step import CapturedStep, Step, make_step
from affbench.run.train import train

EXACT = 1e-4  # relative, of float32 against float64
STEPS = 10
CURVE = 0.03  # validation accuracy, of two devices
NETWORKS = {
    "capsnet": {"filters": 32, "primary_types": 8},
    "aff-capsnet": {"filters": 32, "primary_types": 8},
    "cnn": {"filters": [32, 32], "hidden": 64},
    "cnn-gap": {"filters": [32, 32], "hidden": 64},
    "stn-cnn": {"filters": [32, 32], "hidden": 64},
}

Found = tuple[str, float, float]  # what was compared, how far apart, how far apart it may be


def apart(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def routing(device: torch.device) -> Iterator[Found]:
    sizes = [(3, 37, 5, 4, 3), (40, 300, 10, 8, 16)] + ([(128, 4608, 10, 8, 16)] if device.type == "cuda" else [])
    for batch, inputs, outputs, in_dim, out_dim in sizes:
        torch.manual_seed(0)
        u = torch.randn(batch, inputs, in_dim, device=device) * 0.3
        w = torch.randn(outputs, out_dim, in_dim, inputs, device=device).mul_(0.1).permute(3, 0, 1, 2)
        towards = torch.randn(batch, outputs, out_dim, device=device)
        for iterations in (1, 2, 3, 10):
            for gradient in ("last", "all"):
                results = []
                for function, dtype in ((dynamic_routing, torch.float32), (dynamic_routing_reference, torch.float64)):
                    leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in (u, w)]
                    v = function(*leaves, iterations, gradient)
                    results.append((v.detach(), *torch.autograd.grad(v, leaves, towards.to(dtype))))
                label = f"routing {iterations}, gradient {gradient}, {batch} images, {inputs} capsules"
                yield label, max(apart(a, b) for a, b in zip(*results, strict=True)), EXACT


def kernels(device: torch.device) -> Iterator[Found]:
    if device.type != "cuda":
        return
    from affbench.models.kernels import routing_triton

    yield (
        "Triton kernels alone (beyond the bound they are not used)",
        kernel_error(routing_triton, device),
        KERNEL_TOLERANCE,
    )


def networks(device: torch.device) -> Iterator[Found]:
    torch.backends.cudnn.allow_tf32 = False
    cases = [*NETWORKS.items()] + ([("capsnet", {}), ("cnn", {})] if device.type == "cuda" else [])
    for name, options in cases:
        torch.manual_seed(0)
        images, labels = torch.rand(16, 1, 40, 40, device=device), torch.arange(16, device=device) % 10
        network = prepare(build_model(name, canvas=40, **options), device).eval()  # without dropout
        with torch.no_grad():  # a spatial transformer starts where its gradient jumps, exactly between pixels
            for parameter in network.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        results = []
        for model, dtype in ((network, torch.float32), (copy.deepcopy(network).double(), torch.float64)):
            loss, _ = loss_and_scores(model, images.to(dtype), labels)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            results.append((loss.detach(), torch.cat([grad.flatten() for grad in grads])))
        for what, a, b in zip(("loss", "gradient"), *results, strict=True):
            yield f"{name}{' of full size' if not options else ''}, {what} in float32", apart(a, b), 10 * EXACT


def steps(device: torch.device) -> Iterator[Found]:
    for name in ("capsnet", "cnn"):  # the second one drops out, and a graph has to draw anew for every step
        torch.manual_seed(0)
        first: nn.Module = prepare(build_model(name, canvas=40, **NETWORKS[name]), device).train()
        second = copy.deepcopy(first)
        plain, taken = Step(first, 1e-3, "float32", device), make_step(second, 1e-3, "float32", device)
        for step in (plain, taken):
            torch.manual_seed(1)
            generator = torch.Generator().manual_seed(2)
            for _ in range(STEPS):
                images, labels = (
                    torch.rand(32, 1, 40, 40, generator=generator),
                    torch.randint(10, (32,), generator=generator),
                )
                step(images.to(device), labels.to(device), 1e-3)
        label = f"{name}, {STEPS} steps as taken on {device.type}"
        yield f"{label}, mean loss", apart(taken.totals[0], plain.totals[0]), 10 * EXACT
        if isinstance(taken, CapturedStep):
            yield f"{label}: 0 if replayed from a graph, 1 if not", float(not taken.recorded), 0.0


def curves(device: torch.device, progress: ConsoleProgress) -> Iterator[Found]:
    config = RunConfig.model_validate(
        {
            "model": {"name": "capsnet", "options": NETWORKS["capsnet"]},
            "data": {"train_set": "mnist-translated-sample", "limit": 1600},
            "training": {"seed": 0, "epochs": 2, "batch_size": 32, "precision": "float32"},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        there, here = (
            train(config, Workspace(data, Path(folder, f"results-{number}"), name, progress)).history
            for number, name in enumerate((str(device), "cpu"))
        )
        for a, b in zip(there, here, strict=True):
            difference = abs(a.validation_accuracy - b.validation_accuracy)
            label = f"validation accuracy after {a.epoch:g} epochs, {a.validation_accuracy:.2%}, on the CPU"
            yield f"{label} {b.validation_accuracy:.2%}", difference, CURVE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    device = resolve_device(parser.parse_args().device)
    print(f"{device} ({device_name(device)}), torch {torch.__version__}", flush=True)
    wrong = 0
    progress = ConsoleProgress(console(sys.stderr))
    for label, difference, bound in itertools.chain(
        kernels(device), routing(device), networks(device), steps(device), curves(device, progress)
    ):
        good = difference <= bound  # not for NaN
        wrong += not good
        print(f"{'good ' if good else 'WRONG'} {difference:.1e} (at most {bound:.0e})  {label}", flush=True)
    print(f"{wrong} comparisons are out of bounds" if wrong else "all as it should be")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
