"""Where a model stands: its accuracy on translated and on affine digits, beside published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from affbench.analysis.published import Published, published_for
from affbench.base.progress import Progress
from affbench.data.sets import default_data_dir, find_part
from affbench.data.synthesis import COPIES
from affbench.experiment.reference import find_published, reference_runs
from affbench.models import build_model, parameter_count
from affbench.report.table import ABSENT, Cell, Table, interval, percent, whole
from affbench.run.evaluate import evaluate
from affbench.run.folder import default_results_dir, list_runs, pick_run
from affbench.run.record import load_model as load_run

SETS = ("mnist-translated", "affnist-synthetic")


@dataclass(frozen=True)
class Score:
    """A model on one test set of `n` images, and the published results to compare it with."""

    set: str
    n: int
    accuracy: float  # 0 to 1
    ci95: tuple[float, float]  # bootstrap over originals where the set holds several versions of each, else Wilson's
    published: tuple[Published, ...]


@dataclass(frozen=True)
class Standing:
    """What `benchmark` found: a score per set; prints as a table."""

    model: str
    parameters: int
    scores: tuple[Score, ...]

    def __getitem__(self, name: str) -> Score:
        """The score on the set called `name`."""
        return next(score for score in self.scores if score.set == name)

    def table(self) -> Table:
        """This model's accuracies, each with the published ones below it."""
        rows: list[tuple[Cell, ...]] = []
        for own in self.scores:
            accuracy = Cell(percent(own.accuracy), 100 * own.accuracy)
            rows.append((Cell(self.model), Cell(own.set), whole(own.n), accuracy, Cell(interval(own.ci95)), Cell("")))
            rows += [
                (Cell(f"{p.method} ({p.year})"), Cell(p.set), ABSENT, Cell(f"{p.value:g}", p.value), ABSENT,
                 Cell(f"{p.source}; trained on {p.trained}; {p.status}"))
                for p in own.published
            ]  # fmt: skip
        columns = ("Model", "Set", "n", "Accuracy %", "95% interval", "Published")
        caption = (
            f"{self.model}: {self.parameters:,} parameters. Published results on 'affnist' are of the official set; a "
            "synthetic set is drawn alike but holds other images."
        )
        return Table(f"Where {self.model} stands", columns, tuple(rows), caption)

    def __str__(self) -> str:
        return self.table().to_markdown()


def benchmark(
    model: nn.Module | str,
    *,
    sets: Sequence[str] = SETS,
    data_dir: Path | str | None = None,
    copies: int = COPIES,
    limit: int | None = None,
    batch_size: int = 512,
    progress: Progress | None = None,
) -> Standing:
    """Test a model that was trained on translated digits only on these and on affine ones, beside published results.

    Parameters
    ----------
    model
        A trained model: ``model(images)`` takes float32 (B, 1, 40, 40) in [0, 1] and returns class scores (B, 10). Or
        the name of one as for `affbench.build_model` whose factory loads its weights.
    sets
        Test sets, such as ``"affnist"``, the official one; those ending in ``-sample`` need no download.
    data_dir
        ``$AFFBENCH_DATA_DIR`` or ``data`` when None.
    copies, limit
        Versions of each digit in synthetic affine sets; only the first images of each set.

    Raises
    ------
    UsageError
        There is no such model or set, or the model cannot take the images.
    DataError
        A set has not been fetched.

    Examples
    --------
    >>> import affbench
    >>> model = affbench.build_model("cnn", filters=(8, 8), hidden=16)
    >>> sets = ("mnist-translated-sample", "affnist-synthetic-sample")
    >>> standing = affbench.benchmark(model, sets=sets, limit=100)
    >>> [score.n for score in standing.scores]
    [100, 100]
    """
    parts = [find_part(name, "test", copies, limit) for name in sets]  # a wrong name is said first
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    named = model if isinstance(model, str) else type(model).__name__
    module = build_model(model) if isinstance(model, str) else model
    scores = []
    for part in parts:
        dataset = part.load(folder)
        result = evaluate(module, dataset, batch_size, progress=progress)
        interval = result.ci95_clustered or result.ci95
        scores.append(Score(dataset.name, result.n, result.accuracy, interval, published_for(dataset.name)))
    return Standing(named, parameter_count(module), tuple(scores))


def load_model(name: str, *, results_dir: Path | str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """A trained network, in evaluation mode, by the name of its run, or the beginning of that name.

    Parameters
    ----------
    name
        A run in ``runs``, or a published one in ``reference`` whose checkpoint lies beside its results;
        ``"reference/NAME"`` takes a published one, whatever lies in ``runs``.
    results_dir
        ``$AFFBENCH_RESULTS_DIR`` or ``results`` when None.

    Returns
    -------
    torch.nn.Module
        ``model(images)`` takes float32 (B, 1, H, W) in [0, 1] and returns class scores (B, K).

    Raises
    ------
    UsageError
        No run is called so, or several are.
    ArtefactError
        The checkpoint is damaged, or not there.

    Examples
    --------
    >>> model = affbench.load_model("capsnet-r3-seed0")  # doctest: +SKIP
    """
    results = default_results_dir() if results_dir is None else Path(results_dir)
    if name.startswith("reference/"):
        return load_run(find_published(name, results), device)
    there = {run.name: run for run in reference_runs(results) if run.weights.is_file()}
    there |= {run.name: run for run in list_runs(results) if run.finished}
    return load_run(pick_run(name, there, results), device)
