"""Two models on the same images: the difference of their accuracy, over test digits and over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from affbench.base import store
from affbench.base.errors import ArtefactError
from affbench.base.statistics import PairedDifference, SeedSummary, paired_difference, seed_summary
from affbench.run.folder import EvaluationRecord, Run
from affbench.run.record import predictions_path


@dataclass(frozen=True)
class Comparison:
    """Accuracy of one model minus that of another on the same n images of one set, −1 to 1.

    Over digits: the mean difference, its 95% interval (bootstrap over originals, which stay whole with all their
    versions and all seeds) and p value, for these trained networks. Over seeds: the differences seed by seed, and
    Student's t interval of their mean, which leaves out the choice of digits.
    """

    set: str
    n: int
    n_originals: int
    seeds: tuple[int, ...]
    over_digits: PairedDifference
    over_seeds: SeedSummary


def compare(first: Mapping[int, Run], second: Mapping[int, Run], set_name: str) -> Comparison | None:
    """Compare two models (seed to run) image by image, from predictions that were saved; nothing is computed again.

    None where they have no seed in common, were not tested on the same images, or the predictions were not kept.
    """
    seeds = sorted(first.keys() & second.keys())
    pairs = [
        (ours, theirs)
        for seed in seeds
        if (ours := first[seed].evaluations.get(set_name)) and (theirs := second[seed].evaluations.get(set_name))
    ]
    images = {(record.set_key, record.split) for pair in pairs for record in pair}
    if not seeds or len(pairs) < len(seeds) or len(images) > 1:
        return None
    if not all(predictions_path(run, set_name).is_file() for seed in seeds for run in (first[seed], second[seed])):
        return None
    n = min(record.n for pair in pairs for record in pair)
    right_a, right_b, cluster = [], [], []
    for seed, (ours, theirs) in zip(seeds, pairs, strict=True):
        own, originals = _right(first[seed], ours, n)
        right_a.append(own)
        right_b.append(_right(second[seed], theirs, n)[0])
        cluster.append(originals)
    differences = [float(a.mean() - b.mean()) for a, b in zip(right_a, right_b, strict=True)]
    paired = paired_difference(np.concatenate(right_a), np.concatenate(right_b), np.concatenate(cluster))
    return Comparison(set_name, n, len(np.unique(cluster[0])), tuple(seeds), paired, seed_summary(differences))


def _right(run: Run, record: EvaluationRecord, n: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Whether each of the first `n` images was classified correctly, and the original it was made from."""
    path = predictions_path(run, record.set)
    if store.file_hash(path) != record.predictions_sha256:
        raise ArtefactError(f"{path} is damaged; 'affbench eval --run {run.name} --set {record.set}' makes it again.")
    with h5py.File(path, "r", locking=False) as file:
        right: npt.NDArray[np.bool_] = file["predictions"][:n] == file["labels"][:n]
        return right, file["source_index"][:n] if "source_index" in file else np.arange(n)
