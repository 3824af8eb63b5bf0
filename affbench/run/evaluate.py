"""A trained model on a set: predictions, and accuracy overall, per class and per transformation."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from affbench.base import store
from affbench.base.device import Computed, autocast, keep_memory, resolve_device
from affbench.base.errors import AffbenchError, ArtefactError, UsageError, reason
from affbench.base.progress import Progress
from affbench.base.statistics import clustered_interval, wilson_interval
from affbench.base.version import __version__
from affbench.base.workspace import Workspace
from affbench.data import hdf5
from affbench.data.batches import to_float
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.sets import SetPart, find_set
from affbench.models import build_model
from affbench.models.kernels.layout import prepare
from affbench.models.loss import check_scores, described
from affbench.models.registry import model_code
from affbench.run.folder import WEIGHTS, BinShare, ClassShare, EvaluationRecord, Run, Share, write_evaluation

VERSION = 3  # of this stage: raised whenever the same model and set would give another record
BINS = 8  # per factor of the transformation
CLASSES = 10
LOOKED_AT = 32  # images that are looked at again in small batches
ROUNDING = 1e-4  # of the range of the scores: what may differ between two looks


@dataclass(frozen=True)
class Evaluation:
    """What a model did with a set.

    Attributes
    ----------
    set, split, n
        What it was tested on, and how many images that are.
    accuracy
        Share of correct images, 0 to 1.
    ci95
        95% Wilson interval, which takes images as independent.
    ci95_clustered
        95% interval that respects that versions of one digit are not independent; None where all images are originals.
    predictions
        Predicted classes, uint8 (N,): that of the highest score, and of equal ones the lowest class.
    confidence
        Score of the predicted class, float32 (N,).
    per_class
        The share of each class.
    confusion
        Counts, int64 (K, K): rows true, columns predicted classes.
    by_transformation
        Factor to shares over eight equal bins of its range; None for sets without transformations.
    precision
        What the model was run in.
    warning
        Why the accuracy may not be the model's alone; None where nothing was found.
    """

    set: str
    split: str
    n: int
    n_originals: int
    correct: int
    accuracy: float
    ci95: tuple[float, float]
    ci95_clustered: tuple[float, float] | None
    predictions: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    per_class: tuple[ClassShare, ...]
    confusion: npt.NDArray[np.int64]
    by_transformation: dict[str, tuple[BinShare, ...]] | None
    precision: Computed = "float32"
    warning: str | None = None


class ScoreError(AffbenchError):
    """Scores that name no class."""


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
    ScoreError
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
    result = assess(dataset, predictions, confidence)
    result = replace(result, precision=precision, warning=_second_look(model, dataset))
    if result.warning and progress is None:
        warnings.warn(result.warning, stacklevel=2)
    elif result.warning and progress is not None:
        progress.note(f"warning: {result.warning}")
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
    device = _device(model)
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
        raise ScoreError(
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
    images = to_float(torch.from_numpy(dataset.images[index]).to(_device(model)))
    batches = max(1, len(images) // 4)  # never of a single image, which batch statistics do not allow
    other = torch.arange(len(images)).remainder(batches).argsort(stable=True)
    first, second = torch.empty(2, len(images), CLASSES, dtype=torch.float64)
    with evaluating(model):
        try:
            for part in torch.arange(len(images)).tensor_split(batches):
                first[part] = _scores(model, images[part], dataset).double().cpu()
            for part in other.tensor_split(batches):
                second[part] = _scores(model, images[part], dataset).double().cpu()
        except UsageError:
            return None  # a model that takes batches of a certain size only
    low, high = first[first.isfinite()].aminmax()
    if (first.clamp(low) - second.clamp(low)).abs().max() <= ROUNDING * (high - low):
        return None
    changed = int((first.argmax(-1) != second.argmax(-1)).sum())
    return (
        f"the model's answers depend on what else is in the batch, or on chance: beside other images {changed} of "
        f"{len(images)} get another class. Its accuracy holds for this order and batch size only."
    )


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _scores(model: nn.Module, images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    try:
        try:
            output = model(images)
        except RuntimeError as error:
            if "grad" not in str(error):
                raise
            with torch.enable_grad():  # its answer needs a gradient, such as that of its input
                output = model(images).detach()
    except AffbenchError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        if type(model).__module__.startswith("affbench.") and not isinstance(error, RuntimeError | ValueError):
            raise
        kinds = {str(parameter.dtype)[6:] for parameter in model.parameters() if parameter.is_floating_point()}
        hint = "they have one channel, and a factory with a parameter `canvas` is told their side"
        if kinds - {"float32"}:
            hint = f"its parameters are {', '.join(sorted(kinds))}: call .float() on it"
        raise UsageError(
            f"the model cannot take the {dataset.canvas}×{dataset.canvas} images of '{dataset.name}', float32 "
            f"{tuple(images.shape)}: {reason(error)}; {hint}."
        ) from error
    return check_scores(output, len(images), CLASSES)


def assess(dataset: Dataset, predictions: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32]) -> Evaluation:
    """What predictions for a set amount to.

    Parameters
    ----------
    dataset
        The set; its images are not looked at.
    predictions, confidence
        As in `Evaluation`.
    """
    if not len(predictions):
        raise UsageError(f"set '{dataset.name}' has no images to evaluate on.")
    right = predictions == dataset.labels
    share = _share(right)
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(confusion, (dataset.labels, predictions), 1)
    clustered = None
    n_originals = len(dataset)
    if dataset.source_index is not None:
        n_originals = len(np.unique(dataset.source_index))
        if n_originals > 1:
            interval = clustered_interval(right, dataset.source_index)
            clustered = (interval.low, interval.high)
    return Evaluation(
        set=dataset.name,
        split=dataset.split,
        n=share.n,
        n_originals=n_originals,
        correct=share.correct,
        accuracy=share.accuracy,
        ci95=share.ci95,
        ci95_clustered=clustered,
        predictions=predictions,
        confidence=confidence,
        per_class=tuple(
            ClassShare(label=label, **_share(right[dataset.labels == label]).model_dump())
            for label in np.unique(dataset.labels).tolist()
        ),
        confusion=confusion,
        by_transformation=None if dataset.transforms is None else _by_transformation(dataset.transforms, right),
    )


def _share(right: npt.NDArray[np.bool_]) -> Share:
    correct, n = int(right.sum()), len(right)
    return Share(n=n, correct=correct, accuracy=correct / n, ci95=wilson_interval(correct, n))


def _by_transformation(
    transforms: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]
) -> dict[str, tuple[BinShare, ...]]:
    return {name: tuple(bin_shares(transforms[:, i], right)) for i, name in enumerate(TRANSFORM_COLUMNS)}


def bin_shares(values: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], bins: int = BINS) -> Iterator[BinShare]:
    """Shares over equal bins of the range of the values, rounded outwards; bins without images are left out."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        yield BinShare(low=low, high=high, **_share(right).model_dump())
        return
    digits = 1 - math.floor(math.log10(high - low))  # two significant digits of the range
    slack = 1e-4  # of the last digit: 0.2 in float32 is a little more than 0.2
    low = math.floor(low * 10**digits + slack) / 10**digits
    high = math.ceil(high * 10**digits - slack) / 10**digits
    edges = np.linspace(low, high, bins + 1)
    member = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    for number in range(bins):
        inside = member == number
        if inside.any():
            share = _share(right[inside])
            yield BinShare(low=float(edges[number]), high=float(edges[number + 1]), **share.model_dump())


