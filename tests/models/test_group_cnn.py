"""The CNN over a group of rotations: what turns of the image do to it, and its size."""

import math

import pytest
import torch
from torch import nn

from affbench.base.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.group_cnn import GroupConv, harmonics

SMALL = {"canvas": 20, "fields": (2, 2, 3, 3, 2, 4), "kernels": (5, 5, 3, 3, 3, 3)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def turned(images, quarters):
    return torch.rot90(images, quarters, (-2, -1))


@pytest.mark.parametrize("orientations", [4, 8])
@pytest.mark.parametrize("canvas", [20, 40])
def test_scores_of_an_image_turned_by_a_quarter_are_the_same(orientations, canvas):
    model = build_model("group-cnn", **(SMALL | {"canvas": canvas, "orientations": orientations})).double()
    model(torch.rand(8, 1, canvas, canvas).double())  # batch statistics, so that normalisation does something
    model.eval()
    images = torch.rand(3, 1, canvas, canvas).double()
    scores = model(images)
    for quarters in (1, 2, 3):
        torch.testing.assert_close(model(turned(images, quarters)), scores, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(images.transpose(2, 3)), scores, rtol=1e-3)  # a mirror image is another one


def test_fields_turn_with_the_image_and_their_orientations_move_on():
    model = build_model("group-cnn", **SMALL).double().eval()
    images = torch.rand(2, 1, 20, 20).double()
    found, expected = (model.fields(own[:, :, None]) for own in (turned(images, 1), images))
    torch.testing.assert_close(found, turned(expected, 1).roll(2, 2), rtol=1e-12, atol=1e-12)


def test_a_smooth_image_turned_by_45_degrees_moves_the_orientations_by_one():
    side = torch.arange(33) - 16.0
    y, x = torch.meshgrid(-side, side, indexing="ij")

    def bar(angle):  # a smooth bar off the centre, turned counter-clockwise
        along = x * math.cos(angle) + y * math.sin(angle)
        across = -x * math.sin(angle) + y * math.cos(angle)
        return torch.exp(-(((along - 3) / 5) ** 2) - (across / 2) ** 2)[None, None, None]

    layer = nn.Sequential(GroupConv(0, 3, 7, 8), nn.ELU(), GroupConv(3, 2, 5, 8))
    with torch.no_grad():
        here, there = (layer(bar(angle))[0, :, :, 16, 16] for angle in (0, math.pi / 4))
    error, other = ((there - here.roll(turn, 1)).norm() / here.norm() for turn in (1, 0))
    assert error < 0.15 < 0.3 < other


def test_harmonics_are_turned_by_quarters_exactly_and_have_norm_1():
    basis = harmonics(7, 8)
    assert basis.shape == (8, 1 + 3 + 5 + 7, 7, 7)
    for turn in range(8):
        assert torch.equal(basis[(turn + 2) % 8], turned(basis[turn], 1))
    torch.testing.assert_close(basis[0].flatten(1).norm(dim=1), torch.ones(16))
    one = basis[:, 1:].double()  # what is no constant ring has no value at the centre
    centre = one[..., 3, 3].abs().amax(0)
    rings = torch.tensor([m == 0 for ring in (1, 2, 3) for m in [0, *[1] * (2 * ring)]])
    assert (centre[~rings] == 0).all()


def test_parameters_are_those_counted_by_hand():
    n9, n7, n5 = 1 + 3 + 5 + 7 + 9, 1 + 3 + 5 + 7, 1 + 3 + 5
    pairs = 24 * 32 * n7 + 32 * 36 * n7 + 36 * 36 * n7 + 36 * 64 * n7 + 64 * 96 * n5
    norms = 2 * (24 + 32 + 36 + 36 + 64 + 96)
    with torch.device("meta"):
        model = build_model("group-cnn")
    assert parameter_count(model) == 24 * n9 + 8 * pairs + norms + (96 * 10 + 10) == 1_151_074


@pytest.mark.parametrize("canvas", [4, 21, 28])
def test_any_canvas_gives_raw_scores(canvas):
    scores = build_model("group-cnn", **(SMALL | {"canvas": canvas, "classes": 7}))(torch.rand(2, 1, canvas, canvas))
    assert scores.shape == (2, 7)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("canvas", 3, "at least 4"),
        ("orientations", 6, "multiple of 4"),
        ("fields", (2, 2), "fields must list 6"),
        ("kernels", (5, 4, 3, 3, 3, 3), "must be odd, not 4"),
    ],
)
def test_bad_options_are_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model("group-cnn", **(SMALL | {option: value}))
