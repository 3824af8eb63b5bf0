"""Dynamic routing without votes: the same numbers as the reference, from matrix products over small blocks.

Since the votes are linear, û = W u, nothing of procedure 1 needs them one by one:

- the agreement is u · (Wᵀ v): contract the output capsules with the weight, then with the input capsules;
- the weighted sum is W (c u): weight the input capsules by their coupling, then contract them with the weight;
- the logits after t iterations are the agreement with v₁ + … + v_t, so that sum is kept instead of the logits;
- with uniform coupling, in iteration 1, the sum over all input capsules is a single matrix product.

Everything runs in blocks of input capsules that stay in the processor's cache. Layouts inside this module put the
long axis last, where memory is contiguous: capsules (B, I, N), weight (J, O, I, N), logits and coupling (J, B, N),
output capsules (J, B, O), with I = D_in and O = D_out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Elements of a block (J, B, I, n). On a CPU it has to stay in the cache, but pay for the calls made on it; on a GPU it
# only bounds memory.
_BLOCK_CPU = 1 << 21
_BLOCK_GPU = 1 << 26
_IMAGES = 64  # images at a time: more would leave too few capsules in a block
_SHORTEST = 32  # capsules in a block at least
KERNEL_TOLERANCE = 1e-3  # relative; what a device's compiler gets wrong is far beyond it


def squash_scale(norm: Tensor) -> Tensor:
    """‖x‖ / (1 + ‖x‖²), without overflow for long vectors; 0 for zero."""
    return (norm + norm.reciprocal()).reciprocal_()


def _norm(vectors: Tensor, dim: int) -> Tensor:
    """Lengths along an axis that is kept; on a CPU a tenth of the time of ``torch.linalg.vector_norm``."""
    return vectors.square().sum(dim, keepdim=True).sqrt_()


def _squash(vectors: Tensor, dim: int = -1) -> Tensor:
    return vectors * squash_scale(_norm(vectors, dim))


def squash_backward(vectors: Tensor, grad: Tensor, dim: int) -> Tensor:
    """Gradient of squash along `dim` from that of its result, the same shape; zero for an all-zero vector."""
    norm = _norm(vectors, dim)
    scale = squash_scale(norm)
    # d scale / d norm = (1 − norm²) / (1 + norm²)², divided once more by the norm for the direction.
    slope = scale * (norm.clamp_min(torch.finfo(norm.dtype).tiny).reciprocal() - 2 * scale)
    along = (vectors * grad).sum(dim, keepdim=True)
    along.mul_(slope).div_(norm.clamp_min(torch.finfo(norm.dtype).tiny))
    return (grad * scale).addcmul_(vectors, along)


class Squash(torch.autograd.Function):
    """Squash along one axis, in two passes each way."""

    @staticmethod
    def forward(ctx: FunctionCtx, vectors: Tensor, dim: int) -> Tensor:
        """Any shape -> the same shape."""
        ctx.save_for_backward(vectors)
        ctx.dim = dim  # type: ignore[attr-defined]
        return _squash(vectors, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the vectors."""
        (vectors,) = ctx.saved_tensors
        return squash_backward(vectors, grad, ctx.dim), None


class Block(NamedTuple):
    """Some input capsules and what belongs to them."""

    part: slice  # of N
    u: Tensor  # (B, I, n)
    w: Tensor  # contiguous (J, O, I·n)


