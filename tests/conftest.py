"""What many tests share: data, a workspace of their own, and the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import Affbench, Ended
from typer.testing import CliRunner

from affbench.base.workspace import Workspace
from affbench.cli.app import app

# Tests run side by side, each on one thread: more would only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Those that take longest begin, so that no worker is left alone with one of them at the end.
SLOWEST = ("test_ray", "test_full_disk", "test_kills", "test_vanished_folder", "test_fuzz", "test_distributed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that tests share, so that sets are converted once; tests that damage data make their own."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def workspace(tmp_path: Path, data_dir: Path) -> Workspace:
    """Shared data, results of its own, on the CPU."""
    return Workspace(data_dir, tmp_path / "results", "cpu")


@pytest.fixture
def affbench(workspace: Workspace) -> Affbench:
    """Run a command in this process, in the test's workspace."""

    def run(*arguments: str, data_dir: Path = workspace.data, results_dir: Path = workspace.results) -> Ended:
        environment = {"AFFBENCH_DATA_DIR": str(data_dir), "AFFBENCH_RESULTS_DIR": str(results_dir)}
        result = CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run
