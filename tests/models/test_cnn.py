"""The CNN baselines: published sizes, shapes, what dropout does, bad options."""

import pytest
import torch

from affbench.base.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.loss import loss_and_scores

SMALL = {
    "cnn": {"canvas": 20, "filters": (4, 3), "hidden": 8},
    "cnn-sabour": {"canvas": 9, "filters": (4, 3, 2), "hidden": (8, 6)},
    "cnn-gap": {"canvas": 20, "filters": (4, 3, 5), "hidden": 8},
    "cnn-fc": {"canvas": 14, "filters": (4, 3, 2), "hidden": (8, 6)},
    "cnn-avg": {"canvas": 17, "filters": (4, 8)},
}


@pytest.mark.parametrize(("name", "canvas", "millions"), [("cnn-sabour", 28, 35.4), ("cnn", 40, 16.1)])
def test_parameters_are_as_many_as_published(name, canvas, millions):
    with torch.device("meta"):
        model = build_model(name, canvas=canvas)
    assert round(parameter_count(model) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "kernel", "parameters"),
    [
        *(("cnn-fc", 3, 49_486_610), ("cnn-fc", 5, 35_445_522), ("cnn-fc", 7, 25_215_762)),
        *(("cnn-avg", 3, 595_210), ("cnn-avg", 5, 1_647_882), ("cnn-avg", 7, 3_226_890)),
        *(("cnn-avg", 9, 5_332_234), ("cnn-avg", 11, 7_963_914)),
    ],
)
def test_parameters_by_kernel_are_those_of_gu_tresp_and_hu(name, kernel, parameters):
    with torch.device("meta"):
        model, usual = build_model(name, kernel=kernel), build_model(name)
    assert parameter_count(model) == parameters
    assert parameter_count(usual) in (35_445_522, 5_332_234)


def test_the_two_networks_of_35_million_differ_in_padding_alone():
    padded, unpadded = build_model("cnn-sabour", **SMALL["cnn-sabour"]), build_model("cnn-fc", **SMALL["cnn-fc"])
    assert [type(layer) for layer in padded.modules()][1:] == [type(layer) for layer in unpadded.modules()][1:]
    assert [layer.padding for layer in padded.features[::2]] == [(2, 2)] * 3
    assert [layer.padding for layer in unpadded.features[::2]] == [(0, 0)] * 3
    with torch.device("meta"):
        assert parameter_count(build_model("cnn-sabour", canvas=40)) == 69_704_466


CONVOLUTIONS = (512 * 25 + 512) + (256 * 512 * 25 + 256)  # of the affNIST baseline


@pytest.mark.parametrize("canvas", [28, 40])
@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, CONVOLUTIONS + (256 * 1024 + 1024) + (1024 * 10 + 10)),
        ({"hidden": 0}, CONVOLUTIONS + (256 * 10 + 10)),
        (
            {"filters": (64, 64, 128), "pooling": "max", "hidden": 0},
            (64 * 25 + 64) + (64 * 64 * 25 + 64) + (128 * 64 * 9 + 128) + (128 * 10 + 10),
        ),
    ],
)
def test_parameters_with_global_pooling_are_those_counted_by_hand_on_any_canvas(options, parameters, canvas):
    with torch.device("meta"):
        model = build_model("cnn-gap", canvas=canvas, **options)
    assert parameter_count(model) == parameters


