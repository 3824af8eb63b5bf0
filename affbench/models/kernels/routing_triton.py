# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
"""Dynamic routing iterations as Triton kernels for CUDA.

One kernel runs an iteration in one pass over capsules and weight: for a block of images and a block of input capsules
it computes the agreement with the output capsules so far, the softmax over output capsules, and the coupling-weighted
sum; neither votes nor coupling ever reach memory. A second kernel adds the partial sums up, squashes, and adds the
result to the sum of the output capsules that the next iteration's agreement is taken with. The backward pass for
``gradient="last"`` is one kernel that recomputes the coupling the same way. Layouts as in `routing_fast`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_IMAGES = 32  # in a block
_CAPSULES = 16  # in a block
_PROGRAMS = 512  # that one iteration is spread over, about


def fits(in_dim: int, out_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernels can take these sizes and this type, and are worth it."""
    # Above 128 elements a matrix, a block does not fit the registers: on compute capability 9.0 a thread spills 14 kB
    # and more, and 16 × 64 asks for 180 kB of shared memory as well (`benchmarks/blocks.py`).
    fitting = 16 <= out_dim <= 64 and in_dim * out_dim <= 128
    return dtype == torch.float32 and all(d & (d - 1) == 0 for d in (in_dim, out_dim)) and fitting


