"""Reading affNIST in every form it is found in; the files are made here, field by field."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from affbench.base.errors import DataError
from affbench.data.affnist import export_mat, read_homnist, read_mat
from affbench.data.affnist.read import read_originals
from affbench.data.convert import write_affnist
from affbench.data.dataset import Dataset
from affbench.data.hdf5 import read_set
from affbench.data.synthesis import synthesize
from affbench.data.transform import old_to_new

N = 24
ATTRIBUTES = {"name": "affnist", "split": "test", "source": "here", "sha256": "", "license": "free"}


@pytest.fixture(scope="module")
def made() -> Dataset:
    rng = np.random.default_rng(0)
    images = np.zeros((N, 28, 28), np.uint8)
    images[:, 5:22, 8:20] = rng.integers(1, 256, (N, 17, 12))
    return synthesize(images, (np.arange(N) % 10).astype(np.uint8), copies=1, seed=0)


def fields(made: Dataset, **changes: Any) -> dict[str, Any]:
    """The eight fields as the official files have them: one case a column, indices from 1."""
    matrices = old_to_new(made.transforms)
    square = np.concatenate([matrices, np.tile([[[0, 0, 1]]], (N, 1, 1))], axis=1)
    one_of_n = np.zeros((10, N), np.uint8)
    one_of_n[made.labels, np.arange(N)] = 1
    return {
        "matrix_old_to_new": matrices.reshape(N, 6).T,
        "matrix_new_to_old": np.linalg.inv(square)[:, :2].reshape(N, 6).T,
        "image": made.images.reshape(N, 1600).T,
        "index": np.arange(1, N + 1)[None, :],
        "label_one_of_n": one_of_n,
        "label_int": made.labels[None, :],
        "human_readable_transform": made.transforms.T.astype(np.float64),
        "original_id": made.source_index[None, :] + 1,
    } | changes


def save(path: Path, content: dict[str, Any], **options: Any) -> Path:
    scipy.io.savemat(
        path, {"affNISTdata": {key: value for key, value in content.items() if value is not None}}, **options
    )
    return path


def save_v73(path: Path, content: dict[str, Any]) -> Path:
    """As MATLAB re-saves it: HDF5, every array transposed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("affNISTdata")
        for key, value in content.items():
            group[key] = np.asarray(value).T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def same(read: Dataset, made: Dataset) -> bool:
    return bool(
        (read.images == made.images).all()
        and (read.labels == made.labels).all()
        and (read.transforms == made.transforms).all()
        and (read.source_index == made.source_index).all()  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_official_layout_is_read(tmp_path: Path, made: Dataset, compressed: bool) -> None:
    read = read_mat(save(tmp_path / "test.mat", fields(made), do_compression=compressed))
    assert same(read, made)
    assert read.images.dtype == read.labels.dtype == np.uint8
    assert read.transforms.dtype == np.float32


def test_file_saved_again_as_v73_is_read(tmp_path: Path, made: Dataset) -> None:
    assert same(read_mat(save_v73(tmp_path / "test.mat", fields(made))), made)


def test_order_of_fields_does_not_matter(tmp_path: Path, made: Dataset) -> None:
    content = dict(reversed(fields(made).items()))
    assert same(read_mat(save(tmp_path / "test.mat", content)), made)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_int": "column"},
        {"label_int": "flat"},
        {"label_int": None},
        {"label_one_of_n": None},
        {"image": "float"},
        {"image": "unit"},
    ],
    ids=str,
)
def test_variants_people_write_are_read(tmp_path: Path, made: Dataset, changes: dict[str, Any]) -> None:
    variants = {
        "column": made.labels[:, None],
        "flat": made.labels,
        "float": made.images.reshape(N, 1600).T.astype(np.float64),
        "unit": made.images.reshape(N, 1600).T / 255.0,
    }
    changes = {key: variants.get(value, value) for key, value in changes.items()}
    assert same(read_mat(save(tmp_path / "test.mat", fields(made, **changes))), made)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image": None}, "image"),
        ({"human_readable_transform": None}, "transform"),
        ({"label_int": None, "label_one_of_n": None}, "label"),
        ({"label_int": np.full((1, N), 12), "label_one_of_n": None}, "0|label"),
        ({"label_int": np.zeros((1, N - 3)), "label_one_of_n": None}, "label"),
        ({"image": np.zeros((784, N), np.uint8)}, "1600|1,600"),
        ({"human_readable_transform": np.zeros((6, N + 1))}, "transform"),
    ],
)
def test_file_that_is_not_right_is_one_clear_sentence(
    tmp_path: Path, made: Dataset, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint) as error:
        read_mat(save(tmp_path / "test.mat", fields(made, **changes)))
    assert "test.mat" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"not a MATLAB file", b"\x89HDF\r\n\x1a\n" + bytes(100), b"MATLAB 5.0" + bytes(200)]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.mat"):
        read_mat(tmp_path / "test.mat")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_table_is_told_from_the_matrices_by_values_where_names_fail(
    tmp_path: Path, made: Dataset, order: tuple[int, ...]
) -> None:
    content = fields(made)
    three = [content.pop(name) for name in ("matrix_old_to_new", "matrix_new_to_old", "human_readable_transform")]
    content = {f"field_{place}": three[k] for place, k in enumerate(order)} | content
    read = read_mat(save(tmp_path / "test.mat", content))
    assert same(read, made)
    assert read.attributes["matrices"] == "agree with the table"


