"""What a sweep of many tiny cells costs beyond the work itself, on the local engine and on Ray.

    python benchmarks/load.py --cells 200

The work itself is building the model, training it, validating and testing it, in one process with the sets in memory.
Overhead is the rest: planning, locks, reading sets, checksums, writing runs and, on Ray, the way there and back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from affbench.base.config import EvaluationConfig, RunConfig, override
from affbench.base.progress import Progress
from affbench.base.workspace import Workspace
from affbench.data import sets
from affbench.data.batches import TrainingBatches
from affbench.experiment.cells import Cell, Engine, using_threads
from affbench.experiment.pipeline import report_all, run_cells_on
from affbench.models import build_model
from affbench.models.loss import loss_and_scores
from affbench.run.evaluate import evaluate, predict
from affbench.run.plan import plan_run
from affbench.run.train import load_training_digits

SAMPLE = "mnist-translated-sample"
TESTED = EvaluationConfig(sets=(SAMPLE,), limit=100)


def tiny_config(seed: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"name": "cnn", "options": {"filters": [2, 2], "hidden": 4}},
            "data": {"train_set": SAMPLE, "limit": 64},
            "training": {"epochs": 1, "batch_size": 32, "precision": "float32", "seed": seed},
        }
    )


def work_itself(data: Path, repeats: int) -> float:
    """Median seconds of what a cell is for."""
    config = override(plan_run(tiny_config(0), Workspace(data, data, "cpu")).config)
    digits, augmentation = load_training_digits(config, data)
    validation = sets.load_dataset(SAMPLE, "validation", data)
    test = sets.load_dataset(SAMPLE, "test", data, limit=TESTED.limit)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        batches = TrainingBatches(digits, augmentation, config.training.batch_size, 0, torch.device("cpu"))
        model = build_model("cnn", canvas=40, **config.model.options)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        for images, labels in batches.epoch(0):
            loss, _ = loss_and_scores(model, images, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        predict(model, validation)
        evaluate(model, test)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


class Memory(Progress):
    """Notes this process's memory whenever a cell is done."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self.at: list[float] = []

    def note(self, text: str) -> None:
        if text.startswith("["):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.megabytes.append(pages * 4096 / 1e6)
            self.at.append(time.perf_counter())


def measure(engine: Engine, count: int, data: Path, results: Path) -> dict[str, float | str]:
    """Run the cells and say what each took."""
    memory = Memory()
    workspace = Workspace(data, results, "cpu", memory)
    started = time.perf_counter()
    cells = [Cell("tiny", plan_run(tiny_config(seed), workspace)) for seed in range(count)]
    result = run_cells_on(engine, cells, TESTED, workspace)
    seconds = time.perf_counter() - started
    assert not any(cell.error for cell in result), result[0].error
    tenth = max(1, count // 10)
    return {
        "engine": engine.name,
        "cells": count,
        "seconds": seconds,
        "seconds_to_first": memory.at[0] - started,
        "seconds_per_cell": (memory.at[-1] - memory.at[0]) / (count - 1),  # without starting Ray and its worker
        "megabytes_after_a_tenth": memory.megabytes[tenth - 1],
        "megabytes_at_the_end": memory.megabytes[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--engines", default="local,ray")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, using_threads(1):
        work = Path(folder)
        for split in ("train", "validation", "test"):
            sets.load_dataset(SAMPLE, split, work / "data")
        rows = []
        for name in options.engines.split(","):
            # Ray runs one cell at a time too, so that both engines have the machine to themselves.
            engine = Engine("ray" if name == "ray" else "local", cpus=1)
            if name == "ray":
                import ray

                ray.init(
                    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
                )
            before = work_itself(work / "data", 15)
            row = measure(engine, options.cells, work / "data", work / name)
            own = statistics.mean([before, work_itself(work / "data", 15)])  # before and after: machines are not steady
            rows.append(row | {"work_itself": own, "overhead_per_cell": float(row["seconds_per_cell"]) - own})
            if name == "ray":
                ray.shutdown()
        started = time.perf_counter()
        report_all(replace(Workspace(work / "data", work / options.engines.split(",")[0], "cpu")))
        reported = time.perf_counter() - started
    threads = threading.active_count()
    if options.json:
        print(json.dumps({"engines": rows, "report_seconds": reported, "threads_left": threads}))
        return
    for row in rows:
        print(
            f"{row['engine']}: {row['cells']} cells in {row['seconds']:.1f} s (first after "
            f"{row['seconds_to_first']:.1f} s), {row['seconds_per_cell']:.3f} s a cell, of which "
            f"{row['work_itself']:.3f} s are the work itself: overhead {row['overhead_per_cell']:.3f} s a cell; memory "
            f"{row['megabytes_after_a_tenth']:.0f} MB after a tenth, {row['megabytes_at_the_end']:.0f} MB at the end"
        )
    print(f"report over {options.cells} runs: {reported:.1f} s")


if __name__ == "__main__":
    main()