def load_model(run: Run, device: torch.device | str = "cpu") -> nn.Module:
    """The trained model of a finished run, its checkpoint verified, in evaluation mode.

    Parameters
    ----------
    run
        The run.
    device
        Where the model goes.

    Raises
    ------
    ArtefactError
        The run is unfinished, its checkpoint is damaged, or it holds another architecture.
    """
    manifest = _manifest(run)
    if WEIGHTS not in manifest.files:
        raise ArtefactError(f"the manifest of run {run.name} does not list {WEIGHTS}; train the run again (--force).")
    store.verify(run.path, manifest, only=WEIGHTS)
    path = run.path / WEIGHTS
    model = build_model(run.config.model.name, canvas=model_canvas(run), **run.config.model.options)
    try:
        weights = load_file(path)
        if weights.keys() - model.state_dict().keys():  # of parts that a first forward pass makes
            with contextlib.suppress(Exception), torch.no_grad():
                model.eval()(torch.zeros(2, 1, model_canvas(run), model_canvas(run)))
        model.load_state_dict(weights)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path} is not a readable checkpoint ({error}); train the run again (--force).") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(
            f"{path} holds another architecture than {run.config.model.name} with the options of its config.toml "
            f"({reason}); train the run again (--force)."
        ) from error
    return prepare(model, torch.device(device)).eval()


