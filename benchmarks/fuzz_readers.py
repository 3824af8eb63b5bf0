"""Damaged files for every reader: each must end in a result or in one deliberate error.

    python benchmarks/fuzz_readers.py --inputs 20000

Small valid files (IDX, .mat of both kinds, .npz, zip archives, converted sets, run configurations, histories,
evaluation records, manifests, checkpoints) are mutated: bits flipped, bytes overwritten by telling values, pieces cut
out, doubled, exchanged with pieces of other files, the end cut off. Readers run in worker processes, so that a crash,
a hang or an exhausted memory is counted as well. Prints the counts per reader and ends with status 1 if anything but
a result or an `AffbenchError` came out; inputs that did so are kept in --keep.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import queue
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import h5py
import numpy as np
import scipy.io
import torch
from safetensors.torch import save_file

from affbench.base import store
from affbench.base.config import RunConfig, read_pipeline, read_run_config
from affbench.base.errors import AffbenchError
from affbench.data import hdf5, idx
from affbench.data.affnist import export_mat, read_homnist, read_mat
from affbench.data.convert import write_affnist
from affbench.data.dataset import Dataset
from affbench.data.synthesis import synthesize
from affbench.run.folder import Epoch, Run, history_from_csv, history_to_csv, read_evaluation
from affbench.run.record import load_model

SECONDS, MEMORY = 20, 6 << 30  # limits for one input, in seconds of a processor, and one worker
TELLING = (0, 1, 2, 0x7F, 0x80, 0xFF)
ATTRIBUTES = {"name": "fuzzed", "split": "test", "source": "here", "sha256": "", "license": "free"}


def seeds(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """Valid files, and what reads each of them."""
    rng = np.random.default_rng(0)
    images = np.zeros((7, 28, 28), np.uint8)
    images[:, 6:20, 8:18] = rng.integers(0, 256, (7, 14, 10))
    made = synthesize(images, np.arange(7, dtype=np.uint8), copies=2, seed=0)

    def at(name: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    body = b"\x00\x00\x08\x03" + np.array([7, 28, 28], ">u4").tobytes() + images.tobytes()
    at("images-idx3-ubyte").write_bytes(body)
    at("labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x07" + bytes(range(7)))
    at("images-idx3-ubyte.gz").write_bytes(gzip.compress(body))
    export_mat(made, at("v5.mat"))
    content = scipy.io.loadmat(at("v5.mat"))["affNISTdata"][0, 0]
    fields = {name: content[name] for name in content.dtype.names}
    scipy.io.savemat(at("plain.mat"), {"affNISTdata": fields}, do_compression=False)
    with h5py.File(at("v73.mat"), "w") as file:
        for name, value in fields.items():
            file[f"affNISTdata/{name}"] = value.T
    with zipfile.ZipFile(at("test.mat.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(at("v5.mat"), "test.mat")
    np.savez_compressed(at("npz/affNIST_test_x.npz"), made.images.reshape(-1, 1600))
    np.savez_compressed(at("npz/affNIST_test_y.npz"), made.labels)
    scipy.io.savemat(
        at("homNIST_test.mat"), {"img_data": made.images, "labels": made.labels, "hom_matrices": np.ones((14, 3, 3))}
    )
    hdf5.write_set(at("set.h5"), made, ATTRIBUTES)
    at("run.toml").write_text(RunConfig().to_toml())
    at("pipeline.toml").write_text('title = "t"\nseeds = [0, 1]\n[[runs]]\nmodel = "capsnet"\nroutings = [1, 3]\n')
    at("history.csv").write_text(history_to_csv([Epoch(1, 10, 1e-3, 0.5, 0.9, 0.8, 1.5, 99.0)] * 3))
    store.write_json(at("eval.json"), _record())
    store.seal(at("set.h5"), "convert", 1, {})
    at("file").write_text("content")
    store.seal(at("file"), "stage", 1, {"a": 1})
    run = _run(folder / "run")

    def both(path: Path) -> Any:
        labels = folder / "npz" / "affNIST_test_y.npz"
        return (
            _converted(path, labels) if "_x" in path.name else _converted(folder / "npz" / "affNIST_test_x.npz", path)
        )

    def manifest(path: Path) -> Any:
        found = store.read_manifest(path.with_name(path.name.removesuffix(".manifest.json")))
        return found and store.verify(folder / "file", found)

    def converted(path: Path) -> Any:
        found = store.read_manifest(path)
        assert found is not None
        store.verify(path, found)  # HDF5 can be made to loop, so affbench opens no set of its own unverified
        return hdf5.read_set(path)

    def checkpoint(path: Path) -> Any:
        (run.path / "model.safetensors").write_bytes(path.read_bytes())
        found = store.read_manifest(run.path)
        store.seal(run.path, "train", 1, found.inputs if found else {}, ["config.toml", "model.safetensors"])
        return load_model(run)

    (folder / "model.safetensors").write_bytes((run.path / "model.safetensors").read_bytes())
    return {
        "idx images": (at("images-idx3-ubyte"), partial(idx.read, what="images")),
        "idx images, gzip": (at("images-idx3-ubyte.gz"), partial(idx.read, what="images")),
        "idx labels": (at("labels-idx1-ubyte"), partial(idx.read, what="labels")),
        "mat 7, compressed": (at("v5.mat"), read_mat),
        "mat 5": (at("plain.mat"), read_mat),
        "mat 7.3": (at("v73.mat"), read_mat),
        "mat in zip": (at("test.mat.zip"), read_mat),
        "npz images": (at("npz/affNIST_test_x.npz"), both),
        "npz labels": (at("npz/affNIST_test_y.npz"), both),
        "homnist mat": (at("homNIST_test.mat"), read_homnist),
        "converted set": (at("set.h5"), converted),
        "run toml": (at("run.toml"), read_run_config),
        "pipeline toml": (at("pipeline.toml"), lambda path: read_pipeline(path).expand()),
        "history csv": (at("history.csv"), history_from_csv),
        "evaluation json": (at("eval.json"), read_evaluation),
        "manifest json": (at("file.manifest.json"), manifest),
        "checkpoint": (at("model.safetensors"), checkpoint),
    }


def _converted(images: Path, labels: Path) -> Dataset:
    target = images.parent / "converted.h5"
    write_affnist(target, [images, labels], ATTRIBUTES)
    return hdf5.read_set(target)


def _run(folder: Path) -> Run:
    from affbench.models import build_model

    options = {"filters": 2, "primary_types": 1, "decoder": [4]}
    config = RunConfig.model_validate({"model": {"options": options}})
    store.write_text(folder / "config.toml", config.to_toml())
    save_file(build_model("capsnet", **options).state_dict(), folder / "model.safetensors")
    store.seal(folder, "train", 1, {}, ["config.toml", "model.safetensors"])
    return Run(folder)


def _record() -> dict[str, Any]:
    share = {"n": 4, "correct": 3, "accuracy": 0.75, "ci95": [0.3, 0.95]}
    names = ("set", "split", "set_key", "run", "model", "checkpoint_sha256", "device", "precision", "key")
    return dict.fromkeys(names, "x") | {
        "copies": None,
        "limit": None,
        "routings": 3,
        "seed": 0,
        "n": 4,
        "n_originals": 4,
        "correct": 3,
        "accuracy": 0.75,
        "accuracy_ci95": [0.3, 0.95],
        "accuracy_ci95_clustered": None,
        "per_class": [share | {"label": 0}],
        "confusion": [[3, 1], [0, 0]],
        "by_transformation": {"rotation": [share | {"low": -1.0, "high": 1.0}]},
        "seconds": 1.0,
        "affbench_version": "0",
    }


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to eight random injuries."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            break
        # Headers matter most, so half of the injuries go to the first bytes.
        at = rng.randrange(min(len(data), 256)) if rng.random() < 0.5 else rng.randrange(len(data))
        length = rng.choice((1, 2, 4, 8, 32, 200))
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = bytes([rng.choice(TELLING)]) * min(length, 8)
        elif kind == 2:
            data[at : at + 4] = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32))).to_bytes(4, "big")
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(max(1, len(other) - length))
            data[at : at + length] = other[start : start + length]
        elif kind == 6:
            data[at:at] = data[at : at + length] * rng.choice((100, 20_000 // length))
        else:
            del data[at:]
    return bytes(data)


class SlowError(Exception):
    """An input took longer than it may."""


def work(first: int, last: int, seed: int, keep: Path) -> None:
    """Read inputs `first` to `last` − 1, and print a line of JSON after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)

    def slow(number: int, frame: FrameType | None) -> None:
        raise SlowError

    signal.signal(signal.SIGPROF, slow)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        known = seeds(Path(name))
        contents = {kind: path.read_bytes() for kind, (path, _) in known.items()}
        for number in range(first, last):
            rng = random.Random(f"{seed}-{number}")
            kind = list(known)[number % len(known)]
            path, read = known[kind]
            injured = mutate(contents[kind], list(contents.values()), rng)
            path.write_bytes(injured)
            sys.stdout.write(json.dumps({"started": number, "kind": kind}) + "\n")
            sys.stdout.flush()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                read(path)
                outcome = "read"
            except AffbenchError as error:
                outcome = "refused" if "\n" not in str(error) else f"failure: several lines: {error}"
            except SlowError:
                outcome = f"failure: more than {SECONDS} s"
            except BaseException as error:  # everything else is what this program looks for
                outcome = f"failure: {type(error).__name__}: {error}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if outcome.startswith("failure"):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}-{path.name}").write_bytes(injured)
            path.write_bytes(contents[kind])
            sys.stdout.write(json.dumps({"ended": number, "kind": kind, "outcome": outcome[:300]}) + "\n")
            sys.stdout.flush()


