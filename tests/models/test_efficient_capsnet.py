"""Efficient-CapsNet: its routing against the definition, its size as published, and its loss."""

import math

import pytest
import torch

from affbench.base.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.efficient_capsnet import SelfAttentionRouting, Squash
from affbench.models.loss import margin_loss

SMALL = {"canvas": 19, "filters": (4, 6, 6, 12), "primary_dim": 4, "digit_dim": 3, "decoder": (5,)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("canvas", "parameters"), [(28, 161_824), (40, 161_824 + 128 * (15 * 15 - 9 * 9))])
def test_parameters_are_those_published_but_for_the_larger_map(canvas, parameters):
    with torch.device("meta"):
        model = build_model("efficient-capsnet", canvas=canvas, reconstruction=0)
        drawing = build_model("efficient-capsnet", canvas=canvas)
    assert parameter_count(model) == parameters
    decoder = (160 * 512 + 512) + (512 * 1024 + 1024) + (1024 * canvas**2 + canvas**2)
    assert parameter_count(drawing) == parameters + decoder


@pytest.mark.parametrize("norm", [1e-4, 1.0, 50.0])
def test_routing_is_the_definition_in_values_and_gradients(norm):
    layer = SelfAttentionRouting(5, 3, 4, 6).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    u = norm * torch.randn(2, 5, 3).double()
    u[0, 2] = 0
    leaves = (u.requires_grad_(), layer.weight, layer.bias)
    images = []
    for image in range(2):
        votes = [[layer.weight[j, n] @ u[image, n] for n in range(5)] for j in range(4)]
        agreement = torch.stack(
            [torch.stack([sum(votes[j][n] @ votes[j][k] for k in range(5)) for n in range(5)]) for j in range(4)]
        )
        c = (agreement / math.sqrt(6)).softmax(0) + layer.bias
        s = [sum(c[j, n] * votes[j][n] for n in range(5)) for j in range(4)]
        images.append(torch.stack([(1 - torch.exp(-one.norm())) * one / one.norm() for one in s]))
    found, expected = layer(u), torch.stack(images)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_squashing_keeps_zero_and_its_derivative_there():
    vectors = torch.tensor([[0.0, 0], [1e-12, 0], [3, 4], [3e15, 4e15]], requires_grad=True)
    squashed = Squash()(vectors)
    length = 1 - math.exp(-5)
    expected = torch.tensor([[0, 0], [1e-12, 0], [0.6 * length, 0.8 * length], [0.6, 0.8]])
    torch.testing.assert_close(squashed, expected, atol=1e-20, rtol=1e-6)
    squashed.sum().backward()
    torch.testing.assert_close(vectors.grad[:2], torch.ones(2, 2))
    assert vectors.grad.isfinite().all()


def test_the_loss_counts_the_mean_squared_error_whatever_the_canvas():
    model = build_model("efficient-capsnet", **SMALL, reconstruction=0.3).eval()
    images, labels = torch.rand(4, 1, 19, 19), torch.tensor([1, 2, 3, 9])
    loss, scores = model.loss_and_scores(images, labels)
    error = (model.reconstruct(images, labels) - images).square().mean()
    torch.testing.assert_close(loss, margin_loss(scores, labels) + 0.3 * error)


@pytest.mark.parametrize("canvas", [11, 12, 40])
def test_any_canvas_gives_scores_below_one(canvas):
    scores = build_model("efficient-capsnet", **(SMALL | {"canvas": canvas, "classes": 7}))(
        torch.rand(3, 1, canvas, canvas)
    )
    assert scores.shape == (3, 7)
    assert (scores < 1).all()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("canvas", 10, "at least 11"),
        ("filters", (4, 6, 6, 10), "10, must be a multiple of primary_dim, 4"),
        ("filters", (4, 6), "filters must list 4"),
        ("reconstruction", -1, "reconstruction"),
        ("digit_dim", 0, "digit_dim"),
    ],
)
def test_bad_options_are_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model("efficient-capsnet", **(SMALL | {option: value}))
