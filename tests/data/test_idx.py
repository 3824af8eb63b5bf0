from __future__ import annotations

import contextlib
import gzip
import struct
import tracemalloc
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest

from affbench.base.errors import DataError
from affbench.data import idx


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same bytes in every test process


def image_bytes(n: int = 3, height: int = 4, width: int = 5, *, announced: int | None = None) -> bytes:
    body = bytes(i % 256 for i in range(n * height * width))
    return struct.pack(">4B3I", 0, 0, 8, 3, n if announced is None else announced, height, width) + body


def label_bytes(*labels: int) -> bytes:
    return struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, zipped])
def test_images_come_row_by_row_plain_or_compressed(tmp_path: Path, pack: type[bytes]) -> None:
    images = idx.read(write(tmp_path / "any-name", pack(image_bytes())), "images")
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.arange(60).reshape(3, 4, 5))
    images[0, 0, 0] = 7  # writable, as torch.from_numpy wants it


@pytest.mark.parametrize("pack", [bytes, zipped])
def test_labels(tmp_path: Path, pack: type[bytes]) -> None:
    labels = idx.read(write(tmp_path / "labels", pack(label_bytes(0, 9, 5))), "labels")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [0, 9, 5]


def test_embedded_sample_of_mnist() -> None:
    with as_file(files("affbench.data") / "sample") as folder:
        images, labels = idx.read_pair(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (1000, 28, 28)
    assert set(labels.tolist()) == set(range(10))
    assert images[:, 4:24, 4:24].any(axis=(1, 2)).all()


def test_every_cut_of_a_gzip_file_is_told(tmp_path: Path) -> None:
    packed = zipped(image_bytes())
    for stop in range(len(packed)):
        with pytest.raises(DataError, match=r"cut\.gz is not an IDX file of images, or is damaged"):
            idx.read(write(tmp_path / "cut.gz", packed[:stop]), "images")


def test_every_cut_of_a_plain_file_is_told(tmp_path: Path) -> None:
    content = image_bytes()
    for stop in range(len(content)):
        with pytest.raises(DataError, match=r"cut is not an IDX file of images, or is damaged"):
            idx.read(write(tmp_path / "cut", content[:stop]), "images")


def test_flipped_bits_in_a_gzip_file_are_told(tmp_path: Path) -> None:
    packed = zipped(image_bytes(20, 28, 28))
    for at in range(12, len(packed) - 8, 7):
        damaged = bytearray(packed)
        damaged[at] ^= 0x10
        with pytest.raises(DataError, match=r"bits\.gz"):
            idx.read(write(tmp_path / "bits.gz", bytes(damaged)), "images")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file of images, or is damaged .it begins with nothing"),
        (b"<html>", "it begins with 3c 68 74 6d instead of 00 00 08 03"),
        (label_bytes(1, 2, 3), "not an IDX file of images"),
        (b"\0\0\x0d\x03" + image_bytes()[4:], "not an IDX file of images"),
        (image_bytes() + b"\0", "Superfluous data"),
        (zipped(image_bytes() + b"\0"), "Superfluous data"),
        (zipped(image_bytes()) + b"junk", "Not a gzipped file"),
        (image_bytes(announced=2), "Superfluous data"),
        (image_bytes(announced=4), "announces 80 bytes of images, and can hold 1 to 76"),
        (zipped(image_bytes(announced=4)), r"cannot reshape array of size 60 into shape"),
        (image_bytes(0), "announces 0 bytes of images"),
        (image_bytes(announced=2**32 - 1), "announces 85,899,345,900 bytes of images"),
        (zipped(image_bytes(announced=50_000_000)), "announces 1,000,000,000 bytes of images, and can hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_lies_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        idx.read(write(tmp_path / "digits", content), "images")
    assert "digits" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_are_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label 10 \(example 2\)"):
        idx.read(write(tmp_path / "labels", label_bytes(1, 2, 10)), "labels")


def test_as_many_images_as_labels(tmp_path: Path) -> None:
    images, labels = write(tmp_path / "images", image_bytes(3)), write(tmp_path / "labels", label_bytes(1, 2))
    with pytest.raises(DataError, match=r"3 images, but .* 2 labels"):
        idx.read_pair(images, labels)


def test_a_missing_file_or_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none cannot be read: No such file"):
        idx.read(tmp_path / "none", "images")
    with pytest.raises(DataError, match="cannot be read"):
        idx.read(tmp_path, "images")


@pytest.mark.parametrize("pack", [bytes, zipped])
def test_mutated_files_are_read_or_told_never_worse(tmp_path: Path, pack: type[bytes]) -> None:
    rng = np.random.default_rng(0)
    originals = [pack(image_bytes(2, 6, 6)), pack(label_bytes(*range(10)))]
    path = tmp_path / "mutated"
    for n in range(1000):
        content = np.frombuffer(originals[n % 2], np.uint8).copy()
        # The header is where it hurts, so half of the changes go there.
        at = rng.integers(0, len(content) if n % 4 < 2 else 12, size=rng.integers(1, 5))
        content[at] = rng.integers(0, 256, size=at.size)
        path.write_bytes(content.tobytes()[: rng.integers(1, 2 * len(content))])
        for kind in ("images", "labels"):
            with contextlib.suppress(DataError):
                assert idx.read(path, kind).dtype == np.uint8


def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    bomb = write(tmp_path / "bomb.gz", zipped(image_bytes(1, 28, 28) + bytes(60_000_000)))
    assert bomb.stat().st_size < 100_000
    lie = write(tmp_path / "lie.gz", zipped(image_bytes(announced=2_000_000) + bytes(10_000_000)))
    tracemalloc.start()
    try:
        for path in (bomb, lie):
            with pytest.raises(DataError):
                idx.read(path, "images")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25_000_000  # of the 40 and 60 MB announced or packed
