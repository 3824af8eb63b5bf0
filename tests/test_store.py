from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from affbench import store
from affbench.errors import ArtefactError, StorageError


def make(target: Path, content: str = "content", inputs: dict[str, object] | None = None) -> Path:
    return store.derive_file(target, "stage", 1, inputs or {"a": 1}, lambda path: path.write_text(content) and None)


def test_key_depends_on_stage_version_and_inputs_but_not_on_their_order() -> None:
    key = store.content_key("stage", 1, {"a": 1, "b": 2})
    assert key == store.content_key("stage", 1, {"b": 2, "a": 1})
    others = {
        store.content_key("other", 1, {"a": 1, "b": 2}),
        store.content_key("stage", 2, {"a": 1, "b": 2}),
        store.content_key("stage", 1, {"a": 1, "b": 3}),
    }
    assert key not in others
    assert len(others) == 3


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    store.write_text(target, "old")

    def cut_off() -> None:
        with store.atomic_path(target) as path:
            path.write_text("half of the n")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        cut_off()
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_derived_file_is_made_once(tmp_path: Path) -> None:
    made = []

    def write(path: Path) -> None:
        made.append(path)
        path.write_text("content")

    for _ in range(3):
        store.derive_file(tmp_path / "file", "stage", 1, {"a": 1}, write)
    assert len(made) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "damaged manifest"])
def test_damaged_derived_file_is_made_again(tmp_path: Path, damage: str) -> None:
    target = make(tmp_path / "file")
    if damage == "flip":
        target.write_text("cOntent")
    elif damage == "truncate":
        target.write_text("con")
    elif damage == "no manifest":
        store.manifest_path(target).unlink()
    else:
        store.manifest_path(target).write_text("{")
    assert make(target).read_text() == "content"
    assert store.cached(target, "stage", 1, {"a": 1})


def test_other_inputs_replace_a_derived_file(tmp_path: Path) -> None:
    make(tmp_path / "file", "first")
    assert make(tmp_path / "file", "second", {"a": 2}).read_text() == "second"


def test_verification_names_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    target = make(tmp_path / "file")
    manifest = store.read_manifest(target)
    assert manifest is not None
    target.write_text("cOntent")
    with pytest.raises(ArtefactError, match=r"file is damaged: its sha256"):
        store.verify(target, manifest)
    target.write_text("longer content")
    with pytest.raises(ArtefactError, match=r"file is damaged: it has 14 bytes, its manifest says 7"):
        store.verify(target, manifest)
    target.unlink()
    with pytest.raises(ArtefactError, match=r"file is missing"):
        store.verify(target, manifest)


def test_manifest_without_checksums_is_refused(tmp_path: Path) -> None:
    target = make(tmp_path / "file")
    path = store.manifest_path(target)
    content = json.loads(path.read_text())
    content["files"]["file"].pop("sha256")
    path.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="lacks the checksum"):
        store.read_manifest(target)


def test_full_disk_is_said_and_nothing_stays(tmp_path: Path) -> None:

    def fill() -> None:
        with store.atomic_path(tmp_path / "file"), Path("/dev/full").open("w") as file:
            file.write("x" * 10_000)

    with pytest.raises(StorageError, match=r"cannot write .*file: the disk is full; free some space"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="cannot write"):
        store.write_text(tmp_path / "data" / "file", "text")


def test_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from affbench import store; from affbench.errors import StorageError\n"
        "try:\n  store.lock(pathlib.Path(sys.argv[1]), timeout=0.1).__enter__()\n"
        "except StorageError as error:\n  sys.exit(str(error))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    with store.lock(tmp_path / "file"):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is being written by another process" in refused.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_written_files_respect_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        store.write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
