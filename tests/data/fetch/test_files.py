from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from fetch_helpers import (
    CONTENT,
    MAT,
    QUICK,
    Recorder,
    checked,
    fetch_alternatives,
    fetch_file,
    fetch_source,
    find_file,
    left_in,
    md5,
    sha256,
    source_of,
    trusted,
    zipped,
)

from affbench.base.errors import DataError, DownloadError, StorageError, UsageError
from affbench.data.fetch.files import PART, Fetched
from affbench.data.fetch.http import shown
from affbench.data.fetch.sources import RemoteFile, Source


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(requests.Session, "request", refuse)


# The ordinary way


def test_fetches_verifies_and_records(site: Any, tmp_path: Path) -> None:
    url, progress = site.add("file.bin", CONTENT), Recorder()
    fetched = fetch_file(checked(url), tmp_path / "new" / "data", progress=progress, patience=QUICK)
    assert fetched == Fetched(tmp_path / "new" / "data" / "file.bin", sha256(CONTENT), url)
    assert fetched.path.read_bytes() == CONTENT
    assert progress.tasks == [("file.bin", len(CONTENT), "bytes")]
    assert progress.done == len(CONTENT)
    assert left_in(tmp_path / "new" / "data") == ["checksums.json", "file.bin"]


def test_what_is_there_and_right_needs_no_network(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.bin", CONTENT))
    first = fetch_file(file, tmp_path, patience=QUICK)
    assert fetch_file(file, tmp_path, patience=QUICK) == first  # its origin is remembered too
    assert find_file(file, tmp_path) == first
    assert len(site.requests) == 1


def test_what_is_there_but_damaged_is_fetched_again(site: Any, tmp_path: Path) -> None:
    file, progress = checked(site.add("file.bin", CONTENT)), Recorder()
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    assert find_file(file, tmp_path) is None
    assert fetch_file(file, tmp_path, progress=progress, patience=QUICK).path.read_bytes() == CONTENT
    assert md5(CONTENT[:-1]) in progress.notes[0]


def test_force_fetches_again(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.bin", CONTENT))
    fetch_file(file, tmp_path, patience=QUICK)
    fetch_file(file, tmp_path, patience=QUICK, force=True)
    assert len(site.requests) == 2


def test_addresses_are_tried_in_turn(site: Any, tmp_path: Path) -> None:
    good = site.add("good", CONTENT)
    file = checked(site.url + "absent", site.add("wrong", b"something else"), good)
    assert fetch_file(file, tmp_path, patience=QUICK).origin == good


def test_a_gz_file_arrives_as_it_is_even_if_the_server_calls_it_an_encoding(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.gz", site.serve(CONTENT, Content_Encoding="gzip")), name="file.gz")
    assert fetch_file(file, tmp_path, patience=QUICK).path.read_bytes() == CONTENT


def test_looking_for_a_verified_file_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert find_file(checked(), tmp_path) == Fetched(tmp_path / "file.bin", sha256(CONTENT), "found as file.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


# Files without a published checksum


def test_first_use_is_trusted_shown_and_remembered(site: Any, tmp_path: Path) -> None:
    file, progress = trusted(site.add("file.bin", CONTENT)), Recorder()
    fetch_file(file, tmp_path, progress=progress, patience=QUICK)
    assert sha256(CONTENT) in progress.notes[0]
    assert json.loads((tmp_path / "checksums.json").read_text())["file.bin"] == {
        "sha256": sha256(CONTENT),
        "bytes": len(CONTENT),
        "origin": site.url + "file.bin",
    }


def test_another_content_later_is_an_error_until_forced(site: Any, tmp_path: Path) -> None:
    file = trusted(site.add("file.bin", CONTENT))
    fetch_file(file, tmp_path, patience=QUICK)
    (tmp_path / "file.bin").unlink()
    site.add("file.bin", b"another")
    with pytest.raises(DataError, match=rf"expected sha256:{sha256(CONTENT)} but got {sha256(b'another')}.*--force"):
        fetch_file(file, tmp_path, patience=QUICK)
    assert left_in(tmp_path) == ["checksums.json"]
    assert fetch_file(file, tmp_path, patience=QUICK, force=True).sha256 == sha256(b"another")
    assert fetch_file(file, tmp_path, patience=QUICK).sha256 == sha256(b"another")


def test_a_file_that_changed_on_disk_is_an_error_until_forced(site: Any, tmp_path: Path) -> None:
    file = trusted(site.add("file.bin", CONTENT))
    fetch_file(file, tmp_path, patience=QUICK)
    (tmp_path / "file.bin").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"not what was first fetched.*--force"):
        fetch_file(file, tmp_path, patience=QUICK)
    assert fetch_file(file, tmp_path, patience=QUICK, force=True).path.read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_trusted_once(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert find_file(trusted(), tmp_path) == Fetched(tmp_path / "file.bin", sha256(CONTENT), "found as file.bin")
    (tmp_path / "file.bin").write_bytes(b"changed")
    with pytest.raises(DataError, match="not what was first fetched"):
        find_file(trusted(), tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 79026299\n"


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("test.zip", POINTER, "pointer of Git LFS"),
        ("test.zip", b"<html>sorry</html>", r"is no \.zip file"),
        ("test.zip", zipped(CONTENT)[:-30], "only the beginning"),
        ("test.mat", POINTER, "pointer of Git LFS"),
        ("test.mat", b"<html>sorry</html>", r"is no \.mat file"),
    ],
)
def test_what_is_no_data_is_not_remembered_and_refuses_nothing_later(
    site: Any, tmp_path: Path, name: str, wrong: bytes, words: str
) -> None:
    right = zipped(CONTENT) if name.endswith(".zip") else MAT
    file = trusted(site.add(name, wrong, right), name=name)
    with pytest.raises(DownloadError, match=words):
        fetch_file(file, tmp_path, patience=QUICK)
    assert left_in(tmp_path) == []
    assert fetch_file(file, tmp_path, patience=QUICK).sha256 == sha256(right)
    (tmp_path / name).write_bytes(wrong)  # put there by hand
    assert find_file(file, tmp_path) is None
    assert fetch_file(file, tmp_path, patience=QUICK).sha256 == sha256(right)


@pytest.mark.parametrize("record", ["{", "[]", '{"file.bin": 3}'])
def test_a_damaged_record_is_told(tmp_path: Path, record: str) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    (tmp_path / "checksums.json").write_text(record)
    with pytest.raises(DataError, match=r"checksums\.json.*elete it"):
        find_file(trusted(), tmp_path)


# Mirrors


def test_a_mirror_address_comes_first(site: Any, tmp_path: Path) -> None:
    site.add("mirror/file.bin", CONTENT)
    file = checked(site.add("file.bin", CONTENT))
    for mirror in (site.url + "mirror", site.url + "mirror/"):
        assert fetch_file(file, tmp_path, mirror=mirror, force=True).origin == site.url + "mirror/file.bin"
    assert all(path == "/mirror/file.bin" for path, _ in site.requests)


def test_a_mirror_address_may_be_a_torchvision_root(site: Any, tmp_path: Path) -> None:
    site.add("MNIST/raw/file.bin", CONTENT)
    file = checked(aliases=("MNIST/raw/file.bin",))
    assert fetch_file(file, tmp_path, mirror=site.url).origin == site.url + "MNIST/raw/file.bin"


def test_past_a_mirror_that_fails_the_known_addresses_are_tried(site: Any, tmp_path: Path) -> None:
    site.add("mirror/file.bin", b"wrong")
    url = site.add("file.bin", CONTENT)
    assert fetch_file(checked(url), tmp_path, mirror=site.url + "mirror", patience=QUICK).origin == url


def test_a_password_in_an_address_is_never_shown(site: Any, tmp_path: Path) -> None:
    site.add("file.bin", CONTENT)
    mirror = site.url.replace("//", "//someone:secret@")
    fetched = fetch_file(checked(), tmp_path, mirror=mirror, patience=QUICK)
    assert fetched.origin == site.url + "file.bin"
    assert "secret" not in (tmp_path / "checksums.json").read_text()
    with pytest.raises(DownloadError) as caught:
        fetch_file(checked(name="other"), tmp_path, mirror=mirror, patience=QUICK)
    assert "secret" not in str(caught.value)
    assert shown("https://a:b@example.org:8/c?key=d#e") == "https://example.org:8/c"


def test_an_object_store_that_answers_403_for_what_it_has_not_is_asked_on(site: Any, tmp_path: Path) -> None:
    site.add("mirror/file.bin", site.status(403))
    url = site.add("mirror/MNIST/raw/file.bin", CONTENT)
    file = checked(aliases=("MNIST/raw/file.bin",))
    assert fetch_file(file, tmp_path, mirror=site.url + "mirror", patience=QUICK).origin == url


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("place", ["file.bin", "MNIST/raw/file.bin"])
def test_a_mirror_folder_needs_no_network(tmp_path: Path, place: str) -> None:
    mirror, folder = tmp_path / "mirror", tmp_path / "data"
    path = mirror / place
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    file = checked("https://example.org/file.bin", aliases=("MNIST/raw/file.bin",))
    for given in (mirror, str(mirror), mirror.as_uri(), path.parent, str(mirror / place.split("/")[0])):
        if not Path(given).is_file():
            fetched = fetch_file(file, folder, mirror=given, force=True, offline=True)
            assert fetched.path.read_bytes() == CONTENT
            assert str(tmp_path) not in fetched.origin
            assert fetched.path.stat().st_mode == path.stat().st_mode  # others may read it
    assert path.read_bytes() == CONTENT
    assert left_in(folder) == ["checksums.json", "file.bin"]


@pytest.mark.usefixtures("no_network")
def test_an_uncompressed_file_is_taken_only_if_it_can_be_verified(tmp_path: Path) -> None:
    mirror, folder = tmp_path / "mirror", tmp_path / "data"
    mirror.mkdir()
    (mirror / "digits").write_bytes(CONTENT)
    file = checked("https://example.org/digits.gz", content=b"packed", name="digits.gz")
    with pytest.raises(DownloadError, match=r"has no digits\.gz"):
        fetch_file(file, folder, mirror=mirror, offline=True)
    file = replace(file, plain=RemoteFile("digits", sha256=sha256(CONTENT)))
    assert fetch_file(file, folder, mirror=mirror, offline=True).path == folder / "digits"
    assert fetch_file(file, folder, offline=True).path == folder / "digits"
    (mirror / "digits").write_bytes(b"other")
    with pytest.raises(DataError, match="wrong checksum"):
        fetch_file(file, tmp_path / "other", mirror=mirror, offline=True)


@pytest.mark.usefixtures("no_network")
def test_a_wrong_file_in_a_mirror_folder_is_an_error_and_not_kept(tmp_path: Path) -> None:
    mirror, folder = tmp_path / "mirror", tmp_path / "data"
    mirror.mkdir()
    (mirror / "file.bin").write_bytes(CONTENT[:100])
    file = checked("https://example.org/file.bin")
    with pytest.raises(DataError, match=rf"expected md5:{md5(CONTENT)} but got {md5(CONTENT[:100])}") as caught:
        fetch_file(file, folder, mirror=mirror)
    assert str(mirror / "file.bin") in str(caught.value)
    assert left_in(folder) == []


@pytest.mark.parametrize(
    "mirror",
    ["ftp://example.org/", "https://", "http://[::1", "http://a:port/", "http://.a/", "/no/such/folder", __file__],
)
def test_a_mirror_that_cannot_be_one_is_wrong_usage(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(UsageError, match="--mirror"):
        fetch_file(checked(), tmp_path, mirror=mirror)


@pytest.mark.usefixtures("no_network")
def test_offline_names_the_ways_on(tmp_path: Path) -> None:
    file = checked("https://example.org/file.bin")
    for mirror in (None, "https://example.org/mirror"):
        with pytest.raises(DownloadError, match=r"not asked \(--offline\).*without --offline, or .*--mirror"):
            fetch_file(file, tmp_path, mirror=mirror, offline=True)


def test_a_file_without_address_names_its_page(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no address is known.*--mirror \(see https://example.org/set\)"):
        fetch_source(source_of(trusted()), tmp_path)


# Several files, several sources


def test_a_source_is_all_of_its_files(site: Any, tmp_path: Path) -> None:
    files = [trusted(site.add(name, name.encode()), name=name) for name in ("a", "b")]
    fetched = fetch_source(source_of(*files), tmp_path, patience=QUICK)
    assert [each.path.read_bytes() for each in fetched] == [b"a", b"b"]
    assert set(json.loads((tmp_path / "checksums.json").read_text())) == {"a", "b"}


@pytest.mark.usefixtures("no_network")
def test_a_mirror_folder_may_have_just_what_is_missing(tmp_path: Path) -> None:
    first, second = (source_of(*(checked(name=f"{s}{n}") for n in "xy")) for s in "ab")
    for sources in ([first], [first, second]):
        folder = tmp_path / str(len(sources))
        for path in (folder / "ax", folder / "mirror" / "ay"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENT)
        used, fetched = fetch_alternatives(sources, folder, mirror=folder / "mirror", offline=True)
        assert used is first
        assert [each.path for each in fetched] == [folder / "ax", folder / "ay"]


def test_a_source_may_come_from_different_places(site: Any, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "x").write_bytes(CONTENT)
    source = source_of(checked(site.add("x", CONTENT), name="x"), checked(site.add("y", CONTENT), name="y"))
    _, fetched = fetch_alternatives([source], tmp_path / "data", mirror=mirror, patience=QUICK)
    assert [each.origin for each in fetched] == ["mirror/x (a folder)", site.url + "y"]


@pytest.fixture
def sources(site: Any) -> tuple[Source, Source]:
    """Official: one file without checksum. Second: two files with one."""
    official = source_of(trusted(site.url + "official.zip", name="official.zip"), name="Set, official")
    pair = [checked(site.add(f"{n}.npz", n.encode()), content=n.encode(), name=f"{n}.npz") for n in "xy"]
    return official, source_of(*pair, name="Set, second")


def test_the_first_source_that_delivers_is_used(site: Any, tmp_path: Path, sources: tuple[Source, Source]) -> None:
    site.add("official.zip", site.status(503))
    used, fetched = fetch_alternatives(sources, tmp_path / "a", patience=QUICK)
    assert used is sources[1]
    assert [each.path.name for each in fetched] == ["x.npz", "y.npz"]
    site.add("official.zip", zipped(CONTENT))
    assert fetch_alternatives(sources, tmp_path / "b", patience=QUICK)[0] is sources[0]


def test_what_is_there_is_used_before_better_sources(site: Any, tmp_path: Path, sources: tuple[Source, Source]) -> None:
    fetch_alternatives(sources, tmp_path, patience=QUICK)
    site.add("official.zip", zipped(CONTENT))
    before = len(site.requests)
    assert fetch_alternatives(sources, tmp_path, patience=QUICK)[0] is sources[1]
    assert len(site.requests) == before
    assert fetch_alternatives(sources, tmp_path, patience=QUICK, force=True)[0] is sources[0]


def test_the_mirror_is_asked_for_every_source_before_the_network(
    site: Any, tmp_path: Path, sources: tuple[Source, Source]
) -> None:
    site.add("official.zip", zipped(CONTENT))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "x.npz").write_bytes(b"x")
    assert fetch_alternatives(sources, tmp_path / "a", mirror=mirror, patience=QUICK)[0] is sources[0]  # y is missing
    assert left_in(tmp_path / "a") == ["checksums.json", "official.zip"]
    (mirror / "y.npz").write_bytes(b"y")
    assert fetch_alternatives(sources, tmp_path / "b", mirror=mirror, patience=QUICK)[0] is sources[1]
    assert len(site.requests) == 1


def test_an_optional_file_comes_where_it_can_be_had_and_is_missed_with_a_note(site: Any, tmp_path: Path) -> None:
    extra = trusted(site.url + "extra.zip", name="originals/extra.zip", aliases=("32x/extra.zip",))
    needed = source_of(checked(site.add("file.bin", CONTENT)))
    source, progress = replace(needed, optional=(extra,)), Recorder()
    assert [f.path.name for f in fetch_source(source, tmp_path, progress=progress, patience=QUICK)] == ["file.bin"]
    assert "originals/extra.zip, which is no must, could not be fetched" in progress.notes[-1]
    assert "extra.zip answers 404 Not Found" in progress.notes[-1]
    before = len(site.requests)
    fetch_source(source, tmp_path, patience=QUICK)
    assert len(site.requests) == before
    (tmp_path / "mirror" / "32x").mkdir(parents=True)
    (tmp_path / "mirror" / "32x" / "extra.zip").write_bytes(zipped(b"digits"))
    fetched = fetch_source(source, tmp_path, mirror=tmp_path / "mirror", patience=QUICK)
    assert [f.path for f in fetched] == [tmp_path / "file.bin", tmp_path / "originals" / "extra.zip"]
    assert fetch_source(source, tmp_path, offline=True) == fetched


def test_when_all_sources_fail_each_is_named_with_its_reason(
    site: Any, tmp_path: Path, sources: tuple[Source, Source]
) -> None:
    site.add("y.npz", b"wrong")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with pytest.raises(DownloadError) as caught:
        fetch_alternatives(sources, tmp_path / "data", mirror=mirror, patience=QUICK)
    message = str(caught.value)
    assert f"{mirror} has no official.zip or x.npz" in message
    assert f"{site.url}official.zip answers 404 Not Found" in message
    assert f"{site.url}y.npz has a wrong checksum" in message
    assert "try again later" in message
    assert "\n" not in message


def test_a_changed_official_file_is_not_silently_replaced_by_another_source(
    site: Any, tmp_path: Path, sources: tuple[Source, Source]
) -> None:
    site.add("official.zip", zipped(CONTENT))
    fetch_alternatives(sources, tmp_path, patience=QUICK)
    (tmp_path / "official.zip").unlink()
    site.add("official.zip", zipped(b"changed"))
    with pytest.raises(DataError, match="--force"):
        fetch_alternatives(sources, tmp_path, patience=QUICK)


def test_loose_files_are_not_taken_from_a_folder_of_another_split(tmp_path: Path) -> None:
    file = trusted(name="test_batch_1.mat", aliases=("test_batches/1.mat", "1.mat"), not_in=("train", "valid"))
    for name, fits in (("test_batches", True), ("batches", True), ("validation_batches", False)):
        mirror = tmp_path / name
        mirror.mkdir()
        (mirror / "1.mat").write_bytes(MAT)
        with contextlib.nullcontext() if fits else pytest.raises(DownloadError):
            fetch_file(file, tmp_path / f"data-{name}", mirror=mirror, offline=True)


# Disk and neighbours


def test_a_folder_that_cannot_be_written_is_told(site: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        fetch_file(checked(site.add("file.bin", CONTENT)), tmp_path / "file" / "data", patience=QUICK)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_and_nothing_is_left(site: Any, tmp_path: Path) -> None:
    partial = tmp_path / ".file.bin.partial"
    partial.mkdir()
    (partial / PART).symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        fetch_file(checked(site.add("file.bin", CONTENT)), tmp_path, patience=QUICK)
    assert left_in(tmp_path) == []
    partial.mkdir()
    (partial / PART).symlink_to("/dev/full")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "file.bin").write_bytes(CONTENT)
    with pytest.raises(StorageError, match="the disk is full"):
        fetch_file(checked(), tmp_path, mirror=mirror)
    shutil.rmtree(mirror)
    assert left_in(tmp_path) == []


def test_two_at_once_fetch_a_file_once(site: Any, tmp_path: Path) -> None:
    file = checked(site.add("file.bin", site.serve(CONTENT, pause=0.3)))
    fetched: list[Fetched] = []
    threads = [
        threading.Thread(target=lambda: fetched.append(fetch_file(file, tmp_path, patience=QUICK))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.sha256 for each in fetched] == [sha256(CONTENT)] * 3
    assert len(site.requests) == 1
