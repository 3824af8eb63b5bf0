"""What a report is made of: runs read from their folders, grouped by configuration, with what could not be read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from affbench.analysis.published import Protocol, protocol
from affbench.base.config import RunConfig
from affbench.base.errors import AffbenchError, ArtefactError
from affbench.base.statistics import SeedSummary, seed_summary
from affbench.base.workspace import Workspace
from affbench.data.sets import is_earlier_edition
from affbench.run.folder import EvaluationRecord, Run

_SET_ORDER = ("mnist", "mnist-padded", "mnist-translated", "fashion-mnist", "affnist-synthetic", "affnist")
_ROUTINGS, _STOP = "model.options.routings", "training.stop_at"


@dataclass(frozen=True)
class LabelledRun:
    """A run, under the name that tables and figures give its model; the seeds of one configuration share it."""

    label: str
    run: Run
    published: str = field(default="", kw_only=True)  # the published network it makes again


@dataclass(frozen=True)
class Result(LabelledRun):
    """A finished run whose files were read and verified: at least one entry of history, and its evaluations by set."""

    evaluations: Mapping[str, EvaluationRecord]
    look: tuple[int, int] = (0, 0)  # numbers of its network and of where its training ended, among those of a report

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.run.config.training.seed

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that determined it but the seed: configuration, dotted (``model.options.routings``), data and code."""
        flat = _flat(self.run.config.model_dump(mode="json"))
        del flat["training.seed"]
        return flat | {key: str(value)[:8] for key, value in self.run.origin.items() if value is not None}

    @property
    def kept(self) -> str:
        """Which checkpoint this is."""
        stop = self.run.config.training.stop_at
        return "as given" if self.run.trained_elsewhere else "best" if stop is None else f"matched at {100 * stop:g}%"

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Label and settings, but for where its training ended."""
        return self.label.removesuffix(f", {self.kept}"), self.settings | {_STOP: None}


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, at least one, which differ in their seed only."""

    name: str  # the label, with whatever tells this configuration from others of the same label
    network: str  # the same whether training went to the end or stopped at an accuracy
    label: str
    config: RunConfig
    results: tuple[Result, ...]

    @property
    def routings(self) -> int | None:
        """Routing iterations; None for a model without routing."""
        return self.config.model.routings

    @property
    def published(self) -> str:
        """The published network it makes again; "" where none is named."""
        return self.results[0].published

    @property
    def protocol(self) -> Protocol:
        """What it was trained on, see `protocol`."""
        return protocol(self.config.data)

    @property
    def look(self) -> tuple[int, int]:
        """By what its lines are drawn, see `Result`."""
        return self.results[0].look

    @property
    def kept(self) -> str:
        """Which checkpoint of the network this is."""
        return self.results[0].kept

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.results[0].run.environment.parameters

    @property
    def validation(self) -> SeedSummary | None:
        """Validation accuracy of the kept checkpoints over seeds, 0 to 1; None for what was trained elsewhere."""
        known = [result.run.selected.validation_accuracy for result in self.results if result.run.history]
        return seed_summary(known) if known else None

    def records(self, name: str) -> list[EvaluationRecord]:
        """The evaluations on one set, in the order of the runs."""
        return [result.evaluations[name] for result in self.results if name in result.evaluations]

    def accuracy(self, name: str) -> SeedSummary | None:
        """Accuracy on one set over seeds, 0 to 1; None where no run was tested on it."""
        records = self.records(name)
        return seed_summary([record.accuracy for record in records]) if records else None

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95% interval of `accuracy`: over images (originals stay whole) for one seed, Student's t for several."""
        records, summary = self.records(name), self.accuracy(name)
        if summary is None:
            return None
        if summary.low is not None and summary.high is not None:
            return max(0.0, summary.low), min(1.0, summary.high)
        return records[0].ci95_clustered or records[0].ci95