def test_matrices_that_disagree_with_the_table_are_said(
    tmp_path: Path, made: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    content = fields(made)
    content["matrix_old_to_new"] = content["matrix_old_to_new"].copy()
    content["matrix_old_to_new"][4, 3] += 2e-4
    said = read_mat(save(tmp_path / "test.mat", content)).attributes["matrices"]
    assert said == "disagree with the table in 4.2% of the images, first in image 3 from 0"
    assert f"the matrices in {tmp_path / 'test.mat'} {said}" in caplog.text
    content["matrix_old_to_new"][4, 3] -= 1.5e-4
    assert read_mat(save(tmp_path / "test.mat", content)).attributes["matrices"] == "agree with the table"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"original_id": np.full((1, N), 60_001)}, "points to original 60,001, and MNIST has 60,000"),
        ({"original_id": np.ones((1, N))}, "no whole set: 24 to 24 versions of each of 1 originals"),
        ({"original_id": np.array([[1, *range(1, N)]])}, "no whole set: 1 to 2 versions of each of 23 originals"),
        ({"human_readable_transform": np.full((6, N), 7e8)}, r"its rotation of 7e\+08 is no value"),
    ],
)
def test_implausible_official_files_are_refused(
    tmp_path: Path, made: Dataset, changes: dict[str, Any], complaint: str
) -> None:
    path = save(tmp_path / "test.mat", fields(made, **changes))
    with pytest.raises(DataError, match=complaint):
        write_affnist(tmp_path / "set.h5", [path], ATTRIBUTES)


def test_other_variables_are_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "test.mat", {"something": np.eye(3)})
    with pytest.raises(DataError, match="affNIST"):
        read_mat(tmp_path / "test.mat")


