"""The first thing a newcomer runs, in small, as a newcomer runs it."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run(tmp_path: Path, *arguments: str) -> tuple[dict[str, object], str]:
    environment = os.environ | {
        "AFFBENCH_DATA_DIR": str(tmp_path / "data"),
        "AFFBENCH_RESULTS_DIR": str(tmp_path / "results"),
    }
    command = [sys.executable, "-m", "affbench", "run", "pipelines/quickstart.toml", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment)
    return json.loads(done.stdout), done.stderr


def test_quickstart_needs_no_download_and_is_done_once(tmp_path: Path) -> None:
    smaller = ("--limit", "96", "--epochs", "1", "--test-limit", "200")
    plan, _ = run(tmp_path, "--dry-run", *smaller)
    assert {step["state"] for step in plan["steps"]} == {"to do"}  # type: ignore[attr-defined]
    assert not (tmp_path / "results").exists()
    first, said = run(tmp_path, *smaller)
    assert len(first["cells"]) == 2  # type: ignore[arg-type]
    assert "images/s" in said
    page = html.unescape(Path(str(first["report"])).read_text())
    assert "not the paper's experiment" in " ".join(page.split())
    assert list((tmp_path / "results" / "reports" / "quickstart" / "figures").glob("*.png"))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    second, said = run(tmp_path, *smaller)
    assert "images/s" not in said
    assert second["cells"] == first["cells"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == stamps
