from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import nn

from affbench.models import build_model
from affbench.steps import WARM_UP, CapturedStep, Step

CPU = torch.device("cpu")


def batches(n: int = 9, size: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [(torch.rand(size, 1, 20, 20, generator=generator), torch.arange(size)) for _ in range(n)]
    made[5] = (made[5][0][:4], made[5][1][:4])  # a batch that is not full, as at the end of an epoch
    return made


def small() -> nn.Module:
    torch.manual_seed(3)
    return build_model("capsnet", canvas=20, filters=4, primary_types=2, decoder=(4,))


def trained(step: Step) -> tuple[list[torch.Tensor], torch.Tensor]:
    for number, (images, labels) in enumerate(batches()):
        step(images, labels, 1e-3 / (number + 1))
    return [parameter.detach().clone() for parameter in step.model.parameters()], step.totals.clone()


class Recorder:
    """Stands in for a CUDA graph: what was recorded reads its inputs from the same memory on every replay."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.replays += 1
            run()

        return replay


def test_captured_steps_train_as_plain_ones_do() -> None:
    recorder = Recorder()
    captured, sums = trained(CapturedStep(small(), 1e-3, "float32", CPU, recorder))
    plain, expected = trained(Step(small(), 1e-3, "float32", CPU))
    assert recorder.replays == len(batches()) - WARM_UP - 1
    assert all(torch.equal(one, other) for one, other in zip(captured, plain, strict=True))
    assert torch.equal(sums, expected)


@pytest.mark.parametrize("layout", ["transposed", "channels last", "part of a larger tensor"])
def test_layout_of_parameters_in_memory_does_not_matter(layout: str) -> None:
    model = small()
    for module in list(model.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if layout == "transposed":
                value = weight.detach().mT.contiguous().mT if weight.dim() > 1 else weight.detach()
            elif layout == "channels last":
                last = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
                value = weight.detach().contiguous(memory_format=last)
            else:
                value = torch.stack([weight.detach(), torch.zeros_like(weight)], -1)[..., 0]
            setattr(module, name, nn.Parameter(value))
    found, _ = trained(Step(model, 1e-3, "float32", CPU))
    expected, _ = trained(Step(small(), 1e-3, "float32", CPU))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_failed_capture_falls_back_to_plain_steps() -> None:
    def fails(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    captured, _ = trained(CapturedStep(small(), 1e-3, "float32", CPU, fails))
    plain, _ = trained(Step(small(), 1e-3, "float32", CPU))
    assert all(torch.equal(one, other) for one, other in zip(captured, plain, strict=True))


def test_sums_count_every_image_and_can_be_reset() -> None:
    step = Step(small(), 1e-3, "float32", CPU)
    trained(step)
    assert step.totals[2] == 8 * 6 + 4
    assert 0 <= step.totals[1] <= step.totals[2]
    step.reset()
    assert step.totals.tolist() == [0, 0, 0]


def test_learning_rate_is_that_of_the_step() -> None:
    step = Step(small(), 1.0, "float32", CPU)
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    images, labels = batches()[0]
    step(images, labels, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(before, step.model.parameters(), strict=True))
    step(images, labels, 1e-3)
    after = [parameter.detach() for parameter in step.model.parameters()]
    largest = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True))
    assert largest == pytest.approx(1e-3, rel=0.5)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to keep freed memory")
def test_a_process_that_trains_keeps_the_memory_it_frees() -> None:
    program = """
        import resource, torch
        from affbench.steps import make_step
        make_step(torch.nn.Linear(2, 2), 0.1, "float32", torch.device("cpu"))
        torch.empty(1 << 24).fill_(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.empty(1 << 24).fill_(1)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    pages_of_one = (1 << 26) // os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < 2 * pages_of_one