@dataclass(frozen=True)
class Results:
    """All that a report shows: finished runs in the order given, and a sentence for each run or file left out."""

    results: tuple[Result, ...]
    problems: tuple[str, ...]
    workspace: Workspace | None = None  # where models and images lie; without it a report has numbers only

    @cached_property
    def groups(self) -> list[Group]:
        """By label and configuration, in the order of their first run; names say how those of one label differ."""
        members: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            members.setdefault((result.label, json.dumps(result.settings, sort_keys=True)), []).append(result)
        groups = []
        for (label, _), own in members.items():
            alike = [other[0].settings for (name, _), other in members.items() if name == label]
            name = label + _difference(own[0].settings, alike)
            network, settings = own[0].network
            kin = [other[0].network for other in members.values()]
            network += _difference(settings, [others for name, others in kin if name == network])
            groups.append(Group(name, network, label, own[0].run.config, tuple(own)))
        return groups

    @cached_property
    def sweeps(self) -> list[list[Group]]:
        """The sweeps over routing iterations: groups that differ in nothing else, by rising number of iterations."""
        sweeps: dict[tuple[str, str], list[Group]] = {}
        for own in self.groups:
            if own.routings is not None and own.validation is not None:
                others = own.results[0].settings | {_ROUTINGS: None}
                sweeps.setdefault((own.label, json.dumps(others, sort_keys=True)), []).append(own)
        return [sorted(own, key=lambda g: g.routings or 0) for own in sweeps.values() if len(own) > 1]

    @cached_property
    def trained(self) -> Self:
        """Without the networks that were trained elsewhere."""
        return replace(self, results=tuple(own for own in self.results if not own.run.trained_elsewhere))

    @cached_property
    def whole(self) -> Self:
        """Without the runs that stopped at an accuracy, unless there are no others."""
        kept = tuple(result for result in self.results if result.run.config.training.stop_at is None)
        return replace(self, results=kept) if kept else self

    def best_of(self, matched: Group) -> Group | None:
        """The runs of a group that stopped at an accuracy, trained to the end; None for one that did, or without."""
        if matched.config.training.stop_at is None:
            return None
        wanted = matched.results[0].settings | {_STOP: None}
        return next((own for own in self.groups if own.results[0].settings == wanted), None)

    @property
    def sets(self) -> list[str]:
        """Names of all sets that any run was tested on, originals before affine ones."""

        def place(name: str) -> tuple[int, str]:
            base = name.partition("@")[0].removesuffix("-sample")
            return _SET_ORDER.index(base) if base in _SET_ORDER else len(_SET_ORDER), name

        return sorted({name for result in self.results for name in result.evaluations}, key=place)


def read_results(runs: Iterable[LabelledRun], workspace: Workspace | None = None) -> Results:
    """Read the runs of a report, each once with its copies and links; what cannot be read is left out and named."""
    results: dict[tuple[str, str], Result] = {}
    problems = []
    for labelled in runs:
        try:
            manifest = labelled.run.manifest
            if manifest is None:
                raise ArtefactError("its training has not ended.")
            result, left_out = _read(labelled)
        except AffbenchError as error:
            problems.append(f"Run {labelled.run.name} is left out: {error}")
            continue
        known = results.setdefault((labelled.label, manifest.key), result)
        if known is result:
            problems += left_out
        elif known.run.path != result.run.path:
            named = result.run.name.endswith(manifest.key[:8])
            kept, copy = (result, known) if named else (known, result)
            results[labelled.label, manifest.key] = kept
            problems.append(
                f"Run {copy.run.name} is left out: it is a copy of {kept.run.name}, and a seed counts once."
            )
    return Results(_with_looks(list(results.values())), tuple(problems), workspace)


def _with_looks(results: Sequence[Result]) -> tuple[Result, ...]:
    """A number for each network and for each accuracy at which trainings ended, 0 for their end."""
    numbers: dict[str, int] = {}
    ends = sorted({0.0, *(result.run.config.training.stop_at or 0.0 for result in results)})
    found = []
    for result in results:
        number = numbers.setdefault(json.dumps(result.network, sort_keys=True), len(numbers))
        ending = ends.index(result.run.config.training.stop_at or 0.0)
        found.append(replace(result, look=(number, ending)))
    return tuple(found)


def _read(labelled: LabelledRun) -> tuple[Result, list[str]]:
    """A finished run, and a sentence for each of its files that is left out."""
    run = labelled.run
    _ = run.config, run.environment  # read and verified here, not in the middle of a report
    if not run.history and not run.trained_elsewhere:
        raise ArtefactError("its training history is empty.")
    evaluations, problems = {}, []
    code = run.origin.get("code")
    for path in sorted(run.path.glob("eval-*.json")):
        try:
            record = run.evaluation(path)
            if is_earlier_edition(record.set, record.split, record.set_key):
                raise ArtefactError(
                    f"{record.set} had other images when it was made; 'affbench eval --set {record.set} --run "
                    f"{run.name}' makes it again."
                )
        except AffbenchError as error:
            problems.append(f"An evaluation of run {run.name} is left out: {error}")
            continue
        evaluations[record.set] = record
        if None not in (code, record.code) and code != record.code:
            problems.append(f"Run {run.name} was tested on {record.set} with other code of its model than trained it.")
    if not evaluations:
        problems.append(f"Run {run.name} was not tested on any set yet; only its training is shown.")
    return Result(labelled.label, run, evaluations, published=labelled.published), problems


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _difference(mine: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """What tells one configuration from the others, such as ``" (routing 3)"``; "" where it is the only one."""
    parts = []
    for key in dict.fromkeys(key for other in others for key in other):
        if len({json.dumps(other.get(key)) for other in others}) == 1:
            continue
        value, name = mine.get(key), "routing" if key == _ROUTINGS else key.rpartition(".")[2]
        if key == _STOP:
            parts.append("best" if value is None else f"matched at {100 * value:g}%")
        elif value is None:
            parts.append(f"{name} {'not recorded' if key == 'code' else 'default'}")
        else:
            parts.append(f"{name} {value}")
    return f" ({', '.join(parts)})" if parts else ""
