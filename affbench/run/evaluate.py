"""A trained model on a set: predictions, and accuracy overall, per class and per transformation."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from affbench.base.device import Computed, autocast, fitting, keep_memory
from affbench.base.errors import AffbenchError, UsageError, reason
from affbench.base.progress import Progress
from affbench.base.statistics import clustered_interval, wilson_interval
from affbench.data.batches import to_float
from affbench.data.dataset import CLASSES, TRANSFORM_COLUMNS, Dataset
from affbench.models.loss import check_scores, described
from affbench.run.folder import BinShare, ClassShare, Tally

BINS = 8  # per factor of the transformation
LOOKED_AT = 32  # images that are looked at again in small batches
ROUNDING = 1e-4  # of the range of the scores: what may differ between two looks


class Evaluation(Tally, frozen=True, arbitrary_types_allowed=True):
    """What a model did with a set.

    Attributes
    ----------
    predictions
        Predicted classes, uint8 (N,): that of the highest score, and of equal ones the lowest class.
    confidence
        Score of the predicted class, float32 (N,).
    """

    predictions: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """All that was counted, for JSON; not the answers to each image."""
        return self.model_dump(mode="json", by_alias=True, exclude={"predictions", "confidence"})

    def __str__(self) -> str:
        low, high = self.ci95_clustered or self.ci95
        versions = "" if self.n == self.n_originals else f" of {self.n_originals:,} digits"
        over = "images" if self.ci95_clustered is None else "original digits"
        classes = "  ".join(f"{own.label}: {100 * own.accuracy:.1f}" for own in self.per_class)
        return (
            f"{self.set}, {self.split} split, {self.n:,} images{versions}\n"
            f"accuracy %  {100 * self.accuracy:.2f}, 95% interval over {over} [{100 * low:.2f}, {100 * high:.2f}]\n"
            f"by class    {classes}"
        )

    __repr__ = __str__


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int = 512,
    *,
    precision: Computed = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Test a model on a set, on the device its parameters are on.

    A sample of the images is looked at twice, in other batches: a model whose answers depend on what else is in the
    batch, or on chance, gets an `Evaluation.warning`, which is also said.

    Parameters
    ----------
    model
        ``model(images)`` takes float32 (B, 1, H, W) in [0, 1] and returns class scores (B, 10).
    dataset
        The set; see `affbench.load_dataset`.
    batch_size
        Images at once; of no consequence for the result but for rounding.
    precision
        ``"bfloat16"`` runs the model under autocast. ``affbench eval`` takes float32, too.
    progress
        Receives progress.

    Returns
    -------
    Evaluation

    Raises
    ------
    UsageError
        The model cannot take the images, or does not return scores (B, 10).
    AffbenchError
        Scores are NaN or infinite.

    Examples
    --------
    >>> import affbench
    >>> model = affbench.build_model("cnn", filters=(8, 8), hidden=16)
    >>> result = affbench.evaluate(model, affbench.load_dataset("mnist-translated-sample", limit=100))
    >>> 0 <= result.ci95[0] <= result.accuracy <= result.ci95[1] <= 1
    True
    """
    predictions, confidence = predict(model, dataset, batch_size, precision=precision, progress=progress)
    result = assess(dataset, predictions, confidence, precision, _second_look(model, dataset))
    if result.warning and progress:
        progress.note(f"warning: {result.warning}")
    elif result.warning:
        warnings.warn(result.warning, stacklevel=2)
    return result


def predict(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int = 512,
    *,
    precision: Computed = "float32",
    progress: Progress | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The predicted class of each image, uint8 (N,), and its score, float32 (N,); arguments as for `evaluate`."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model to test is a torch.nn.Module, not {described(model)}.")
    device = device_of(model)
    images = torch.from_numpy(dataset.images)
    if device.type == "cpu":
        keep_memory()
    classes, scores = [], []
    with (
        evaluating(model),
        autocast(device, precision),
        (progress or Progress()).task(f"evaluate {dataset.name}", len(dataset), "images") as task,
    ):
        for part in images.split(batch_size):
            if device.type == "cuda":
                part = part.pin_memory()  # so that it is copied while the device computes; torch reuses the memory
            output = _scores(model, to_float(part.to(device, non_blocking=True)), dataset)
            best = output.max(dim=-1)  # the first of equal ones
            classes.append(best.indices.to(torch.uint8))
            scores.append(best.values.float())
            task.advance(len(part))
    # Results stay on the device until here: one transfer, and no waiting between batches.
    confidence = torch.cat(scores).cpu().numpy()
    lost = int((~np.isfinite(confidence)).sum())  # the maximum of scores that hold a NaN is NaN
    if lost:
        raise AffbenchError(
            f"the model's scores of {lost:,} of {len(dataset):,} images of '{dataset.name}' are NaN or infinite: they "
            "name no class. Train it with a smaller --learning-rate or --precision float32, or mend its forward pass."
        )
    return torch.cat(classes).cpu().numpy(), confidence


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():  # not inference mode: what a model keeps must not spoil its training
            yield
    finally:
        model.train(modes[model])
        for module, mode in modes.items():
            module.training = mode


