"""Coupling entropy: how evenly the input capsules of a sweep's networks divide themselves."""

import contextlib
from pathlib import Path

from affbench.analysis.capsules import run_entropy
from affbench.analysis.claims import sweep_runs
from affbench.analysis.results import Results
from affbench.base.errors import AffbenchError, UsageError
from affbench.data.sets import find_part
from affbench.report.sections import Section
from affbench.report.table import Cell, Table, whole

ENTROPY_IMAGES = 256  # the spread over images is small


def section(results: Results, folder: Path) -> Section | None:
    """A row for each run of the largest sweep over routing iterations."""
    if results.workspace is None:
        return None
    rows = []
    try:
        for result in sweep_runs(results.whole):
            part = find_part(result.run.config.data.train_set, limit=ENTROPY_IMAGES)
            with contextlib.suppress(UsageError):  # a model of one's own may route without coupling coefficients
                own = run_entropy(result.run, part, results.workspace)
                entropy = (Cell(f"{own.nats:.4f}", own.nats), Cell(f"{100 * own.relative:.2f}", own.relative))
                counts = map(whole, (own.iterations, own.images, own.capsules))
                rows.append((Cell(result.run.name), *counts, *entropy, Cell(f"{100 * own.sd:.2f}", own.sd)))
    except AffbenchError as error:
        return Section("Coupling entropy", problems=(f"Coupling entropies are left out: {error}",))
    if not rows:
        return None
    caption = (
        "Mean entropy of the coupling coefficients of an input capsule after the last iteration, on "
        f"{part.name}, test split, first {ENTROPY_IMAGES} images. 100% is uniform coupling, as with one iteration; 0% "
        "would be every input capsule sending all to one class."
    )
    columns = ("Run", "Routings", "Images", "Input capsules", "Entropy, nats", "of uniform %", "sd over images %")
    return Section("Coupling entropy", (Table("Coupling entropy", columns, tuple(rows), caption),))
