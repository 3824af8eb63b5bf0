"""The comparison of block sizes, as far as it goes without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "blocks.py"


def test_what_a_block_needs_is_told_without_a_gpu():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--sizes", "1x16", "--blocks", "16x16"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for kernel in ("iterate", "backward"):
        assert f"    {kernel}: 0 bytes spilled, " in done.stdout
