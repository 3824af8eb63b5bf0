from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from affbench.base.errors import UsageError
from affbench.data.fetch.sets import fetch_sets
from affbench.data.fetch.sources import AFFNIST, FASHION_MNIST, MNIST, RemoteFile, Source, originals
from affbench.data.sets import SOURCES


def all_files(source: Source) -> Iterator[RemoteFile]:
    for file in (*source.files, *source.optional):
        yield from file.forms


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_sound(name: str) -> None:
    for source in SOURCES[name]:
        assert source.license
        assert source.homepage.startswith("https://")
        names = [file.name for file in all_files(source)]
        assert len(set(names)) == len(names)
        for file in all_files(source):
            assert all(url.startswith("https://") for url in file.urls)
            assert all(url.endswith(file.name.rpartition("/")[2]) for url in file.urls)
            assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert not any(alias.startswith("/") or ".." in alias for alias in file.aliases)


def test_alternatives_keep_their_files_apart() -> None:
    for sources in AFFNIST.values():
        names = [file.name for source in sources for file in source.files]
        assert len(set(names)) == len(names)


def test_official_checksums() -> None:
    for source in (MNIST, FASHION_MNIST):
        assert len(source.files) == 4
        assert all(file.md5 and len(file.urls) == 2 for file in source.files)


def test_affnist_is_tried_at_its_home_first_and_numpy_last() -> None:
    for split, name in (("test", "affnist"), ("validation", "affnist-validation"), ("training", "affnist-train")):
        sources = SOURCES[name]
        assert sources[0].files[0].urls[0].startswith("https://www.cs.toronto.edu/~tijmen/affNIST/32x/transformed/")
        assert all(split in file.name for source in sources for file in source.files)
        assert all(file.name.endswith(".npz") for file in sources[-1].files)
        assert all(file.sha256 and file.max_bytes for file in sources[-1].files)


def test_an_unknown_set_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'affnist'"):
        fetch_sets(["mnist", "afnist"], tmp_path)


def test_affnists_originals_are_optional_and_lie_in_a_folder_of_their_own() -> None:
    for split, name in (("test", "affnist"), ("validation", "affnist-validation"), ("training", "affnist-train")):
        *with_transformations, numpy = SOURCES[name]
        assert {source.optional for source in with_transformations} == {(originals(split),)}
        assert numpy.optional == ()
        assert originals(split).name == f"originals/{split}.mat.zip"
