from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from affbench.base import store
from affbench.base.errors import DataError, UsageError
from affbench.data import sets


def test_sample_is_balanced_and_its_splits_are_disjoint(data_dir: Path) -> None:
    train, validation, test = (sets.load_dataset("mnist-sample", split, data_dir) for split in sets.SPLITS)
    assert (len(train), len(validation), len(test)) == (5000, 1000, 1000)
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert (np.bincount(train.labels) + np.bincount(validation.labels)).tolist() == [600] * 10
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in (*validation.images, *test.images))


@pytest.mark.parametrize("name", ["mnist-padded-sample", "mnist-translated-sample"])
def test_sets_on_the_canvas_hold_the_same_ink_as_the_originals(data_dir: Path, name: str) -> None:
    dataset = sets.load_dataset(name, data_dir=data_dir)
    originals = sets.load_dataset("mnist-sample", data_dir=data_dir)
    assert dataset.images.shape == (1000, 40, 40)
    assert (dataset.images.sum((1, 2)) == originals.images.sum((1, 2))).all()
    assert (dataset.labels == originals.labels).all()
    assert dataset.transforms is None


def test_translated_placements_are_fixed(data_dir: Path, tmp_path: Path) -> None:
    first = sets.load_dataset("mnist-translated-sample", "validation", data_dir)
    again = sets.load_dataset("mnist-translated-sample", "validation", tmp_path)
    assert (first.images == again.images).all()
    assert first.key == again.key


def test_copies_are_the_beginning_of_more_copies(data_dir: Path) -> None:
    two = sets.load_dataset("affnist-synthetic-sample", data_dir=data_dir, copies=2)
    one = sets.load_dataset("affnist-synthetic-sample", data_dir=data_dir, copies=1)
    assert len(two) == 2 * len(one) == 2000
    assert (two.images[:1000] == one.images).all()
    assert two.key == one.key
    limited = sets.load_dataset("affnist-synthetic-sample", data_dir=data_dir, copies=32, limit=70)
    assert (limited.images == one.images[:70]).all()


def test_varied_set_has_its_own_ranges_key_and_canonical_name(data_dir: Path) -> None:
    spec = sets.find_set("affnist-synthetic-sample@translation=0,rotation=45.0")
    assert spec.name == "affnist-synthetic-sample@rotation=45,translation=0"
    varied = sets.load_dataset(spec.name, data_dir=data_dir, copies=1)
    assert 40 < np.abs(varied.transforms[:, 0]).max() <= 45
    assert not varied.transforms[:, 4:].any()
    assert varied.key != sets.load_dataset("affnist-synthetic-sample", data_dir=data_dir, copies=1).key


def test_one_factor_set_leaves_the_others_neutral(data_dir: Path) -> None:
    name = "affnist-synthetic-sample@only=rotation,rotation=60"
    transforms = sets.load_dataset(name, data_dir=data_dir, copies=1).transforms
    assert np.ptp(transforms[:, 0]) > 100
    assert np.unique(transforms[:, 1:], axis=0).tolist() == [[0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("afnist", r"unknown set 'afnist': did you mean 'affnist'\?"),
        ("mnist@rotation=3", "cannot be varied"),
        ("affnist@rotation=3", "cannot be varied"),
        ("affnist-synthetic@rotatoin=3", r"unknown variation 'rotatoin' .* did you mean 'rotation'\?"),
        ("affnist-synthetic@rotation=much", "is not a number"),
        ("affnist-synthetic@only=colour", "there is no factor 'colour'"),
    ],
)
def test_unknown_set_is_one_clear_sentence(name: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        sets.find_set(name)


def test_missing_digits_name_the_command_that_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is missing; 'affbench fetch mnist'"):
        sets.load_dataset("mnist-translated", "train", tmp_path)


def test_missing_official_set_names_both_ways_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'affbench fetch affnist' .* '--set affnist-synthetic'"):
        sets.load_dataset("affnist", data_dir=tmp_path)


def test_other_digits_under_the_official_name_are_refused(tmp_path: Path) -> None:
    raw = sets.raw_dir(tmp_path, "mnist")
    raw.mkdir(parents=True)
    for path in (Path(sets.__file__).parent / "sample").glob("*.gz"):
        shutil.copy(path, raw)
    with pytest.raises(DataError, match="is damaged: its checksum is not the published one"):
        sets.load_dataset("mnist", data_dir=tmp_path)
    assert not list(sets.sets_dir(tmp_path).glob("*.h5"))


def test_damaged_converted_set_is_made_again(tmp_path: Path) -> None:
    path = sets.find_part("mnist-sample").ensure(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert sets.load_dataset("mnist-sample", data_dir=tmp_path).labels.shape == (1000,)
    manifest = store.read_manifest(path)
    assert manifest is not None
    store.verify(path, manifest)


def test_keys_tell_every_set_and_split_apart() -> None:
    keys = set()
    names = [name for name, spec in sets.SETS.items() if spec.form != "official"]
    for name in names:
        for split in sets.SPLITS:
            keys.add(sets.find_part(name, split).key(Path("nowhere")))
    assert len(keys) == 3 * len(names)


def test_names_of_varied_sets_do_not_round() -> None:
    names = [sets.find_set(f"affnist-synthetic@rotation={value}").name for value in ("30.1234567", "30.1235")]
    assert names == ["affnist-synthetic@rotation=30.1234567", "affnist-synthetic@rotation=30.1235"]
    assert sets.find_set("affnist-synthetic@rotation=45.0").name == "affnist-synthetic@rotation=45"


@pytest.mark.parametrize("variation", ["only=shear,only=rotation", "rotation=1,rotation=45"])
def test_a_variation_given_twice_is_refused(variation: str) -> None:
    with pytest.raises(UsageError, match="twice"):
        sets.find_set(f"affnist-synthetic@{variation}")


def test_key_of_an_earlier_edition_is_known_as_such() -> None:
    today = sets.find_part("affnist-synthetic", "test").key(Path())
    before = "699c0d0204201a872fbd3f9e115f5627dceea50b59949a7265c582612455fbd9"  # of the committed runs of 2026
    assert not sets.is_earlier_edition("affnist-synthetic", "test", today)
    assert sets.is_earlier_edition("affnist-synthetic", "test", before)
    assert not sets.is_earlier_edition("affnist", "test", before)  # official files know best themselves
