"""Two models on the same images: the difference of their accuracy, over test digits and over seeds."""

from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from affbench.analysis.results import Group, Result
from affbench.base import store
from affbench.base.errors import ArtefactError
from affbench.base.statistics import PairedDifference, SeedSummary, paired_difference, seed_summary
from affbench.run.folder import EvaluationRecord, Run
from affbench.run.record import predictions_path


@dataclass(frozen=True)
class Comparison:
    """Accuracy of one model minus that of another on the same n images of one set, −1 to 1."""

    set: str
    n: int
    n_originals: int
    over_digits: PairedDifference  # for these trained networks; originals stay whole, with all versions and all seeds
    over_seeds: SeedSummary  # of the differences seed by seed, which leaves out the choice of digits


def compare(first: Group, second: Group, name: str) -> Comparison | None:
    """Compare two models on a set from saved predictions; None without a common seed, or common images, or those."""
    both = [result for pair in _by_seed(first, second) for result in pair]
    records = [result.evaluations[name] for result in both if name in result.evaluations]
    images = {(record.set_key, record.split) for record in records}
    if len(records) < len(both) or len(images) != 1:
        return None
    if not all(predictions_path(result.run, name).is_file() for result in both):
        return None
    n = min(record.n for record in records)
    right = [_right(result.run, record, n) for result, record in zip(both, records, strict=True)]
    ours, theirs = ([hits for hits, _ in own] for own in (right[::2], right[1::2]))
    originals = [own for _, own in right[::2]]
    paired = paired_difference(np.concatenate(ours), np.concatenate(theirs), np.concatenate(originals))
    differences = [float(a.mean() - b.mean()) for a, b in zip(ours, theirs, strict=True)]
    return Comparison(name, n, len(np.unique(originals[0])), paired, seed_summary(differences))


def _by_seed(first: Group, second: Group) -> list[tuple[Result, Result]]:
    """The runs of two models, seed by seed; two runs alone as they are; one trained elsewhere with every seed."""
    ours, theirs = (sorted(own.results, key=lambda result: result.seed) for own in (first, second))
    alone = len(ours) == len(theirs) == 1
    if alone or (first.validation is None) != (second.validation is None):
        return [(own, other) for own in ours for other in theirs]
    return [(own, other) for own in ours for other in theirs if own.seed == other.seed]


def _right(run: Run, record: EvaluationRecord, n: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Whether each of the first `n` images was classified correctly, and the original it was made from."""
    path = predictions_path(run, record.set)
    if store.file_hash(path) != record.predictions_sha256:
        raise ArtefactError(f"{path} is damaged; 'affbench eval --run {run.name} --set {record.set}' makes it again.")
    with h5py.File(path, "r", locking=False) as file:
        right: npt.NDArray[np.bool_] = file["predictions"][:n] == file["labels"][:n]
        return right, file["source_index"][:n] if "source_index" in file else np.arange(n)
