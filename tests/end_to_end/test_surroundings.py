"""Folders, displays and streams as users have them: work is done, or one sentence says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PUBLISHED = Path(__file__).parents[2] / "results"
NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


def ended(
    folder: Path, *arguments: str, start: str = '"$@"', **environment: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    """How a command ended that a shell started in a folder, and the sentence it failed with."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {start}", "sh", sys.executable, "-m", "affbench", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    assert "This is a bug" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done, done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_display_and_typesetting_that_are_not_there_are_not_needed(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: true\n")
    backend = "module://matplotlib_inline.backend_inline"
    assert ended(tmp_path, "show", "--set", "mnist-translated-sample", MPLBACKEND=backend)[0].returncode == 0


@NEEDS_FULL
def test_full_output_is_told(tmp_path: Path) -> None:
    for arguments in (("status", "--json"), ("--help",)):
        done, sentence = ended(tmp_path, *arguments, start='"$@" >/dev/full')
        assert done.returncode == 1
        assert sentence == "affbench: standard output cannot be written (No space left on device); send it elsewhere."


@pytest.mark.parametrize(
    "start",
    [
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        pytest.param('"$@" 2>/dev/full', marks=NEEDS_FULL),
        '"$@" | true',
    ],
)
def test_streams_that_take_nothing_do_not_matter(tmp_path: Path, start: str) -> None:
    assert ended(tmp_path, "status", "--json", start=start)[0].returncode == 0


def test_characters_that_the_encoding_lacks_do_not_matter(tmp_path: Path) -> None:
    for document in ((), ("--json",)):
        done, _ = ended(tmp_path, "leaderboard", "--results-dir", str(PUBLISHED), *document, PYTHONIOENCODING="ascii")
        assert done.returncode == 0
    assert "48×48 canvas" in str(json.loads(done.stdout))
