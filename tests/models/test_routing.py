"""Dynamic routing against an independent float64 NumPy version of procedure 1, values and gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from affbench.base.errors import UsageError
from affbench.models.routing import (
    CapsuleLayer,
    coupling_coefficients,
    dynamic_routing,
    dynamic_routing_reference,
    squash,
)


def numpy_squash(s):
    norm = np.sqrt((s**2).sum(-1, keepdims=True))
    with np.errstate(invalid="ignore"):
        return np.where(norm > 0, norm**2 / (1 + norm**2) * s / np.where(norm > 0, norm, 1), 0.0)


def numpy_routing(u, weight, iterations, couplings=None):
    """Procedure 1 written out, one capsule pair after the other; also the coupling of the last iteration."""
    batch, inputs, outputs, out_dim = len(u), weight.shape[0], weight.shape[1], weight.shape[2]
    v, c = np.zeros((batch, outputs, out_dim)), np.zeros((batch, inputs, outputs))
    for image in range(batch):
        votes = np.array([[weight[i, j] @ u[image, i] for j in range(outputs)] for i in range(inputs)])
        b = np.zeros((inputs, outputs))
        for _ in range(iterations):
            exponentials = np.exp(b - b.max(axis=1, keepdims=True))
            c[image] = exponentials / exponentials.sum(axis=1, keepdims=True)
            if couplings is not None:
                c[image] = couplings[image]
            s = (c[image][:, :, None] * votes).sum(axis=0)
            v[image] = numpy_squash(s)
            b = b + (votes * v[image]).sum(axis=-1)
    return v, c


def numeric_gradient(function, x, grad_output, step=1e-5):
    """Central differences of ⟨grad_output, function(x)⟩."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        above, below = x.copy(), x.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = ((function(above) - function(below)) * grad_output).sum() / (2 * step)
    return gradient


def problem(batch=2, inputs=5, outputs=3, out_dim=4, in_dim=2, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, inputs, in_dim)) * scale, rng.normal(size=(inputs, outputs, out_dim, in_dim))


def leaves(u, weight, dtype=torch.float64):
    return (torch.tensor(array, dtype=dtype, requires_grad=True) for array in (u, weight))


ROUTES = pytest.mark.parametrize("route", [dynamic_routing, dynamic_routing_reference])


@ROUTES
@pytest.mark.parametrize("iterations", range(1, 11))
def test_values_are_those_of_procedure_1(route, iterations):
    u, weight = problem(batch=3, inputs=11, outputs=5, out_dim=6, in_dim=3, seed=iterations)
    v = route(torch.tensor(u), torch.tensor(weight), iterations)
    np.testing.assert_allclose(v.numpy(), numpy_routing(u, weight, iterations)[0], rtol=1e-11, atol=1e-13)


