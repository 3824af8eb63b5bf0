from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from tiny import SAMPLE, Affbench, tiny_config

from affbench.base import store
from affbench.base.workspace import Workspace
from affbench.data import sets
from affbench.experiment.housekeeping import diagnose, find_leftovers, remove
from affbench.run.record import evaluate_run
from affbench.run.train import train


@pytest.fixture
def used(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of its own with a run that was trained and tested."""
    shutil.copytree(workspace.data, tmp_path / "data")
    for path in sets.sets_dir(tmp_path / "data").glob("*"):
        path.unlink()
    own = Workspace(tmp_path / "data", tmp_path / "results", "cpu")
    evaluate_run(train(tiny_config(epochs=1), own), sets.find_part(SAMPLE), own)
    return own


def names(workspace: Workspace) -> set[str]:
    return {leftover.path.name for leftover in find_leftovers(workspace.data, workspace.results)}


def test_sets_that_runs_use_are_kept_and_others_go(used: Workspace) -> None:
    before = set(sets.sets_dir(used.data).glob("*.h5"))
    padded = sets.find_part("mnist-padded-sample").ensure(used.data)
    stale = padded.with_name("mnist-sample-test-01234567.h5")
    shutil.copy(padded, stale)
    leftovers = [item for item in find_leftovers(used.data, used.results) if item.path.suffix == ".h5"]
    assert {item.path for item in leftovers} == {padded, stale}
    assert remove(leftovers) == sum(item.bytes for item in leftovers)
    assert set(sets.sets_dir(used.data).glob("*.h5")) == before
    assert not store.manifest_path(padded).exists()


def test_files_of_dead_processes_go_and_those_of_the_living_stay(used: Workspace) -> None:
    converted = next(sets.sets_dir(used.data).glob("*.h5")).name
    old, new = (sets.sets_dir(used.data) / f".{converted}.{part}.part" for part in ("abcdefgh", "abcdefg0"))
    (run,) = (used.results / "runs").glob("capsnet*")
    measured = [run / stage / ".rotation.json.abcdefgh.part" for stage in ("factors", "entropy")]
    page = used.results / "reports" / ".all.part"
    (page / "all").mkdir(parents=True)
    for path in (old, new, page / "all" / "report.md", *measured):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    for path in (old, page, *measured):
        os.utime(path, (time.time() - 7200,) * 2)
    with store.lock(sets.sets_dir(used.data) / converted):
        found = names(used)
    assert {old.name, page.name} <= found
    assert set(measured) <= {leftover.path for leftover in find_leftovers(used.data, used.results)}
    assert not {new.name, f".{converted}.lock"} & found


def test_files_of_strangers_stay(used: Workspace) -> None:
    strangers = [
        used.data / ".mine.part",
        used.data / "raw" / "mnist" / ".notes.abcdefgh.part",
        used.data / "sets" / "mydigits.h5",
        used.data / "sets" / ".mydigits.h5.lock",
        used.results / ".package.lock",
        used.results / "runs" / ".backup.part",
        used.results / "reports" / ".study.part" / "thesis.tex",
        used.results / "reports" / ".study.lock",
        used.results / "reference" / ".kept.part",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
        for aged in (path, path.parent):
            os.utime(aged, (0, 0))
    remove(find_leftovers(used.data, used.results))
    assert [path for path in strangers if not path.exists()] == []


def test_dry_run_deletes_nothing(affbench: Affbench, used: Workspace) -> None:
    sets.find_part("mnist-padded-sample").ensure(used.data)
    folders = {"data_dir": used.data, "results_dir": used.results}
    before = sorted(used.data.rglob("*"))
    plan = affbench("clean", "--dry-run", "--json", **folders).document
    assert plan["freed_bytes"] > 0
    assert sorted(used.data.rglob("*")) == before
    assert affbench("clean", "--json", **folders).document["freed_bytes"] == plan["freed_bytes"]
    assert affbench("clean", "--json", **folders).document["freed_bytes"] == 0
    assert affbench("eval", "--set", SAMPLE, "--device", "cpu", **folders).status == 0


def test_doctor_finds_a_healthy_workspace_healthy(used: Workspace) -> None:
    findings = list(diagnose(used.data, used.results))
    assert {finding.health for finding in findings} <= {"good", "note"}
    subjects = " ".join(finding.subject for finding in findings)
    for word in ("affbench", "device", "data folder", "results folder", "set mnist-sample-train", "run capsnet"):
        assert word in subjects


def test_doctor_finds_every_kind_of_damage(affbench: Affbench, used: Workspace) -> None:
    (run,) = (used.results / "runs").glob("capsnet*")
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    converted = next(sets.sets_dir(used.data).glob("mnist-sample-train-*.h5"))
    store.manifest_path(converted).unlink()
    (run / f"eval-{SAMPLE}.json").write_text("{}")
    raw = sets.raw_dir(used.data, "mnist")
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte.gz").write_text("not a label")
    ended = affbench("doctor", "--offline", "--json", data_dir=used.data, results_dir=used.results)
    assert ended.status == 1
    bad = [finding for finding in ended.document["findings"] if finding["health"] == "bad"]
    said = " ".join(f"{finding['subject']} {finding['text']}" for finding in bad)
    for word in ("model.safetensors is damaged", "no manifest", "is not what affbench writes there", "t10k-labels"):
        assert word in said
    assert len(bad) == 4


def test_doctor_survives_a_network_that_is_set_up_wrongly(
    affbench: Affbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    ended = affbench("doctor", "--json", data_dir=tmp_path / "data", results_dir=tmp_path / "results")
    assert ended.status == 0
    (finding,) = [each for each in ended.document["findings"] if each["subject"] == "mirrors of mnist"]
    assert "invalid path: /no/such/bundle.pem); check the certificates that REQUESTS_CA_BUNDLE" in finding["text"]