@pytest.mark.parametrize(("pooling", "reduce"), [("average", torch.mean), ("max", torch.amax)])
def test_global_pooling_is_the_only_difference_to_the_baseline(pooling, reduce):
    torch.manual_seed(0)
    options = {"canvas": 20, "filters": (4, 3), "hidden": 8, "dropout": 0.0}
    model, baseline = build_model("cnn-gap", pooling=pooling, **options), build_model("cnn", **options)
    model.features.load_state_dict(baseline.features.state_dict())
    images = torch.rand(2, 1, 20, 20)
    pooled = reduce(baseline.features(images), dim=(2, 3))
    torch.testing.assert_close(model(images), model.classifier(pooled))
    assert [type(layer) for layer in model.classifier] == [type(layer) for layer in baseline.classifier][1:]


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_with_global_pooling_a_moved_digit_keeps_its_scores(pooling):
    torch.manual_seed(0)
    options = {"canvas": 60, "filters": (4, 3), "hidden": 8, "dropout": 0.0}
    pooled, flattened = build_model("cnn-gap", pooling=pooling, **options), build_model("cnn", **options)
    digit = torch.rand(1, 1, 10, 10)
    here, there = torch.zeros(1, 1, 60, 60), torch.zeros(1, 1, 60, 60)
    here[..., 20:30, 20:30] = digit
    there[..., 28:38, 16:26] = digit  # by whole strides of the two pooling layers
    torch.testing.assert_close(pooled(here), pooled(there), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(flattened(here), flattened(there), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_with_global_pooling_gradients_reach_every_parameter(pooling):
    torch.manual_seed(0)
    model = build_model("cnn-gap", canvas=28, filters=(8, 8, 8), pooling=pooling, hidden=0)
    loss, _ = loss_and_scores(model, torch.rand(10, 1, 28, 28), torch.arange(10))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_with_global_pooling_bfloat16_autocast_leaves_scores_in_float32_and_close():
    torch.manual_seed(0)
    model = build_model("cnn-gap", **SMALL["cnn-gap"]).eval()
    images = torch.rand(8, 1, 20, 20)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(images)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=5e-2, atol=1e-2)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("canvas", [17, 28, 40])
def test_scores_are_raw_and_one_per_class(name, canvas):
    torch.manual_seed(0)
    model = build_model(name, **(SMALL[name] | {"canvas": canvas, "classes": 7})).eval()
    scores = model(torch.rand(3, 1, canvas, canvas))
    assert scores.shape == (3, 7)
    assert not torch.allclose(scores.exp().sum(-1), torch.ones(3))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "cnn-avg"])
def test_dropout_acts_in_training_only(name):
    torch.manual_seed(0)
    model = build_model(name, **SMALL[name])
    images = torch.rand(8, 1, SMALL[name]["canvas"], SMALL[name]["canvas"])
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_training_lowers_the_loss(name):
    torch.manual_seed(0)
    model = build_model(name, **SMALL[name], **({} if name == "cnn-avg" else {"dropout": 0.0}))
    images, labels = torch.rand(10, 1, SMALL[name]["canvas"], SMALL[name]["canvas"]), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss, _ = loss_and_scores(model, images, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("cnn", "canvas", 15, "at least 16"),
        ("cnn", "filters", [4], "2 whole numbers"),
        ("cnn", "hidden", 0, "hidden"),
        ("cnn", "dropout", 1.0, "below 1"),
        ("cnn-gap", "canvas", 15, "at least 16"),
        ("cnn-gap", "filters", [4], "at least 2 whole numbers"),
        ("cnn-gap", "filters", 4, "filters must be a list"),
        ("cnn-gap", "pooling", "mean", "pooling 'mean' is unknown"),
        ("cnn-gap", "hidden", -1, "at least 0"),
        ("cnn-gap", "dropout", 1.0, "below 1"),
        ("cnn-sabour", "filters", [4, 4], "3 whole numbers"),
        ("cnn-sabour", "hidden", 8, "hidden must be a list"),
        ("cnn-fc", "canvas", 12, "at least 13"),
        ("cnn-fc", "kernel", 0, "kernel"),
        ("cnn-fc", "hidden", [4], "2 whole numbers"),
        ("cnn-avg", "canvas", 16, "at least 17"),
        ("cnn-avg", "kernel", 2.5, "kernel"),
        ("cnn-avg", "filters", 4, "filters must be a list"),
    ],
)
def test_bad_options_are_named(name, option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model(name, **(SMALL[name] | {option: value}))
