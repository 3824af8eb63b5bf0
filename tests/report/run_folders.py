"""Run folders as training and evaluation leave them, made without either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from affbench.analysis.results import LabelledRun
from affbench.base import store
from affbench.base.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from affbench.base.errors import AffbenchError
from affbench.base.statistics import clustered_interval, wilson_interval
from affbench.data import sets
from affbench.run.folder import (
    CONFIG,
    ENVIRONMENT,
    HISTORY,
    BinShare,
    ClassShare,
    Epoch,
    EvaluationRecord,
    Run,
    Share,
    history_to_csv,
)
from affbench.run.record import predictions_path

FACTORS = {"rotation": (-20, 20), "shear": (-0.2, 0.2), "horizontal_translation": (-6, 6)}


def share(right: np.ndarray) -> dict[str, Any]:
    n, correct = len(right), int(right.sum())
    return {"n": n, "correct": correct, "accuracy": correct / n, "ci95": wilson_interval(correct / n, n)}


def record(run: Path, config: RunConfig, name: str, accuracy: float, n: int = 640, copies: int = 1) -> EvaluationRecord:
    """An evaluation whose accuracy is exactly the nearest possible to `accuracy`, its predictions saved."""
    rng = np.random.default_rng(abs(hash((name, round(accuracy, 6)))) % 2**32)
    labels, right = np.arange(n) % 10, np.zeros(n, bool)
    right[rng.permutation(n)[: round(accuracy * n)]] = True
    predicted = np.where(right, labels, (labels + rng.integers(1, 10, n)) % 10)
    predictions = predictions_path(Run(run), name.replace("/", "_"))
    run.mkdir(parents=True, exist_ok=True)
    with h5py.File(predictions, "w") as file:
        file["predictions"], file["labels"] = predicted.astype(np.uint8), labels.astype(np.uint8)
        if copies > 1:
            file["source_index"] = np.arange(n) // copies
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    affine = None
    if copies > 1:
        affine = {}
        for factor, (low, high) in FACTORS.items():
            edges = np.linspace(low, high, 9)
            where = rng.integers(0, 8, n)
            affine[factor] = tuple(
                BinShare(low=edges[i], high=edges[i + 1], **share(right[where == i]))
                for i in range(8)
                if (where == i).any()
            )
    clustered = clustered_interval(right, np.arange(n) // copies) if copies > 1 else None
    whole = Share(**share(right))
    return EvaluationRecord(
        set=name,
        split="test",
        set_key=_key(name),
        copies=copies if copies > 1 else None,
        limit=None,
        run=run.name,
        model=config.model.name,
        routings=config.model.routings,
        seed=config.training.seed,
        n=n,
        n_originals=n // copies,
        correct=whole.correct,
        accuracy=whole.accuracy,
        accuracy_ci95=whole.ci95,
        accuracy_ci95_clustered=clustered,
        per_class=tuple(ClassShare(label=k, **share(right[labels == k])) for k in range(10)),
        confusion=tuple(tuple(int(c) for c in row) for row in confusion),
        by_transformation=affine,
        checkpoint_sha256="0" * 64,
        device="cpu",
        precision="float32",
        seconds=1.5,
        key="1" * 64,
        predictions_sha256=store.file_hash(predictions),
        affbench_version="0.1.0",
    )


def _key(name: str) -> str:
    """That of the set as it is made today."""
    try:
        return sets.find_part(name, "test").key(Path())
    except AffbenchError:  # official, or a name that only tests have
        return f"key-{name}"


def make_run(
    folder: Path,
    label: str = "CapsNet",
    *,
    model: str = "capsnet",
    options: dict[str, Any] | None = None,
    seed: int = 0,
    accuracy: dict[str, float] | None = None,
    validation: Sequence[float] = (0.90, 0.95, 0.94),
    name: str | None = None,
    finished: bool = True,
    environment: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    copies: int = 8,
    stop_at: float | None = None,
    origin: dict[str, Any] | None = None,
) -> LabelledRun:
    """Write a run's folder and label it."""
    config = RunConfig(
        model=ModelConfig(name=model, options=options or {}),
        data=DataConfig(**(data or {"train_set": "mnist-translated", "shift": 6})),
        training=TrainingConfig(seed=seed, epochs=len(validation), stop_at=stop_at),
    )
    routing = f"-r{config.model.routings}" if config.model.routings else ""
    path = folder / (name or f"{model}{routings_free(routing)}-seed{seed}-{abs(hash(label)) % 16**8:08x}")
    history = [
        Epoch(e, 100 * e, 1e-3 * 0.9**e, 0.5 / e, value - 0.02, value, 12.5, 960.0)
        for e, value in enumerate(validation, start=1)
    ]
    store.write_text(path / CONFIG, config.to_toml())
    store.write_text(path / HISTORY, history_to_csv(history))
    store.write_json(
        path / ENVIRONMENT,
        {
            "parameters": 4_061_696,
            "seed": seed,
            "device": "cpu",
            "selected_by": "validation accuracy on mnist-translated, n = 10,000",
            "train_images": 12_000,
            "device_name": "a small computer",
            "precision": "float32",
            "affbench": "0.1.0",
            "torch": "2.9",
            "python": "3.12.1",
        }
        | (environment or {}),
    )
    if finished:
        store.seal(
            path,
            "train",
            1,
            {"config": config.model_dump(mode="json")} | (origin or {}),
            [CONFIG, HISTORY, ENVIRONMENT],
        )
    sets = {"mnist-translated": 0.96, "affnist-synthetic": 0.72} if accuracy is None else accuracy
    for set_name, value in sets.items():
        versions = copies if set_name.startswith("affnist") else 1
        content = record(path, config, set_name, value, copies=versions).model_dump(mode="json")
        store.write_json(path / f"eval-{set_name.replace('/', '_')}.json", content)
    return LabelledRun(label, Run(path))


def routings_free(text: str) -> str:
    return text


def study(folder: Path, seeds: int = 3) -> list[LabelledRun]:
    """A small study: a sweep of a CapsNet over routing iterations and two CNNs, several seeds each."""
    rng = np.random.default_rng(7)
    runs = []
    for seed in range(seeds):
        for routings in (1, 3, 5, 10):
            values = {
                "mnist-translated": 0.962 + 0.004 * rng.normal(),
                "affnist-synthetic": 0.70 + 0.008 * np.log(routings) + 0.01 * rng.normal(),
            }
            options = {"routings": routings, "reconstruction": 0.0005, "filters": 64}
            curve = np.sort(0.97 - 0.3 * np.exp(-np.arange(8) / 1.5) + 0.004 * rng.normal(size=8))
            runs.append(make_run(folder, options=options, seed=seed, accuracy=values, validation=list(curve)))
        for label, model, base, size in (
            ("CNN", "cnn", 0.644, 1_670_000),
            ("CNN, global pooling", "cnn-gap", 0.80, 180_000),
        ):
            values = {
                "mnist-translated": 0.965 + 0.004 * rng.normal(),
                "affnist-synthetic": base + 0.01 * rng.normal(),
            }
            curve = np.sort(0.97 - 0.4 * np.exp(-np.arange(8) / 2) + 0.004 * rng.normal(size=8))
            environment = {"parameters": size}
            runs.append(
                make_run(
                    folder, label, model=model, seed=seed, accuracy=values, validation=list(curve),
                    environment=environment,
                )
            )  # fmt: skip
    return runs
