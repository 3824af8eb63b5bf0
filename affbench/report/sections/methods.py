"""Methods: what was done, written from the runs' own configurations, ready to paste into a paper."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from affbench.analysis.results import Group, Result, Results
from affbench.base.config import RunConfig
from affbench.base.version import __version__
from affbench.report.sections import Section
from affbench.report.table import span
from affbench.run.stopping import SCHEDULES


def section(results: Results, folder: Path) -> Section | None:
    """What was done: models, training, selection, evaluation, intervals, software; None without runs."""
    if not results.results:
        return None
    groups = results.groups
    paragraphs = (
        f"Models. {_models(groups)}",
        *_training(groups),
        _selection(results),
        *_evaluation(results),
        *_intervals(results),
        _software(results),
    )
    return Section("Methods", paragraphs=paragraphs)


def _models(groups: Iterable[Group]) -> str:
    sentences = []
    for own in groups:
        options = ", ".join(f"{key} = {value}" for key, value in own.config.model.options.items())
        size = "" if own.parameters is None else f", {own.parameters:,} parameters"
        sentences.append(f"{own.name}: model {own.config.model.name}{size}{f' ({options})' if options else ''}")
    return f"{'; '.join(sentences)}."


def _training(groups: Iterable[Group]) -> list[str]:
    """One paragraph for each way of training, with the models trained so."""
    ways: dict[str, list[Group]] = {}
    for own in groups:
        ways.setdefault(_way(own.config), []).append(own)
    if len(ways) == 1:
        return [f"Training. All models were trained {next(iter(ways))} {_digits(next(iter(ways.values())))}".strip()]
    return [
        f"Training of {', '.join(own.name for own in members)}. Trained {way} {_digits(members)}".strip()
        for way, members in ways.items()
    ]


def _way(config: RunConfig) -> str:
    data, training = config.data, config.training
    if data.shift is None:
        moved = ", placed as that set stands for"
    elif data.shift == 0:
        moved = ""
    else:
        moved = f", each moved by up to {data.shift} pixels in each direction, afresh in every epoch"
    flipped = ", half of them mirrored left to right" if data.flip else ""
    length = f"for {training.epochs} epochs"
    if training.stop_at is not None:
        length = (
            f"until validation accuracy first reached {training.stop_at:.2%}, but for {training.epochs} epochs at most"
        )
    if training.validations > 1:
        length += f" ({training.validations} validations an epoch)"
    return (
        f"on the training split of {data.train_set}{moved}{flipped}, {length} with batches of "
        f"{training.batch_size}, by Adam (β 0.9 and 0.999, ε 1e-8) with a learning rate of {training.learning_rate:g}, "
        f"{SCHEDULES[training.schedule].text}."
    )


def _digits(members: Iterable[Group]) -> str:
    counts = {
        count
        for own in members
        for result in own.results
        if isinstance(count := result.run.environment.get("train_images"), int)
    }
    return f"Training digits: {span(counts)}." if counts else ""


def _selection(results: Results) -> str:
    how = sorted({str(how) for r in results.results if (how := r.run.environment.get("selected_by"))})
    by = f" ({'; '.join(how)})" if how else ""
    seeds = sorted({result.seed for result in results.results})
    return (
        f"Selection. Of each run, the checkpoint with the highest validation accuracy was kept{by}; test sets played "
        f"no part in any choice. Seeds: {', '.join(map(str, seeds))}; the seed determines initial weights, order and "
        "placement of the digits, and dropout."
    )


def _evaluation(results: Results) -> list[str]:
    sentences, precisions = [], set[str]()
    for name in results.sets:
        records = [record for own in results.groups for record in own.records(name)]
        originals = {record.n_originals for record in records}
        n = {record.n for record in records}
        versions = "" if n == originals else f" of {span(originals)} original digits"
        limits = " (limited to the first images of the set)" if any(record.limit for record in records) else ""
        splits = "/".join(sorted({record.split for record in records}))
        precisions.update(record.precision for record in records)
        sentences.append(f"{name}, {splits} split, {span(n)} images{versions}{limits}")
    where = f"in {'/'.join(sorted(precisions))} (of equal scores the lowest class counts) on: {'; '.join(sentences)}"
    return [f"Evaluation. Every checkpoint was tested {where}."] if sentences else []


def _intervals(results: Results) -> list[str]:
    records = [record for result in results.results for record in result.evaluations.values()]
    if not records:
        return []
    text = "Intervals. 95% intervals of one run are Wilson's (Wilson 1927)"
    if any(record.accuracy_ci95_clustered for record in records):
        text += (
            "; where a set holds several versions of each original digit, they are bias-corrected and accelerated "
            "bootstrap intervals that resample originals (Efron 1987; Field and Welsh 2007)"
        )
    if any(len(own.results) > 1 for own in results.groups):
        text += "; those of several runs are Student's t intervals of the mean over seeds"
    return [f"{text}."]


def _software(results: Results) -> str:
    def values(key: str) -> str:
        found: list[Result] = [r for r in results.results if r.run.environment.get(key)]
        return ", ".join(dict.fromkeys(str(result.run.environment[key]) for result in found))

    parts = [f"affbench {values('affbench') or __version__}"]
    parts += [f"{name} {values(key)}" for key, name in (("torch", "PyTorch"), ("python", "Python")) if values(key)]
    where = f" on {values('device_name')}" if values("device_name") else ""
    precision = f", trained in {values('precision')}" if values("precision") else ""
    return f"Software. {', '.join(parts)}{where}{precision}."