@ROUTES
@pytest.mark.parametrize("iterations", range(1, 11))
@pytest.mark.parametrize("gradient", ["last", "all"])
def test_gradients_are_those_of_finite_differences(route, iterations, gradient):
    u, weight = problem(batch=2, inputs=4, outputs=3, out_dim=2, in_dim=2, seed=iterations)
    grad_v = np.random.default_rng(1).normal(size=(2, 3, 2))
    # With "last", the coupling is what the full routing found, held constant: one weighted sum is differentiated.
    held = numpy_routing(u, weight, iterations)[1] if gradient == "last" else None
    repeats = 1 if gradient == "last" else iterations
    expected = (
        numeric_gradient(lambda x: numpy_routing(x, weight, repeats, held)[0], u, grad_v),
        numeric_gradient(lambda x: numpy_routing(u, x, repeats, held)[0], weight, grad_v),
    )
    capsules, matrices = leaves(u, weight)
    route(capsules, matrices, iterations, gradient).backward(torch.tensor(grad_v))
    np.testing.assert_allclose(capsules.grad.numpy(), expected[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(matrices.grad.numpy(), expected[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_exact_gradient_passes_gradcheck(iterations):
    capsules, matrices = leaves(*problem(batch=2, inputs=4, outputs=3, out_dim=3, in_dim=2))
    assert torch.autograd.gradcheck(lambda u, w: dynamic_routing(u, w, iterations, "all"), (capsules, matrices))


@pytest.mark.parametrize("gradient", ["last", "all"])
@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1),
        (70, 33, 3, 5, 3),
        (2, 1, 10, 16, 8),
        (1, 257, 7, 3, 1),
        (130, 61, 2, 4, 8),
        (16, 1700, 10, 6, 8),  # more than a block of capsules
    ],
)
def test_fast_float32_agrees_with_float64_reference_at_odd_sizes(sizes, iterations, gradient):
    batch, inputs, outputs, out_dim, in_dim = sizes
    u, weight = problem(batch, inputs, outputs, out_dim, in_dim)
    grad_v = np.random.default_rng(1).normal(size=(batch, outputs, out_dim))
    weight *= 0.1  # an output capsule of a usual length
    results = []
    for route, dtype in ((dynamic_routing, torch.float32), (dynamic_routing_reference, torch.float64)):
        capsules, matrices = leaves(u, weight, dtype)
        v = route(capsules, matrices, iterations, gradient)
        v.backward(torch.tensor(grad_v, dtype=dtype))
        results.append([tensor.detach().double() for tensor in (v, capsules.grad, matrices.grad)])
    for fast, exact in zip(*results, strict=True):
        assert (fast - exact).abs().max() <= 2e-5 * exact.abs().max()


def test_zero_capsules_give_zero_and_a_zero_gradient_not_nan():
    capsules, matrices = leaves(np.zeros((2, 5, 3)), problem(in_dim=3)[1])
    v = dynamic_routing(capsules, matrices, 3)
    v.sum().backward()
    assert not v.any()
    assert not capsules.grad.any()
    assert not matrices.grad.any()


@ROUTES
@pytest.mark.parametrize(("iterations", "gradient"), [(1, "last"), (3, "last"), (3, "all")])
def test_a_batch_without_images_gives_the_weight_a_zero_gradient(route, iterations, gradient):
    u, weight = problem()
    capsules, matrices = leaves(u[:0], weight)
    torch.full((matrices.numel(),), torch.nan, dtype=matrices.dtype)  # what its memory may hold before
    route(capsules, matrices, iterations, gradient).sum().backward()
    assert torch.equal(matrices.grad, torch.zeros_like(matrices))
    assert capsules.grad.shape == capsules.shape


def test_one_zero_image_in_a_batch_leaves_the_others_alone():
    u, weight = problem(batch=3)
    u[1] = 0
    v = dynamic_routing(torch.tensor(u), torch.tensor(weight), 3)
    np.testing.assert_allclose(v.numpy(), numpy_routing(u, weight, 3)[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("gradient", ["last", "all"])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e15])
def test_tiny_and_huge_capsules_stay_finite_and_right(scale, gradient):
    u, weight = problem(inputs=9, scale=scale)
    capsules, matrices = leaves(u, weight, torch.float32)
    v = dynamic_routing(capsules, matrices, 3, gradient)
    np.testing.assert_allclose(v.detach(), numpy_routing(u, weight, 3)[0], rtol=2e-4, atol=1e-30)
    v.sum().backward()
    assert capsules.grad.isfinite().all()
    assert matrices.grad.isfinite().all()


def test_autocast_leaves_the_routing_in_float32():
    u, weight = problem(inputs=40)
    capsules, matrices = leaves(u, weight, torch.float32)
    expected = dynamic_routing(capsules, matrices, 3)
    with torch.autocast("cpu", torch.bfloat16):
        v = dynamic_routing(capsules, matrices, 3)
        half = dynamic_routing(capsules.bfloat16(), matrices, 3)
        reference = squash(capsules.bfloat16())
    assert v.dtype == half.dtype == reference.dtype == torch.float32
    assert torch.equal(v, expected)
    rounded = dynamic_routing(capsules.bfloat16().float(), matrices, 3)
    assert torch.equal(half, rounded)


def test_only_the_gradients_that_are_wanted_are_formed():
    u, weight = problem()
    for gradient in ("last", "all"):
        capsules, matrices = leaves(u, weight)
        dynamic_routing(capsules, matrices.detach(), 3, gradient).sum().backward()
        dynamic_routing(capsules.detach(), matrices, 3, gradient).sum().backward()
        both = tuple(leaves(u, weight))
        dynamic_routing(*both, 3, gradient).sum().backward()
        torch.testing.assert_close(capsules.grad, both[0].grad)
        torch.testing.assert_close(matrices.grad, both[1].grad)


def test_results_do_not_depend_on_the_batch_they_come_in():
    u, weight = (torch.tensor(array) for array in problem(batch=150, inputs=40))
    whole = dynamic_routing(u, weight, 3)
    parts = torch.cat([dynamic_routing(u[start : start + 7], weight, 3) for start in range(0, 150, 7)])
    torch.testing.assert_close(whole, parts)


def test_same_input_same_bits():
    u, weight = (
        torch.tensor(array, dtype=torch.float32) for array in problem(batch=8, inputs=900, out_dim=16, in_dim=8)
    )
    layer = CapsuleLayer(900, 8, 3, 16, iterations=4)
    with torch.no_grad():
        layer.matrices.copy_(weight)

    def run():
        layer.zero_grad()
        layer(u).square().sum().backward()
        return layer.weight.grad.clone()

    assert torch.equal(run(), run())


@pytest.mark.parametrize("gradient", ["last", "all"])
def test_one_iteration_is_uniform_coupling_forward_and_backward(gradient):
    u, weight = (torch.tensor(array, requires_grad=True) for array in problem(batch=3, inputs=11, outputs=5))
    v = dynamic_routing(u, weight, 1, gradient)
    uniform = squash(torch.einsum("njod,bnd->bjo", weight, u) / 5)
    torch.testing.assert_close(v, uniform)
    grad = torch.randn_like(v)
    for ours, expected in zip(*(torch.autograd.grad(out, (u, weight), grad) for out in (v, uniform)), strict=True):
        torch.testing.assert_close(ours, expected)
    assert (coupling_coefficients(u.detach(), weight.detach(), 1) == 1 / 5).all()


def test_coupling_is_a_distribution_and_that_of_procedure_1():
    u, weight = problem(batch=3, inputs=11, outputs=5)
    for iterations in (1, 2, 4):
        c = coupling_coefficients(torch.tensor(u), torch.tensor(weight), iterations)
        np.testing.assert_allclose(c.numpy(), numpy_routing(u, weight, iterations)[1], rtol=1e-11)
    assert not c.requires_grad


@pytest.mark.parametrize(
    ("iterations", "gradient", "words"),
    [(0, "last", "at least 1"), (-1, "last", "at least 1"), (True, "last", "whole number"), (3, "lats", "'last'")],
)
def test_bad_arguments_are_named(iterations, gradient, words):
    u, weight = (torch.tensor(array) for array in problem())
    with pytest.raises(UsageError, match=words):
        dynamic_routing(u, weight, iterations, gradient)


def test_shapes_that_do_not_fit_are_shown():
    with pytest.raises(UsageError, match=r"\(2, 5, 3\).*\(5, 3, 4, 2\)"):
        dynamic_routing(torch.zeros(2, 5, 3), torch.zeros(5, 3, 4, 2), 3)


def test_squash_has_the_length_of_equation_1_and_keeps_direction():
    lengths = torch.tensor([0.1, 1.0, 10.0, 1e4], dtype=torch.float64)
    direction = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    squashed = squash(lengths[:, None] * direction)
    torch.testing.assert_close(squashed, (lengths**2 / (1 + lengths**2))[:, None] * direction)


def test_squash_passes_gradcheck_and_has_no_nan_at_zero_or_infinity_of_the_norm():
    vectors = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(squash, (vectors,))
    extreme = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [1e30, 1e30]], requires_grad=True)
    squashed = squash(extreme)
    squashed.sum().backward()
    assert squashed.isfinite().all()
    assert extreme.grad.isfinite().all()
    assert not extreme.grad[0].any()