@triton.jit
def _where(first, count, D_IN: tl.constexpr, CAPSULES: tl.constexpr):
    """Offsets and mask (k,) of a block in memory that ends in (D_in, N), k = D_in·n: neighbours lie side by side."""
    k = tl.arange(0, D_IN * CAPSULES)
    n = first + k % CAPSULES
    return (k // CAPSULES) * count + n, n < count


@triton.jit
def _load_capsules(u, images, first, batch, count, D_IN: tl.constexpr, CAPSULES: tl.constexpr):
    """u of a block: (b, k)."""
    offsets, inside = _where(first, count, D_IN, CAPSULES)
    pointers = u + images[:, None] * (D_IN * count) + offsets[None, :]
    return tl.load(pointers, mask=(images[:, None] < batch) & inside[None, :], other=0.0)


@triton.jit
def _load_weight(w, j, first, count, D_IN: tl.constexpr, D_OUT: tl.constexpr, CAPSULES: tl.constexpr):
    """W of one output capsule and a block of input capsules: (D_out, k)."""
    offsets, inside = _where(first, count, D_IN, CAPSULES)
    rows = j * D_OUT + tl.arange(0, D_OUT)
    return tl.load(w + rows[:, None] * (D_IN * count) + offsets[None, :], mask=inside[None, :], other=0.0)


@triton.jit
def _load_outputs(v, j, images, batch, D_OUT: tl.constexpr):
    """One output capsule of a block of images: (b, D_out)."""
    offsets = (j * batch + images[:, None]) * D_OUT + tl.arange(0, D_OUT)[None, :]
    return tl.load(v + offsets, mask=images[:, None] < batch, other=0.0)


@triton.jit
def _agreement(v, w, u, CAPSULES: tl.constexpr):
    """u · (Wᵀ v): (b, D_out), (D_out, k), (b, k) -> (b, n)."""
    product = tl.dot(v, w, input_precision="ieee") * u
    return tl.sum(tl.reshape(product, (u.shape[0], u.shape[1] // CAPSULES, CAPSULES)), 1)


@triton.jit
def _softmax_terms(
    total, w, u, images, first, batch, count,
    J: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr, CAPSULES: tl.constexpr,
):  # fmt: skip
    """Maximum of the logits over output capsules and the sum of their exponentials, each (b, n), in one pass."""
    highest = tl.full((u.shape[0], CAPSULES), float("-inf"), tl.float32)
    exponentials = tl.zeros((u.shape[0], CAPSULES), tl.float32)
    for j in range(J):
        matrices = _load_weight(w, j, first, count, D_IN, D_OUT, CAPSULES)
        b = _agreement(_load_outputs(total, j, images, batch, D_OUT), matrices, u, CAPSULES)
        higher = tl.maximum(highest, b)
        exponentials = exponentials * tl.exp(highest - higher) + tl.exp(b - higher)
        highest = higher
    return highest, exponentials


@triton.jit
def _scaled(c, u, CAPSULES: tl.constexpr):
    """c u: (b, n), (b, k) -> (b, k)."""
    apart = tl.reshape(u, (u.shape[0], u.shape[1] // CAPSULES, CAPSULES))
    return tl.reshape(apart * c[:, None, :], (u.shape[0], u.shape[1]))


@triton.jit
def _iterate(
    u, w, total, partial, batch, count, blocks,
    J: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr, IMAGES: tl.constexpr, CAPSULES: tl.constexpr,
):  # fmt: skip
    """Weighted sums over `blocks` blocks of input capsules: partial (P, J, B, D_out), P programs along them."""
    program = tl.program_id(0)
    images = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    for block in range(blocks):
        first = (program * blocks + block) * CAPSULES
        capsules = _load_capsules(u, images, first, batch, count, D_IN, CAPSULES)
        highest, exponentials = _softmax_terms(
            total, w, capsules, images, first, batch, count, J, D_IN, D_OUT, CAPSULES
        )
        for j in range(J):
            matrices = _load_weight(w, j, first, count, D_IN, D_OUT, CAPSULES)
            b = _agreement(_load_outputs(total, j, images, batch, D_OUT), matrices, capsules, CAPSULES)
            c = tl.exp(b - highest) / exponentials
            s = tl.dot(_scaled(c, capsules, CAPSULES), tl.trans(matrices), input_precision="ieee")
            # This program alone owns its part of the partial sums, so their order never changes.
            offsets = ((program * J + j) * batch + images[:, None]) * D_OUT + tl.arange(0, D_OUT)[None, :]
            mask = images[:, None] < batch
            s += tl.load(partial + offsets, mask=mask & (block > 0), other=0.0)
            tl.store(partial + offsets, s, mask=mask)


@triton.jit
def _add_and_squash(partial, total, v, s, rows, parts, D_OUT: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr):
    """Sum partial (P, J·B, D_out) over P to s, squash it to v, add that to the total; s is written with KEEP alone."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offsets = row[:, None] * D_OUT + tl.arange(0, D_OUT)[None, :]
    mask = row[:, None] < rows
    weighted = tl.zeros((ROWS, D_OUT), tl.float32)
    for part in range(parts):
        weighted += tl.load(partial + part * rows * D_OUT + offsets, mask=mask, other=0.0)
    norm = tl.sqrt(tl.sum(weighted * weighted, 1))
    scale = 1 / (norm + 1 / tl.maximum(norm, 1e-38))
    squashed = weighted * scale[:, None]
    tl.store(v + offsets, squashed, mask=mask)
    tl.store(total + offsets, tl.load(total + offsets, mask=mask, other=0.0) + squashed, mask=mask)
    if KEEP:
        tl.store(s + offsets, weighted, mask=mask)


@triton.jit
def _backward(
    u, w, total, grad_s, grad_u, grad_w, batch, count,
    J: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr, IMAGES: tl.constexpr, CAPSULES: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of input capsules, over all images; the coupling is a constant."""
    first = tl.program_id(0) * CAPSULES
    where, inside = _where(first, count, D_IN, CAPSULES)
    for start in range(0, batch, IMAGES):
        images = start + tl.arange(0, IMAGES)
        capsules = _load_capsules(u, images, first, batch, count, D_IN, CAPSULES)
        highest, exponentials = _softmax_terms(
            total, w, capsules, images, first, batch, count, J, D_IN, D_OUT, CAPSULES
        )
        into_u = tl.zeros((IMAGES, CAPSULES * D_IN), tl.float32)
        for j in range(J):
            matrices = _load_weight(w, j, first, count, D_IN, D_OUT, CAPSULES)
            b = _agreement(_load_outputs(total, j, images, batch, D_OUT), matrices, capsules, CAPSULES)
            c = tl.exp(b - highest) / exponentials
            grad = _load_outputs(grad_s, j, images, batch, D_OUT)
            into_u += _scaled(c, tl.dot(grad, matrices, input_precision="ieee"), CAPSULES)
            into_w = tl.dot(tl.trans(grad), _scaled(c, capsules, CAPSULES), input_precision="ieee")
            rows = j * D_OUT + tl.arange(0, D_OUT)
            pointers = grad_w + rows[:, None] * (D_IN * count) + where[None, :]
            into_w += tl.load(pointers, mask=inside[None, :] & (start > 0), other=0.0)
            tl.store(pointers, into_w, mask=inside[None, :])
        pointers = grad_u + images[:, None] * (D_IN * count) + where[None, :]
        tl.store(pointers, into_u, mask=(images[:, None] < batch) & inside[None, :])


def _programs(batch: int, count: int) -> tuple[int, int]:
    """Programs along the input capsules, and blocks that each of them works through."""
    needed = triton.cdiv(count, _CAPSULES)
    blocks = max(1, needed * triton.cdiv(batch, _IMAGES) // _PROGRAMS)
    return triton.cdiv(needed, blocks), blocks


def route(u: Tensor, w: Tensor, first: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Iterations 2 and later, from the output capsules `first` of iteration 1, (J, B, D_out).

    v and s of the last iteration, and the sum of the output capsules of all before it, (J, B, D_out) each.
    """
    outputs, out_dim, in_dim, count = w.shape
    batch = len(u)
    programs, blocks = _programs(batch, count)
    partial = u.new_empty(programs, outputs, batch, out_dim)
    total, before = first.clone(), first
    v, s = torch.empty_like(first), torch.empty_like(first)
    rows = outputs * batch
    for iteration in range(1, iterations):
        last = iteration == iterations - 1
        if last:
            before = total.clone()
        _iterate[programs, triton.cdiv(batch, _IMAGES)](
            u, w, total, partial, batch, count, blocks, outputs, in_dim, out_dim, _IMAGES, _CAPSULES
        )
        _add_and_squash[(triton.cdiv(rows, 16),)](partial, total, v, s, rows, programs, out_dim, 16, last)
    return v, s, before


def backward(u: Tensor, w: Tensor, total: Tensor, grad_s: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of u and w, from the sum of the output capsules before the last iteration and its s's gradient."""
    outputs, out_dim, in_dim, count = w.shape
    grad_u, grad_w = torch.empty_like(u), torch.empty_like(w)
    _backward[(triton.cdiv(count, _CAPSULES),)](
        u, w, total, grad_s, grad_u, grad_w, len(u), count, outputs, in_dim, out_dim, _IMAGES, _CAPSULES
    )
    return grad_u, grad_w
