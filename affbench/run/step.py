"""One optimiser step: forward, backward, update and running sums; on CUDA as one captured graph."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from affbench.base.device import Computed, autocast, keep_memory
from affbench.base.distributed import Ranks
from affbench.base.errors import DeviceError
from affbench.models.loss import loss_and_scores

WARM_UP = 3  # steps before capture, so that every lazy initialisation and self-test is over


@dataclass(eq=False)
class Step:
    """Adam on one batch at a time, which the processes `ranks` share; `precision` is that of the forward pass.

    `totals` are sums over all steps until somebody zeroes them, on the device: loss × images, correct images, images
    with scores.
    """

    model: nn.Module
    learning_rate: float
    precision: Computed
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            # A captured step reads the rate from the device.
            lr=torch.tensor(self.learning_rate, device=self.device) if cuda else self.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,  # as in the paper's TensorFlow
            # Only of a tensor that fills its memory, in whatever order, is what is made like it laid out as it is.
            fused=self.device.type in ("cpu", "cuda")
            and all(torch.empty_like(own).stride() == own.stride() for own in self.model.parameters()),
            capturable=cuda,
        )
        self.totals = torch.zeros(3, device=self.device)

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> None:
        """Take a step on images float32 (B, 1, H, W) in [0, 1] and labels int64 (B,)."""
        self.learning_rate = learning_rate
        (group,) = self.optimizer.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
        self._take(images, labels)

    def _take(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.alone:
            self._backward(images, labels, self.totals)
        else:
            part, sums = self.ranks.share(len(labels)), torch.zeros_like(self.totals)
            if len(labels[part]):
                self._backward(images[part], labels[part], sums)
            # Losses are means over images, so parts of different size count differently.
            self.totals += self.ranks.combine(self.model.parameters(), len(labels[part]) / len(labels), sums)
        self.optimizer.step()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the optimiser's state, whatever device it was saved on."""
        (saved,), (own,) = state["param_groups"], self.optimizer.state_dict()["param_groups"]
        group = saved | {name: own[name] for name in ("lr", "fused", "capturable")}
        self.optimizer.load_state_dict(state | {"param_groups": [group]})
        for parameter, own_state in self.optimizer.state.items():
            for name, value in own_state.items():
                # Moments keep the strides of the device they were saved on, but fused Adam reads raw memory.
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    own_state[name] = torch.empty_like(parameter).copy_(value)

    def _backward(self, images: Tensor, labels: Tensor, sums: Tensor) -> None:
        """Gradients of the mean loss over some images; adds to `sums` what `totals` names."""
        with autocast(self.device, self.precision):
            loss, scores = loss_and_scores(self.model, images, labels)
        loss.backward()
        sums[0] += loss.detach() * len(labels)
        if scores is not None:
            sums[1] += (scores.detach().argmax(-1) == labels).sum()
            sums[2] += len(labels)


class CapturedStep(Step):
    """The same step, captured once as a graph and replayed: launching it costs one call, whatever it holds.

    Batches of another size than the first are computed as `Step` does, and so is every batch where the capture fails,
    which is warned of. `recorded` says whether there is a graph.
    """

    recorded = False
    _taken = 0
    _batch: tuple[Tensor, Tensor] | None = None  # which the graph reads
    _replay: Callable[[], None] | None = None

    def _take(self, images: Tensor, labels: Tensor) -> None:
        if self._batch is None:
            self._batch = images.clone(), labels.clone()
        own_images, own_labels = self._batch
        if images.shape != own_images.shape or self._taken < WARM_UP:
            self._taken += 1
            super()._take(images, labels)
            return
        own_images.copy_(images, non_blocking=True)
        own_labels.copy_(labels, non_blocking=True)
        if self._replay is not None:
            self._replay()
            return
        self._replay = self._record(functools.partial(super()._take, own_images, own_labels))
        before = self._updates()
        self._replay()
        if self._updates() == before:
            raise DeviceError(
                f"the recorded training step changes nothing on {self.device}: its graph is empty. Let the process see "
                "that device alone (CUDA_VISIBLE_DEVICES), and use --device cuda."
            )

    def _record(self, whole: Callable[[], None]) -> Callable[[], None]:
        self.optimizer.zero_grad(set_to_none=True)  # so that the captured backward pass owns its gradients
        try:
            replay = capture_on_cuda(self.device, whole)
        except RuntimeError as error:  # a model that waits for the device, or allocates outside of the graph's memory
            reason = str(error.__context__ or error).partition("\n")[0]
            warnings.warn(
                f"training on {self.device} is slower than it could be, because the step cannot be recorded as a CUDA "
                f"graph: {reason}",
                RuntimeWarning,
                stacklevel=4,
            )
            return whole
        self.recorded = True
        return replay

    def _updates(self) -> float:
        """How many updates the parameters have had, all together; waits for the device."""
        return sum(float(state["step"]) for state in self.optimizer.state.values())


def capture_on_cuda(device: torch.device, run: Callable[[], None]) -> Callable[[], None]:
    """Record on a stream of this device; a recording that fails leaves nothing behind.

    By itself torch would keep the recording's stream current and its allocator, before 2.13 its random numbers too,
    in the state of recording. Its default stream may be one of another device, on which the graph would be empty.
    """
    torch.cuda.synchronize(device)
    before = torch.cuda.current_stream(device)
    index = before.device.index
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    randoms = torch.cuda.default_generators[index]
    drawn = randoms.clone_state()
    try:
        with torch.cuda.graph(graph, pool, torch.cuda.Stream(device)):
            run()
    except BaseException:
        torch.cuda.set_stream(before)
        graph.reset()
        names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # now, and in torch 2.4
        (end, *_) = (getattr(torch._C, name) for name in names if hasattr(torch._C, name))
        with contextlib.suppress(RuntimeError):  # torch has ended it, which current versions do on reset
            end(index, pool)
            torch._C._cuda_releasePool(index, pool)
        randoms.graphsafe_set_state(drawn)
        raise
    replay: Callable[[], None] = graph.replay
    return replay


def make_step(
    model: nn.Module, learning_rate: float, precision: Computed, device: torch.device, ranks: Ranks | None = None
) -> Step:
    """The fastest step: captured where one process trains on CUDA, plain elsewhere."""
    if device.type == "cpu":
        keep_memory()
    ranks = ranks or Ranks()
    kind = CapturedStep if device.type == "cuda" and ranks.alone else Step
    return kind(model, learning_rate, precision, device, ranks)
