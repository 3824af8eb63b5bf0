"""Methods: what was done, written from the runs' own configurations, ready to paste into a paper."""

from collections.abc import Iterable
from pathlib import Path

from affbench.analysis.results import Group, Result, Results
from affbench.base.config import RunConfig
from affbench.base.version import __version__
from affbench.report.sections import Section
from affbench.report.table import extent, span
from affbench.run.stopping import SCHEDULES


def section(results: Results, folder: Path) -> Section | None:
    """What was done: models, training, selection, evaluation, intervals, software; None without runs."""
    if not results.results:
        return None
    models = []
    for own in results.groups:
        options = ", ".join(f"{key} = {value}" for key, value in own.config.model.options.items())
        given = f" ({options})" if options else ""
        models.append(f"{own.network}: model {own.config.model.name}, {own.parameters:,} parameters{given}")
    by = f" ({how})" if (how := _stated(results.results, "selected_by", "; ")) else ""
    seeds = sorted({result.seed for result in results.trained.results})
    selection = (
        f"Selection. Of each run, the checkpoint with the highest validation accuracy was kept{by}; test sets played "
        f"no part in any choice. Seeds: {', '.join(map(str, seeds))}; the seed determines initial weights, order and "
        "placement of the digits, and dropout."
    )
    elsewhere = [own.name for own in results.groups if own.validation is None]
    paragraphs = (
        f"Models. {'; '.join(dict.fromkeys(models))}.",
        *_training(results.trained.groups),
        *([selection] if seeds else ()),
        *([f"Trained elsewhere, in a way that affbench does not know: {', '.join(elsewhere)}."] if elsewhere else ()),
        *_evaluation(results),
        _software(results.results),
    )
    return Section("Methods", paragraphs=paragraphs)


def _stated(results: Iterable[Result], key: str, between: str = ", ") -> str:
    """What the runs say of their surroundings under a key, each once."""
    found = (getattr(result.run.environment, key) for result in results)
    return between.join(dict.fromkeys(filter(None, found)))


def _training(groups: Iterable[Group]) -> list[str]:
    """One paragraph for each way of training, with the models trained so."""
    ways: dict[str, list[Group]] = {}
    for own in groups:
        ways.setdefault(_way(own.config), []).append(own)
    paragraphs = []
    for way, members in ways.items():
        counts = {count for own in members for result in own.results if (count := result.run.environment.train_images)}
        digits = f" Training digits: {span(counts)}." if counts else ""
        who = f"Training of {', '.join(own.name for own in members)}. Trained"
        if len(ways) == 1:
            who = "Training. All models were trained"
        paragraphs.append(f"{who} {way}{digits}")
    return paragraphs


def _way(config: RunConfig) -> str:
    data, training = config.data, config.training
    known = {None: ", placed as that set stands for", 0: ""}
    moved = known.get(data.shift, f", each moved by up to {data.shift} pixels in each direction, afresh in every epoch")
    flipped = ", half of them mirrored left to right" if data.flip else ""
    length = f"for {training.epochs} epochs"
    if training.stop_at is not None:
        length = f"until validation accuracy first reached {training.stop_at:.2%}, but {length} at most"
    if training.validations > 1:
        length += f" ({training.validations} validations an epoch)"
    return (
        f"on the training split of {data.train_set}{moved}{flipped}, {length} with batches of "
        f"{training.batch_size}, by Adam (β 0.9 and 0.999, ε 1e-8) with a learning rate of {training.learning_rate:g}, "
        f"{SCHEDULES[training.schedule].text}."
    )


def _evaluation(results: Results) -> list[str]:
    """On what and in which precision was tested, and what the intervals are; nothing where nothing was."""
    records = [record for result in results.results for record in result.evaluations.values()]
    if not records:
        return []
    sentences = []
    for name in results.sets:
        split, n, originals = extent(name, results.groups)
        versions = "" if n == originals else f" of {originals} original digits"
        limited = any(record.limit for record in records if record.set == name)
        limits = " (limited to the first images of the set)" if limited else ""
        sentences.append(f"{name}, {split} split, {n} images{versions}{limits}")
    precisions = "/".join(sorted({record.precision for record in records}))
    intervals = "Intervals. 95% intervals of one run are Wilson's (Wilson 1927)"
    if any(record.ci95_clustered for record in records):
        intervals += (
            "; where a set holds several versions of each original digit, they are bias-corrected and accelerated "
            "bootstrap intervals that resample originals (Efron 1987; Field and Welsh 2007)"
        )
    if any(len(own.results) > 1 for own in results.groups):
        intervals += "; those of several runs are Student's t intervals of the mean over seeds"
    return [
        f"Evaluation. Every checkpoint was tested in {precisions} (of equal scores the lowest class counts) on: "
        f"{'; '.join(sentences)}.",
        f"{intervals}.",
    ]


def _software(results: Iterable[Result]) -> str:
    names = {"torch": "PyTorch", "python": "Python"}
    versions = [f"{names[key]} {said}" for key in names if (said := _stated(results, key))]
    where = f" on {said}" if (said := _stated(results, "device_name")) else ""
    precision = f", trained in {said}" if (said := _stated(results, "precision")) else ""
    own = f"affbench {_stated(results, 'affbench') or __version__}"
    return f"Software. {', '.join([own, *versions])}{where}{precision}."
