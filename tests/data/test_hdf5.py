from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from affbench.base.errors import ArtefactError
from affbench.data.dataset import TRANSFORM_COLUMNS, Dataset
from affbench.data.hdf5 import new_set, read_set, write_set

ATTRIBUTES = {"name": "some-set", "split": "test", "source": "here", "sha256": "00", "license": "free"}


def affine_set(n: int = 700) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(
        "some-set",
        "test",
        rng.integers(0, 256, (n, 40, 40), dtype=np.uint8),
        rng.integers(0, 10, n, dtype=np.uint8),
        rng.random((n, 6), np.float32),
        rng.integers(0, 50, n, dtype=np.int32),
    )


def test_affine_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    dataset = affine_set()
    write_set(tmp_path / "set.h5", dataset, ATTRIBUTES)
    read = read_set(tmp_path / "set.h5", key="k")
    for name in ("images", "labels", "transforms", "source_index"):
        expected, found = getattr(dataset, name), getattr(read, name)
        assert found.dtype == expected.dtype
        assert (found == expected).all()
    assert (read.name, read.split, read.key, read.attributes["license"]) == ("some-set", "test", "k", "free")


def test_layout_is_the_documented_one(tmp_path: Path) -> None:
    write_set(tmp_path / "set.h5", affine_set(10), ATTRIBUTES)
    with h5py.File(tmp_path / "set.h5") as file:
        assert file["images"].dtype == np.uint8
        assert file["images"].shape == (10, 40, 40)
        assert file["labels"].dtype == np.uint8
        assert file["transforms"].dtype == np.float32
        assert file["source_index"].dtype == np.int32
        assert tuple(file["transforms"].attrs["columns"]) == TRANSFORM_COLUMNS
        assert {"name", "source", "sha256", "license", "affbench_version"} <= set(file.attrs)


def test_slice_is_read_without_the_rest(tmp_path: Path) -> None:
    dataset = affine_set()
    write_set(tmp_path / "set.h5", dataset, ATTRIBUTES)
    part = read_set(tmp_path / "set.h5", start=300, stop=310)
    assert (part.images == dataset.images[300:310]).all()
    assert (part.transforms == dataset.transforms[300:310]).all()


@pytest.mark.parametrize("span", [(0, None), (255, 257), (256, 512), (690, 9999), (0, 1), (-5, None), (400, 300)])
@pytest.mark.parametrize("filters", [{}, {"chunks": (3, 20, 40)}, {"compression": "gzip", "shuffle": True}, None])
def test_any_slice_of_any_storage_is_what_hdf5_itself_reads(
    tmp_path: Path, span: tuple[int, int | None], filters: dict[str, Any] | None
) -> None:
    path = tmp_path / "set.h5"
    write_set(path, affine_set(), ATTRIBUTES)
    if filters is not None:
        with h5py.File(path, "a") as file:
            images = file["images"][()]
            del file["images"]
            file.create_dataset("images", data=images, **filters)
    assert (read_set(path, "", *span).images == affine_set().images[slice(*span)]).all()


def test_set_of_another_length_than_announced_is_refused(tmp_path: Path) -> None:
    dataset = affine_set(5)
    with (
        pytest.raises(ArtefactError, match="a set of 6 images was announced, but 5 were written"),
        new_set(tmp_path / "set.h5", 6, 40, ATTRIBUTES, affine=False) as writer,
    ):
        writer.append(dataset)


@pytest.mark.parametrize("room", [0, 100, 2_000, 5_000, 20_000, 60_000])
def test_disk_that_fills_up_on_the_way_ends_in_one_ordinary_error(tmp_path: Path, room: int) -> None:
    # In a process of its own: HDF5 has crashed when it could not write its last bytes at the end of one.
    code = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from affbench.data.dataset import Dataset\n"
        "from affbench.data.hdf5 import new_set\n"
        "attributes = dict.fromkeys(('name', 'split', 'source', 'sha256', 'license'), 'x')\n"
        "noise = np.random.default_rng(0).integers(0, 256, (100, 40, 40), dtype=np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n"
        "    with new_set(Path(sys.argv[1]), 10_000, 40, attributes, affine=False) as writer:\n"
        "        for _ in range(100):\n"
        "            writer.append(Dataset('x', 'test', noise, np.zeros(100, np.uint8)))\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set.h5"), str(room)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == errno.EFBIG


@pytest.mark.parametrize("damage", ["truncated", "other file", "other layout", "other bits"])
def test_damaged_set_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "set.h5"
    write_set(path, affine_set(10), ATTRIBUTES)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "other bits":
        with h5py.File(path, "a") as file:
            file["images"].id.write_direct_chunk((0, 0, 0), b"not zipped")
    elif damage == "other file":
        path.write_bytes(b"not HDF5")
    else:
        with h5py.File(path, "w") as file:
            file["pixels"] = np.zeros(3)
    with pytest.raises(ArtefactError, match=r"set\.h5 is not a converted affbench set, or is damaged"):
        read_set(path)


@pytest.mark.parametrize("way", ["external link", "soft link", "external storage", "virtual"])
def test_set_that_points_into_other_files_is_refused(tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x:0:0:" * 1000)
    write_set(
        tmp_path / "other.h5", Dataset("x", "test", np.zeros((2, 40, 40), np.uint8), np.zeros(2, np.uint8)), ATTRIBUTES
    )
    path = tmp_path / "set.h5"
    write_set(path, Dataset("x", "test", np.zeros((2, 40, 40), np.uint8), np.zeros(2, np.uint8)), ATTRIBUTES)
    with h5py.File(path, "r+") as file:
        del file["images"]
        if way == "external link":
            file["images"] = h5py.ExternalLink("other.h5", "/images")
        elif way == "soft link":
            file["hidden"] = h5py.ExternalLink("other.h5", "/images")
            file["images"] = h5py.SoftLink("/hidden")
        elif way == "external storage":
            file.create_dataset("images", (2, 40, 40), np.uint8, external=[(str(secret), 0, 3200)])
        else:
            layout = h5py.VirtualLayout((2, 40, 40), np.uint8)
            layout[:] = h5py.VirtualSource("other.h5", "images", (2, 40, 40), np.uint8)
            file.create_virtual_dataset("images", layout)
    with pytest.raises(ArtefactError, match="does not lie in the file itself"):
        read_set(path)
