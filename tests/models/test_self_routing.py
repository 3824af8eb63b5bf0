"""Self-routing against the equations written out for single capsules, and the network around it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from affbench.base.errors import UsageError
from affbench.models import build_model, parameter_count
from affbench.models.loss import loss_and_scores
from affbench.models.receptive_fields import receptive_fields
from affbench.models.self_routing import PoseTransformation, SelfRouting

SMALL = {"canvas": 19, "filters": 6, "types": 3, "pose": 4}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("norm", [1e-4, 1.0, 30.0])
@pytest.mark.parametrize(("stride", "padding", "side"), [(2, 1, 5), (1, 0, 4)])
def test_the_layer_is_the_equations_written_out_in_values_and_gradients(stride, padding, side, norm):
    N, J, C, D, k = 2, 3, 4, 5, 3
    routing, transformation = SelfRouting(k * k * N, C, J).double(), PoseTransformation(k * k * N, C, J, D).double()
    for parameter in routing.parameters():
        nn.init.normal_(parameter)
    a, poses = torch.rand(2, side, side, N).double(), norm * torch.randn(2, side, side, N, C).double()
    a[0, 0, 0, 0], poses[1, 1, 1, 1] = 0, 0
    leaves = (a.requires_grad_(), poses.requires_grad_(), *routing.parameters(), *transformation.parameters())

    around = (0, 0, 0, 0, *[padding] * 4)
    fields = receptive_fields(F.pad(poses, around), k, stride)
    activations, shares = routing(receptive_fields(F.pad(a[..., None], around), k, stride)[..., 0], fields)
    found = activations, transformation(fields, shares)

    out = (side + 2 * padding - k) // stride + 1
    values, means = [], []
    for image in range(2):
        for y in range(out):
            for x in range(out):
                total, weighted, pose = 0, torch.zeros(J).double(), torch.zeros(J, D).double()
                for offset in range(k * k):
                    row, column = y * stride + offset // k - padding, x * stride + offset % k - padding
                    if not (0 <= row < side and 0 <= column < side):
                        continue
                    for n in range(N):
                        u, own, m = poses[image, row, column, n], a[image, row, column, n], offset * N + n
                        r = torch.softmax(routing.weight[m] @ u + routing.bias[m], 0)
                        total, weighted = total + own, weighted + own * r
                        pose = pose + (own * r)[:, None] * (transformation.weight[m] @ u)
                values.append(weighted / total)
                means.append(pose / weighted[:, None])
    shape = (2, out, out)
    expected = torch.stack(values).unflatten(0, shape), torch.stack(means).unflatten(0, shape)
    grads = [torch.randn_like(part) for part in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    pairs = zip(torch.autograd.grad(found, leaves, grads), torch.autograd.grad(expected, leaves, grads), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_capsules_that_are_all_off_give_finite_gradients():
    routing, transformation = SelfRouting(6, 2, 3), PoseTransformation(6, 2, 3, 2)
    a, poses = torch.zeros(1, 1, 6, requires_grad=True), torch.zeros(1, 1, 6, 2, requires_grad=True)
    activations, shares = routing(a, poses)
    (activations.sum() + transformation(poses, shares).sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (a, poses, routing.weight, transformation.weight))


def test_parameters_are_those_of_the_published_code():
    with torch.device("meta"):
        model = build_model("self-routing")
    assert parameter_count(model) == 2_557_984
    assert model.side == 8


@pytest.mark.parametrize("canvas", [9, 20, 28, 40])
def test_scores_are_logarithms_of_a_distribution_so_that_cross_entropy_is_the_loss(canvas):
    model = build_model("self-routing", **(SMALL | {"canvas": canvas, "classes": 7}))
    images, labels = torch.rand(3, 1, canvas, canvas), torch.tensor([0, 6, 2])
    loss, scores = loss_and_scores(model, images, labels)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))
    torch.testing.assert_close(loss, -scores[[0, 1, 2], labels].mean())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("canvas", 8, "at least 9"), ("types", 0, "types"), ("pose", 1.5, "pose"), ("filters", None, "filters")],
)
def test_bad_options_are_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model("self-routing", **(SMALL | {option: value}))
