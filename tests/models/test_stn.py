"""The spatial transformer: starts as the identity, samples where it says, learns, and its size counted by hand."""

import pytest
import torch

from affbench.base.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.loss import loss_and_scores
from affbench.models.stn import SpatialTransformer

SMALL = {"canvas": 20, "localisation": (3, 2), "localisation_hidden": 5, "filters": (4, 3), "hidden": 8}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("canvas", "side"), [(28, 4), (40, 7)])
def test_parameters_are_those_counted_by_hand(canvas, side):
    with torch.device("meta"):
        model = build_model("stn-cnn", canvas=canvas)
    localisation = (20 * 25 + 20) + (20 * 20 * 25 + 20) + (20 * side * side * 20 + 20) + (20 * 6 + 6)
    convolutions = (512 * 25 + 512) + (256 * 512 * 25 + 256)
    classifier = (256 * side * side * 1024 + 1024) + (1024 * 10 + 10)
    assert parameter_count(model) == localisation + convolutions + classifier
    assert canvas != 40 or parameter_count(model.transformer) == 30_286


@pytest.mark.parametrize("canvas", [16, 28, 40])
def test_it_starts_as_the_plain_cnn(canvas):
    model = build_model("stn-cnn", **(SMALL | {"canvas": canvas, "classes": 7})).eval()
    images = torch.rand(3, 1, canvas, canvas)
    assert model(images).shape == (3, 7)
    torch.testing.assert_close(model.transformer(images), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images), model.classifier(images), rtol=1e-4, atol=1e-5)


def transform(theta, images):
    """A transformer that answers every image with the same transformation."""
    transformer = SpatialTransformer(images.shape[-1], (1, 1), 2)
    with torch.no_grad():
        transformer.localisation[-1].bias.copy_(torch.tensor(theta).flatten())
    return transformer(images)


def test_it_samples_the_image_where_its_transformation_says():
    images = torch.rand(2, 1, 20, 20)
    # A shift of the source by a tenth of the whole extent, 2, is 2 of 20 pixels: what was right comes left.
    shifted = transform([[1.0, 0, 0.2], [0, 1, 0]], images)
    torch.testing.assert_close(shifted[..., :18], images[..., 2:], rtol=0, atol=1e-5)
    assert shifted[..., 18:].abs().max() < 1e-5
    turned = transform([[0.0, -1, 0], [1, 0, 0]], images)  # x from −y, y from x
    torch.testing.assert_close(turned, images.transpose(2, 3).flip(2), rtol=0, atol=1e-5)


def test_half_a_pixel_is_interpolated():
    images = torch.rand(1, 1, 20, 20)
    between = transform([[1.0, 0, 0], [0, 1, 0.05]], images)
    expected = (images[:, :, :-1] + images[:, :, 1:]) / 2
    torch.testing.assert_close(between[:, :, :-1], expected, rtol=0, atol=1e-5)


def test_training_lowers_the_loss_and_reaches_every_parameter():
    model = build_model("stn-cnn", **SMALL, dropout=0.0)
    images, labels = torch.rand(10, 1, 20, 20), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss, _ = loss_and_scores(model, images, labels)
        loss.backward()
        if step == 1:  # at step 0 nothing flows past the zero weights of the last localisation layer
            assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_bfloat16_autocast_samples_exactly_and_leaves_scores_in_float32_and_close():
    model = build_model("stn-cnn", **SMALL).eval()
    images = torch.rand(8, 1, 20, 20)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        sampled, scores = model.transformer(images), model(images)
    assert sampled.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(sampled, images, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores, exact, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("canvas", 15, "at least 16"),
        ("localisation", [20], "localisation must list 2"),
        ("localisation_hidden", 0, "localisation_hidden"),
        ("filters", [4], "filters must list 2"),
        ("dropout", 1.0, "below 1"),
    ],
)
def test_bad_options_are_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model("stn-cnn", **(SMALL | {option: value}))
