from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from affbench.base.errors import DataError, UsageError
from affbench.data import AffNIST, sets

NAME = "affnist-synthetic-sample"


def test_it_is_used_as_torchvisions_mnist_is(data_dir: Path) -> None:
    digits = AffNIST(data_dir, name=NAME)
    expected = sets.load_dataset(NAME, data_dir=data_dir)
    assert len(digits) == len(expected)
    image, label = digits[17]
    assert isinstance(image, Image.Image)
    assert (image.size, image.mode) == ((40, 40), "L")
    assert torch.equal(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(40, 40), digits.data[17])
    assert label == expected.labels[17]
    assert isinstance(label, int)
    assert digits.data.shape == (len(expected), 40, 40)
    assert digits.targets.tolist() == expected.labels.tolist()
    assert digits.classes == tuple("0123456789")


def test_transforms_reach_images_and_targets(data_dir: Path) -> None:
    digits = AffNIST(
        data_dir, name=NAME, transform=lambda image: torch.zeros(image.size), target_transform=lambda label: -label
    )
    images, labels = next(iter(DataLoader(digits, batch_size=8)))
    assert images.shape == (8, 40, 40)
    assert labels.tolist() == [-int(label) for label in digits.targets[:8]]


def test_transformation_can_be_the_target(data_dir: Path) -> None:
    expected = sets.load_dataset(NAME, data_dir=data_dir)
    digits = AffNIST(data_dir, name=NAME, target_type=("label", "transform", "source_index"))
    _, (label, transform, source) = digits[1003]
    assert label == expected.labels[1003]
    assert transform.tolist() == expected.transforms[1003].tolist()
    assert source == expected.source_index[1003]


def test_data_and_targets_can_be_assigned_as_torchvisions(data_dir: Path) -> None:
    digits = AffNIST(data_dir, name=NAME, target_type=("label", "source_index"))
    chosen = digits.targets == 7
    seventh = digits.data[chosen][3]
    digits.data, digits.targets = digits.data[chosen], torch.arange(int(chosen.sum()))
    assert len(digits) == chosen.sum()
    with pytest.raises(UsageError, match="choose from all"):
        digits[3]
    digits.source_index = digits.source_index[chosen]
    image, (label, source) = digits[3]
    assert bytes(image.tobytes()) == bytes(seventh.numpy().tobytes())
    assert (label, source) == (3, int(digits.source_index[3]))


def test_making_a_large_set_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    AffNIST(tmp_path, name="mnist-padded-sample")
    AffNIST(tmp_path, name="mnist-padded-sample")
    assert [record.getMessage().partition(" in ")[0] for record in caplog.records] == [
        "making mnist-padded-sample (test)"
    ]
    assert "1,000 images, 2 MB unpacked" in caplog.text


def test_nothing_is_downloaded_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'download=True' fetches it; name='affnist-synthetic'"):
        AffNIST(tmp_path)


def test_sample_needs_no_download(tmp_path: Path) -> None:
    assert len(AffNIST(tmp_path, name="mnist-translated-sample", split="validation", download=True)) == 1000


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"target_type": "colour"}, "colour"), ({"split": "tests"}, "unknown split"), ({"name": "afnist"}, "unknown set")],
)
def test_mistakes_are_one_clear_sentence(data_dir: Path, options: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        AffNIST(data_dir, **{"name": NAME, **options})  # type: ignore[arg-type]
