"""One training run: data, model and schedule in; checkpoint and history out."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from affbench.base import store
from affbench.base.config import RunConfig
from affbench.base.device import resolve_device, resolve_precision, synchronise
from affbench.base.distributed import RankError, Ranks, joined
from affbench.base.errors import AffbenchError, ArtefactError, UsageError
from affbench.base.interrupt import Interrupted, Stop, Stopwatch
from affbench.base.randomness import seed_all
from affbench.base.workspace import Workspace
from affbench.data.batches import Augmentation, TrainingBatches, stream_seed
from affbench.data.dataset import Dataset
from affbench.data.sets import find_set
from affbench.models import build_model, parameter_count
from affbench.models.kernels.layout import in_training, prepare
from affbench.run.evaluate import predict
from affbench.run.folder import CONFIG, HISTORY, RESUME, Epoch, Run, best, history_to_csv
from affbench.run.plan import Plan, plan_run, training_part, validation_part
from affbench.run.resume import Position, finish, resume, save
from affbench.run.step import make_step
from affbench.run.stopping import Course, Leg
from affbench.run.trial import blamed, try_model

REPORT_SECONDS = 0.5  # between two looks at the loss, each of which waits for the device
PATIENCE = 20.0  # seconds in which processes of torchrun take further signals for the first one
GO_ON, SAVE, STOP = range(3)  # what the processes of a run agree on after every batch


def train(
    what: RunConfig | Plan, workspace: Workspace, *, tensorboard: bool = False, stops: Sequence[float] = ()
) -> Run:
    """Train a model, or return the finished run of the same configuration.

    The weights kept are those of the first epoch with the highest accuracy on the validation split; no test set is
    ever looked at. An unfinished run of the same configuration is gone on with, and ends with the weights it would
    have had without the interruption (bit for bit on the CPU).

    Under torchrun, each process computes its part of every batch on a device of its own; batches, weights and
    history are those of a single process but for rounding, dropout and statistics of batch normalisation. The first
    process writes, and the run can be gone on with by another number of processes.

    The runs that stop at the validation accuracies `stops` are kept as well, as this training passes through their
    ends.
    """
    plan = what if isinstance(what, Plan) else plan_run(what, workspace)
    with joined(workspace.device) as ranks, store.lock(plan.folder) if ranks.first else contextlib.nullcontext():
        if not max(ranks.numbers(ranks.first and _is_whole(plan))):
            also = [] if plan.config.training.stop_at else [plan.stopping_at(accuracy) for accuracy in stops]
            _Training(plan, workspace, ranks, also, tensorboard=tensorboard).run()
    return plan.run


def _is_whole(plan: Plan) -> bool:
    """Whether the run is finished and undamaged."""
    try:
        if (manifest := plan.run.manifest) is None:
            return False
        if manifest.key != plan.key:
            raise ArtefactError(f"{plan.folder} holds another run than its name says.")
        store.verify(plan.folder, manifest)
    except ArtefactError as error:
        raise ArtefactError(f"{error} The run is left as it is; --force trains it again.") from None
    return True


def _tensorboard(folder: Path) -> Callable[[Epoch], None]:
    """What writes a row of the history for TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'affbench[tensorboard]'.") from None
    with store.writing(folder):
        writer = SummaryWriter(str(folder / "tensorboard"))

    def log(row: Epoch) -> None:
        for name, value in asdict(row).items():
            if name not in ("epoch", "step") and value is not None:
                writer.add_scalar(name, value, row.epoch)
        writer.flush()

    return log


def load_training_digits(config: RunConfig, data_dir: Path) -> tuple[Dataset, Augmentation]:
    """The training digits of a resolved configuration in their frames, and how they reach the canvas."""
    canvas = find_set(config.data.train_set).canvas
    return training_part(config.data).load(data_dir), Augmentation(canvas, config.data.shift or 0, config.data.flip)


