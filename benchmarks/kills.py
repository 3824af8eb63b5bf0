"""Kill affbench at random moments of every stage, run the command again, and compare with undisturbed runs.

    python benchmarks/kills.py --kills 50

Nothing may be believed that is not whole, every second run must succeed, and its results must be those of a run that
nobody disturbed. Commands run in forks of this process, which has imported everything, so that kills hit the work
and not the imports.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine wait for each other

import affbench.data.fetch.sets
import affbench.experiment.pipeline  # imported before the forks
import affbench.run.evaluate
from affbench.base import store
from affbench.cli import app as cli

SAMPLE, AFFINE = "mnist-translated-sample", "affnist-synthetic-sample"
MODEL = ("--model", "capsnet", "-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8", "--device", "cpu")
TRAINING = ("--train-set", SAMPLE, "--limit", "128", "--batch-size", "16", "--precision", "float32")
OFTEN = ("--checkpoint-minutes", "0")
ON_AFFINE = ("--copies", "2", "--limit", "1500", "--device", "cpu")


@dataclass(frozen=True)
class Stage:
    """A command, and what has to be there before it; ``{}`` stands for the folder of inputs."""

    name: str
    arguments: tuple[str, ...]
    needs: str | None = None  # whose results it starts from


STAGES = (
    Stage("fetch", ("fetch", "affnist", "--offline", "--mirror", "{}")),
    Stage("convert", ("export", "--set", AFFINE, "--copies", "2", "{}/copies.mat")),
    Stage("train", ("train", *MODEL, *TRAINING, *OFTEN, "--epochs", "4"), "convert"),
    Stage("eval", ("eval", "--set", AFFINE, *ON_AFFINE), "train"),
    Stage(
        "sweep",
        (
            *("sweep", "--routings", "1,2", "--seeds", "1", "--sets", SAMPLE, "--test-limit", "200"),
            *(*MODEL, *TRAINING, *OFTEN, "--epochs", "1"),
        ),
        "train",
    ),
    Stage("report", ("report",), "eval"),
)


@dataclass
class Counts:
    """What became of the kills in one stage."""

    kills: int = 0
    too_late: int = 0  # came after the command had ended, and were made again sooner
    halves_left: int = 0  # kills that left temporary or unsealed files behind
    halves_believed: int = 0
    reruns_completed: int = 0
    results_equal: int = 0


def start(stage: Stage, home: Path, inputs: Path) -> int:
    """Run a stage in a fork of this process; its output goes to a log file."""
    process = os.fork()
    if process:
        return process
    try:
        log = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        folders = ("--data-dir", str(home / "data"), "--results-dir", str(home / "results"))
        sys.argv = ["affbench", *(argument.format(inputs) for argument in stage.arguments), *folders]
        cli.main()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    finally:
        os._exit(99)


def complete(stage: Stage, home: Path, inputs: Path) -> bool:
    """Run a stage to its end."""
    _, status = os.waitpid(start(stage, home, inputs), 0)
    return os.waitstatus_to_exitcode(status) == 0


def disturb(stage: Stage, home: Path, inputs: Path, seconds: float) -> bool:
    """Run a stage and kill it after some time; whether it was still running."""
    process = start(stage, home, inputs)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)  # a process that has ended stays until it is waited for
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def believed_halves(home: Path) -> int:
    """Artefacts whose manifest is there although they are not whole."""
    bad = 0
    for path in home.rglob("*manifest.json"):
        artefact = path.parent if path.name == store.MANIFEST else path.with_name(path.name[: -len(store.MANIFEST) - 1])
        try:
            manifest = store.read_manifest(artefact)
            if manifest is not None:
                store.verify(artefact, manifest)
        except affbench.base.errors.ArtefactError:
            bad += 1
    return bad


def halves(home: Path) -> int:
    """Files that a killed process left unfinished."""
    return sum(1 for path in home.rglob(".*.part")) + sum(1 for path in home.rglob("resume.pt"))


def fingerprint(home: Path) -> dict[str, str]:
    """Everything that must not depend on what happened on the way: no times, no machine."""
    readers: dict[str, Callable[[Path], str]] = {
        "*.h5": _arrays,
        "model.safetensors": store.file_hash,
        "config.toml": store.file_hash,
        "history.csv": _history,
        "eval-*.json": _evaluation,
        "report.md": _report,
    }
    return {
        str(path.relative_to(home)): read(path)
        for pattern, read in readers.items()
        for path in sorted(home.rglob(pattern))
    }


def _arrays(path: Path) -> str:
    digest = hashlib.sha256()
    with h5py.File(path, "r") as file:
        for name in sorted(file):
            digest.update(name.encode() + file[name][()].tobytes())
    return digest.hexdigest()


def _history(path: Path) -> str:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return json.dumps([{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows])


def _evaluation(path: Path) -> str:
    record = json.loads(path.read_text())
    return json.dumps([record[key] for key in ("n", "correct", "confusion", "accuracy_ci95", "key", "limit", "copies")])


def _report(path: Path) -> str:
    return str(len(path.read_text().splitlines()))  # times of training stand in it


def run(kills: int, seed: int) -> dict[str, Counts]:
    """Spread kills over the stages and count what became of them."""
    chance = random.Random(seed)
    counts = {stage.name: Counts() for stage in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        inputs = work / "inputs"
        inputs.mkdir()
        export = Stage("export", ("export", "--set", AFFINE, "--copies", "1", str(inputs / "test.mat")))
        (work / "export").mkdir()
        assert complete(export, work / "export", inputs), (work / "export" / "log").read_text()
        seconds, wanted = {}, {}
        for stage in STAGES:
            home = _prepared(stage, work, "undisturbed")
            started = time.perf_counter()
            assert complete(stage, home, inputs), (home / "log").read_text()
            seconds[stage.name] = time.perf_counter() - started
            wanted[stage.name] = fingerprint(home)
        for number in range(kills):
            stage = STAGES[number % len(STAGES)]
            found = counts[stage.name]
            home = _prepared(stage, work, "disturbed")
            found.kills += 1
            delay = chance.uniform(0.02, 1.0) * seconds[stage.name]
            while not disturb(stage, home, inputs, delay):
                found.too_late += 1
                delay /= 2
                shutil.rmtree(home)
                home = _prepared(stage, work, "disturbed")
            found.halves_left += halves(home) > 0
            found.halves_believed += believed_halves(home) > 0
            completed = complete(stage, home, inputs)
            found.reruns_completed += completed
            got = fingerprint(home) if completed else {}
            if got == wanted[stage.name]:
                found.results_equal += 1
            else:
                both = got.items() ^ wanted[stage.name].items()
                different = "\n".join(f"  {name}: {value}" for name, value in sorted(both))
                log = (home / "log").read_text()[-2000:]
                sys.stderr.write(f"{stage.name}, kill {number}: not as undisturbed\n{different}\n{log}")
            shutil.rmtree(home)
    return counts


def _prepared(stage: Stage, work: Path, what: str) -> Path:
    home = work / what / stage.name
    if stage.needs:
        shutil.copytree(work / "undisturbed" / stage.needs, home)
    else:
        home.mkdir(parents=True)
    return home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    started = time.perf_counter()
    counts = run(options.kills, options.seed)
    if options.json:
        print(json.dumps({name: asdict(found) for name, found in counts.items()}))
    else:
        names = list(asdict(Counts()))
        rows = [[name, *(str(value) for value in asdict(found).values())] for name, found in counts.items()]
        totals = [sum(getattr(found, name) for found in counts.values()) for name in names]
        for row in [["stage", *(name.replace("_", " ") for name in names)], *rows, ["all", *map(str, totals)]]:
            print(row[0].ljust(10), *(cell.rjust(17) for cell in row[1:]))
        print(f"{time.perf_counter() - started:.0f} s")
    clean = all(f.halves_believed == 0 and f.results_equal == f.reruns_completed == f.kills for f in counts.values())
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
