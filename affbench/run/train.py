"""One training run: data, model and schedule in; checkpoint and history out."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from affbench.base import store
from affbench.base.config import DataConfig, RunConfig, TrainingConfig, override
from affbench.base.device import Computed, resolve_device, resolve_precision, synchronise
from affbench.base.distributed import RankError, Ranks, joined
from affbench.base.environment import describe
from affbench.base.errors import AffbenchError, ArtefactError, DeviceError, UsageError
from affbench.base.interrupt import Interrupted, Stop, Stopwatch
from affbench.base.progress import Progress
from affbench.base.randomness import random_state, restore_random_state, seed_all
from affbench.base.workspace import Workspace
from affbench.data.batches import Augmentation, TrainingBatches, stream_seed
from affbench.data.dataset import Dataset
from affbench.data.placement import centred
from affbench.data.sets import FRAME, SetPart, find_set
from affbench.models import build_model, model_options, parameter_count
from affbench.models.kernels.layout import in_training, prepare
from affbench.models.registry import check_model, model_code
from affbench.run.evaluate import predict
from affbench.run.folder import (
    CONFIG,
    ENVIRONMENT,
    HISTORY,
    OWN,
    RESUME,
    WEIGHTS,
    Epoch,
    Run,
    history_to_csv,
    run_name,
    runs_dir,
)
from affbench.run.step import make_step
from affbench.run.trial import blamed, try_model

VERSION = 2  # of this stage: raised whenever the same configuration would give other weights
# A validated image costs about a third of a trained one, so validation takes a fifteenth of the time. All of MNIST's
# 10,000 validation digits are looked at where all 50,000 others are trained on.
VALIDATED_SHARE, LEAST_VALIDATED = 5, 500
REPORT_SECONDS = 0.5  # between two looks at the loss, each of which waits for the device
PATIENCE = 20.0  # seconds in which processes of torchrun take further signals for the first one
GO_ON, SAVE, STOP = range(3)  # what the processes of a run agree on after every batch


class TrainingError(AffbenchError):
    """Training that cannot go on."""


@dataclass(frozen=True)
class Plan:
    """A run before it is run.

    Attributes
    ----------
    config
        Everything resolved.
    inputs
        All that determines the weights.
    key
        Content key of `inputs`.
    folder
        Where the run lies, or would lie.
    """

    config: RunConfig
    inputs: dict[str, Any]
    key: str
    folder: Path


def plan_run(config: RunConfig, workspace: Workspace) -> Plan:
    """Check a configuration, fill in what it leaves open, and find the run's key and folder.

    Raises
    ------
    UsageError
        The model, one of its options, or the training set does not exist or does not fit.
    DataError
        The training set is an official one that has not been fetched.
    """
    spec = find_set(config.data.train_set)
    known = model_options(config.model.name)
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (known | config.model.options).items()
        # A default that is not storable, such as a class, stays with the factory; None is kept where it changes one.
        if _storable(value) or (value is None and known.get(name, ...) is not None)
    }
    for option, value in config.model.options.items():
        if option == "canvas" or (value is not None and not _storable(value)):
            why = "follows from the set" if option == "canvas" else f"is {value!r}, which config.toml cannot hold"
            raise UsageError(f"option '{option}' of model '{config.model.name}' cannot be given: it {why}.")
    check_model(config.model.name, spec.canvas, options)
    shift = config.data.shift
    if shift is None:
        shift = centred(spec.canvas, FRAME) if spec.form == "translated" else 0
    elif shift and spec.affine:
        raise UsageError(f"data.shift = {shift} does not go with '{spec.name}': its images already fill the canvas.")
    if spec.split not in (None, "train"):
        raise UsageError(f"'{spec.name}' has no training split; 'affnist' or 'affnist-train' does.")
    digits = training_part(config.data)
    images = digits.size(workspace.data)
    batches = math.ceil(images / config.training.batch_size)
    if config.training.validations > batches:
        raise UsageError(
            f"training.validations = {config.training.validations}, but an epoch of {images:,} images has only "
            f"{batches:,} batches of {config.training.batch_size}: no more than {batches:,} validations go into it."
        )
    validated = config.data.validation_limit or max(LEAST_VALIDATED, images // VALIDATED_SHARE)
    validation = validation_part(config.data)
    validated = min(validated, validation.size(workspace.data))
    resolved = override(
        config,
        model=config.model.model_dump() | {"options": options},
        data=config.data.model_dump() | {"shift": shift, "validation_limit": validated},
        training=config.training.model_dump() | {"precision": _precision(config.training, workspace)},
    )
    inputs: dict[str, Any] = {
        "config": json.loads(resolved.model_dump_json()),
        "train": digits.key(workspace.data),
        "validation": validation.key(workspace.data),
        "code": model_code(config.model.name),
    }
    if spec.form == "affine":
        inputs["validation_copies"] = resolved.data.copies
    key = store.content_key("train", VERSION, inputs)
    return Plan(resolved, inputs, key, runs_dir(workspace.results) / run_name(resolved, key))


def training_part(data: DataConfig) -> SetPart:
    """What is trained on: for original, padded and translated sets the 28×28 digits, placed afresh in every epoch."""
    spec = find_set(data.train_set)
    return SetPart(spec if spec.affine else find_set(spec.family), "train", data.copies, data.limit)


def validation_part(data: DataConfig) -> SetPart:
    """All that may be validated on."""
    return SetPart(find_set(data.train_set), "validation", data.copies)


def _precision(config: TrainingConfig, workspace: Workspace) -> Computed:
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


def is_trained(plan: Plan) -> bool:
    """Whether the run is finished (its files are verified when it is used)."""
    try:
        manifest = store.read_manifest(plan.folder)
    except ArtefactError:
        return False
    return manifest is not None and manifest.key == plan.key


def train(
    config: RunConfig,
    workspace: Workspace,
    *,
    tensorboard: bool = False,
    force: bool = False,
    stops: Sequence[float] = (),
) -> Run:
    """Train a model, or return the finished run of the same configuration.

    The weights kept are those of the first epoch with the highest accuracy on the validation split; no test set is
    ever looked at. An unfinished run of the same configuration is gone on with, and ends with the weights it would
    have had without the interruption (bit for bit on the CPU).

    Under torchrun, each process computes its part of every batch on a device of its own; batches, weights and
    history are those of a single process but for rounding, dropout and statistics of batch normalisation. The first
    process writes, and the run can be gone on with by another number of processes.

    Parameters
    ----------
    config
        What to train, on what, how.
    workspace
        Folders, device and progress.
    tensorboard
        Write logs for TensorBoard into the run's folder as well.
    force
        Train again, even if the run is finished.
    stops
        Validation accuracies: the runs that stop at them are kept as well, as this training passes through their ends.

    Returns
    -------
    Run

    Raises
    ------
    Interrupted
        The process was asked to stop; what was done is saved.
    UsageError, DataError
        The configuration or the data do not allow it.
    ArtefactError
        The finished run is damaged.
    TrainingError
        The loss is no longer finite.
    RankError
        Another process of the run died.
    """
    plan = plan_run(config, workspace)
    with joined(workspace.device) as ranks, store.lock(plan.folder) if ranks.first else contextlib.nullcontext():
        finished = ranks.highest(int(ranks.first and _is_whole(plan, force=force)))
        if not finished:
            also = [] if config.training.stop_at else [plan_run(_stopping(config, stop), workspace) for stop in stops]
            _Training(plan, workspace, ranks, tensorboard=tensorboard, also=also).run()
    return Run(plan.folder)


def _stopping(config: RunConfig, validation_accuracy: float) -> RunConfig:
    return override(config, training=config.training.model_dump() | {"stop_at": validation_accuracy})


def _is_whole(plan: Plan, *, force: bool) -> bool:
    """Whether the run is finished and undamaged; with `force` nothing of it stays."""
    if force and plan.folder.is_dir():
        with store.writing(plan.folder):
            (plan.folder / store.MANIFEST).unlink(missing_ok=True)  # first, so that no half of it counts
            for path in plan.folder.rglob("*"):
                if OWN.fullmatch(path.relative_to(plan.folder).as_posix()):
                    path.unlink()
    try:
        manifest = store.read_manifest(plan.folder)
        if manifest is None:
            return False
        if manifest.key != plan.key:
            raise ArtefactError(f"{plan.folder} holds another run than its name says.")
        store.verify(plan.folder, manifest)
    except ArtefactError as error:
        raise ArtefactError(f"{error} The run is left as it is; --force trains it again.") from None
    return True


def learning_rate(config: TrainingConfig, step: int, epoch: int) -> float:
    """Learning rate of one optimiser step.

    Parameters
    ----------
    config
        Names the schedule: ``"paper"`` × 0.96 every 2,000 steps, continuously, at least 1e-6 (the released code of
        Sabour et al. 2017); ``"keras"`` × 0.9 after each epoch (CapsNet-Keras); ``"constant"``.
    step, epoch
        Steps and epochs done before.
    """
    if config.schedule == "paper":
        return float(max(config.learning_rate * 0.96 ** (step / 2000), min(1e-6, config.learning_rate)))
    if config.schedule == "keras":
        return config.learning_rate * float(0.9**epoch)
    return config.learning_rate


def stop_epoch(history: Sequence[Epoch], validation_accuracy: float | None) -> float | None:
    """The epoch, interpolated between validations, at which an accuracy was first reached; None if it never was.

    Parameters
    ----------
    history
        Rows of a run, one per validation.
    validation_accuracy
        0 to 1; None for a run that has no such target.
    """
    if validation_accuracy is None:
        return None
    before: Epoch | None = None
    for row in history:
        if row.validation_accuracy >= validation_accuracy:
            if before is None:
                return row.epoch
            share = (validation_accuracy - before.validation_accuracy) / (
                row.validation_accuracy - before.validation_accuracy
            )
            return before.epoch + share * (row.epoch - before.epoch)
        before = row
    return None


def load_training_digits(config: RunConfig, data_dir: Path) -> tuple[Dataset, Augmentation]:
    """The training digits in their frames, and how they reach the canvas.

    Parameters
    ----------
    config
        A resolved configuration (`plan_run`).
    data_dir
        Folder of the data.

    Returns
    -------
    tuple
        For original, padded and translated sets the 28×28 digits; for affine sets their images as they are.
    """
    spec = find_set(config.data.train_set)
    digits = training_part(config.data).load(data_dir)
    return digits, Augmentation(spec.canvas, config.data.shift or 0, config.data.flip)


def write_weights(path: Path, weights: Mapping[str, Tensor], model: str) -> None:
    """Write weights as safetensors; the same weights give the same bytes.

    Parameters
    ----------
    path
        The file.
    weights
        Name to tensor; tensors that share memory are stored with copies of it, as the format stores none twice.
    model
        Name of the model, kept in the file's header.
    """
    tensors = {name: value.contiguous().clone() for name, value in weights.items()}
    # A second entry would make the bytes a matter of chance: safetensors writes entries in no fixed order.
    save_file(tensors, path, metadata={"model": model})


class _Training:
    """The state of one run while it is trained."""

    def __init__(
        self, plan: Plan, workspace: Workspace, ranks: Ranks, *, tensorboard: bool, also: Sequence[Plan]
    ) -> None:
        self.plan, self.config, self.settings = plan, plan.config, plan.config.training
        self.also = also  # runs that stop at an accuracy on the way, and are otherwise this one
        self.progress: Progress = workspace.progress
        self.checkpoint_seconds = workspace.checkpoint_seconds
        self.ranks = ranks
        self.device = resolve_device(ranks.device(workspace.device))
        self.precision = resolve_precision(self.settings.precision, self.device)
        digits, augmentation = load_training_digits(self.config, workspace.data)
        validation = validation_part(self.config.data).load(workspace.data)
        self.validation_images = min(len(validation), self.config.data.validation_limit or len(validation))
        own = ranks.share(self.validation_images)
        images, labels = validation.images[own].copy(), validation.labels[own].copy()
        self.validation = Dataset(validation.name, validation.split, images, labels)
        self.batches = TrainingBatches(digits, augmentation, self.settings.batch_size, self.settings.seed, self.device)
        name, options = self.config.model.name, self.config.model.options
        build = functools.partial(build_model, name, canvas=augmentation.canvas, **options)
        smallest = (self.batches.images % self.settings.batch_size or self.settings.batch_size) // ranks.size
        tried = try_model(build, validation.head(2), self.device, self.precision, max(1, smallest), self.progress.note)
        seed_all(self.settings.seed)
        self.model: nn.Module = in_training(prepare(tried(), self.device))
        self.parameters = parameter_count(self.model)
        self.step = make_step(self.model, self.settings.learning_rate, self.precision, self.device, ranks)
        self.history: list[Epoch] = []
        self.selected: dict[str, Tensor] = {}
        self.batch = 0  # batches done in the epoch under way
        self.images, self.seconds = 0, 0.0  # since the last validation
        self.saved_at = time.monotonic()
        self.writer = _tensorboard(plan.folder) if tensorboard and ranks.first else None

    def run(self) -> None:
        """Train to the end, or until interrupted."""
        if self.ranks.first:
            with store.writing(self.plan.folder):
                self.plan.folder.mkdir(parents=True, exist_ok=True)
            store.write_text(self.plan.folder / CONFIG, self.config.to_toml())
        self._load()
        where = f"{self.device}" if self.ranks.alone else f"{self.ranks.size} × {self.device.type}"
        self.progress.note(
            f"{self.plan.folder.name}: {self.parameters:,} parameters, {self.batches.images:,} training digits of "
            f"{self.config.data.train_set}, validated on {self.validation_images:,}, {where} in {self.precision}"
        )
        with Stop(0.0 if self.ranks.alone else PATIENCE) as stop:
            try:
                while not self._ended():
                    self._leg(stop)
            except RankError:
                # Up to here all processes had the same weights, so the one that is left can save them.
                self.ranks = replace(self.ranks, size=1)
                self._save()
                raise
            if self.ranks.first:
                self._finish(self.plan)
            self.ranks.highest(0)  # nobody goes on before the run is finished

    def _ended(self) -> bool:
        return len(self.history) == self.settings.epochs * self.settings.validations or self._reached(self.plan)

    def _reached(self, plan: Plan) -> bool:
        """Whether the last validation reached the accuracy that a run stops at."""
        target = plan.config.training.stop_at
        return target is not None and bool(self.history) and self.history[-1].validation_accuracy >= target

    def _leg(self, stop: Stop) -> None:
        """Train up to the next validation: an epoch, or a part of one where several validations are asked for."""
        number, part = divmod(len(self.history), self.settings.validations)
        first, last = (round(len(self.batches) * share / self.settings.validations) for share in (part, part + 1))
        if self.batch <= first:
            self.batch, self.images, self.seconds = first, 0, 0.0
            self.step.reset()
            # Dropout is the same however the run got here, and every process has a stream of its own.
            seed_all(stream_seed(self.settings.seed, len(self.history)) + self.ranks.rank)
        with self.progress.task(f"epoch {number + 1}/{self.settings.epochs}", self.batches.images, "images") as task:
            task.advance(min(self.batch * self.settings.batch_size, self.batches.images))
            before, watch = self.seconds, Stopwatch(stop)
            pending, reported = 0, time.perf_counter()
            for images, labels in self.batches.epoch(number, self.batch, last):
                done = number * len(self.batches) + self.batch
                with blamed(self.model, f"in epoch {number + 1}, batch {self.batch + 1} of {len(labels)}"):
                    self.step(images, labels, learning_rate(self.settings, done, number))
                self.batch += 1
                self.images += len(labels)
                pending += len(labels)
                now = time.perf_counter()
                watch.round()
                self.seconds = before + watch.seconds
                if now - reported > REPORT_SECONDS:
                    task.advance(pending, self._remark())
                    pending, reported = 0, now
                asked = self.ranks.highest(STOP if stop.asked else SAVE if reported == now and self._due() else GO_ON)
                if asked == STOP:
                    raise self._interrupted()
                if asked == SAVE:
                    self._save()
                    watch.go()
            synchronise(self.device)
            watch.round()  # what the device had still to do
            self.seconds = before + watch.seconds
        self._totals()  # scores of weights that are no longer finite would only hide the reason
        self._close_leg(number, part, self._validate(stop))

    def _validate(self, stop: Stop) -> float:
        """Accuracy on the validation split, each process testing its part."""
        self.ranks.copy_from_first(self.model.buffers())  # such as the means that batch normalisation keeps
        try:
            # Several processes stop together, after the next batch.
            with stop.at_once() if self.ranks.alone else contextlib.nullcontext():
                # As many images as a process trains on at once: training has shown that they fit.
                batch_size = len(range(self.settings.batch_size)[self.ranks.share(self.settings.batch_size)]) or 1
                predictions, _ = predict(
                    self.model,
                    self.validation,
                    batch_size=batch_size,
                    precision=self.precision,
                    progress=self.progress,
                )
        except KeyboardInterrupt:
            raise self._interrupted() from None
        return self.ranks.total(int((predictions == self.validation.labels).sum())) / self.validation_images

    def _due(self) -> bool:
        """Whether it is time to save again; the first process decides."""
        return self.ranks.first and time.monotonic() - self.saved_at > self.checkpoint_seconds

    def _interrupted(self) -> Interrupted:
        self._save()
        return Interrupted(
            f"stopped in epoch {len(self.history) // self.settings.validations + 1} of {self.plan.folder.name}; what "
            "was done is saved: the same command goes on, or 'affbench train --resume'."
        )

    def _close_leg(self, number: int, part: int, validation_accuracy: float) -> None:
        loss, correct, scored = self._totals()
        row = Epoch(
            epoch=(number * self.settings.validations + part + 1) / self.settings.validations,
            step=number * len(self.batches) + self.batch,
            learning_rate=self.step.learning_rate,
            train_loss=loss / max(self.images, 1),
            train_accuracy=correct / scored if scored else None,
            validation_accuracy=validation_accuracy,
            seconds=round(self.seconds, 4),
            images_per_second=round(self.images / max(self.seconds, 1e-9), 2),
        )
        best = max((earlier.validation_accuracy for earlier in self.history), default=-1.0)
        if row.validation_accuracy > best:
            self.selected = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.history.append(row)
        if part + 1 == self.settings.validations:
            self.batch = 0
        if self.ranks.first:
            store.write_text(self.plan.folder / HISTORY, history_to_csv(self.history))
            self._finish_others()
        if self.ranks.highest(int(self._due())) and not self._ended():
            self._save()
        self._report(row)

    def _totals(self) -> list[float]:
        """The sums so far: loss, correct images, images with scores; waits for the device."""
        totals: list[float] = self.step.totals.tolist()
        if not math.isfinite(totals[0]):
            epoch = len(self.history) // self.settings.validations + 1
            raise TrainingError(
                f"the training loss of {self.plan.folder.name} is {totals[0]} in epoch {epoch}: try a smaller "
                "--learning-rate, or --precision float32."
            )
        return totals

    def _report(self, row: Epoch) -> None:
        seen = "" if row.train_accuracy is None else f", accuracy {row.train_accuracy:.2%}"
        left = "" if self._ended() else self._left()
        self.progress.note(
            f"  epoch {row.epoch:g}/{self.settings.epochs}: loss {row.train_loss:.4f}{seen}, validation accuracy "
            f"{row.validation_accuracy:.2%}, {row.images_per_second:,.0f} images/s" + (f", {left} left" if left else "")
        )
        if self.writer is not None:
            for name, value in asdict(row).items():
                if name not in ("epoch", "step") and value is not None:
                    self.writer.add_scalar(name, value, row.epoch)
            self.writer.flush()

    def _remark(self) -> str:
        loss, correct, scored = self._totals()
        seen = f", accuracy {correct / scored:.2%}" if scored else ""
        left = self._left()
        return f"loss {loss / max(self.images, 1):.4f}{seen}" + (f", run ends in {left}" if left else "")

    def _left(self) -> str:
        """Time left to the end of the run, judged by what is done."""
        if not self.history:
            return ""
        mean = sum(row.seconds for row in self.history) / len(self.history)
        minutes, seconds = divmod(
            round(mean * (self.settings.epochs * self.settings.validations - len(self.history))), 60
        )
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

    def _save(self) -> None:
        """Write all that going on needs; the processes of a run do so together."""
        randoms = [self.ranks.gather(state) for state in random_state(self.device)]
        if not self.ranks.first:
            return
        state = {
            "key": self.plan.key,
            "model": self.model.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "selected": self.selected,
            "history": [asdict(row) for row in self.history],
            "batch": self.batch,
            "images": self.images,
            "totals": self.step.totals,
            "seconds": self.seconds,
            "randoms": randoms,
        }
        target = self.plan.folder / RESUME
        with store.atomic_path(target) as path:
            torch.save(state, path)
        self.saved_at = time.monotonic()
        self.progress.saved(target)

    def _load(self) -> None:
        """Go on from what an earlier process saved, if it is whole and of this run."""
        path = self.plan.folder / RESUME
        content = self.ranks.bytes_from_first(path.read_bytes() if self.ranks.first and path.is_file() else None)
        if content is None:
            return
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if state["key"] != self.plan.key:
                return
            self.model.load_state_dict(state["model"])
            self.step.load_state_dict(state["optimizer"])
            self.selected = state["selected"]
            self.history = [Epoch(**row) for row in state["history"]]
            self.batch, self.images, self.seconds = state["batch"], state["images"], state["seconds"]
            self.step.totals.copy_(state["totals"])
            self._go_on_drawing(state)
        except Exception as error:  # torch.load raises all kinds on damaged files
            raise ArtefactError(
                f"{path} is damaged ({type(error).__name__}); delete it, or use --force, to train from the beginning."
            ) from error
        done = self.history[-1].epoch if self.history else 0
        self.progress.note(f"{self.plan.folder.name}: going on after epoch {done:g}, at batch {self.batch}")

    def _go_on_drawing(self, state: dict[str, Any]) -> None:
        """Dropout goes on where it was, or with streams of their own where the number of processes is another."""
        if len(state["randoms"][0]) != self.ranks.size:
            seed_all(stream_seed(self.settings.seed, len(self.history)) + self.batch * 1000 + self.ranks.rank)
            return
        restore_random_state([states[self.ranks.rank] for states in state["randoms"]], self.device)

    def _finish_others(self) -> None:
        """Keep the runs that stop here: up to now they are this one."""
        for plan in self.also:
            first = not any(row.validation_accuracy >= (plan.config.training.stop_at or 1) for row in self.history[:-1])
            if first and (self._ended() or self._reached(plan)):
                with store.lock(plan.folder):
                    if not is_trained(plan):
                        with store.writing(plan.folder):
                            plan.folder.mkdir(parents=True, exist_ok=True)
                        store.write_text(plan.folder / CONFIG, plan.config.to_toml())
                        store.write_text(plan.folder / HISTORY, history_to_csv(self.history))
                        self._finish(plan)

    def _finish(self, plan: Plan) -> None:
        folder, target = plan.folder, plan.config.training.stop_at
        crossing = stop_epoch(self.history, target)
        if target is not None and crossing is None:
            self.progress.note(
                f"{folder.name}: validation accuracy never reached {target:.2%}; the best checkpoint is kept"
            )
        with store.atomic_path(folder / WEIGHTS) as path:
            write_weights(path, self.selected, self.config.model.name)
        best = max(self.history, key=lambda row: row.validation_accuracy)
        environment = {
            "run": folder.name,
            "parameters": self.parameters,
            "seed": self.settings.seed,
            "selected_epoch": best.epoch,
            "selected_by": f"validation accuracy on {self.validation.name}, n = {self.validation_images:,}",
            "stop_at": target,
            "stop_at_reached_epoch": crossing,
            "train_images": self.batches.images,
            "finished_at": round(time.time(), 3),
            "train_seconds": round(sum(row.seconds for row in self.history), 3),
            "precision": self.precision,
            "processes": self.ranks.size,
            **describe(self.device),
        }
        store.write_json(folder / ENVIRONMENT, environment)
        if self.writer is not None and plan is self.plan:
            self.writer.close()
        store.seal(folder, "train", VERSION, plan.inputs, [CONFIG, HISTORY, WEIGHTS, ENVIRONMENT])
        (folder / RESUME).unlink(missing_ok=True)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'affbench[tensorboard]'.") from None
    with store.writing(folder):
        return SummaryWriter(str(folder / "tensorboard"))