def _second_look(model: nn.Module, dataset: Dataset) -> str | None:
    """What is wrong if images are scored otherwise in other company; batches stay as large, so rounding stays alike."""
    index = np.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).astype(np.int64)
    images = to_float(torch.from_numpy(dataset.images[index]).to(device_of(model)))
    batches = max(1, len(images) // 4)  # never of a single image, which batch statistics do not allow
    order = torch.arange(len(images))
    first, second = torch.empty(2, len(images), CLASSES, dtype=torch.float64)
    with evaluating(model), contextlib.suppress(UsageError):  # a model that takes batches of a certain size only
        for scores, arranged in ((first, order), (second, order.remainder(batches).argsort(stable=True))):
            for part in arranged.tensor_split(batches):
                scores[part] = _scores(model, images[part], dataset).double().cpu()
        low, high = first[first.isfinite()].aminmax()
        if (first.clamp(low) - second.clamp(low)).abs().max() <= ROUNDING * (high - low):
            return None
        changed = int((first.argmax(-1) != second.argmax(-1)).sum())
        return (
            f"the model's answers depend on what else is in the batch, or on chance: beside other images {changed} of "
            f"{len(images)} get another class. Its accuracy holds for this order and batch size only."
        )
    return None


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def told(model: nn.Module, what: str, sentence: Callable[[str], str]) -> Iterator[None]:
    """Let what a model's code raises, and a lack of memory for `what`, be one sentence."""
    try:
        with fitting(what):
            yield
    except AffbenchError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        if type(model).__module__.startswith("affbench.") and not isinstance(error, RuntimeError | ValueError):
            raise
        raise UsageError(sentence(reason(error))) from error


def _scores(model: nn.Module, images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    def sentence(cause: str) -> str:
        kinds = {str(parameter.dtype)[6:] for parameter in model.parameters() if parameter.is_floating_point()}
        hint = "they have one channel, and a factory with a parameter `canvas` is told their side"
        if kinds - {"float32"}:
            hint = f"its parameters are {', '.join(sorted(kinds))}: call .float() on it"
        images_are = f"{dataset.canvas}×{dataset.canvas} images of '{dataset.name}', float32 {tuple(images.shape)}"
        return f"the model cannot take the {images_are}: {cause}; {hint}."

    with told(model, f"a batch of {len(images)} images of '{dataset.name}'", sentence):
        try:
            output = model(images)
        except RuntimeError as error:
            if "grad" not in str(error):
                raise
            with torch.enable_grad():  # its answer needs a gradient, such as that of its input
                output = model(images).detach()
    return check_scores(output, len(images), CLASSES)


def assess(
    dataset: Dataset,
    predictions: npt.NDArray[np.uint8],
    confidence: npt.NDArray[np.float32],
    precision: str = "float32",
    warning: str | None = None,
) -> Evaluation:
    """What predictions for a set, whose images are not looked at, amount to; parameters as in `Evaluation`."""
    if not len(predictions):
        raise UsageError(f"set '{dataset.name}' has no images to evaluate on.")
    right = predictions == dataset.labels
    n_originals, interval = len(dataset), None
    if dataset.source_index is not None:
        n_originals = len(np.unique(dataset.source_index))
        interval = clustered_interval(right, dataset.source_index) if n_originals > 1 else None
    bins = None
    if dataset.transforms is not None:
        bins = {name: tuple(bin_shares(dataset.transforms[:, i], right)) for i, name in enumerate(TRANSFORM_COLUMNS)}
    return Evaluation(
        **_counted(right),
        accuracy_ci95_clustered=interval,
        set=dataset.name,
        split=dataset.split,
        n_originals=n_originals,
        per_class=tuple(
            ClassShare(label=label, **_counted(right[dataset.labels == label]))
            for label in np.unique(dataset.labels).tolist()
        ),
        confusion=confusion_of(dataset.labels, predictions),
        by_transformation=bins,
        precision=precision,
        warning=warning,
        predictions=predictions,
        confidence=confidence,
    )


def confusion_of(labels: npt.NDArray[np.uint8], predictions: npt.NDArray[np.uint8]) -> tuple[tuple[int, ...], ...]:
    """Counts (K, K): rows true, columns predicted classes."""
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return tuple(map(tuple, counts.tolist()))


def _counted(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The fields of a `Share`."""
    correct, n = int(right.sum()), len(right)
    return {"n": n, "correct": correct, "accuracy": correct / n, "ci95": wilson_interval(correct / n, n)}


def bin_shares(values: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], bins: int = BINS) -> Iterator[BinShare]:
    """Shares over equal bins of the range of the values, rounded outwards; bins without images are left out."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        yield BinShare(low=low, high=high, **_counted(right))
        return
    digits = 1 - math.floor(math.log10(high - low))  # two significant digits of the range
    slack = 1e-4  # of the last digit: 0.2 in float32 is a little more than 0.2
    low = math.floor(low * 10**digits + slack) / 10**digits
    high = math.ceil(high * 10**digits - slack) / 10**digits
    edges = np.linspace(low, high, bins + 1)
    member = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    for number in np.unique(member).tolist():
        yield BinShare(low=float(edges[number]), high=float(edges[number + 1]), **_counted(right[member == number]))
