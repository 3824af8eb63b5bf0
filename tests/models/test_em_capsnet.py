"""EM routing against the procedure written out for single numbers, and the network around it."""

import math

import pytest
import torch
import torch.nn.functional as F

from affbench.base.errors import UsageError
from affbench.models import build_model, em_capsnet, parameter_count
from affbench.models.em_capsnet import EMRouting, spread_loss
from affbench.models.loss import loss_and_scores

SMALL = {"canvas": 21, "filters": 4, "types": (3, 4, 2)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def written_out(layer, a, poses, temperature, places=None):
    """The routing of one image, child by child: a (H, W, N), poses (H, W, N, 4, 4) -> the same of the parents."""
    H, _, N = a.shape
    k, step, J = layer.kernel, layer.stride, len(layer.beta_a)
    side = (H - k) // step + 1
    votes = {}  # (child, parent) -> (16,)
    for y in range(side):
        for x in range(side):
            for offset in range(k * k):
                row, column = y * step + offset // k, x * step + offset % k
                for n in range(N):
                    for j in range(J):
                        matrix = layer.weight[n if places is not None else offset * N + n, j].t()
                        vote = (poses[row, column, n] @ matrix).flatten()
                        if places is not None:
                            vote = vote + torch.cat([torch.stack([places[row], places[column]]), vote.new_zeros(14)])
                        votes[(row, column, n), (y, x, j)] = vote
    parents = {parent for _, parent in votes}
    r = dict.fromkeys(votes, a.new_tensor(1 / J))
    mean = dict.fromkeys(parents, a.new_zeros(16))
    logit = {}
    for i in range(layer.iterations):
        inverse = temperature * (1 - 0.95 ** (i + 1))
        log_p = {}
        for parent in parents:
            own = [pair for pair in votes if pair[1] == parent]
            weights = {pair: r[pair] * a[pair[0]] for pair in own}
            mass = sum(weights.values()) + 1e-7
            mean[parent] = 0.9 * sum(weights[pair] * votes[pair] for pair in own) / mass + 0.1 * mean[parent]
            spread = sum(weights[pair] * (votes[pair] - mean[parent]) ** 2 for pair in own) / mass
            variance = spread + 5e-4
            entropy = variance.log().sum() + 16 * layer.beta_u[parent[2]] * (math.log(2 * math.pi) + 1)
            logit[parent] = inverse * (-mass * entropy - 5000 * layer.beta_a[parent[2]])
            for pair in own:
                normal = -((votes[pair] - mean[parent]) ** 2 / (2 * variance)) - (2 * math.pi * variance).log() / 2
                log_p[pair] = F.logsigmoid(logit[parent]) + normal.sum()
        for pair in votes:
            rivals = torch.stack([log_p[other] for other in votes if other[0] == pair[0]])
            r[pair] = (log_p[pair] - rivals.logsumexp(0)).exp()
    order = [(y, x, j) for y in range(side) for x in range(side) for j in range(J)]
    activations = torch.stack([logit[parent].sigmoid() for parent in order]).view(side, side, J)
    return activations, torch.stack([mean[parent] for parent in order]).view(side, side, J, 4, 4)


def routed(layer, a, poses):
    """The layer itself, whose capsules hold their poses column by column."""
    parents = layer(torch.cat([a[..., None], poses.transpose(-1, -2).flatten(-2)], -1))
    return parents[..., 0], parents[..., 1:].unflatten(-1, (4, 4)).transpose(-1, -2)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(("kernel", "stride", "side", "shared"), [(3, 2, 6, False), (2, 1, 4, False), (3, 1, 3, True)])
def test_routing_is_the_procedure_written_out_in_values_and_gradients(kernel, stride, side, shared, norm, monkeypatch):
    monkeypatch.setattr(em_capsnet, "_VOTES", {"cpu": 2000})  # so that there are several blocks
    monkeypatch.setattr(em_capsnet, "_PAIRS", 1)
    places = torch.linspace(-0.2, 0.2, side) if shared else None
    layer = EMRouting(2, 3, kernel, stride, 3, places).double()
    with torch.no_grad():
        layer.weight.normal_()
        layer.beta_a.copy_(torch.tensor([0.001, -0.002, 0.003]))  # so that activations are neither 0 nor 1
        layer.beta_u.copy_(torch.tensor([0.1, 0.2, -0.1]))
    a = torch.rand(2, side, side, 2).double()
    a[0, 0, 0, 0] = 0
    poses = norm * torch.randn(2, side, side, 2, 4, 4).double()
    poses[1, 0, 0, 1] = 0
    inputs = a.requires_grad_(), poses.requires_grad_()
    leaves = (*inputs, *layer.parameters())
    found = routed(layer, *inputs)
    images = [written_out(layer, *one, layer.temperature, places) for one in zip(*inputs, strict=True)]
    expected = [torch.stack(parts) for parts in zip(*images, strict=True)]
    grads = [torch.randn_like(part) for part in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    pairs = zip(torch.autograd.grad(found, leaves, grads), torch.autograd.grad(expected, leaves, grads), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(routed(layer.float(), *(part.float() for part in inputs)), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1e-3 * max(1, norm))


def test_capsules_that_are_all_off_or_all_zero_give_finite_gradients():
    layer = EMRouting(2, 3, 3, 1, 3)
    capsules = torch.zeros(1, 5, 5, 2, 17, requires_grad=True)
    layer(capsules).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (capsules, *layer.parameters()))


def test_parameters_are_those_of_the_published_code():
    with torch.device("meta"):
        model = build_model("em-capsnet")
    assert parameter_count(model) == 318_420


def test_the_classes_see_where_a_capsule_is():
    grid = build_model("em-capsnet", filters=1, types=(1, 1, 1)).layers[2].grid
    assert grid.shape == (36, 1, 16, 1)
    assert not grid[:, 0, [1, 2, 3, *range(5, 16)]].any()
    # 18 places of 2 pixels, 8 of 4 and 6 of 4: the first is centred on pixel 8 of 40, the middle of the canvas on 20.
    torch.testing.assert_close(
        grid[[0, 1, 6, 35], 0][:, [0, 4], 0] * 100, torch.tensor([[-12.0, -12], [-12, -8], [-8, -12], [8, 8]])
    )


def test_the_spread_loss_is_equation_3():
    scores, labels = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.9, 0.3]]), torch.tensor([0, 2])
    expected = ((0.2 - 0.1) ** 2 + (0.2 - 0.1) ** 2 + (0.2 + 0.6) ** 2) / 2
    found = spread_loss(scores, labels, torch.tensor(0.2))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_margin_grows_with_the_steps_of_training_alone():
    model = build_model("em-capsnet", **SMALL, margin_steps=2)
    images, labels = torch.rand(3, 1, 21, 21), torch.tensor([0, 1, 2])
    for step, training in ((0, True), (1, True), (2, False), (2, True)):
        model.train(training)
        loss, scores = loss_and_scores(model, images, labels)
        margin = 0.2 + 0.79 / (1 + math.exp(4 - step / 2))
        torch.testing.assert_close(loss, spread_loss(scores, labels, torch.tensor(margin)))
    assert model.state_dict()["steps"] == 3


@pytest.mark.parametrize("canvas", [17, 22, 40])
def test_any_canvas_gives_a_score_for_each_class(canvas):
    scores = build_model("em-capsnet", **(SMALL | {"canvas": canvas, "classes": 7}))(torch.rand(2, 1, canvas, canvas))
    assert scores.shape == (2, 7)
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("canvas", 16, "at least 17"),
        ("routings", 0, "routings"),
        ("types", [4], "types must list 3"),
        ("filters", 0, "filters"),
        ("margin_steps", 0, "margin_steps"),
    ],
)
def test_bad_options_are_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        build_model("em-capsnet", **(SMALL | {option: value}))
