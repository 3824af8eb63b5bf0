"""Two images through a model before anything is trained: what its code does not keep to is said in one sentence."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from affbench.data.batches import to_float
from affbench.data.dataset import Dataset
from affbench.device import Computed, autocast
from affbench.errors import AffbenchError, UsageError, reason
from affbench.evaluation import predict
from affbench.models.layout import in_training, prepare
from affbench.models.losses import loss_and_scores
from affbench.steps import Step

_TRIED = "_tried_by_affbench"


def try_model(
    build: Callable[[], nn.Module], sample: Dataset, device: torch.device, precision: Computed, smallest: int
) -> Callable[[], nn.Module]:
    """Take a model through validation and a training step, and throw it away.

    What is trained afterwards is built anew, so that no statistics, counters or gradients of the trial are in it.

    Parameters
    ----------
    build
        Builds the model.
    sample
        Two images as the model will get them.
    device, precision
        Where and in what it will be trained.
    smallest
        Images of the smallest batch it will be trained on.

    Returns
    -------
    callable
        Builds a model of which every part is there: a first forward pass has made those that wait for one.

    Raises
    ------
    UsageError
        The model does not keep the contract of training.
    """
    model = build()
    built = _state(model)
    predict(model.to(device), sample, precision=precision)
    ready = _state(model)
    _check_parameters(model)
    vars(model)[_TRIED] = True
    in_training(prepare(model, device))
    images = to_float(torch.from_numpy(sample.images).to(device))
    labels = torch.from_numpy(sample.labels).long().to(device)
    _train(model, images, labels, precision)
    if smallest == 1:
        try:
            _train(model, images[:1], labels[:1], precision)
        except UsageError as error:
            raise UsageError(
                "training ends with a batch of one image, or a process of torchrun gets one of a batch, and the model "
                f"cannot be trained on that: choose another --batch-size or --limit. {error}"
            ) from error
    trained = _state(model)
    for name in sorted(ready.keys() | trained.keys()):
        if ready.get(name) != trained.get(name):
            raise UsageError(
                f"the model's '{name}' is made, or changes its shape, in training, so that its weights could not be "
                "loaded again: make it in __init__."
            )

    def again() -> nn.Module:
        fresh = build()
        if _TRIED in vars(fresh):
            raise UsageError("the model's factory returned the same network twice: it must build a new one each time.")
        if built != ready:
            predict(fresh.to(device), sample, precision=precision)
        return fresh

    return again


def _state(model: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """The shapes of all that a checkpoint will hold; None for what waits for a first forward pass."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the model's state holds '{name}' (get_extra_state, or a state_dict of its own), a "
                f"{type(value).__name__}, and model.safetensors stores tensors only: keep it in a buffer."
            )
        shapes[name] = None if is_lazy(value) else tuple(value.shape)
    return shapes


def _check_parameters(model: nn.Module) -> None:
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError(
            "the model has no parameters, so that there is nothing to train (layers in a list belong in an "
            "nn.ModuleList); affbench.evaluate tests it as it is."
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise UsageError(
            f"all {len(parameters)} parameters of the model are frozen (requires_grad is False), so that there is "
            "nothing to train; affbench.evaluate tests it as it is."
        )
    if any(parameter.is_complex() and parameter.requires_grad for parameter in parameters):
        raise UsageError(
            "the model has complex parameters, which affbench does not train: keep their real and imaginary parts as "
            "real parameters, and join them in forward (torch.view_as_complex)."
        )


def _train(model: nn.Module, images: Tensor, labels: Tensor, precision: Computed) -> None:
    """One training step."""
    with blamed(model, "on two images" if len(labels) > 1 else "on one image"):
        with autocast(images.device, precision):
            loss, _ = loss_and_scores(model, images, labels)
        loss.backward()
        Step(model, 1e-4, precision, images.device).optimizer.step()


@contextlib.contextmanager
def blamed(model: nn.Module, where: str) -> Iterator[None]:
    """Let what the code of a model from outside raises in training be one sentence."""
    try:
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
    """What a model's own loss is and should be; nothing for a model that has none."""
    for name, wanted in (("loss_and_scores", "the scalar loss and the scores (B, 10)"), ("loss", "a scalar tensor")):
        own = getattr(model, name, None)
        if callable(own):
            try:
                found = f"{name}{str(inspect.signature(own)).partition(' ->')[0]}"
            except (TypeError, ValueError):
                found = name
            kind = f", a module {type(own).__name__}" if isinstance(own, nn.Module) else ""
            return (
                f" Its {found}{kind}, was called as {name}(images, labels) and must return {wanted}; rename it, and "
                "the cross-entropy of forward(images) is trained."
            )
    return ""
