"""A process killed at any moment leaves nothing that is believed, and the same command then gives the same results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_kills_in_every_stage_cost_nothing_but_time() -> None:
    done = subprocess.run(
        [sys.executable, str(KILLS), "--kills", "6", "--json"], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    counts = json.loads(done.stdout)
    assert {name: stage["kills"] for name, stage in counts.items()} == dict.fromkeys(
        ("fetch", "convert", "train", "eval", "sweep", "report"), 1
    )
    for stage in counts.values():
        assert stage["halves_believed"] == 0, done.stderr
        assert stage["reruns_completed"] == stage["results_equal"] == stage["kills"], done.stderr
