"""All runs by set, committed ones included, ready to be ranked; and the checks of committed runs."""

import re
import shutil
from pathlib import Path

from affbench.analysis.published import published_for
from affbench.analysis.ranking import Leaderboard, Origin, rank
from affbench.base import store
from affbench.base.errors import AffbenchError, ArtefactError, UsageError, nearest
from affbench.base.workspace import Workspace
from affbench.data.sets import find_part, find_set, is_earlier_edition
from affbench.data.synthesis import COPIES
from affbench.run.folder import (
    CONFIG,
    ENVIRONMENT,
    HISTORY,
    PUBLISHED,
    WEIGHTS,
    EvaluationRecord,
    Run,
    list_runs,
    pick_run,
    read_files,
    runs_dir,
    write_files,
)

REPORTS = "reports"  # the folder among the committed runs that holds reports over them
MAX_PUBLISHED = 40_000_000  # bytes of all published checkpoints together
MAX_BYTES = 1_000_000  # of a committed file: results are small, checkpoints are not committed
EARLIER = ", earlier edition"  # of a set that had other images when runs were tested on it
_KNOWN = re.compile(r"config\.toml|history\.csv|environment\.json|manifest\.json|eval-.+\.json|model\.safetensors")


def reference_dir(results_dir: Path) -> Path:
    """Where committed runs lie."""
    return results_dir / "reference"


def leaderboards(results_dir: Path, set_name: str | None = None) -> list[Leaderboard]:
    """Every run, committed ones included, ranked on each set; one counts once, and what cannot be read is named."""
    yours = sorted((run for run in list_runs(results_dir) if run.finished), key=lambda run: len(run.name))
    origins: list[tuple[Origin, Run]] = [("reference", run) for run in reference_runs(results_dir)]
    origins += [("elsewhere" if run.trained_elsewhere else "yours", run) for run in yours]
    entries: dict[str, list[tuple[Origin, Run, EvaluationRecord]]] = {}
    left_out: list[str] = []
    counted: dict[str, str] = {}  # key to name
    for origin, run in origins:
        try:
            records = (validate_reference(run.path) if origin == "reference" else run).evaluations
            _ = run.config, run.environment  # verified, before anything of the run is shown
            key = run.manifest.key if run.manifest else ""
            if counted.get(key, run.name) != run.name:
                raise ArtefactError(f"it is a copy of {counted[key]}.")
        except AffbenchError as error:
            left_out.append(f"Run {run.name} is left out: {error}")
            continue
        if key in counted:
            continue
        counted[key] = run.name
        for name, record in records.items():
            earlier = EARLIER if is_earlier_edition(name, record.split, record.set_key) else ""
            entries.setdefault(f"{name}{earlier}", []).append((origin, run, record))
    if not entries:
        why = f"no run in {results_dir} was tested on a set yet; 'affbench train' and 'affbench eval' do."
        raise ArtefactError(" ".join((why, *left_out)))
    wanted = set_name and find_set(set_name).name
    boards = [
        Leaderboard(name, rank(found), published_for(name.removesuffix(EARLIER)), tuple(left_out))
        for name, found in sorted(entries.items())
        if wanted in (None, name.removesuffix(EARLIER))
    ]
    if not boards:
        raise UsageError(f"no run in {results_dir} was tested on '{wanted}': {nearest(str(wanted), entries)}")
    return boards


def add_reference(run: Run, results_dir: Path) -> Run:
    """Copy what may be committed of a finished run to ``reference``: all but predictions and a large checkpoint."""
    target = reference_dir(results_dir) / run.name
    published = target.parent / PUBLISHED / f"{run.name}.safetensors"
    if published.is_file() and store.file_hash(published) != run.sealed.files[WEIGHTS]["sha256"]:
        raise UsageError(f"{run.name} is published with another checkpoint: 'leaderboard --publish' renews it.")
    with store.lock(run.path), store.atomic_folder(target, _KNOWN) as new:
        for path in run.path.iterdir():
            if _may_be_committed(path):
                shutil.copyfile(path, new / path.name)
        validate_reference(new)
    return Run(target)