def _pass_on(source: IO[str], lines: queue.Queue[str]) -> None:
    for line in source:
        lines.put(line)
    lines.put("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("results/fuzz"))
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*given.worker, given.seed, given.keep)
        return
    started = time.monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    pending = [(at, min(at + 2000, given.inputs)) for at in range(0, given.inputs, 2000)]
    while pending:
        first, last = pending.pop(0)
        command = [sys.executable, __file__, "--seed", str(given.seed), "--keep", str(given.keep.resolve())]
        command += ["--worker", str(first), str(last)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert worker.stdout is not None
        under_way: dict[str, Any] | None = None
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pass_on, args=(worker.stdout, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=15 * SECONDS)
            except queue.Empty:  # stuck in compiled code, where no signal handler runs
                worker.kill()
                break
            if not line:
                break
            event = json.loads(line)
            if "started" in event:
                under_way = event
                continue
            under_way = None
            kind, outcome = event["kind"], event["outcome"]
            counts[kind, outcome.partition(":")[0]] += 1
            if outcome.startswith("failure"):
                failures.append(f"{event['ended']} ({kind}): {outcome}")
        if worker.wait() != 0 and under_way is None:
            raise SystemExit(f"the worker for inputs {first} to {last} ended with status {worker.returncode}")
        if under_way is not None:  # it died while reading this one
            counts[under_way["kind"], "failure"] += 1
            failures.append(f"{under_way['started']} ({under_way['kind']}): the process died ({worker.returncode})")
            pending.insert(0, (under_way["started"] + 1, last))
    kinds = sorted({kind for kind, _ in counts})
    print(f"{'reader':20} {'inputs':>8} {'read':>8} {'refused':>8} {'failures':>8}")
    for kind in kinds:
        numbers = [counts[kind, outcome] for outcome in ("read", "refused", "failure")]
        print(f"{kind:20} {sum(numbers):8,} {numbers[0]:8,} {numbers[1]:8,} {numbers[2]:8,}")
    print(f"{sum(counts.values()):,} inputs in {time.monotonic() - started:.0f} s, {len(failures)} failures")
    print(*failures[:30], sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
