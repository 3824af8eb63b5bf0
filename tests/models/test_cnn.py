"""The CNN baselines: published sizes, shapes, what dropout does, bad options."""

import pytest
import torch

from affbench.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.losses import loss_and_scores

SMALL = {
    "cnn": {"canvas": 20, "filters": (4, 3), "hidden": 8},
    "cnn-sabour": {"canvas": 9, "filters": (4, 3, 2), "hidden": (8, 6)},
}


@pytest.mark.parametrize(("name", "canvas", "millions"), [("cnn-sabour", 28, 35.4), ("cnn", 40, 16.1)])
def test_parameters_are_as_many_as_published(name, canvas, millions):
    with torch.device("meta"):
        model = build_model(name, canvas=canvas)
    assert round(parameter_count(model) / 1e6, 1) == millions


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("canvas", [16, 21])
def test_scores_are_raw_and_one_per_class(name, canvas):
    torch.manual_seed(0)
    model = build_model(name, **(SMALL[name] | {"canvas": canvas, "classes": 7})).eval()
    scores = model(torch.rand(3, 1, canvas, canvas))
    assert scores.shape == (3, 7)
    assert not torch.allclose(scores.exp().sum(-1), torch.ones(3))


@pytest.mark.parametrize("name", SMALL)
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
    model = build_model(name, **SMALL[name], dropout=0.0)
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
        ("cnn-sabour", "filters", [4, 4], "3 whole numbers"),
        ("cnn-sabour", "hidden", 8, "hidden must be a list"),
    ],
)
def test_bad_options_are_named(name, option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model(name, **(SMALL[name] | {option: value}))