def _cut(u: Tensor, w: Tensor) -> tuple[list[Block], Tensor]:
    """Blocks along N, and scratch memory for (J, B, I·n) of one of them."""
    limit = _BLOCK_CPU if u.device.type == "cpu" else _BLOCK_GPU
    length = min(max(_SHORTEST, limit // (w.shape[0] * u.shape[0] * u.shape[1])), max(u.shape[2], 1))
    parts = [slice(start, start + length) for start in range(0, max(u.shape[2], 1), length)]
    blocks = [Block(part, u[..., part], w[..., part].reshape(*w.shape[:2], -1)) for part in parts]
    return blocks, u.new_empty(w.shape[0] * blocks[0].u.numel())


def _uniform_sum(u: Tensor, w: Tensor) -> Tensor:
    """The weighted sum of iteration 1: (B, I, N), (J, O, I, N) -> (J, B, O)."""
    outputs = w.shape[0]
    s = torch.mm(u.flatten(1), w.flatten(2).flatten(0, 1).t())
    return s.view(len(u), outputs, -1).transpose(0, 1).contiguous().div_(outputs)


def _coupling(v: Tensor, u: Tensor, w: Tensor, scratch: Tensor) -> Tensor:
    """Coupling of one block from the sum of the output capsules so far: (J, B, O), (B, I, n) -> (J, B, n)."""
    agreement = _project(v, w, scratch).view(len(v), *u.shape)
    return agreement.mul_(u).sum(2).softmax(0)


def _project(v: Tensor, w: Tensor, scratch: Tensor) -> Tensor:
    """Wᵀ v of one block: (J, B, O), (J, O, I·n) -> (J, B, I·n), in the scratch memory."""
    out = scratch[: len(v) * v.shape[1] * w.shape[2]].view(len(v), v.shape[1], w.shape[2])
    return torch.bmm(v, w, out=out)


def _scale(c: Tensor, u: Tensor, scratch: Tensor) -> Tensor:
    """c u of one block: (J, B, n), (B, I, n) -> (J, B, I·n), in the scratch memory."""
    out = scratch[: len(c) * u.numel()].view(len(c), *u.shape)
    return torch.mul(c.unsqueeze(2), u, out=out).flatten(2)


def _route(u: Tensor, w: Tensor, iterations: int, couplings: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Procedure 1 for one part of a batch: (B, I, N), (J, O, I, N) -> v (J, B, O), and s of each iteration.

    The coupling of the last iteration is written to `couplings`, (J, B, N).
    """
    sums = [_uniform_sum(u, w)]
    v = total = _squash(sums[0])
    if iterations == 1:
        if couplings is not None:
            couplings.fill_(1 / len(w))
        return v, sums
    blocks, scratch = _cut(u, w)
    for iteration in range(1, iterations):
        s = torch.zeros_like(v)
        for part, u_block, w_block in blocks:
            c = _coupling(total, u_block, w_block, scratch)
            s.baddbmm_(_scale(c, u_block, scratch), w_block.transpose(1, 2))
            if couplings is not None and iteration == iterations - 1:
                couplings[..., part] = c
        sums.append(s)
        v = _squash(s)
        total = total + v
    return v, sums


def _backward_uniform(
    u: Tensor, w: Tensor, grad_s: Tensor, grad_u: Tensor | None, grad_w: Tensor | None, keep: tuple[int, int]
) -> None:
    """Gradient of iteration 1, written to (B, I, N) and (J, O, I, N) or, where `keep` is 1, added to them."""
    flat = grad_s.transpose(0, 1).flatten(1).div(len(w))  # (B, J·O)
    if grad_u is not None:
        rows = grad_u.flatten(1)
        torch.addmm(rows, flat, w.flatten(2).flatten(0, 1), beta=keep[0], out=rows)
    if grad_w is not None:
        rows = grad_w.flatten(2).flatten(0, 1)
        torch.addmm(rows, flat.t(), u.flatten(1), beta=keep[1], out=rows)


def _add(into: Tensor, block: Tensor, fresh: bool) -> None:
    if fresh:
        into.copy_(block.view(into.shape))
    else:
        into.add_(block.view(into.shape))


def _backward_last(
    u: Tensor, w: Tensor, c: Tensor, grad_s: Tensor, grad_u: Tensor | None, grad_w: Tensor | None, fresh: bool
) -> None:
    """Gradient of the last weighted sum with the coupling c (J, B, N) held constant; written to grad_u, grad_w."""
    blocks, scratch = _cut(u, w)
    for part, u_block, w_block in blocks:
        if grad_w is not None:
            product = torch.bmm(grad_s.transpose(1, 2), _scale(c[..., part], u_block, scratch))
            _add(grad_w[..., part], product, fresh)
        if grad_u is not None:
            back = _project(grad_s, w_block, scratch).view(len(w), *u_block.shape)
            torch.sum(back.mul_(c[..., part].unsqueeze(2)), 0, out=grad_u[..., part])


def _backward_all(
    u: Tensor, w: Tensor, sums: list[Tensor], grad_v: Tensor, grad_u: Tensor | None, grad_w: Tensor | None, fresh: bool
) -> None:
    """The exact gradient, through every iteration from the last to the first; written to grad_u and grad_w.

    Only the weighted sums of the iterations are kept from the forward pass: coupling is computed anew, block by block.
    """
    outputs = [_squash(s) for s in sums]
    blocks, scratch = _cut(u, w)
    second = torch.empty_like(scratch)
    grad_outputs = grad_v  # of the output capsules of the iteration at hand
    grad_total = torch.zeros_like(grad_v)  # of v as part of the logits of all later iterations
    if grad_u is not None:
        grad_u.zero_()
    if grad_w is not None and fresh:
        grad_w.zero_()
    for iteration in range(len(sums) - 1, 0, -1):
        grad_s = squash_backward(sums[iteration], grad_outputs, -1)
        total = torch.stack(outputs[:iteration]).sum(0)
        for part, u_block, w_block in blocks:
            shape = (len(w), *u_block.shape)
            toward_total = _project(total, w_block, scratch).view(shape)  # Wᵀ (v₁ + … )
            toward_s = _project(grad_s, w_block, second).view(shape)  # Wᵀ ds
            c = (toward_total * u_block).sum(2).softmax(0)
            grad_c = (toward_s * u_block).sum(2)
            grad_b = c * (grad_c - (c * grad_c).sum(0))
            if grad_u is not None:
                toward_s.mul_(c.unsqueeze(2)).addcmul_(toward_total, grad_b.unsqueeze(2))
                grad_u[..., part] += toward_s.sum(0)
            weighted = _scale(grad_b, u_block, scratch)
            grad_total.baddbmm_(weighted, w_block.transpose(1, 2))
            if grad_w is not None:
                product = torch.bmm(total.transpose(1, 2), weighted)
                product.baddbmm_(grad_s.transpose(1, 2), _scale(c, u_block, scratch))
                grad_w[..., part] += product.view(*w.shape[:3], -1)
        grad_outputs = grad_total
    _backward_uniform(u, w, squash_backward(sums[0], grad_outputs, -1), grad_u, grad_w, (1, 1))


def _inner(capsules: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, I), (N, J, O, I) -> contiguous (B, I, N), (J, O, I, N); nothing is copied where that is their storage."""
    return capsules.transpose(1, 2).contiguous(), weight.permute(1, 2, 3, 0).contiguous()


def _parts(batch: int, device: torch.device) -> Iterator[slice]:
    size = _IMAGES if device.type == "cpu" else batch
    for first in range(0, batch, max(size, 1)):
        yield slice(first, min(first + size, batch))


@functools.cache
def _triton(device: torch.device) -> ModuleType | None:
    """The Triton kernels, if they compile on this device and compute what they should."""
    try:
        from affbench.models.kernels import routing_triton

        return routing_triton if routing_triton.self_test(device) < KERNEL_TOLERANCE else None
    except Exception:  # no Triton, no compiler, or a device it does not serve: this module does the same without
        return None


def _kernels(u: Tensor, w: Tensor) -> ModuleType | None:
    """The Triton kernels where they can serve capsules (B, I, N) and weight (J, O, I, N)."""
    if not u.is_cuda or not len(u):
        return None
    with torch.cuda.device_of(u):
        kernels = _triton(u.device)
    return kernels if kernels is not None and kernels.fits(u.shape[1], w.shape[1], u.dtype) else None


class FastRouting(torch.autograd.Function):
    """Dynamic routing with a backward pass written by hand."""

    @staticmethod
    def forward(ctx: Any, capsules: Tensor, weight: Tensor, iterations: int, gradient: str) -> Tensor:
        """(B, N, I), (N, J, O, I) -> (B, J, O)."""
        u, w = _inner(capsules, weight)
        batch, outputs, out_dim = len(u), w.shape[0], w.shape[1]
        train = any(ctx.needs_input_grad)
        ctx.gradient, ctx.iterations, ctx.kernels = gradient, iterations, None
        if iterations > 1 and (gradient == "last" or not train) and (kernels := _kernels(u, w)):
            v: Tensor
            with torch.cuda.device_of(u):  # Triton launches on the current device, wherever its tensors are
                v, s, total = kernels.route(u, w, _squash(_uniform_sum(u, w)), iterations)
            ctx.kernels = kernels
            ctx.save_for_backward(u, weight, total, s)
            return v.transpose(0, 1).contiguous()
        last = train and gradient == "last" and iterations > 1
        couplings = u.new_empty(outputs, batch, u.shape[2]) if last else None
        v = u.new_empty(batch, outputs, out_dim)
        sums = [u.new_empty(outputs, batch, out_dim) for _ in range(1 if gradient == "last" else iterations)]
        for part in _parts(batch, u.device):
            v_part, sums_part = _route(u[part], w, iterations, None if couplings is None else couplings[:, part])
            v[part] = v_part.transpose(0, 1)
            for kept, s in zip(sums, sums_part[-len(sums) :], strict=True):
                kept[:, part] = s
        if train:
            ctx.save_for_backward(u, weight, couplings, *sums)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of the capsules and the weight, in the layout the weight is stored in."""
        u, weight, kept, *sums = ctx.saved_tensors
        w = weight.permute(1, 2, 3, 0).contiguous()
        grad_v = grad.transpose(0, 1).contiguous()
        if ctx.kernels is not None:
            grad_u, grad_w = ctx.kernels.backward(u, w, kept, squash_backward(sums[0], grad_v, -1))
            return grad_u.transpose(1, 2), grad_w.permute(3, 0, 1, 2), None, None
        grad_u = torch.empty_like(u) if ctx.needs_input_grad[0] else None
        grad_w = torch.empty_like(w) if ctx.needs_input_grad[1] else None
        for part in _parts(len(u), u.device):
            fresh = part.start == 0
            into = None if grad_u is None else grad_u[part]
            own = [s[:, part].contiguous() for s in sums]
            if ctx.gradient == "all" and ctx.iterations > 1:
                _backward_all(u[part], w, own, grad_v[:, part].contiguous(), into, grad_w, fresh)
                continue
            grad_s = squash_backward(own[-1], grad_v[:, part].contiguous(), -1)
            if kept is None:
                _backward_uniform(u[part], w, grad_s, into, grad_w, (0, 0 if fresh else 1))
            else:
                _backward_last(u[part], w, kept[:, part], grad_s, into, grad_w, fresh)
        grad_capsules = None if grad_u is None else grad_u.transpose(1, 2)
        return grad_capsules, None if grad_w is None else grad_w.permute(3, 0, 1, 2), None, None


def coupling_coefficients(capsules: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Coupling of the last iteration: (B, N, I), (N, J, O, I) -> (B, N, J)."""
    u, w = _inner(capsules, weight)
    couplings = u.new_empty(w.shape[0], len(u), u.shape[2])
    for part in _parts(len(u), u.device):
        _route(u[part], w, iterations, couplings[:, part])
    return couplings.permute(1, 2, 0)
