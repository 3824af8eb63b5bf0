from __future__ import annotations

import contextlib
import copy
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from affbench.base.errors import DeviceError
from affbench.models import build_model
from affbench.run.step import WARM_UP, CapturedStep, Step, capture_on_cuda

CPU = torch.device("cpu")


def batches(n: int = 9, size: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [(torch.rand(size, 1, 20, 20, generator=generator), torch.arange(size)) for _ in range(n)]
    made[5] = (made[5][0][:4], made[5][1][:4])  # a batch that is not full, as at the end of an epoch
    return made


def small() -> nn.Module:
    torch.manual_seed(3)
    return build_model("capsnet", canvas=20, filters=4, primary_types=2, decoder=(4,))


def captured_step(
    monkeypatch: pytest.MonkeyPatch, capture: Callable[[Callable[[], None]], Callable[[], None]]
) -> CapturedStep:
    monkeypatch.setattr("affbench.run.step.capture_on_cuda", lambda device, run: capture(run))
    return CapturedStep(small(), 1e-3, "float32", CPU)


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


def test_captured_steps_train_as_plain_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    captured, sums = trained(captured_step(monkeypatch, recorder))
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


def test_failed_capture_falls_back_to_plain_steps_and_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    step = captured_step(monkeypatch, fails)
    with pytest.warns(RuntimeWarning, match="cannot be recorded as a CUDA graph: operation not permitted"):
        captured, _ = trained(step)
    plain, _ = trained(Step(small(), 1e-3, "float32", CPU))
    assert not step.recorded
    assert all(torch.equal(one, other) for one, other in zip(captured, plain, strict=True))


def test_recorded_step_that_changes_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step = captured_step(monkeypatch, lambda run: lambda: None)
    with pytest.raises(DeviceError, match=r"changes nothing on cpu: its graph is empty.*CUDA_VISIBLE_DEVICES"):
        trained(step)


class Cuda:
    """What `torch.cuda` keeps while it records: the stream, pools in use, random numbers; a failure leaves them so."""

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

    class Graph:
        def reset(self) -> None:
            """As before torch 2.13: nothing."""

        def replay(self) -> None:
            raise AssertionError

    class Generator:
        recording = False

        def clone_state(self) -> Cuda.Generator:
            return Cuda.Generator()

        def graphsafe_set_state(self, state: Cuda.Generator) -> None:
            self.recording = state.recording

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = self.Stream(torch.device("cuda:1"))
        self.pools = {(0, 7): "in use by another graph"}
        self.default_generators = (self.Generator(), self.Generator())
        self.recorded_on: torch.device | None = None
        for name in ("graph", "default_generators", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        for name, function in {
            "Stream": self.Stream,
            "CUDAGraph": self.Graph,
            "current_stream": lambda device: self.current,
            "graph_pool_handle": lambda: (0, 8),
            "synchronize": lambda device: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda index, pool: None, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: self.pools.pop(pool), raising=False)

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    @contextlib.contextmanager
    def graph(self, graph: Graph, pool: tuple[int, int], stream: Stream) -> Iterator[None]:
        before, self.current, self.recorded_on = self.current, stream, stream.device
        self.pools[pool] = "recording"
        generator = self.default_generators[stream.device.index]
        generator.recording = True
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 - as torch does
        self.pools[pool] = "recorded"
        generator.recording = False
        self.current = before


def test_recording_happens_on_the_device_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    runs: list[int] = []
    replay = capture_on_cuda(torch.device("cuda:1"), lambda: runs.append(1))
    assert cuda.recorded_on == torch.device("cuda:1")
    assert runs == [1]
    assert replay.__name__ == "replay"


def test_failed_recording_leaves_stream_memory_and_random_numbers_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch)
    before = cuda.current

    def run() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError):
        capture_on_cuda(torch.device("cuda:1"), run)
    assert cuda.current is before
    assert cuda.pools == {(0, 7): "in use by another graph"}
    assert not cuda.default_generators[1].recording
    step = captured_step(monkeypatch, lambda whole: capture_on_cuda(torch.device("cuda:1"), run))
    with pytest.warns(RuntimeWarning, match="graph: operation not permitted when stream is capturing"):
        trained(step)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [(torch.channels_last, torch.contiguous_format), (torch.contiguous_format, torch.channels_last)],
    ids=["cuda to cpu", "cpu to cuda"],
)
def test_resuming_on_another_device_gives_moments_their_parameters_layout(
    saved: torch.memory_format, loaded: torch.memory_format
) -> None:
    """Convolutions are channels-last on CUDA alone; a fused step goes wrong by the strides, whatever the device."""
    weights, *gradients = torch.randn(3, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0))

    def step_with(layout: torch.memory_format) -> Step:
        model = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=layout)  # type: ignore[call-overload]
        model.weight.data.copy_(weights)
        return Step(model, 0.1, "float32", CPU)

    def update(step: Step, gradient: torch.Tensor) -> torch.Tensor:
        weight = next(step.model.parameters())
        weight.grad = torch.empty_like(weight).copy_(gradient)
        step.optimizer.step()
        return weight.detach()

    there, here = step_with(saved), step_with(loaded)
    update(there, gradients[0])
    here.model.load_state_dict(there.model.state_dict())
    here.load_state_dict(copy.deepcopy(there.optimizer.state_dict()))
    torch.testing.assert_close(update(here, gradients[1]), update(there, gradients[1]))


def test_sums_count_every_image() -> None:
    step = Step(small(), 1e-3, "float32", CPU)
    trained(step)
    assert step.totals[2] == 8 * 6 + 4
    assert 0 <= step.totals[1] <= step.totals[2]


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
        from affbench.run.step import make_step
        make_step(torch.nn.Linear(2, 2), 0.1, "float32", torch.device("cpu"))
        torch.empty(1 << 24).fill_(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.empty(1 << 24).fill_(1)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    pages_of_one = (1 << 26) // os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < 5 * pages_of_one  # of ten; where memory is found again the first times is glibc's affair
