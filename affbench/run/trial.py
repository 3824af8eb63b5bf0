"""Two images through a model before anything is trained: what its code does not keep to is said in one sentence."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from affbench.base.device import Computed, autocast
from affbench.base.errors import UsageError
from affbench.data.batches import to_float
from affbench.data.dataset import Dataset
from affbench.models.kernels.layout import in_training, prepare
from affbench.models.loss import loss_and_scores
from affbench.run.evaluate import predict, told
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
    in it; a first forward pass has made the parts that wait for one. `sample` is two images, `smallest` the images of
    the smallest batch; a `UsageError` says where the model breaks the contract.
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
    if loose := _train(model, images, labels, precision, "on two images"):
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
        where = (
            "on a single image, and one batch of each epoch, or the part of it that a process of torchrun gets, is one "
            "(choose another --batch-size or --limit)"
        )
        _train(model, images[:1], labels[:1], precision, where)

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
            f"the model has no parameter to train ({len(parameters)} are frozen, requires_grad is False), and layers "
            "in a list belong in an nn.ModuleList; affbench.evaluate tests it as it is."
        )
    if any(map(torch.is_complex, trained)):
        raise UsageError(
            "the model has complex parameters, which affbench does not train: keep their real and imaginary parts as "
            "real parameters, and join them in forward (torch.view_as_complex)."
        )


def _train(model: nn.Module, images: Tensor, labels: Tensor, precision: Computed, where: str) -> int:
    """One training step; how many numbers took part in it as trainable ones and are no parameters of the model."""

    def loss_of_batch() -> Tensor:
        with autocast(images.device, precision):
            return loss_and_scores(model, images, labels)[0]

    with blamed(model, where):
        loss = loss_of_batch()
        if loose := _leaves(loss) - set(model.parameters()):
            loose &= _leaves(loss_of_batch())  # without what a forward pass makes for itself alone
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


def blamed(model: nn.Module, where: str) -> AbstractContextManager[None]:
    """Let what a model raises in training be one sentence, which says what its own loss should be if it has one."""

    def sentence(cause: str) -> str:
        if "does not require grad" in cause:
            cause = (
                "its loss depends on no parameter that is trained, for nothing learns through .detach(), .data, NumPy, "
                "argmax or torch.no_grad()"
            )
        own = next((name for name in ("loss_and_scores", "loss") if callable(getattr(model, name, None))), None)
        scores = " and the scores (B, 10)" if own == "loss_and_scores" else ""
        hint = own and (
            f" Its {own} was called as {own}(images, labels) and must return a scalar tensor{scores}; rename it, and "
            "the cross-entropy of forward(images) is trained."
        )
        return f"the model cannot be trained {where}: {cause}.{hint or ''}"

    return told(model, f"the training step {where}", sentence)
