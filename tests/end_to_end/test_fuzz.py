"""A short run of the fuzzer, so that neither it nor the readers rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).parents[2] / "benchmarks" / "fuzz_readers.py"


def test_damaged_files_end_in_a_result_or_one_clear_error(tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZER), "--inputs", "340", "--seed", "7", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "340 inputs" in done.stdout
    for reader in ("idx images", "mat 7.3", "npz images", "converted set", "checkpoint", "pipeline toml"):
        assert reader in done.stdout
    assert not list(tmp_path.iterdir())
