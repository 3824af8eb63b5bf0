"""What holds of every network of the literature: it learns real digits, stays finite, and is sure in float32."""

import numpy as np
import pytest
import torch

from affbench import load_dataset
from affbench.analysis.capsules import class_capsules, has_capsules
from affbench.models import build_model
from affbench.models.loss import loss_and_scores

CAPSULES = {"filters": 8, "primary_types": 4, "primary_dim": 4, "digit_dim": 6, "decoder": (12,), "kernel": 5}
SMALL = {
    "capsnet": CAPSULES,
    "capsnet, ablated": CAPSULES | {"squash": False, "conditional": False, "loss": "cross-entropy"},
    "aff-capsnet": CAPSULES | {"routings": 3},
    "aff-capsnet, ablated": CAPSULES | {"squash": False, "conditional": False},
    "cnn-fc": {"filters": (4, 4, 4), "hidden": (16, 16), "dropout": 0.0},
    "cnn-avg": {"filters": (8, 16), "kernel": 5},
    "self-routing": {"filters": 8, "types": 4, "pose": 4},
    "em-capsnet": {"filters": 8, "types": (4, 3, 3)},
    "efficient-capsnet": {"filters": (4, 8, 8, 16), "primary_dim": 4, "digit_dim": 6, "decoder": (12,)},
    "group-cnn": {"fields": (2, 2, 3, 3, 4, 6), "kernels": (5, 5, 3, 3, 3, 3)},
}


@pytest.fixture(params=SMALL)
def model(request):
    torch.manual_seed(0)
    return build_model(request.param.partition(",")[0], canvas=28, **SMALL[request.param])


@pytest.fixture(scope="module")
def digits(data_dir):
    dataset = load_dataset("mnist-sample", split="train", limit=64, data_dir=data_dir)
    return torch.from_numpy(dataset.images)[:, None] / 255, torch.from_numpy(dataset.labels).long()


def test_200_steps_stay_finite_reach_every_parameter_and_lower_the_loss(model, digits):
    images, labels = digits
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(200):
        batch = slice(8 * (step % 8), 8 * (step % 8) + 8)
        optimizer.zero_grad()
        loss, scores = loss_and_scores(model, images[batch], labels[batch])
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        if step == 2:  # what starts at 0 passes nothing on at first
            assert all(parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert scores.isfinite().all()
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_black_and_white_images_give_finite_losses_and_gradients(model):
    images = torch.zeros(4, 1, 28, 28)
    images[2:] = 1
    loss, scores = loss_and_scores(model, images, torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert loss.isfinite()
    assert scores.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_what_is_taken_for_class_capsules_is_a_method_that_returns_them(model):
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    layers.capsules = torch.nn.Linear(3, 3)
    assert not has_capsules(layers)
    if has_capsules(model):
        capsules = class_capsules(model, np.zeros((2, 28, 28), np.uint8))
        assert capsules.shape[:2] == (2, 10)
        assert capsules.ndim == 3


def test_under_autocast_scores_are_close(model, digits):
    images, _ = digits
    model.eval()
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(images)
    torch.testing.assert_close(scores.float(), exact, rtol=0.05, atol=0.1)
