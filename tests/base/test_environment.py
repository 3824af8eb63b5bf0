"""What is written down of the surroundings of a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from affbench.base import environment


def test_commit_is_that_of_the_checkout_and_tells_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "affbench" / "base" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(environment, "__file__", str(module))

    def commit() -> str | None:
        environment._commit.cache_clear()
        return environment.describe(torch.device("cpu"))["git_commit"]  # type: ignore[no-any-return]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        assert commit() is None
        git("init")
        git("add", ".")
        git("commit", "-m", "first")
        head = git("rev-parse", "HEAD")
        assert commit() == head
        module.write_text("changed")
        assert commit() == f"{head}+"
    finally:
        environment._commit.cache_clear()