def model_canvas(run: Run) -> int:
    """Height and width of the images a run's model takes, in pixels."""
    return find_set(run.config.data.train_set).canvas


def evaluate_run(run: Run, part: SetPart, workspace: Workspace) -> EvaluationRecord:
    """Test a run on a set; answered from disk where it was tested on these images before.

    Writes ``eval-SET.json`` and ``predictions-SET.h5`` into the run's folder. An evaluation of fewer images never
    replaces one of more: the first images of the longer one answer it.

    Parameters
    ----------
    run
        A finished run.
    part
        Which images.
    workspace
        Folders, device and progress.

    Returns
    -------
    EvaluationRecord

    Raises
    ------
    UsageError
        The images do not fit the model.
    DataError, ArtefactError
        The set or the checkpoint is missing or damaged.
    """
    canvas = model_canvas(run)
    if part.spec.canvas != canvas:
        raise UsageError(
            f"run {run.name} takes {canvas}×{canvas} images, "
            f"but set '{part.name}' has {part.spec.canvas}×{part.spec.canvas} ones."
        )
    key = _key(run, part, workspace.data)
    wanted = part.size(workspace.data)
    saved = _saved(run, part.name, key)
    if saved is not None and saved.n == wanted:
        return saved
    with store.lock(record_path(run, part.name)):
        saved = _saved(run, part.name, key)  # another process may have tested it meanwhile
        if saved is not None and saved.n == wanted:
            return saved
        dataset = replace(part, limit=wanted).load(workspace.data)
        if saved is not None and saved.n > wanted:
            with h5py.File(predictions_path(run, part.name), "r", locking=False) as file:
                evaluation = assess(dataset, file["predictions"][:wanted], file["confidence"][:wanted])
            return _record(run, evaluation, dataset, saved.model_dump() | _span(part))
        device = resolve_device(workspace.device)
        model = load_model(run, device)
        code = answer_inputs(run, part, workspace.data)["code"]
        if (trained := _manifest(run).inputs.get("code")) is not None and code != trained:
            workspace.progress.note(
                f"{run.name}: the code of '{run.config.model.name}' was edited since it was trained; it is tested with "
                "the code as it is now."
            )
        start = time.perf_counter()
        evaluation = evaluate(model, dataset, progress=workspace.progress)
        _checkpoint(run)  # nothing is written into the folder of a run that is gone
        about = {
            "device": str(device),
            "precision": evaluation.precision,
            "warning": evaluation.warning,
            "seconds": round(time.perf_counter() - start, 3),
            "key": key,
            "code": code,
            "evaluations": 1 + _evaluations(run, part.name),
        } | _span(part)
        predictions = predictions_path(run, part.name)
        with store.atomic_path(predictions) as path, hdf5.new_file(path) as file:
            for name in ("predictions", "confidence"):
                file.create_dataset(name, data=getattr(evaluation, name), compression="gzip", compression_opts=1)
            file.create_dataset("labels", data=dataset.labels, compression="gzip", compression_opts=1)
            if dataset.source_index is not None:
                file.create_dataset("source_index", data=dataset.source_index, compression="gzip", compression_opts=1)
        about["predictions_sha256"] = store.file_hash(predictions)
        record = _record(run, evaluation, dataset, about)
        write_evaluation(record_path(run, part.name), record)
    return record


def is_evaluated(run: Run, part: SetPart, workspace: Workspace) -> bool:
    """Whether `evaluate_run` with these arguments would be answered from disk."""
    try:
        saved = _saved(run, part.name, _key(run, part, workspace.data))
        return saved is not None and saved.n >= part.size(workspace.data)
    except AffbenchError:
        return False


