"""Aff-CapsNet: what sharing one transformation means, its size counted by hand; parts of capsule networks composed."""

import numpy as np
import pytest
import torch
from torch import nn

from affbench.base.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.aff_capsnet import AffCapsNet
from affbench.models.capsnet import CapsuleNetwork, PrimaryCapsules, pixel_decoder
from affbench.models.loss import loss_and_scores
from affbench.models.routing import CapsuleLayer, SharedCapsuleLayer, dynamic_routing_reference

SMALL = {"canvas": 20, "filters": 6, "primary_types": 3, "decoder": (12,)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("canvas", "reconstruction", "decoder"),
    [
        (28, 0, 0),
        (40, 0, 0),
        (28, 0.0005, (160 * 512 + 512) + (512 * 1024 + 1024) + (1024 * 28 * 28 + 28 * 28)),
        (40, 0.0005, (160 * 512 + 512) + (512 * 1024 + 1024) + (1024 * 40 * 40 + 40 * 40)),
    ],
)
def test_parameters_are_those_counted_by_hand(canvas, reconstruction, decoder):
    first = 256 * 9 * 9 + 256
    second = (32 * 8) * 256 * 9 * 9 + 32 * 8
    shared = 10 * 16 * 8
    with torch.device("meta"):
        model = build_model("aff-capsnet", canvas=canvas, reconstruction=reconstruction)
    assert parameter_count(model) == first + second + shared + decoder


def test_it_is_capsnet_less_the_transformations_of_all_capsules_but_one():
    with torch.device("meta"):
        routed = build_model("capsnet", canvas=28, reconstruction=0)
        shared = build_model("aff-capsnet", canvas=28, reconstruction=0)
    assert parameter_count(routed) - parameter_count(shared) == (1152 - 1) * 10 * 16 * 8


@pytest.mark.parametrize("canvas", [17, 28, 40])
def test_scores_are_lengths_and_images_are_drawn_on_any_canvas(canvas):
    model = build_model("aff-capsnet", canvas=canvas, filters=4, primary_types=2, digit_dim=5, classes=7, decoder=[3])
    images = torch.rand(3, 1, canvas, canvas)
    scores, capsules = model(images), model.capsules(images)
    assert capsules.shape == (3, 7, 5)
    torch.testing.assert_close(scores, capsules.norm(dim=-1))
    assert (scores < 1).all()
    assert model.reconstruct(images).shape == images.shape


def test_the_order_of_the_primary_capsules_does_not_matter():
    shared = AffCapsNet(**SMALL)
    own = build_model("capsnet", **SMALL, routings=1)
    primary = shared.primary(torch.rand(4, 1, 20, 20)) * 1000
    shuffled = primary[:, torch.randperm(primary.shape[1])]
    torch.testing.assert_close(shared.digits(shuffled), shared.digits(primary))
    assert not torch.allclose(own.digits(shuffled), own.digits(primary), rtol=1e-2)


def test_a_digit_that_moves_by_whole_strides_keeps_its_class_capsules():
    model = AffCapsNet(**SMALL | {"canvas": 60, "decoder": (2,)})
    model.primary.network[0].bias.data.zero_()
    model.primary.network[2].bias.data.zero_()  # so that black background says nothing, here or there
    digit = torch.rand(2, 1, 10, 10)
    there, here = torch.zeros(2, 1, 60, 60), torch.zeros(2, 1, 60, 60)
    here[..., 20:30, 20:30] = digit
    there[..., 26:36, 18:28] = digit
    torch.testing.assert_close(model.capsules(there), model.capsules(here), rtol=1e-4, atol=1e-9)


