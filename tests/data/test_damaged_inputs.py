"""Inputs made to break the readers, one for each way in which a reader of its kind has been broken.

Every one ends in a single clear sentence that names the file. `benchmarks/fuzz_readers.py` looks for more of them.
"""

from __future__ import annotations

import contextlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from safetensors.torch import load_file, save

from affbench.base import store
from affbench.base.config import RunConfig, read_pipeline, read_run_config
from affbench.base.errors import AffbenchError, ArtefactError, DataError, StorageError, UsageError
from affbench.data import hdf5
from affbench.data.affnist import read_homnist, read_mat
from affbench.data.containers import extracted, npz_array
from affbench.models import build_model
from affbench.run.folder import Run, history_from_csv, read_evaluation
from affbench.run.record import load_model

N = 5
OPTIONS = {"filters": 2, "primary_types": 1, "decoder": [4]}
DEEP = 100_000  # more brackets than Python nests calls


def told(caught: pytest.ExceptionInfo[AffbenchError], name: str) -> None:
    """The message is one line of plain text and names the file."""
    assert name in str(caught.value)
    assert str(caught.value).isprintable()


# MATLAB files of version 5


def homnist() -> dict[str, Any]:
    return {
        "img_data": np.ones((N, 8, 8), np.uint8),
        "labels": np.arange(N)[None],
        "hom_matrices": np.ones((N, 3, 3)),
    }


def mat5(path: Path, content: dict[str, Any], **options: Any) -> bytearray:
    scipy.io.savemat(path, content, **options)
    return bytearray(path.read_bytes())


@pytest.mark.parametrize(
    ("at", "tag", "complaint"),
    [
        (192, (0, 0), "makes its reader crash"),
        (576, (15, 8), "makes its reader crash"),
        (160, (1 << 31, 1 << 31), "damaged"),
        (544, (0xFFFFFFFF, 0xFFFFFFFF), "damaged"),
        (192, (2, 0xF0000000), "unpacks to more than 3,221,225,472 bytes"),
    ],
)
def test_overwritten_tag_of_a_mat_file_is_told(tmp_path: Path, at: int, tag: tuple[int, int], complaint: str) -> None:
    path = tmp_path / "homNIST_test.mat"
    whole = mat5(path, homnist())
    path.write_bytes(whole[:at] + struct.pack("<II", *tag) + whole[at + 8 :])
    with pytest.raises(DataError, match=complaint) as caught:
        read_homnist(path)
    told(caught, path.name)


def nested(depth: int) -> dict[str, Any]:
    return {"inner": nested(depth - 1) if depth else np.eye(2)}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"affNISTdata": nested(30)}, "nested more than"),
        ({"affNISTdata": {"image": scipy.sparse.csc_matrix(np.eye(1600))}}, "image holds no plain numbers"),
        (
            {"affNISTdata": {"image": np.ones((1600, N)) * 1j, "label_int": np.arange(N)}},
            "image holds no plain numbers",
        ),
        ({"affNISTdata": {"image": np.full((1600, N), np.nan), "label_int": np.arange(N)}}, "pixels run from nan"),
        ({"affNISTdata": {"image": "text", "label_int": "text"}}, "image holds no plain numbers"),
        ({"affNISTdata": np.array([{"image": 1}, {"image": 2}], dtype=object)}, "not a 1×1 struct"),
        ({"affNISTdata": {"image": np.empty((1600, 0)), "label_int": np.empty((1, 0))}}, "none of them 1600"),
    ],
    ids=["nested", "sparse", "complex", "not a number", "text", "two structs", "empty"],
)
def test_mat_file_of_other_things(tmp_path: Path, content: dict[str, Any], complaint: str) -> None:
    mat5(tmp_path / "test.mat", content)
    with pytest.raises(DataError, match=complaint) as caught:
        read_mat(tmp_path / "test.mat")
    told(caught, "test.mat")