class _Training:
    """A run while it is trained, and those that stop on the way at a validation accuracy and are else this one."""

    def __init__(
        self, plan: Plan, workspace: Workspace, ranks: Ranks, also: Sequence[Plan], *, tensorboard: bool
    ) -> None:
        self.plan, self.workspace, self.ranks, self.also = plan, workspace, ranks, also
        self.settings = settings = plan.config.training
        device = resolve_device(ranks.device(workspace.device))
        precision = resolve_precision(settings.precision, device)
        digits, augmentation = load_training_digits(plan.config, workspace.data)
        data, named = plan.config.data, plan.config.model
        self.validation = replace(validation_part(data), limit=data.validation_limit).load(workspace.data)
        self.batches = TrainingBatches(digits, augmentation, settings.batch_size, settings.seed, device)
        self.course = Course(settings, len(self.batches))
        build = functools.partial(build_model, named.name, canvas=augmentation.canvas, **named.options)
        smallest = max(1, (self.batches.images % settings.batch_size or settings.batch_size) // ranks.size)
        tried = try_model(build, self.validation.rows(slice(2)), device, precision, smallest, workspace.progress.note)
        seed_all(settings.seed)
        self.kept = model = in_training(prepare(tried(), device))  # what is validated and kept: a weight average, say
        self.step = make_step(model, settings.learning_rate, precision, device, ranks)
        self.at = Position()
        self.log = _tensorboard(plan.folder) if tensorboard and ranks.first else None
        self.saved_at = time.monotonic()

    def run(self) -> None:
        """Train to the end, or until interrupted."""
        if self.ranks.first:
            store.write_text(self.plan.folder / CONFIG, self.plan.config.to_toml())
        self.at = resume(self.plan, self.step)
        note, name, at, device = self.workspace.progress.note, self.plan.folder.name, self.at, self.step.device
        if at.history or at.batch:
            note(f"{name}: going on after epoch {at.history[-1].epoch if at.history else 0:g}, at batch {at.batch}")
        note(
            f"{name}: {parameter_count(self.step.model):,} parameters, {self.batches.images:,} training digits of "
            f"{self.plan.config.data.train_set}, validated on {len(self.validation):,}, "
            f"{device if self.ranks.alone else f'{self.ranks.size} × {device.type}'} in {self.step.precision}"
        )
        with Stop(0.0 if self.ranks.alone else PATIENCE) as stop:
            try:
                while not self.course.ended(self.at.history):
                    self._leg(stop)
            except RankError:
                # Up to here all processes had the same weights, so the one that is left can save them.
                self.ranks = self.step.ranks = replace(self.ranks, size=1)
                self._save()
                raise
            if self.ranks.first:
                if not (self.plan.folder / CONFIG).is_file():
                    raise store.vanished(self.plan.folder)
                self._finish(self.plan)
            self.ranks.numbers(0)  # nobody goes on before the run is finished

    def _leg(self, stop: Stop) -> None:
        """Train up to the next validation: an epoch, or a part of one where several validations are asked for."""
        at, leg = self.at, self.course.leg(self.at.history)
        if at.batch <= leg.first:
            at.batch, at.images, at.seconds = leg.first, 0, 0.0
            self.step.totals.zero_()
            # Dropout is the same however the run got here, and every process has a stream of its own.
            seed_all(stream_seed(self.settings.seed, len(at.history)) + self.ranks.rank)
        title = f"epoch {leg.epoch + 1}/{self.settings.epochs}"
        with self.workspace.progress.task(title, self.batches.images, "images") as task:
            task.skip(min(at.batch * self.settings.batch_size, self.batches.images))
            before, watch = at.seconds, Stopwatch(stop)
            pending, reported = 0, time.perf_counter()
            for images, labels in self.batches.epoch(leg.epoch, at.batch, leg.last):
                rate = self.course.learning_rate(leg.epoch * len(self.batches) + at.batch)
                with blamed(self.step.model, f"in epoch {leg.epoch + 1}, batch {at.batch + 1} of {len(labels)} images"):
                    self.step(images, labels, rate)
                at.batch += 1
                at.images += len(labels)
                pending += len(labels)
                now = time.perf_counter()
                watch.round()
                at.seconds = before + watch.seconds
                if now - reported > REPORT_SECONDS:
                    task.advance(pending, self._remark())
                    part = (at.batch - leg.first) / (leg.last - leg.first)
                    self.workspace.progress.share((len(at.history) + part) / self.course.validations)
                    pending, reported = 0, now
                wish = STOP if stop.asked else SAVE if reported == now and self._due() else GO_ON
                asked = max(self.ranks.numbers(wish))
                if asked == STOP:
                    raise self._interrupted()
                if asked == SAVE:
                    self._save()
                    watch.go()
            synchronise(self.step.device)
            watch.round()  # what the device had still to do
            at.seconds = before + watch.seconds
        self._close(leg, stop)

    def _validate(self, stop: Stop) -> float:
        """Accuracy on the validation split, each process testing its part."""
        self.ranks.copy_from_first(self.kept.buffers())  # such as the means that batch normalisation keeps
        own = self.validation.rows(self.ranks.share(len(self.validation)))
        # As many images as a process trains on at once: training has shown that they fit.
        size = max(1, self.settings.batch_size // self.ranks.size)
        precision, progress = self.step.precision, self.workspace.progress
        try:
            stop.at_once = self.ranks.alone  # several processes stop together, after the next batch
            predictions, _ = predict(self.kept, own, batch_size=size, precision=precision, progress=progress)
        except KeyboardInterrupt:
            raise self._interrupted() from None
        finally:
            stop.at_once = False
        return sum(self.ranks.numbers(int((predictions == own.labels).sum()))) / len(self.validation)

    def _close(self, leg: Leg, stop: Stop) -> None:
        """What a leg came to becomes a row of the history."""
        # Before the validation: scores of weights that are no longer finite would only hide the reason.
        at, (loss, correct, scored) = self.at, self._totals()
        row = Epoch(
            epoch=leg.done,
            step=leg.epoch * len(self.batches) + at.batch,
            learning_rate=self.step.learning_rate,
            train_loss=loss / max(at.images, 1),
            train_accuracy=correct / scored if scored else None,
            validation_accuracy=self._validate(stop),
            seconds=round(at.seconds, 4),
            images_per_second=round(at.images / max(at.seconds, 1e-9), 2),
        )
        at.history.append(row)
        if best(at.history) is row:
            at.selected = {name: value.detach().cpu().clone() for name, value in self.kept.state_dict().items()}
        if at.batch == len(self.batches):
            at.batch = 0
        if self.ranks.first:
            store.write_text(self.plan.folder / HISTORY, history_to_csv(at.history))
            for plan in self.also:  # up to here they are this run
                course = replace(self.course, settings=plan.config.training)
                if course.ended(at.history) and not course.ended(at.history[:-1]):
                    with store.lock(plan.folder):
                        if not plan.is_trained:
                            self._finish(plan)
        ended = self.course.ended(at.history)
        if max(self.ranks.numbers(self._due())) and not ended:
            self._save()
        seen = "" if row.train_accuracy is None else f", accuracy {row.train_accuracy:.2%}"
        self.workspace.progress.note(
            f"  epoch {row.epoch:g}/{self.settings.epochs}: loss {row.train_loss:.4f}{seen}, validation accuracy "
            f"{row.validation_accuracy:.2%}, {at.images:,} images, {row.images_per_second:,.0f} images/s"
            + ("" if ended else f", {self.course.left(at.history)} left")
        )
        if self.log is not None:
            self.log(row)

    def _remark(self) -> str:
        """Beside the bar, between two validations."""
        at, (loss, correct, scored) = self.at, self._totals()
        seen = f", accuracy {correct / scored:.2%}" if scored else ""
        left = f", run ends in {self.course.left(at.history)}" if at.history else ""
        return f"loss {loss / max(at.images, 1):.4f}{seen}{left}"

    def _totals(self) -> list[float]:
        """The sums so far: loss, correct images, images with scores; waits for the device."""
        totals: list[float] = self.step.totals.tolist()
        if not math.isfinite(totals[0]):
            epoch = self.course.leg(self.at.history).epoch + 1
            raise AffbenchError(
                f"the training loss of {self.plan.folder.name} is {totals[0]} in epoch {epoch}: try a smaller "
                "--learning-rate, or --precision float32."
            )
        return totals

    def _due(self) -> bool:
        """Whether it is time to save again; the first process decides."""
        return self.ranks.first and time.monotonic() - self.saved_at > self.workspace.checkpoint_seconds

    def _interrupted(self) -> Interrupted:
        self._save()
        epoch = self.course.leg(self.at.history).epoch + 1
        return Interrupted(
            f"stopped in epoch {epoch} of {self.plan.folder.name}; what was done is saved: the same command goes on, "
            "or 'affbench train --resume'."
        )

    def _save(self) -> None:
        """Write all that going on needs; the processes of a run do so together."""
        save(self.plan, self.step, self.at)
        if self.ranks.first:
            self.saved_at = time.monotonic()
            self.workspace.progress.saved(self.plan.folder / RESUME)

    def _finish(self, plan: Plan) -> None:
        finish(plan, self.step, self.at, self.validation, self.batches.images, self.workspace.progress.note)
