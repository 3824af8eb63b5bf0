"""Every cache key on one page: what determines each artefact, and which version of its stage made it.

A run is determined by its resolved configuration, the keys of its training and validation sets, and the code of its
model; what it answers on a set by the run, its checkpoint, the set, and the code of the model as it is then; a curve or
an entropy by these answers and the number of images. Sets have their keys from `affbench.data.sets`.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from affbench.base import store
from affbench.base.config import DataConfig, ModelConfig, RunConfig, TrainingConfig, override
from affbench.base.device import Computed, resolve_device, resolve_precision
from affbench.base.errors import ArtefactError, DeviceError, UsageError
from affbench.base.workspace import Workspace
from affbench.data.placement import FRAME, centred
from affbench.data.sets import SetPart, find_set
from affbench.models import model_options
from affbench.models.registry import check_model, model_code
from affbench.run.folder import WEIGHTS, Run, run_name, runs_dir
from affbench.run.stopping import check_course

# Raised where the same inputs give another content.
VERSIONS = {"train": 2, "elsewhere": 1, "eval": 3, "factors": 2, "entropy": 1}
# A validated image costs a third to a half of a trained one, so a validation takes at most a tenth of an epoch. All of
# MNIST's 10,000 validation digits are looked at where all 50,000 others are trained on.
VALIDATED_SHARE, LEAST_VALIDATED = 5, 500


class Recipe(NamedTuple):
    """What determines an artefact: the stage that makes it, the version of that stage, and its inputs."""

    stage: str
    version: int
    inputs: dict[str, Any]

    @property
    def key(self) -> str:
        """The content key."""
        return store.content_key(*self)


@dataclass(frozen=True)
class Plan:
    """A run before it is run."""

    config: RunConfig  # everything resolved
    inputs: dict[str, Any]  # what determines the weights beside it: sets and code
    runs: Path  # the folder in which the run lies, or would lie

    @cached_property
    def recipe(self) -> Recipe:
        """All that determines the weights."""
        return Recipe("train", VERSIONS["train"], {"config": json.loads(self.config.model_dump_json()), **self.inputs})

    @cached_property
    def key(self) -> str:
        """Content key of the run."""
        return self.recipe.key

    @cached_property
    def folder(self) -> Path:
        """Where the run lies, or would lie."""
        return self.runs / run_name(self.config.model, f"seed{self.config.training.seed}", self.key)

    @property
    def run(self) -> Run:
        """The run, trained or not."""
        return Run(self.folder)

    @property
    def is_trained(self) -> bool:
        """Whether the run is finished (its files are verified when it is used)."""
        with contextlib.suppress(ArtefactError):
            manifest = self.run.manifest
            return manifest is not None and manifest.key == self.key
        return False

    def stopping_at(self, validation_accuracy: float) -> Self:
        """The same run, ended at the first validation that reaches an accuracy."""
        training = self.config.training.model_dump() | {"stop_at": validation_accuracy}
        return replace(self, config=override(self.config, training=training))


def plan_run(config: RunConfig, workspace: Workspace) -> Plan:
    """Check a configuration, fill in what it leaves open, and find the run's key and folder."""
    spec = find_set(config.data.train_set)
    options = resolved_options(config.model)
    check_model(config.model.name, spec.canvas, options)
    if spec.split not in (None, "train"):
        raise UsageError(f"'{spec.name}' has no training split; 'affnist' or 'affnist-train' does.")
    shift = config.data.shift
    if shift is None:
        shift = centred(spec.canvas, FRAME) if spec.form == "translated" else 0
    if shift and spec.affine:
        raise UsageError(f"data.shift = {shift} does not go with '{spec.name}': its images already fill the canvas.")
    digits, validation = training_part(config.data), validation_part(config.data)
    images = digits.size(workspace.data)
    check_course(config.training, images)
    validated = config.data.validation_limit or max(LEAST_VALIDATED, images // VALIDATED_SHARE)
    validated = min(validated, validation.size(workspace.data))
    resolved = override(
        config,
        model=config.model.model_dump() | {"options": options},
        data=config.data.model_dump() | {"shift": shift, "validation_limit": validated},
        training=config.training.model_dump() | {"precision": _resolved_precision(config.training, workspace)},
    )
    inputs: dict[str, Any] = {
        "train": digits.key(workspace.data),
        "validation": validation.key(workspace.data),
        "code": model_code(config.model.name),
    }
    if spec.form == "affine":
        inputs["validation_copies"] = resolved.data.copies
    return Plan(resolved, inputs, runs_dir(workspace.results))


def training_part(data: DataConfig) -> SetPart:
    """What is trained on: for original, padded and translated sets the 28×28 digits, placed afresh in every epoch."""
    spec = find_set(data.train_set)
    return SetPart(spec if spec.affine else find_set(spec.family), "train", data.copies, data.limit)


def validation_part(data: DataConfig) -> SetPart:
    """All that may be validated on."""
    return SetPart(find_set(data.train_set), "validation", data.copies)


def resolved_options(model: ModelConfig) -> dict[str, Any]:
    """The options of a model, with the defaults that a file can hold."""
    for option, value in model.options.items():
        if option == "canvas" or (value is not None and not _storable(value)):
            why = "follows from the set" if option == "canvas" else f"is {value!r}, which config.toml cannot hold"
            raise UsageError(f"option '{option}' of model '{model.name}' cannot be given: it {why}.")
    known = model_options(model.name)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (known | model.options).items()
        # A default that is not storable, such as a class, stays with the factory; None is kept where it changes one.
        if _storable(value) or (value is None and known.get(name, ...) is not None)
    }


def _resolved_precision(config: TrainingConfig, workspace: Workspace) -> Computed:
    """What a run computes in; a GPU that only the nodes of a cluster have, and cannot be asked here, in bfloat16."""
    if config.precision != "auto":
        return config.precision
    try:
        return resolve_precision("auto", resolve_device(workspace.device))
    except DeviceError:
        return "bfloat16"


def _storable(value: object) -> bool:
    """Whether TOML and JSON can hold a value of an option."""
    if isinstance(value, list | tuple):
        return all(map(_storable, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_storable, value.values()))
    return type(value) in (bool, int, float, str)


def elsewhere_recipe(model: ModelConfig, weights: bytes) -> Recipe:
    """What determines a network that was trained elsewhere: what builds it, and the content of its checkpoint."""
    digest, config = hashlib.sha256(weights).hexdigest(), {"model": model.model_dump()}
    inputs = {"config": config, "code": model_code(model.name), "weights": digest}
    return Recipe("elsewhere", VERSIONS["elsewhere"], inputs)


def answers_recipe(stage: str, run: Run, part: SetPart, data_dir: Path) -> Recipe:
    """What determines what is made of a finished run's answers to so many images of a set: a curve, an entropy."""
    return Recipe(stage, VERSIONS[stage], evaluation_recipe(run, part, data_dir).inputs | {"limit": part.limit})


def evaluation_recipe(run: Run, part: SetPart, data_dir: Path) -> Recipe:
    """What determines what a finished run answers on a set; the first images of more answer for fewer."""
    manifest = run.sealed
    code = manifest.inputs.get("code")
    with contextlib.suppress(UsageError):  # the model is gone: what it answered before is still so
        code = model_code(run.config.model.name)
    checkpoint = manifest.files.get(WEIGHTS, {}).get("sha256")
    inputs = {"run": manifest.key, "code": code, "checkpoint": checkpoint, "set": part.key(data_dir)}
    return Recipe("eval", VERSIONS["eval"], inputs)
