"""CapsNet against the numbers of the paper and a loss written out in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from affbench.base.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.capsnet import CapsNet
from affbench.models.kernels.layout import prepare

SMALL = {"canvas": 20, "filters": 6, "primary_types": 3, "decoder": (12,)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("canvas", "reconstruction", "millions"),
    [(28, 0.0005, 8.2), (28, 0, 6.8), (40, 0.0005, 13.5)],
)
def test_parameters_are_as_many_as_published(canvas, reconstruction, millions):
    with torch.device("meta"):
        model = CapsNet(canvas=canvas, reconstruction=reconstruction)
    assert round(parameter_count(model) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("kernel", "parameters"), [(3, 16_111_424), (5, 14_378_816), (7, 13_500_224), (9, 13_475_648), (11, 14_305_088)]
)
def test_parameters_by_kernel_are_those_of_gu_tresp_and_hu(kernel, parameters):
    with torch.device("meta"):
        assert parameter_count(build_model("capsnet", kernel=kernel)) == parameters


@pytest.mark.parametrize("kernel", [2, 4, 5])
def test_a_kernel_fits_canvases_from_twice_its_side(kernel):
    options = SMALL | {"kernel": kernel, "canvas": 2 * kernel - 1}
    assert build_model("capsnet", **options)(torch.rand(2, 1, 2 * kernel - 1, 2 * kernel - 1)).shape == (2, 10)
    with pytest.raises(UsageError, match=f"at least {2 * kernel - 1}, not"):
        build_model("capsnet", **options | {"canvas": 2 * kernel - 2})


@pytest.mark.parametrize("routings", [1, 3])
def test_without_squashing_no_capsule_is_squashed(routings):
    model = CapsNet(**SMALL, squash=False, routings=routings).double()
    images = torch.rand(2, 1, 20, 20).double()
    u = model.primary.network(images).unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2).reshape(2, 12, 8) / 3
    votes = torch.einsum("njod,bnd->bnjo", model.digits.matrices, u)
    b = torch.zeros(2, 12, 10).double()
    for _ in range(routings):
        v = (b.softmax(2)[..., None] * votes).sum(1)
        b = b + (votes * v[:, None]).sum(3)
    torch.testing.assert_close(model.capsules(images), v)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float()(images.float()).dtype == torch.float32


def test_unconditional_reconstruction_sees_every_capsule():
    model = CapsNet(**SMALL, conditional=False)
    capsules, labels = torch.rand(2, 10, 16), torch.tensor([3, 7])
    torch.testing.assert_close(model.decode(capsules, labels), model.decoder(capsules.flatten(1)).view(2, 1, 20, 20))


def test_cross_entropy_takes_lengths_as_scores():
    model = CapsNet(**SMALL, loss="cross-entropy", reconstruction=0)
    images, labels = torch.rand(3, 1, 20, 20), torch.tensor([0, 5, 9])
    loss, scores = model.loss_and_scores(images, labels)
    torch.testing.assert_close(loss, (scores.exp().sum(1).log() - scores[[0, 1, 2], labels]).mean())


@pytest.mark.parametrize(("canvas", "capsules"), [(28, 1152), (40, 4608)])
def test_primary_capsules_are_as_many_as_published(canvas, capsules):
    model = CapsNet(canvas=canvas, filters=2)
    assert model.primary(torch.rand(1, 1, canvas, canvas)).shape == (1, capsules, 8)
    assert model.digits.matrices.shape == (capsules, 10, 16, 8)


@pytest.mark.parametrize("canvas", [17, 18, 25])
def test_any_canvas_gives_scores_below_one_and_capsules_of_those_lengths(canvas):
    model = build_model("capsnet", canvas=canvas, filters=4, primary_types=2, digit_dim=5, classes=7, decoder=[3])
    images = torch.rand(3, 1, canvas, canvas)
    scores, capsules = model(images), model.capsules(images)
    assert capsules.shape == (3, 7, 5)
    torch.testing.assert_close(scores, capsules.norm(dim=-1))
    assert (scores < 1).all()
    assert model.reconstruct(images).shape == images.shape


def test_primary_capsules_are_groups_of_neighbouring_channels_scaled_and_squashed():
    model = CapsNet(**SMALL)
    images = torch.rand(2, 1, 20, 20)
    channels = model.primary.network(images).detach().double() / 3  # (2, 24, 2, 2), shared among 3 types
    primary = model.primary(images).detach()
    for kind in range(3):
        for row in range(2):
            for column in range(2):
                s = channels[:, kind * 8 : kind * 8 + 8, row, column]
                norm = s.norm(dim=-1, keepdim=True)
                expected = norm**2 / (1 + norm**2) * s / norm
                capsule = primary[:, (kind * 2 + row) * 2 + column]
                torch.testing.assert_close(capsule.double(), expected, rtol=1e-5, atol=1e-7)


def test_decoder_sees_the_capsule_of_the_true_class_alone():
    model = CapsNet(**SMALL)
    capsules, labels = torch.rand(2, 10, 16), torch.tensor([3, 7])
    drawn = model.decode(capsules, labels)
    others = torch.rand(2, 10, 16)
    others[[0, 1], labels] = capsules[[0, 1], labels]
    torch.testing.assert_close(model.decode(others, labels), drawn)
    assert not torch.allclose(model.decode(capsules, labels.flip(0)), drawn)


def test_reconstruction_without_labels_is_that_of_the_predicted_class():
    model = CapsNet(**SMALL)
    images = torch.rand(4, 1, 20, 20)
    torch.testing.assert_close(model.reconstruct(images), model.reconstruct(images, model(images).argmax(-1)))


def test_loss_is_margin_loss_plus_weighted_squared_error():
    model = CapsNet(**SMALL, reconstruction=0.01)
    images, labels = torch.rand(5, 1, 20, 20), torch.tensor([0, 3, 9, 3, 1])
    loss, scores = model.loss_and_scores(images, labels)
    lengths = model.capsules(images).detach().double().norm(dim=-1).numpy()
    pixels = model.reconstruct(images, labels).detach().double().numpy()
    expected = 0.0
    for image in range(5):
        for k in range(10):
            present = labels[image] == k
            short, long = max(0.0, 0.9 - lengths[image, k]), max(0.0, lengths[image, k] - 0.1)
            expected += (short**2 if present else 0.5 * long**2) / 5
        expected += 0.01 * ((pixels[image] - images[image].numpy()) ** 2).sum() / 5
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)
    np.testing.assert_allclose(scores.detach(), lengths, rtol=1e-5)
    torch.testing.assert_close(model.loss(images, labels), loss)


def test_without_reconstruction_there_is_no_decoder_and_that_is_said():
    model = CapsNet(**SMALL, reconstruction=0)
    assert model.decoder is None
    model.loss(torch.rand(2, 1, 20, 20), torch.tensor([1, 2])).backward()
    with pytest.raises(UsageError, match="no decoder"):
        model.reconstruct(torch.rand(2, 1, 20, 20))


@pytest.mark.parametrize("routings", [1, 3, 10])
@pytest.mark.parametrize("gradient", ["last", "all"])
def test_training_lowers_the_loss_and_reaches_every_parameter(routings, gradient):
    model = CapsNet(**SMALL, routings=routings, routing_gradient=gradient)
    images, labels = torch.rand(10, 1, 20, 20), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(images, labels)
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_full_size_network_is_not_saturated_by_the_first_optimiser_steps():
    # At full size and a learning rate of 0.001 one step moves each primary channel by about the sum of 20,736 products:
    # class capsules must not all jump to length 1, where the margin loss has no gradient left.
    model = CapsNet(reconstruction=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    images, labels = torch.rand(2, 1, 40, 40), torch.tensor([3, 8])
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(images, labels).backward()
        optimizer.step()
    assert model(images).mean() < 0.8


def test_parameters_keep_their_names_and_shapes_so_that_saved_models_load():
    shapes = {name: tuple(tensor.shape) for name, tensor in CapsNet(**SMALL).state_dict().items()}
    assert shapes == {
        "primary.network.0.weight": (6, 1, 9, 9),
        "primary.network.0.bias": (6,),
        "primary.network.2.weight": (24, 6, 9, 9),
        "primary.network.2.bias": (24,),
        "digits.weight": (10, 16, 8, 12),  # 2×2 places of 3 types
        "decoder.0.weight": (12, 160),
        "decoder.0.bias": (12,),
        "decoder.2.weight": (400, 12),
        "decoder.2.bias": (400,),
    }


def test_the_routing_can_be_replaced():
    class Average(nn.Module):
        def forward(self, capsules, matrices):
            return torch.einsum("njod,bnd->bjo", matrices, capsules)

    model = CapsNet(**SMALL, reconstruction=0)
    model.digits.routing = Average()
    model.loss(torch.rand(2, 1, 20, 20), torch.tensor([1, 2])).backward()
    assert model.digits.weight.grad.any()


def test_same_seed_trains_to_the_same_bits():
    def train():
        torch.manual_seed(7)
        model = CapsNet(**SMALL)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            model.loss(torch.rand(8, 1, 20, 20), torch.randint(10, (8,))).backward()
            optimizer.step()
        return model.state_dict()

    first, second = train(), train()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_are_contiguous_so_that_they_can_be_saved_as_they_are():
    model = prepare(CapsNet(**SMALL), torch.device("cpu"))
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_bfloat16_autocast_leaves_scores_and_loss_in_float32_and_close():
    model = CapsNet(**SMALL)
    images, labels = torch.rand(8, 1, 20, 20), torch.arange(8)
    exact, exact_scores = model.loss_and_scores(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss, scores = model.loss_and_scores(images, labels)
    assert loss.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
    torch.testing.assert_close(scores, exact_scores, rtol=5e-2, atol=2e-3)


def test_the_primary_network_can_be_replaced():
    model = CapsNet(**SMALL)
    model.primary.network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(1, 24, 1))
    assert model(torch.rand(2, 1, 20, 20)).shape == (2, 10)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("canvas", 16, "at least 17"),
        ("routings", 0, "routings must be a whole number of at least 1"),
        ("routings", -1, "routings"),
        ("routings", "abc", "routings"),
        ("routing_gradient", "al", "did you mean 'all'"),
        ("reconstruction", -1, "reconstruction"),
        ("reconstruction", float("nan"), "reconstruction"),
        ("filters", 0, "filters"),
        ("primary_types", 1.5, "primary_types"),
        ("decoder", "512", "decoder"),
        ("decoder", [512, 0], "decoder"),
    ],
)
def test_bad_options_are_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        CapsNet(**(SMALL | {option: value}))
