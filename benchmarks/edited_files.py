"""Edit every file of a run, of a committed run and of a converted set, one by one, and see what commands make of it.

    python benchmarks/edited_files.py

After each edit a command may answer as before (it does not use the file, or makes it again), or say what is wrong;
whatever else it answers counts as believed, and ends this script with status 1. So does an edit of a number that
`affbench doctor` does not find.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typer.testing import CliRunner

from affbench.cli.app import app
from affbench.experiment import pipeline
from affbench.report.sections import capsules, mistakes, positions, samples

SAMPLE, AFFINE = "mnist-translated-sample", "affnist-synthetic-sample"
MODEL = ("--model", "capsnet", "-o", "filters=4", "-o", "primary_types=2", "-o", "decoder=8,8", "--device", "cpu")
TRAINING = ("--train-set", SAMPLE, "--limit", "96", "--batch-size", "32", "--epochs", "2")
EVAL = ("eval", "--set", AFFINE, "--copies", "1", "--device", "cpu", "--json", "--run")
READERS = {
    "status": ("status", "--json"),
    "leaderboard": ("leaderboard", "--json"),
    "report": ("report", "--json"),
    "doctor": ("doctor", "--offline", "--json"),
}
VOLATILE = {"record_sha256", "bytes", "seconds", "evaluations", "key"}  # no number of an experiment
NOTICES = (
    "damaged",
    "left out",
    "edited after",
    "contradicts",
    "not an evaluation record",
    "cannot be read",
    "is missing",
)


@dataclass(frozen=True)
class Edit:
    """A change of one file: what it is, and the file's new content."""

    what: str
    content: bytes


def edits_of(path: Path) -> Iterator[Edit]:
    """Plausible changes of a file: each value of a JSON object, a digit of a text, a byte of anything else."""
    content = path.read_bytes()
    yield Edit("cut short", content[: len(content) // 2])
    if path.suffix == ".json":
        document = json.loads(content)
        for key, value in document.items():
            yield Edit(f"{key} changed", json.dumps(document | {key: other(value)}).encode())
    elif path.suffix in (".toml", ".csv"):
        text = content.decode()
        for number, line in enumerate(lines := text.splitlines(keepends=True)):
            changed = line.translate(str.maketrans("0123456789", "1234567890"))
            if changed != line:
                rest = [*lines[:number], changed, *lines[number + 1 :]]
                yield Edit(f"line {number + 1} changed", "".join(rest).encode())
    else:
        half = len(content) // 2
        yield Edit("a byte flipped", content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :])


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, dict):
        first = next(iter(value), "key")
        return value | {first: other(value.get(first))}
    if isinstance(value, list):
        return [other(value[0]), *value[1:]] if value else [1]
    if isinstance(value, str):
        return f"{value[:-1]}{'0' if value[-1:] != '0' else '1'}"
    return {None: 1, True: False, False: True}.get(value, value + 1 if isinstance(value, int | float) else value)


def answer(arguments: tuple[str, ...], home: Path) -> tuple[int, Any, str]:
    """How a command ended: status, what it answered, and all that it said."""
    environment = {"AFFBENCH_DATA_DIR": str(home / "data"), "AFFBENCH_RESULTS_DIR": str(home / "results")}
    ended = CliRunner().invoke(app, list(arguments), env=environment)
    said = ended.stdout + ended.stderr
    document = json.loads(ended.stdout) if ended.stdout.startswith("{") else None
    if arguments[0] == "report" and document:
        document = said = Path(document["markdown"]).read_text().replace(str(home), "")
    if arguments[0] == "doctor" and document:
        document = [found for found in document["findings"] if found["health"] == "bad"]
    return ended.exit_code, lasting(document), said


def lasting(document: Any) -> Any:
    """A document without what differs between two looks at the same files."""
    if isinstance(document, dict):
        return {key: lasting(value) for key, value in document.items() if key not in VOLATILE and "_dir" not in key}
    return [lasting(value) for value in document] if isinstance(document, list) else document


def verdict(before: tuple[int, Any, str], after: tuple[int, Any, str]) -> str:
    """Whether an edit was noticed, was of no consequence, or was believed."""
    if "This is a bug" in after[2]:
        return "a bug"
    if after[:2] == before[:2]:
        return "as before"
    return "noticed" if any(notice in after[2] for notice in NOTICES) else "BELIEVED"


def prepare(home: Path) -> tuple[Path, Path]:
    """Train and test two runs, commit one of them; returns the other's folder and the committed one."""
    names = []
    for seed in ("0", "1"):
        names.append(answer(("train", *MODEL, *TRAINING, "--seed", seed, "--json"), home)[1]["run"])
        answer((*EVAL, names[-1], "--limit", "200"), home)
    answer(("leaderboard", "--add", names[1]), home)
    shutil.rmtree(home / "results" / "runs" / names[1])
    return home / "results" / "runs" / names[0], home / "results" / "reference" / names[1]


def attack(kind: str, paths: list[Path], home: Path, commands: dict[str, tuple[str, ...]]) -> Counter[str]:
    """Try every edit of some files, each in a copy, and print what the commands made of it."""
    counts: Counter[str] = Counter()
    before: dict[str, tuple[int, Any, str]] = {}

    def look(change: Callable[[Path], object]) -> dict[str, tuple[int, Any, str]]:
        copy = home.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(home, copy)
        change(copy)
        return {name: answer(arguments, copy) for name, arguments in commands.items()}

    before = look(lambda _: None)
    for path in paths:
        for edit in edits_of(path):
            place = path.relative_to(home)
            after = look(lambda copy, place=place, edit=edit: (copy / place).write_bytes(edit.content))  # type: ignore[misc]
            found = {name: verdict(before[name], after[name]) for name in commands}
            if "doctor" in found and found["doctor"] == "as before" and edit.what != "affbench_version changed":
                found["doctor"] = "NOT FOUND"
            counts.update(found.values())
            print(f"{kind}: {path.name}, {edit.what}: {', '.join(f'{n} {v}' for n, v in found.items())}", flush=True)
    return counts


def main() -> int:
    """Try all edits; 0 if nothing was believed."""
    pictures = (mistakes.section, positions.section, capsules.section, samples.section)  # take long, hold no numbers
    pipeline.PLAIN = tuple(section for section in pipeline.PLAIN if section not in pictures)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "home"
        run, committed = prepare(home)
        again = {"eval": (*EVAL, run.name, "--limit", "200"), "eval anew": (*EVAL, run.name, "--limit", "300")}
        sets = sorted((home / "data" / "sets").glob(f"{AFFINE}-test-*.[hm]*"))
        counts = attack("run", sorted(run.glob("[!.]*")), home, READERS | again)
        counts += attack("set", sets, home, READERS | again)
        counts += attack("committed", sorted(committed.glob("[!.]*")), home, {"leaderboard": READERS["leaderboard"]})
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    return int(bool({"BELIEVED", "NOT FOUND", "a bug"} & counts.keys()))


if __name__ == "__main__":
    sys.exit(main())