def publish(run: Run, workspace: Workspace) -> Run:
    """Add a run with its checkpoint in half precision; what its results say was then evaluated from that file."""
    from safetensors.torch import load_file

    from affbench.run.record import evaluate_run
    from affbench.run.resume import pack

    target = reference_dir(workspace.results) / run.name
    file = target.parent / PUBLISHED / f"{run.name}.safetensors"
    store.verify(run.path, run.sealed, only=WEIGHTS)
    half = {n: v.half() if v.is_floating_point() else v for n, v in load_file(run.path / WEIGHTS).items()}
    with store.temporary_folder() as folder:
        copy = Run(folder / run.name)
        copy.path.mkdir()
        for name in (CONFIG, HISTORY, ENVIRONMENT):
            shutil.copyfile(run.path / name, copy.path / name)
        store.write_bytes(copy.path / WEIGHTS, pack(half, run.config.model.name))
        manifest = run.sealed
        store.seal(copy.path, manifest.stage, manifest.version, manifest.inputs, list(manifest.files))
        others = sum(path.stat().st_size for path in file.parent.glob("*.safetensors") if path != file)
        if (size := others + (copy.path / WEIGHTS).stat().st_size) > MAX_PUBLISHED:
            raise UsageError(f"published checkpoints would have {size:,} bytes in all; at most {MAX_PUBLISHED:,} may.")
        for record in run.evaluations.values():
            part = find_part(record.set, record.split, record.copies or COPIES, record.limit)
            evaluate_run(copy, part, workspace)
        store.write_bytes(file, (copy.path / WEIGHTS).read_bytes())
        (copy.path / WEIGHTS).unlink()
        return add_reference(copy, workspace.results)


def find_published(name: str, results_dir: Path) -> Run:
    """The published run called ``reference/NAME``, or whose name alone begins so, with its checkpoint."""
    published, folder = {own.name: own for own in reference_runs(results_dir)}, reference_dir(results_dir)
    run = pick_run(name.removeprefix("reference/"), published, folder)
    if not run.weights.is_file():
        again = f"'affbench train --config {run.path / CONFIG}' trains it"
        raise ArtefactError(f"run {run.name} was published without its checkpoint; {again}.")
    return run


def fetch_published(name: str, results_dir: Path) -> Run:
    """A published run as a run of one's own, ``reference-NAME``, that is tested like any other."""
    run = find_published(name, results_dir)
    copy, manifest = Run(runs_dir(results_dir) / f"reference-{run.name}"), run.sealed
    if not store.cached(copy.path, manifest.stage, manifest.version, manifest.inputs):
        files = {n: content for n, content in read_files(run.path).items() if not n.startswith("eval-")}
        write_files(copy.path, files | {WEIGHTS: run.weights.read_bytes()})
    return copy


def _may_be_committed(path: Path) -> bool:
    return path.is_file() and bool(_KNOWN.fullmatch(path.name)) and path.stat().st_size <= MAX_BYTES


def validate_reference(folder: Path) -> Run:
    """Check that a folder may stand in ``results/reference``; its files are verified as they are read."""
    for path in sorted(folder.iterdir()):
        if not _may_be_committed(path):
            known = f"its files have at most {MAX_BYTES:,} bytes and the names that affbench gives them"
            raise ArtefactError(f"{path} does not belong into a reference run: {known}; remove it.")
    run, manifest = Run(folder), store.read_manifest(folder)
    if manifest is None or WEIGHTS not in manifest.files:
        raise ArtefactError(f"{folder} has no {store.MANIFEST} that lists {WEIGHTS}: it is no finished run.")
    seed, shares = run.config.training.seed, [row.validation_accuracy for row in run.history]
    for what, right in {
        f"{HISTORY} without epochs, or with accuracies outside 0 to 1": shares and all(0 <= s <= 1 for s in shares),
        f"seed {run.environment.seed} in {ENVIRONMENT}, {seed} in {CONFIG}": run.environment.seed == seed,
        "no eval-SET.json; 'affbench eval' makes one": run.evaluations,
        "an evaluation of another run": {record.run for record in run.evaluations.values()} <= {run.name},
    }.items():
        if not right:
            raise ArtefactError(f"{folder} holds {what}.")
    return run


def reference_runs(results_dir: Path) -> list[Run]:
    """The committed runs, by name."""
    folder = reference_dir(results_dir)
    return [
        Run(path)
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.is_dir() and not path.name.startswith(".") and path.name not in (REPORTS, PUBLISHED)
    ]