def record_path(run: Run, set_name: str) -> Path:
    """Where the record of an evaluation lies."""
    return run.path / f"eval-{set_name}.json"


def predictions_path(run: Run, set_name: str) -> Path:
    """Where the predictions of an evaluation lie."""
    return run.path / f"predictions-{set_name}.h5"


def answer_inputs(run: Run, part: SetPart, data_dir: Path) -> dict[str, Any]:
    """All that determines what a run answers on a set, for the key of whatever is made from it.

    Raises
    ------
    ArtefactError
        The run is not finished.
    DataError
        The files that the set is made from are missing.
    """
    manifest = _manifest(run)
    return {
        "run": manifest.key,
        "code": _code(run, manifest),
        "checkpoint": manifest.files.get(WEIGHTS, {}).get("sha256"),
        "set": part.key(data_dir),
    }


def _manifest(run: Run) -> store.Manifest:
    manifest = store.read_manifest(run.path)
    if manifest is None:
        raise ArtefactError(f"run {run.name} is not finished; 'affbench train --resume' goes on with it.")
    return manifest


def _code(run: Run, manifest: store.Manifest) -> str | None:
    """The code that would compute a run's answers now: that which trained it, unless it was edited since."""
    with contextlib.suppress(UsageError):  # gone: what it answered before is still so
        return model_code(run.config.model.name)
    return manifest.inputs.get("code")


def _key(run: Run, part: SetPart, data_dir: Path) -> str:
    return store.content_key("eval", VERSION, answer_inputs(run, part, data_dir))


def _saved(run: Run, set_name: str, key: str) -> EvaluationRecord | None:
    """The record on disk, if it is whole, answers this key, and is what its predictions amount to."""
    try:
        record = run.evaluation(record_path(run, set_name))
    except ArtefactError:
        return None  # derived: evaluated again
    return record if record.key == key and is_answered(run, record) else None


def is_answered(run: Run, record: EvaluationRecord) -> bool:
    """Whether the predictions beside a record are there, whole, and amount to what it says."""
    path = predictions_path(run, record.set)
    if not path.is_file() or store.file_hash(path) != record.predictions_sha256:
        return False
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    with contextlib.suppress(OSError, KeyError, IndexError), h5py.File(path, "r", locking=False) as file:
        np.add.at(confusion, (file["labels"][:], file["predictions"][:]), 1)
    return [tuple(row) for row in confusion.tolist()] == [*record.confusion]


def _evaluations(run: Run, set_name: str) -> int:
    """How often this checkpoint was tested on the set before, as its last record says."""
    try:
        return run.evaluation(record_path(run, set_name)).evaluations
    except ArtefactError:
        return 0


def _checkpoint(run: Run) -> str:
    """The checksum of a run's weights."""
    manifest = store.read_manifest(run.path)
    if manifest is None:
        raise ArtefactError(f"run {run.name} vanished from {run.path.parent} while it was tested; train it again.")
    return str(manifest.files[WEIGHTS]["sha256"])


def _span(part: SetPart) -> dict[str, Any]:
    return {"copies": part.copies if part.spec.form == "affine" else None, "limit": part.limit}


def _record(run: Run, evaluation: Evaluation, dataset: Dataset, about: dict[str, Any]) -> EvaluationRecord:
    facts = {
        "set": evaluation.set,
        "split": evaluation.split,
        "set_key": dataset.key,
        "run": run.name,
        "model": run.config.model.name,
        "routings": run.config.model.routings,
        "seed": run.config.training.seed,
        "n": evaluation.n,
        "n_originals": evaluation.n_originals,
        "correct": evaluation.correct,
        "accuracy": evaluation.accuracy,
        "accuracy_ci95": evaluation.ci95,
        "accuracy_ci95_clustered": evaluation.ci95_clustered,
        "per_class": evaluation.per_class,
        "confusion": evaluation.confusion.tolist(),
        "by_transformation": evaluation.by_transformation,
        "checkpoint_sha256": _checkpoint(run),
        "affbench_version": __version__,
    }
    return EvaluationRecord.model_validate(about | facts)