KERNELS = """
import json, sys, torch
from affbench.models.kernels import routing_fast, routing_triton
from affbench.models.routing import dynamic_routing, dynamic_routing_reference

worst = {"alone": routing_fast.kernel_error(routing_triton, torch.device("cpu"))}
routing_fast._kernels = lambda u, w: routing_triton
for name, (batch, inputs, outputs, out_dim, in_dim, iterations) in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    u, weight = torch.randn(batch, inputs, in_dim), torch.randn(inputs, outputs, out_dim, in_dim) * 0.2
    u[0] = 0
    grad, results = torch.randn(batch, outputs, out_dim), []
    for route, dtype in ((dynamic_routing, torch.float32), (dynamic_routing_reference, torch.float64)):
        leaves = [tensor.clone().to(dtype).requires_grad_() for tensor in (u, weight)]
        v = route(*leaves, iterations)
        v.backward(grad.to(dtype))
        results.append([v.detach(), *(leaf.grad for leaf in leaves)])
    worst[name] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results))
print(json.dumps(worst))
"""


def test_triton_kernels_agree_with_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    cases = {
        "odd": (3, 19, 3, 16, 8, 3),
        "several blocks": (33, 21, 2, 16, 4, 2),
        "many iterations": (2, 5, 2, 32, 2, 6),
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KERNELS, json.dumps(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stderr:
        pytest.skip("the interpreter of Triton 3.6 and earlier cannot do with numpy 2.4 (Triton's issue 9171)")
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout)
    assert worst.keys() == {"alone", *cases}
    assert max(worst.values()) < 2e-5, worst


def test_kernels_take_matrices_that_fit_the_registers_and_no_others():
    kernels = pytest.importorskip("affbench.models.kernels.routing_triton")
    taken = {(i, o) for i in range(1, 33) for o in range(1, 129) if kernels.fits(i, o, torch.float32)}
    assert taken == {(1, 16), (2, 16), (4, 16), (8, 16), (1, 32), (2, 32), (4, 32), (1, 64), (2, 64)}
    assert not kernels.fits(8, 16, torch.float64)


def test_a_gpu_without_usable_triton_gets_the_pytorch_path(monkeypatch):
    from affbench.models.kernels import routing_fast

    monkeypatch.setitem(
        sys.modules, "affbench.models.kernels.routing_triton", None
    )  # as if triton could not be imported
    monkeypatch.delattr("affbench.models.kernels.routing_triton", raising=False)
    routing_fast._triton.cache_clear()
    assert routing_fast._triton(torch.device("cpu")) is None
    routing_fast._triton.cache_clear()
