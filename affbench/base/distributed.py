"""One run on several devices: what the processes that torchrun starts tell each other.

Gradients are summed here, not by a wrapper around the model, since its own ``loss`` may never call its ``forward``.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affbench.base.errors import AffbenchError, DeviceError, UsageError
from affbench.base.workspace import torchrun_rank

# The first process may have to wait for another one that trains the same run; a peer that dies is noticed at once.
TIMEOUT = datetime.timedelta(hours=1)


class RankError(AffbenchError):
    """Another process of the same run is gone."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train one run together, and which of them this one is, also among those of its machine."""

    rank: int = 0  # of `size`, from 0
    size: int = 1
    local: int = 0  # on this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def share(self, count: int) -> slice:
        """This process's part of `count` items: parts are contiguous, and differ by one item at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def device(self, asked: str) -> str:
        """The device of this process: as asked, and with several processes one CUDA device each."""
        if self.alone or asked.partition(":")[0] not in ("auto", "cuda"):
            return asked
        if asked.startswith("cuda:"):
            raise UsageError(f"--device {asked} does not go with torchrun, which gives each process its own; use cuda.")
        return f"cuda:{self.local}" if torch.cuda.is_available() else asked

    def combine(self, parameters: Iterable[nn.Parameter], weight: float, sums: Tensor) -> Tensor:
        """Add up `sums`, float32 (K,), and, in place, gradients, each times its process's share of the batch."""
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        given = (torch.zeros_like(each) if each.grad is None else each.grad for each in wanted)
        parts = [gradient.reshape(-1).float() * weight for gradient in given]
        flat = torch.cat([*parts, sums])  # one message, whatever the number of parameters
        with self._reached():
            torch.distributed.all_reduce(flat)
        total: Tensor
        *gradients, total = flat.split([*(parameter.numel() for parameter in wanted), len(sums)])
        for parameter, gradient in zip(wanted, gradients, strict=True):
            # Laid out as the parameter, whatever that is: a fused optimiser reads both by their place in memory.
            parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))
        return total

    def numbers(self, own: int) -> list[int]:
        """The numbers that the processes give, in their order."""
        if self.alone:
            return [own]
        return [int(number) for number in self.gather(torch.tensor([int(own)]))]  # on the CPU: none waits

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.alone:
            return
        with self._reached():
            for tensor in tensors:
                message = tensor.contiguous()
                torch.distributed.broadcast(message, 0)
                tensor.copy_(message)

    def bytes_from_first(self, content: bytes) -> bytes:
        """What the first process has."""
        size = self.numbers(len(content))[0]
        if self.alone or not size:
            return content
        buffer = torch.frombuffer(bytearray(content or size), dtype=torch.uint8)
        self.copy_from_first([buffer])
        return buffer.numpy().tobytes()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape and lie on the CPU."""
        if self.alone:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._reached():
            torch.distributed.all_gather(found, tensor)
        return found

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            why = str(error).splitlines()[0][:160]
            raise RankError(
                f"process {self.rank} of {self.size} lost the others: one of them died, or cannot be reached ({why}); "
                "the same command goes on from the last checkpoint, with any number of processes."
            ) from error


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Connect the processes that torchrun started; costs nothing where there is only one."""
    if (rank := torchrun_rank()) is None:
        yield Ranks()
        return
    ranks = Ranks(rank, int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    cuda = ranks.device(device).startswith("cuda")
    if cuda:
        if ranks.local >= (count := torch.cuda.device_count()):
            raise DeviceError(f"torchrun started more processes than CUDA devices: use --nproc-per-node {count}.")
        torch.cuda.set_device(ranks.local)
    with ranks._reached():
        # gloo carries the few numbers that live on the CPU.
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    yield ranks
    torch.distributed.destroy_process_group()  # after an error the process ends, and nobody may be left to wait for
