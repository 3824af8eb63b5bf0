from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from affbench.base import store
from affbench.base.errors import ArtefactError, StorageError


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
    with pytest.raises(ArtefactError, match=r"file is damaged: its size or sha256"):
        store.verify(target, manifest)
    target.write_text("longer content")
    with pytest.raises(ArtefactError, match=r"file is damaged: its size or sha256"):
        store.verify(target, manifest)
    target.unlink()
    with pytest.raises(ArtefactError, match=r"file cannot be read \(No such file"):
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


@pytest.fixture
def short_files() -> Iterator[int]:
    """No file of this process may grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    yield 1_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_tensors(path: Path) -> None:
    save_file({"weights": torch.zeros(2_000)}, path)


@pytest.mark.parametrize("save", [save_tensors, partial(torch.save, torch.zeros(2_000))], ids=["safetensors", "torch"])
def test_libraries_with_errors_of_their_own_do_not_hide_a_full_disk(
    tmp_path: Path, short_files: int, save: Callable[[Path], None]
) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot write .*file: .*'ulimit -f'"),
        store.atomic_path(tmp_path / "file") as path,
    ):
        save(path)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of its own"), store.atomic_path(tmp_path / "file"):
        raise RuntimeError("an error of its own")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.ENOSPC, "no space"), "the disk is full"),
        (OSError(errno.EDQUOT, "quota"), "quota is used up"),
        (OSError(errno.EFBIG, "large"), "raise the limit, or choose another folder"),
        (OSError(errno.EIO, "damaged"), "the disk reports an error"),
        (OSError(errno.ESTALE, "stale"), "run the same command again once it is back"),
        (OSError("file write failed: errno = 28, error message = 'No space left on device'"), "the disk is full"),
        (OSError("file write failed: errno = 2, error message = 'No such file'"), "errno = 2,"),
        (OSError(errno.EMLINK, "too many links"), "too many links"),
    ],
)
def test_errors_of_the_operating_system_say_what_to_do(tmp_path: Path, error: OSError, hint: str) -> None:
    with pytest.raises(StorageError, match=f"cannot write .*file: .*{hint}"), store.writing(tmp_path / "file"):
        raise error


def test_folder_that_vanishes_while_a_file_is_written_is_said(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"

    def write() -> None:
        with store.atomic_path(target) as path:
            path.write_text("content")
            shutil.rmtree(target.parent)

    with pytest.raises(StorageError, match="folder vanished meanwhile; run the same command again"):
        write()
    assert not target.parent.exists()


def test_artefact_that_lost_a_file_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    with pytest.raises(StorageError, match=r"cannot be finished: .*b vanished meanwhile; run the same command again"):
        store.seal(tmp_path, "stage", 1, {}, ["a", "b"])
    assert store.read_manifest(tmp_path) is None


def test_folder_that_vanishes_under_a_lock_is_said_even_if_it_is_made_again(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"

    def write(*, again: bool, damaged: bool = False) -> None:
        with store.lock(target):
            shutil.rmtree(target.parent)
            if again:
                store.write_text(target, "the rest")
            if damaged:
                (target.parent / "before").read_text()

    for options in ({"again": True}, {"again": False}, {"again": True, "damaged": True}):
        with pytest.raises(StorageError, match="folder vanished meanwhile"):
            write(**options)
    with store.lock(target):  # and no lock is left behind
        (target.parent / ".file.lock").unlink()  # as `clean` may do in the moment before a lock is taken


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="cannot write"):
        store.write_text(tmp_path / "data" / "file", "text")


def test_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from affbench.base import store; from affbench.base.errors import StorageError\n"
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