def test_the_layer_is_routing_once_with_equal_matrices_in_values_and_gradients():
    layer = SharedCapsuleLayer(4, 3, 5).double()
    capsules = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, 5, dtype=torch.float64)
    results = []
    for route in (layer, lambda u: dynamic_routing_reference(u, layer.weight.expand(7, -1, -1, -1), 1)):
        v = route(capsules)
        results.append((v, *torch.autograd.grad(v, (capsules, layer.weight), grad)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("squashed", [True, False])
@pytest.mark.parametrize(("iterations", "gradient"), [(1, "last"), (3, "last"), (2, "all"), (3, "all")])
def test_with_routing_it_is_procedure_1_with_equal_matrices(iterations, gradient, squashed, norm):
    layer = SharedCapsuleLayer(4, 3, 5, iterations, gradient, squashed).double()
    capsules = norm * torch.randn(2, 7, 4, dtype=torch.float64)
    capsules[0, 3] = 0
    grad = torch.randn(2, 3, 5, dtype=torch.float64)
    results = []

    def written_out(u):
        activation = None if squashed else nn.Identity()
        return dynamic_routing_reference(u, layer.weight.expand(7, -1, -1, -1), iterations, gradient, activation)

    for route in (layer, written_out):
        v = route(capsules.requires_grad_())
        results.append((v, *torch.autograd.grad(v, (capsules, layer.weight), grad)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_without_routing_it_is_the_network_of_one_iteration():
    images, networks = torch.rand(2, 1, 20, 20), []
    for routings in (None, 1, 3):
        torch.manual_seed(0)
        networks.append(AffCapsNet(**SMALL, routings=routings))
        with torch.no_grad():
            networks[-1].digits.weight.mul_(1000)  # so that there is something to agree on
    none, one, three = (model(images) for model in networks)
    assert torch.equal(none, one)
    assert not torch.allclose(none, three, rtol=1e-3)
    assert parameter_count(networks[0]) == parameter_count(networks[2])


def test_the_layer_is_the_squashed_average_of_the_votes_times_n_over_j():
    layer = SharedCapsuleLayer(2, 3, 4)
    u = np.random.default_rng(0).normal(size=(2, 6, 2))
    w = layer.weight.detach().double().numpy()
    found = layer(torch.tensor(u)).detach().numpy()
    for image in range(2):
        for j in range(3):
            s = np.mean([w[j] @ u[image, i] for i in range(6)], axis=0) * 6 / 3
            length = np.sqrt((s**2).sum())
            np.testing.assert_allclose(found[image, j], length**2 / (1 + length**2) * s / length, rtol=1e-6)


def test_training_lowers_the_loss_and_reaches_every_parameter():
    model = AffCapsNet(**SMALL)
    images, labels = torch.rand(10, 1, 20, 20), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss, _ = loss_and_scores(model, images, labels)
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_bfloat16_autocast_leaves_scores_in_float32_and_close():
    model = AffCapsNet(**SMALL)
    with torch.no_grad():
        model.digits.weight.mul_(300)  # as long as after training: squares of tiny numbers tell nothing
    images = torch.rand(8, 1, 20, 20)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(images)
    assert scores.dtype == torch.float32
    assert exact.max() > 0.1
    torch.testing.assert_close(scores, exact, rtol=5e-2, atol=2e-3)


def test_capsule_networks_are_composed_of_parts_of_ones_own():
    network = nn.Sequential(nn.Conv2d(1, 12, 5, stride=3), nn.ReLU(), nn.Conv2d(12, 8, 1))  # 2 types of 4D, 4×4 places
    images, labels = torch.rand(3, 1, 16, 16), torch.tensor([1, 0, 2])
    for digits in (SharedCapsuleLayer(4, 3, 6), CapsuleLayer(2 * 16, 4, 3, 6, iterations=2)):
        model = CapsuleNetwork(PrimaryCapsules(network, 4), digits, pixel_decoder(18, (5,), 256), 0.01)
        loss, scores = loss_and_scores(model, images, labels)
        assert scores.shape == (3, 3)
        assert model.reconstruct(images).shape == images.shape
        loss.backward()
        assert digits.weight.grad.any()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("canvas", 16, "at least 17"),
        ("reconstruction", -1, "reconstruction"),
        ("filters", 0, "filters"),
        ("primary_types", 1.5, "primary_types"),
        ("primary_dim", 0, "primary_dim"),
        ("digit_dim", "16", "digit_dim"),
        ("classes", 0, "classes"),
        ("decoder", [512, 0], "decoder"),
        ("routings", 0, "routings"),
        ("routing_gradient", "first", "routing_gradient"),
        ("squash", "off", "squash must be true or false"),
        ("conditional", 1, "conditional must be true or false"),
        ("loss", "spread", "loss 'spread' is unknown"),
        ("kernel", 0, "kernel"),
    ],
)
def test_bad_options_are_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model("aff-capsnet", **(SMALL | {option: value}))
