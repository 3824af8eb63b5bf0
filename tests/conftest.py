"""What many tests share: a workspace of its own, a run small enough to train in a moment, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from affbench.cli import app
from affbench.config import RunConfig
from affbench.workspace import Workspace

SAMPLE = "mnist-translated-sample"
TINY_CAPSNET = {"filters": 4, "primary_types": 2, "decoder": [8, 8]}
TINY_CNN = {"filters": [4, 4], "hidden": 8}


def tiny_config(**training: Any) -> RunConfig:
    """A CapsNet and an amount of data that train in a moment."""
    return RunConfig.model_validate(
        {
            "model": {"name": "capsnet", "options": TINY_CAPSNET},
            "data": {"train_set": SAMPLE, "limit": 96},
            "training": {"epochs": 2, "batch_size": 32, "precision": "float32"} | training,
        }
    )


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that tests share, so that sets are converted once; tests that damage data make their own."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def workspace(tmp_path: Path, data_dir: Path) -> Workspace:
    """Shared data, results of its own, on the CPU."""
    return Workspace(data_dir, tmp_path / "results", "cpu")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The JSON document on standard output."""
        return json.loads(self.stdout)


Affbench = Callable[..., Ended]


@pytest.fixture
def affbench(workspace: Workspace) -> Affbench:
    """Run a command in this process, in the test's workspace."""

    def run(*arguments: str, data_dir: Path = workspace.data, results_dir: Path = workspace.results) -> Ended:
        environment = {"AFFBENCH_DATA_DIR": str(data_dir), "AFFBENCH_RESULTS_DIR": str(results_dir)}
        result = CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run
