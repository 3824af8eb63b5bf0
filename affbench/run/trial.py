"""Two images through a model before anything is trained: what its code does not keep to is said in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from affbench.base.device import Computed, autocast, fitting
from affbench.base.errors import AffbenchError, UsageError, reason
from affbench.data.batches import to_float
from affbench.data.dataset import Dataset
from affbench.models.kernels.layout import in_training, prepare
from affbench.models.loss import loss_and_scores
from affbench.run.evaluate import predict
from affbench.run.step import Step

_TRIED = "_tried_by_affbench"


def try_model(
    build: Callable[[], nn.Module],
    sample: Dataset,
    device: torch.device,
    precision: Computed,
    smallest: int,
    note: Callable[[str], None],
) -> Callable[[], nn.Module]:
    """Take a model through validation and a training step, and throw it away.

    What is trained is built anew, by what this returns, so that no statistics, counters or gradients of the trial are
    in it: a model of which every part is there, as a first forward pass has made those that wait for one. `sample` is
    two images, `smallest` the images of the smallest batch; a `UsageError` says where it breaks the contract.
    """
    model = build()
    built = _shapes(model)
    predict(model.to(device), sample, precision=precision)
    ready = _shapes(model)
    _check_parameters(model)
    vars(model)[_TRIED] = True
    in_training(prepare(model, device))
    images = to_float(torch.from_numpy(sample.images).to(device))
    labels = torch.from_numpy(sample.labels).long().to(device)
    loose = _train(model, images, labels, precision)
    if loose:
        note(
            f"warning: {loose:,} numbers that take part in the loss are no parameters of the model and stay as they "
            "are: layers belong in an nn.ModuleList, tensors in an nn.Parameter."
        )
    if changed := sorted(dict(ready.items() ^ _shapes(model).items())):
        raise UsageError(
            f"the model's '{changed[0]}' is made, or changes its shape, in training, so that its weights could not be "
            "loaded again: make it in __init__."
        )
    if smallest == 1:
        try:
            _train(model, images[:1], labels[:1], precision)
        except UsageError as error:
            raise UsageError(
                "one batch of each epoch, or the part of it that a process of torchrun gets, is a single image, which "
                f"the model cannot be trained on: choose another --batch-size or --limit ({error})"
            ) from error

    def again() -> nn.Module:
        fresh = build()
        if _TRIED in vars(fresh):
            raise UsageError("the model's factory returned the same network twice: it must build a new one each time.")
        if built != ready:
            predict(fresh.to(device), sample, precision=precision)
        return fresh

    return again


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """The shapes of all that a checkpoint will hold; None for what waits for a first forward pass."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the model's state holds '{name}' (get_extra_state, or a state_dict of its own), a "
                f"{type(value).__name__}, and model.safetensors stores tensors only: keep it in a buffer."
            )
    return {name: None if is_lazy(value) else tuple(value.shape) for name, value in state.items()}


def _check_parameters(model: nn.Module) -> None:
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise UsageError(
            "the model has no parameter to train: "
            + (f"all {len(parameters)} are frozen (requires_grad is False)" if parameters else "it holds none at all")
            + ", and layers in a list belong in an nn.ModuleList; affbench.evaluate tests it as it is."
        )
    if any(map(torch.is_complex, trained)):
        raise UsageError(
            "the model has complex parameters, which affbench does not train: keep their real and imaginary parts as "
            "real parameters, and join them in forward (torch.view_as_complex)."
        )


def _train(model: nn.Module, images: Tensor, labels: Tensor, precision: Computed) -> int:
    """One training step; how many numbers took part in it as trainable ones and are no parameters of the model."""

    def loss_of_batch() -> Tensor:
        with autocast(images.device, precision):
            return loss_and_scores(model, images, labels)[0]

    with blamed(model, f"on {len(labels)} images" if len(labels) > 1 else "on one image"):
        loss = loss_of_batch()
        loose = _leaves(loss) - set(model.parameters())
        if loose:  # what a forward pass makes for itself alone is another one in the next
            loose &= _leaves(loss_of_batch())
        loss.backward()
        Step(model, 1e-4, precision, images.device).optimizer.step()
    return sum(leaf.numel() for leaf in loose)


def _leaves(loss: Tensor) -> set[Tensor]:
    """The tensors that the gradient of a loss would reach."""
    found, seen, pending = set[Tensor](), set[Any](), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.add(node.variable)
            pending += [following for following, _ in node.next_functions]
    return found


@contextlib.contextmanager
def blamed(model: nn.Module, where: str) -> Iterator[None]:
    """Let what the code of a model from outside raises in training, and a lack of memory, be one sentence."""
    try:
        with fitting(f"the training step {where}"):
            yield
    except AffbenchError:
        raise
    except (Exception, SystemExit) as error:
        if type(model).__module__.startswith("affbench."):
            raise
        cause = reason(error)
        if "does not require grad" in cause:
            cause = (
                "its loss depends on no parameter that is trained, for nothing learns through .detach(), .data, NumPy, "
                "argmax or torch.no_grad()"
            )
        raise UsageError(f"the model cannot be trained {where}: {cause}.{_loss_of(model)}") from error


def _loss_of(model: nn.Module) -> str:
    """What a model's own loss should be; nothing for a model that has none."""
    for name, wanted in (("loss_and_scores", "the scalar loss and the scores (B, 10)"), ("loss", "a scalar tensor")):
        if callable(getattr(model, name, None)):
            return (
                f" Its {name} was called as {name}(images, labels) and must return {wanted}; rename it, and the "
                "cross-entropy of forward(images) is trained."
            )
    return ""