@pytest.mark.parametrize("shape", [(-8, -200), (2**31 - 1, 2**31 - 1)])
def test_shape_in_a_mat_file_that_lies(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "test.mat"
    whole = mat5(path, {"image": np.ones((40, 40), np.uint8)})
    at = whole.index(struct.pack("<II", 40, 40))
    path.write_bytes(whole[:at] + struct.pack("<ii", *shape) + whole[at + 8 :])
    with pytest.raises(DataError, match="is damaged") as caught:
        read_mat(path)
    told(caught, "test.mat")


# MATLAB files of version 7.3, which are HDF5


def secret(folder: Path) -> Path:
    """A file that no input may make a reader open."""
    with h5py.File(folder / "secret.h5", "w") as file:
        file["image"] = np.ones((N, 1600), np.uint8)
    return folder / "secret.h5"


def soft_link(group: h5py.Group, folder: Path) -> None:
    group["image"] = h5py.SoftLink("/affNISTdata")


def external_link(group: h5py.Group, folder: Path) -> None:
    group["image"] = h5py.ExternalLink(str(secret(folder)), "/image")


def external_values(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("image", (N, 1600), np.uint8, external=[(str(secret(folder)), 0, N * 1600)])


def virtual_values(group: h5py.Group, folder: Path) -> None:
    layout = h5py.VirtualLayout((N, 1600), np.uint8)
    layout[:] = h5py.VirtualSource(str(secret(folder)), "image", (N, 1600))
    group.create_virtual_dataset("image", layout)


def circle(group: h5py.Group, folder: Path) -> None:
    group["image"] = group


def never_written(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("image", (10**9, 1600), np.uint8, chunks=(1, 1600))


@pytest.mark.parametrize(
    ("put", "complaint"),
    [
        (soft_link, "image is a link"),
        (external_link, "image is a link"),
        (external_values, "image lie in another file"),
        (virtual_values, "image lie in another file"),
        (circle, "nested more than"),
        (never_written, "unpacks to more than"),
    ],
)
def test_v73_file_that_reaches_beyond_itself(
    tmp_path: Path, put: Callable[[h5py.Group, Path], None], complaint: str
) -> None:
    path = tmp_path / "test.mat"
    with h5py.File(path, "w") as file:
        put(file.create_group("affNISTdata"), tmp_path)
    with pytest.raises(DataError, match=complaint) as caught:
        read_mat(path)
    told(caught, "test.mat")


# NumPy archives


def npy(header: str, body: bytes = bytes(64), version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", size) + text + body


def described(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (npy("__import__('os').abort()"), "not a NumPy archive"),
        (npy(described("'|u1'", "(8, 8)"), version=(9, 9)), "not a NumPy archive"),
        (npy(described("'|u1'", "(8, 8)"), length=60_000), "not a NumPy archive"),
        (npy("{'descr': " + "(" * 60), "not a NumPy archive"),
        (npy(described("'|O'", "(8,)")), "Python objects"),
        (npy(described("[('a', '<f8')]", "(8,)")), "only numbers are safe to load"),
        (npy(described("'<M8[s]'", "(8,)")), "only numbers are safe to load"),
        (npy(described("'|u1'", "(-8, -8)")), "negative"),
        (npy(described("'|u1'", "(2000000000, 2000000000)")), "greater than file size"),
        (npy(described("'|u1'", "()")), "goes on after its last value"),
        (npy(described("'|u1'", "(9, 8)")), "greater than file size"),
        (npy(described("'|u1'", "(7, 8)")), "goes on after its last value"),
    ],
)
def test_array_that_lies(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "affNIST_test_x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content)
    with pytest.raises(DataError, match=complaint) as caught, npz_array(path):
        pass
    told(caught, path.name)


def test_member_whose_name_was_lost_is_told(tmp_path: Path) -> None:
    path = tmp_path / "affNIST_test_y.npz"
    np.savez(path, np.arange(8))
    path.write_bytes(path.read_bytes().replace(b"arr_0.npy", b"\0rr_0.npy"))
    with pytest.raises(DataError, match=r"no item named 'arr_0\.npy' in the archive"), npz_array(path):
        pass


def test_array_in_column_order(tmp_path: Path) -> None:
    values = np.arange(640, dtype=np.uint8).reshape(8, 80)
    np.savez(tmp_path / "x.npz", np.asfortranarray(values))
    with npz_array(tmp_path / "x.npz") as array:
        np.testing.assert_array_equal(array, values)


def test_flipped_bit_in_an_array_is_told(tmp_path: Path) -> None:
    path = tmp_path / "affNIST_test_x.npz"
    np.savez(path, np.arange(640, dtype=np.uint8).reshape(8, 80))
    whole = bytearray(path.read_bytes())
    whole[whole.index(bytes(range(40))) + 20] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match="CRC"), npz_array(path):
        pass


def test_disk_that_is_full_is_not_taken_for_a_damaged_archive(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "test.mat.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test.mat", bytes(5_000))  # less than a file holds back before it is written
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(StorageError, match="ulimit -f"), extracted(path, "test.mat"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Converted sets


@pytest.mark.parametrize(
    ("shape", "dtype", "labels", "attributes"),
    [
        ((10**9, 40, 40), np.uint8, N, True),
        ((N, 64), np.uint8, N, True),
        ((N, 8, 8), np.float32, N, True),
        ((N, 8, 8), np.uint8, N + 1, True),
        ((N, 8, 8), np.uint8, None, True),
        ((N, 8, 8), np.uint8, N, False),
    ],
    ids=["never written", "flat", "floats", "more labels", "no labels", "no attributes"],
)
def test_converted_set_of_another_kind(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, labels: int | None, attributes: bool
) -> None:
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", shape, dtype, chunks=(1, *shape[1:]))
        if labels is not None:
            file["labels"] = np.zeros(labels, np.uint8)
        if attributes:
            file.attrs["name"] = file.attrs["split"] = "test"
    with pytest.raises(ArtefactError) as caught:
        hdf5.read_set(path)
    told(caught, "set.h5")


# Configurations


@pytest.mark.parametrize("read", [read_run_config, read_pipeline])
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b'title = "\0"',
        b"title = 1\ntitle = 2",
        b"model = 3",
        b"training = [1]",
        b'data = "x"',
        b"[model]\nname = 3",
        b"[model.options]\nfilters = nan\n[training]\nlearning_rate = inf",
        b"[[runs]]\n[[runs.model]]",
        b'"\\u001b[2J" = 1',
        pytest.param(b"a = " + b"1" * 20_000, id="long number"),
        pytest.param(
            b"a = " + b"[" * DEEP,
            id="deep",
        ),
    ],
)
def test_configuration_that_is_none(tmp_path: Path, read: Callable[[Path], Any], content: bytes) -> None:
    (tmp_path / "study.toml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read(tmp_path / "study.toml")
    told(caught, "study.toml")


# Run folders: checkpoints, manifests, records


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "run"
    config = RunConfig.model_validate({"model": {"options": OPTIONS}})
    store.write_text(folder / "config.toml", config.to_toml())
    (folder / "model.safetensors").write_bytes(save(build_model("capsnet", **OPTIONS).state_dict()))
    reseal(folder)
    return Run(folder)


def reseal(folder: Path) -> None:
    """A manifest that agrees with whatever lies there, as a forger would write it."""
    store.seal(folder, "train", 1, {}, ["config.toml", "model.safetensors"])


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], bytes]:
    def damage(path: Path) -> bytes:
        weights = load_file(path)
        change(weights)
        return save(weights)

    return damage


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], bytes]:
    def damage(path: Path) -> bytes:
        whole = path.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        entries = json.loads(whole[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    return damage


def first(entries: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for name, entry in entries.items() if name != "__metadata__")
    return found


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: b"",
        lambda path: path.read_bytes()[:-1],
        lambda path: (1 << 63).to_bytes(8, "little") + path.read_bytes()[8:],
        lambda path: (1 << 20).to_bytes(8, "little") + path.read_bytes()[8:],
        lambda path: b"\x08\0\0\0\0\0\0\0[1, 2,  " + path.read_bytes(),
        header(lambda entries: first(entries).update(dtype="F128")),
        header(lambda entries: first(entries).update(shape=[1 << 62, 1 << 62])),
        header(lambda entries: first(entries).update(data_offsets=[0, 1 << 62])),
        header(lambda entries: first(entries).update(data_offsets=[8, 0])),
        header(lambda entries: [entry.update(first(entries)) for entry in entries.values()]),
        tensors(lambda weights: weights.pop(min(weights))),
        tensors(lambda weights: weights.update(another=next(iter(weights.values())).clone())),
        tensors(lambda weights: weights.update({min(weights): weights[min(weights)][:1].clone()})),
    ],
    ids=[
        *("empty", "cut", "endless header", "header beyond the end", "header of another kind", "unknown numbers"),
        *("shape too large", "values beyond the end", "values backwards", "overlapping", "one missing", "one too many"),
        "another shape",
    ],
)
def test_checkpoint_that_is_none(run: Run, damage: Callable[[Path], bytes]) -> None:
    path = run.path / "model.safetensors"
    path.write_bytes(damage(path))
    reseal(run.path)
    with pytest.raises(ArtefactError, match="train the run again") as caught:
        load_model(run)
    told(caught, "model.safetensors")