def test_every_truncation_is_refused(tmp_path: Path, made: Dataset) -> None:
    whole = save(tmp_path / "whole.mat", fields(made), do_compression=True).read_bytes()
    path = tmp_path / "test.mat"
    for length in range(0, len(whole), max(1, len(whole) // 8)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_mat(path)


@pytest.mark.parametrize("form", ["test.mat", "test.mat.zip", "test_batches.zip", "test_batches"])
def test_exported_set_comes_back_in_every_form(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(1)
    images = np.zeros((11, 28, 28), np.uint8)
    images[:, 8:20, 8:20] = rng.integers(0, 256, (11, 12, 12))
    made = synthesize(images, (np.arange(11) % 10).astype(np.uint8), copies=3, seed=0)
    export_mat(made, tmp_path / form)
    assert same(read_mat(tmp_path / form), made)
    write_affnist(tmp_path / "set.h5", [tmp_path / form], ATTRIBUTES)
    assert same(read_set(tmp_path / "set.h5"), made)


def test_images_of_a_batch_are_let_go_once_they_are_written(tmp_path: Path, made: Dataset) -> None:
    folder = tmp_path / "batches"
    folder.mkdir()
    save(folder / "1.mat", fields(made))
    for number in range(2, 21):
        (folder / f"{number}.mat").write_bytes((folder / "1.mat").read_bytes())
    tracemalloc.start()
    try:
        write_affnist(tmp_path / "set.h5", [folder], ATTRIBUTES)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 20 * made.images.nbytes  # never all 20 batches at once


def test_export_is_what_public_loaders_expect(tmp_path: Path, made: Dataset) -> None:
    export_mat(made, tmp_path / "test.mat")
    data = scipy.io.loadmat(tmp_path / "test.mat")["affNISTdata"]
    assert data.shape == (1, 1)
    by_position = data[0, 0]
    assert len(by_position.dtype.names) == 8
    assert by_position.dtype.names[0] == "matrix_old_to_new"
    assert by_position.dtype.names[2] == "image"
    assert by_position.dtype.names[4:] == ("label_one_of_n", "label_int", "human_readable_transform", "original_id")
    assert np.array_equal(by_position[6].T, made.transforms)
    assert np.allclose(by_position[0].T, old_to_new(made.transforms).reshape(N, 6), rtol=0, atol=1e-12)
    forth, back = (by_position[k].T.reshape(N, 2, 3) for k in (0, 1))
    assert forth[:, :, :2] @ back[:, :, :2] == pytest.approx(np.tile(np.eye(2), (N, 1, 1)), abs=1e-12)
    assert (forth[:, :, :2] @ back[:, :, 2:] + forth[:, :, 2:]) == pytest.approx(np.zeros((N, 2, 1)), abs=1e-9)
    assert (by_position[2].T.reshape(-1, 40, 40) == made.images).all()
    assert (by_position[5].ravel() == made.labels).all()
    assert (by_position[4].argmax(0) == made.labels).all()
    assert by_position[7].min() == 1


def mirror(folder: Path) -> tuple[Path, Path]:
    """The files of the NumPy mirror."""
    return folder / "affNIST_test_x.npz", folder / "affNIST_test_y.npz"


def test_numpy_mirror_is_read_without_transformations(tmp_path: Path, made: Dataset) -> None:
    np.savez_compressed(tmp_path / "affNIST_test_x.npz", made.images.reshape(N, 1600))
    np.savez_compressed(tmp_path / "affNIST_test_y.npz", made.labels)
    write_affnist(tmp_path / "set.h5", mirror(tmp_path), ATTRIBUTES)
    read = read_set(tmp_path / "set.h5")
    assert (read.images == made.images).all()
    assert (read.labels == made.labels).all()
    assert read.transforms is None


def test_pickled_objects_are_never_loaded(tmp_path: Path, made: Dataset) -> None:
    fired = tmp_path / "fired"

    class Trap:
        def __reduce__(self) -> Any:
            return (fired.touch, ())

    objects = np.empty(N, object)
    objects[:] = [Trap() for _ in range(N)]
    np.savez(tmp_path / "affNIST_test_x.npz", made.images.reshape(N, 1600))
    np.savez(tmp_path / "affNIST_test_y.npz", objects)
    with pytest.raises(DataError, match=r"affNIST_test_y\.npz"):
        write_affnist(tmp_path / "set.h5", mirror(tmp_path), ATTRIBUTES)
    assert not fired.exists()


@pytest.mark.parametrize("name", ["../escaped.mat", "/absolute.mat", "a/../../escaped.mat"])
def test_archive_that_climbs_out_is_refused(tmp_path: Path, made: Dataset, name: str) -> None:
    inner = save(tmp_path / "inner.mat", fields(made)).read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(folder / "test.mat.zip", "w") as archive:
        archive.writestr(name, inner)
    with pytest.raises(DataError, match=r"test\.mat\.zip"):
        read_mat(folder / "test.mat.zip")
    assert [path.name for path in tmp_path.rglob("escaped*")] == []


def test_symbolic_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "test.mat.zip", "w") as archive:
        link = zipfile.ZipInfo("test.mat")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"test\.mat\.zip"):
        read_mat(tmp_path / "test.mat.zip")


def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "test.mat.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("test.mat", "w", force_zip64=True) as member:
            for _ in range(40):
                member.write(bytes(1 << 24))
        archive.infolist()[0].file_size = 1 << 45  # and it lies about its size
    with pytest.raises(DataError, match=r"test\.mat\.zip"):
        read_mat(tmp_path / "test.mat.zip")


def test_homnist_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 40, 40), dtype=np.uint8)
    content = {"img_data": images, "labels": (np.arange(N) % 10)[None], "hom_matrices": rng.random((N, 3, 3))}
    scipy.io.savemat(tmp_path / "homNIST_test.mat", content)
    read = read_homnist(tmp_path / "homNIST_test.mat")
    assert (read.images == images).all()
    assert (read.labels == np.arange(N) % 10).all()
    assert read.transforms is None


def test_element_of_no_known_type_never_reaches_scipy(tmp_path: Path) -> None:
    path = tmp_path / "homNIST_test.mat"
    content = {"img_data": np.zeros((N, 40, 40), np.uint8), "labels": np.arange(N)[None] % 10}
    scipy.io.savemat(path, content | {"hom_matrices": np.ones((N, 3, 3))})
    whole = bytearray(path.read_bytes())
    name = whole.index(b"img_data")
    whole[name : name + 16] = bytes(16)  # no name, and an element of type 0 and no length: scipy crashes on it
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"homNIST_test\.mat"):
        read_homnist(path)


def test_originals_come_from_a_zip_archive(tmp_path: Path) -> None:
    digits = np.arange(784 * 3, dtype=np.uint8).reshape(3, 28, 28)
    fields = {"image": digits.reshape(3, -1).T, "label_int": np.arange(3)[None]}
    scipy.io.savemat(tmp_path / "test.mat", {"affNISTdata": fields})
    with zipfile.ZipFile(tmp_path / "test.mat.zip", "w") as archive:
        archive.write(tmp_path / "test.mat", "test.mat")
    assert np.array_equal(read_originals(tmp_path / "test.mat.zip"), digits)
