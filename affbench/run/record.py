"""A trained run on a set: tested once, and answered from ``eval-SET.json`` and ``predictions-SET.h5`` afterwards."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from affbench.base import store
from affbench.base.device import resolve_device
from affbench.base.errors import AffbenchError, ArtefactError, UsageError
from affbench.base.version import __version__
from affbench.base.workspace import Workspace
from affbench.data import hdf5
from affbench.data.dataset import Dataset
from affbench.data.sets import SetPart
from affbench.models import build_model
from affbench.models.kernels.layout import prepare
from affbench.run.evaluate import Evaluation, assess, confusion_of, evaluate
from affbench.run.folder import WEIGHTS, EvaluationRecord, Run, Tally
from affbench.run.plan import Recipe, answers_recipe, evaluation_recipe


def load_model(run: Run, device: torch.device | str = "cpu") -> nn.Module:
    """The trained model of a finished run, its checkpoint verified, in evaluation mode."""
    path, named = run.weights, run.config.model
    files = {path.name if name == WEIGHTS else name: entry for name, entry in run.sealed.files.items()}
    store.verify(path.parent, replace(run.sealed, files=files), only=path.name)
    model = build_model(named.name, canvas=run.canvas, **named.options)
    try:
        weights = load_file(path)
        if weights.keys() - model.state_dict().keys():
            make_whole(model, run.canvas)
        model.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(
            f"{path} cannot be read, or holds another architecture than {named.name} with the options of its "
            f"config.toml ({reason}); train the run again (--force)."
        ) from error
    return prepare(model, torch.device(device)).eval()


def make_whole(model: nn.Module, canvas: int) -> None:
    """Let a first forward pass make the parts of a model that wait for one."""
    with contextlib.suppress(Exception), torch.no_grad():
        model.eval()(torch.zeros(2, 1, canvas, canvas))


def evaluate_run(run: Run, part: SetPart, workspace: Workspace) -> EvaluationRecord:
    """Test a run on a set; answered from disk where it was tested on these images before.

    An evaluation of fewer images never replaces one of more: the first images of the longer one answer it.
    """
    own, other = run.canvas, part.spec.canvas
    if own != other:
        raise UsageError(f"run {run.name} takes {own}×{own} images, but set '{part.name}' has {other}×{other} ones.")
    recipe = evaluation_recipe(run, part, workspace.data)
    saved = _saved(run, part, recipe, workspace)
    if saved is None:
        with store.lock(record_path(run, part.name)):  # another process may have tested it meanwhile
            saved = _saved(run, part, recipe, workspace) or _tested(run, part, recipe, workspace)
    if saved.n == part.size(workspace.data):
        return saved
    dataset = part.load(workspace.data)  # the first images of those that were tested
    with h5py.File(predictions_path(run, part.name), "r", locking=False) as file:
        predictions, confidence = (file[name][: len(dataset)] for name in ("predictions", "confidence"))
    evaluation = assess(dataset, predictions, confidence, saved.precision, saved.warning)
    return saved.model_copy(update=_counted(evaluation, part))


def _tested(run: Run, part: SetPart, recipe: Recipe, workspace: Workspace) -> EvaluationRecord:
    """Test the run, and write what came of it into its folder."""
    dataset = part.load(workspace.data)
    model = load_model(run, resolve_device(workspace.device))
    if run.sealed.inputs.get("code") not in (None, recipe.inputs["code"]):
        workspace.progress.note(
            f"{run.name}: the code of '{run.config.model.name}' was edited since it was trained; it is tested with the "
            "code as it is now."
        )
    start = time.perf_counter()
    evaluation = evaluate(model, dataset, progress=workspace.progress)
    seconds = round(time.perf_counter() - start, 3)
    return record_evaluation(run, evaluation, part, dataset, workspace, seconds)


def record_evaluation(
    run: Run, evaluation: Evaluation, part: SetPart, dataset: Dataset, workspace: Workspace, seconds: float
) -> EvaluationRecord:
    """Write what a run answered on a set into its folder."""
    manifest = run.manifest
    if manifest is None:  # nothing is written into the folder of a run that is gone
        raise ArtefactError(f"run {run.name} vanished from {run.path.parent} while it was tested; train it again.")
    recipe, before = evaluation_recipe(run, part, workspace.data), 0
    with contextlib.suppress(ArtefactError):
        before = run.evaluation(record_path(run, part.name)).evaluations
    answers = {"predictions": evaluation.predictions, "confidence": evaluation.confidence, "labels": dataset.labels}
    if dataset.source_index is not None:
        answers["source_index"] = dataset.source_index
    predictions = predictions_path(run, part.name)
    with store.atomic_path(predictions) as path, hdf5.new_file(path) as file:
        for name, values in answers.items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=1)
    record = EvaluationRecord(
        **_counted(evaluation, part),
        set_key=dataset.key,
        run=run.name,
        model=run.config.model.name,
        routings=run.config.model.routings,
        seed=run.config.training.seed,
        checkpoint_sha256=manifest.files[WEIGHTS]["sha256"],
        device=str(resolve_device(workspace.device)),
        seconds=seconds,
        key=recipe.key,
        code=recipe.inputs["code"],
        evaluations=1 + before,
        predictions_sha256=store.file_hash(predictions),
        affbench_version=__version__,
    )
    store.write_json(record_path(run, part.name), record.document())
    return record


def _counted(evaluation: Evaluation, part: SetPart) -> dict[str, Any]:
    """The fields of a record that say what was counted, and in which images."""
    copies = part.copies if part.spec.form == "affine" else None
    return {name: getattr(evaluation, name) for name in Tally.model_fields} | {"copies": copies, "limit": part.limit}


def measured(
    stage: str, name: str, run: Run, part: SetPart, workspace: Workspace, measure: Callable[[nn.Module, Dataset], Any]
) -> Any:
    """What is measured, as JSON, of a finished run on some images; kept in its folder and answered from there."""

    def make(target: Path) -> None:
        model = load_model(run, resolve_device(workspace.device))
        target.write_text(json.dumps(measure(model, part.load(workspace.data))), encoding="utf-8")

    recipe = answers_recipe(stage, run, part, workspace.data)
    return json.loads(store.derive_file(run.path / stage / f"{name}.json", *recipe, make).read_text(encoding="utf-8"))


def is_evaluated(run: Run, part: SetPart, workspace: Workspace) -> bool:
    """Whether `evaluate_run` with these arguments would be answered from disk."""
    with contextlib.suppress(AffbenchError):
        return _saved(run, part, evaluation_recipe(run, part, workspace.data), workspace) is not None
    return False


def record_path(run: Run, set_name: str) -> Path:
    """Where the record of an evaluation lies."""
    return run.path / f"eval-{set_name}.json"


def predictions_path(run: Run, set_name: str) -> Path:
    """Where the predictions of an evaluation lie."""
    return run.path / f"predictions-{set_name}.h5"


def _saved(run: Run, part: SetPart, recipe: Recipe, workspace: Workspace) -> EvaluationRecord | None:
    """The record on disk, if it answers all these images, is whole, and is what its predictions amount to."""
    with contextlib.suppress(ArtefactError):  # derived: evaluated again
        record = run.evaluation(record_path(run, part.name))
        if record.key == recipe.key and record.n >= part.size(workspace.data) and is_answered(run, record):
            return record
    return None


def is_answered(run: Run, record: EvaluationRecord) -> bool:
    """Whether the predictions beside a record are there, whole, and amount to what it says."""
    path = predictions_path(run, record.set)
    if not path.is_file() or store.file_hash(path) != record.predictions_sha256:
        return False
    with contextlib.suppress(OSError, KeyError, IndexError), h5py.File(path, "r", locking=False) as file:
        return confusion_of(file["labels"][:], file["predictions"][:]) == record.confusion
    return False