ENTRY = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": {"model.safetensors": []}},
        {"files": {"model.safetensors": {"sha256": 3}}},
        {"files": {"model.safetensors": {"sha256": None, "bytes": -1}}},
        {"files": {"../../secret": ENTRY}},
        {"files": {"a\0b": ENTRY}},
        {"files": {"a" * 5000: ENTRY}},
        {"files": {"": ENTRY}},
        {"unheard": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_manifest_that_is_none(run: Run, change: dict[str, Any]) -> None:
    path = run.path / store.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtefactError) as caught:
        load_model(run)
    told(caught, "run")
    with contextlib.suppress(ArtefactError):
        manifest = store.read_manifest(run.path)
        assert manifest is not None
        with pytest.raises(ArtefactError):
            store.verify(run.path, manifest)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff", b"[" * DEEP, b'{"a":' * DEEP, b'{"n": ' + b"9" * 5000 + b"}", b'{"n": NaN}'],
    ids=["empty", "list", "null", "not text", "deep lists", "deep objects", "long number", "not a number"],
)
def test_record_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "eval-mnist.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        read_evaluation(path)
    told(caught, path.name)


@pytest.mark.parametrize(
    "content",
    [
        "epoch,step\n1,2\n",
        "epoch\n" + "9" * 400 + "\n",
        "a,b\n1,2,3\n",
        "epoch,step\nnan,x\n",
        "\0\n\0\n",
        pytest.param(
            "epoch\n" + "1" * 200_000 + "\n",
            id="long",
        ),
    ],
)
def test_history_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.csv").write_text(content)
    with pytest.raises(ArtefactError) as caught:
        history_from_csv(tmp_path / "history.csv")
    told(caught, "history.csv")
