"""Dynamic routing without votes: the same numbers as the reference, from matrix products over small blocks.

Since the votes are linear, û = W u, nothing of procedure 1 needs them one by one: the agreement is u · (Wᵀ v), the
weighted sum W (c u), a single matrix product with the uniform coupling of iteration 1; and the logits after t
iterations are the agreement with v₁ + … + v_t, so that sum is kept instead of them.

Everything runs in blocks of input capsules that stay in the processor's cache. Layouts inside this module put the
long axis last, where memory is contiguous: capsules (B, I, N), weight (J, O, I, N), logits and coupling (J, B, N),
output capsules (J, B, O), with I = D_in and O = D_out.
"""

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Elements of a block (J, B, I, n): on a CPU it has to stay in the cache; on a GPU it only bounds memory.
_BLOCK_CPU, _BLOCK_GPU = 1 << 21, 1 << 26
_IMAGES = 64  # images at a time: more would leave too few capsules in a block
_SHORTEST = 32  # capsules in a block at least
KERNEL_TOLERANCE = 1e-3  # relative; what a device's compiler gets wrong is far beyond it


def _norm(vectors: Tensor) -> Tensor:
    """Lengths along the last axis, which is kept; on a CPU a tenth of the time of ``torch.linalg.vector_norm``."""
    return vectors.square().sum(-1, keepdim=True).sqrt_()


def _squash_scale(norm: Tensor) -> Tensor:
    """‖x‖ / (1 + ‖x‖²), without overflow for long vectors; 0 for zero."""
    return (norm + norm.reciprocal()).reciprocal_()


def _squash(vectors: Tensor) -> Tensor:
    return vectors * _squash_scale(_norm(vectors))


def _squash_backward(vectors: Tensor, grad: Tensor) -> Tensor:
    """Gradient of squash from that of its result, the same shape; zero for an all-zero vector."""
    norm = _norm(vectors)
    scale = _squash_scale(norm)
    # d scale / d norm = (1 − norm²) / (1 + norm²)², divided once more by the norm for the direction.
    slope = scale * (norm.clamp_min(torch.finfo(norm.dtype).tiny).reciprocal() - 2 * scale)
    along = (vectors * grad).sum(-1, keepdim=True)
    along.mul_(slope).div_(norm.clamp_min(torch.finfo(norm.dtype).tiny))
    return (grad * scale).addcmul_(vectors, along)


class Squash(torch.autograd.Function):
    """Squash along the last axis, in two passes each way."""

    @staticmethod
    def forward(ctx: FunctionCtx, vectors: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        ctx.save_for_backward(vectors)
        return _squash(vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient of the vectors."""
        (vectors,) = ctx.saved_tensors
        return _squash_backward(vectors, grad)


def _cut(u: Tensor, w: Tensor) -> tuple[list[tuple[slice, Tensor, Tensor]], Tensor]:
    """Blocks along N, (part, (B, I, n), contiguous (J, O, I·n)), and scratch memory for (J, B, I·n) of one of them."""
    limit = _BLOCK_CPU if u.device.type == "cpu" else _BLOCK_GPU
    length = min(max(_SHORTEST, limit // (w.shape[0] * u.shape[0] * u.shape[1])), max(u.shape[2], 1))
    parts = [slice(start, start + length) for start in range(0, max(u.shape[2], 1), length)]
    blocks = [(part, u[..., part], w[..., part].reshape(*w.shape[:2], -1)) for part in parts]
    return blocks, u.new_empty(w.shape[0] * blocks[0][1].numel())


def _uniform_sum(u: Tensor, w: Tensor) -> Tensor:
    """The weighted sum of iteration 1: (B, I, N), (J, O, I, N) -> (J, B, O)."""
    s = torch.mm(u.flatten(1), w.flatten(2).flatten(0, 1).t())
    return s.view(len(u), len(w), -1).transpose(0, 1).contiguous().div_(len(w))


def _project(v: Tensor, w: Tensor, u: Tensor, scratch: Tensor) -> Tensor:
    """Wᵀ v of one block with capsules u: (J, B, O), (J, O, I·n) -> (J, B, I, n), in the scratch memory."""
    out = scratch[: len(v) * u.numel()].view(len(v), len(u), -1)
    return torch.bmm(v, w, out=out).view(len(v), *u.shape)


def _scale(c: Tensor, u: Tensor, scratch: Tensor) -> Tensor:
    """c u of one block: (J, B, n), (B, I, n) -> (J, B, I·n), in the scratch memory."""
    out = scratch[: len(c) * u.numel()].view(len(c), *u.shape)
    return torch.mul(c.unsqueeze(2), u, out=out).flatten(2)


def _route(u: Tensor, w: Tensor, iterations: int, couplings: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Procedure 1 for one part of a batch: v (J, B, O), s of each iteration, and the last `couplings` (J, B, N)."""
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
            c = _project(total, w_block, u_block, scratch).mul_(u_block).sum(2).softmax(0)
            s.baddbmm_(_scale(c, u_block, scratch), w_block.transpose(1, 2))
            if couplings is not None and iteration == iterations - 1:
                couplings[..., part] = c
        sums.append(s)
        v = _squash(s)
        total = total + v
    return v, sums


def _backward_uniform(u: Tensor, w: Tensor, grad_s: Tensor, grad_u: Tensor, grad_w: Tensor) -> None:
    """Gradient of the weighted sum of iteration 1, added to (B, I, N) and (J, O, I, N)."""
    flat = grad_s.transpose(0, 1).flatten(1).div(len(w))  # (B, J·O)
    grad_u.flatten(1).addmm_(flat, w.flatten(2).flatten(0, 1))
    grad_w.flatten(2).flatten(0, 1).addmm_(flat.t(), u.flatten(1))


def _backward_last(u: Tensor, w: Tensor, c: Tensor, grad_s: Tensor, grad_u: Tensor, grad_w: Tensor) -> None:
    """Gradient of the last weighted sum, the coupling c (J, B, N) held constant: all of grad_u, added to grad_w."""
    blocks, scratch = _cut(u, w)
    for part, u_block, w_block in blocks:
        product = torch.bmm(grad_s.transpose(1, 2), _scale(c[..., part], u_block, scratch))
        grad_w[..., part] += product.view(*w.shape[:3], -1)
        back = _project(grad_s, w_block, u_block, scratch)
        torch.sum(back.mul_(c[..., part].unsqueeze(2)), 0, out=grad_u[..., part])


def _backward_all(u: Tensor, w: Tensor, sums: list[Tensor], grad_v: Tensor, grad_u: Tensor, grad_w: Tensor) -> Tensor:
    """The exact gradient of all iterations but the first, added to grad_u and grad_w; returns that of v₁."""
    outputs = [_squash(s) for s in sums]
    blocks, scratch = _cut(u, w)
    second = torch.empty_like(scratch)
    grad_outputs = grad_v  # of the output capsules of the iteration at hand
    grad_total = torch.zeros_like(grad_v)  # of v as part of the logits of all later iterations
    for iteration in range(len(sums) - 1, 0, -1):
        grad_s = _squash_backward(sums[iteration], grad_outputs)
        total = torch.stack(outputs[:iteration]).sum(0)
        for part, u_block, w_block in blocks:
            toward_total = _project(total, w_block, u_block, scratch)  # Wᵀ (v₁ + … )
            toward_s = _project(grad_s, w_block, u_block, second)  # Wᵀ ds
            c = (toward_total * u_block).sum(2).softmax(0)
            grad_c = (toward_s * u_block).sum(2)
            grad_b = c * (grad_c - (c * grad_c).sum(0))
            toward_s.mul_(c.unsqueeze(2)).addcmul_(toward_total, grad_b.unsqueeze(2))
            grad_u[..., part] += toward_s.sum(0)
            weighted = _scale(grad_b, u_block, scratch)
            grad_total.baddbmm_(weighted, w_block.transpose(1, 2))
            product = torch.bmm(total.transpose(1, 2), weighted)
            product.baddbmm_(grad_s.transpose(1, 2), _scale(c, u_block, scratch))
            grad_w[..., part] += product.view(*w.shape[:3], -1)
        grad_outputs = grad_total
    return grad_outputs


def _inner(capsules: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, I), (N, J, O, I) -> contiguous (B, I, N), (J, O, I, N); nothing is copied where that is their storage."""
    return capsules.transpose(1, 2).contiguous(), weight.permute(1, 2, 3, 0).contiguous()


def _parts(batch: int, device: torch.device) -> Iterator[slice]:
    size = _IMAGES if device.type == "cpu" else max(batch, 1)
    return (slice(first, min(first + size, batch)) for first in range(0, batch, size))


def kernel_error(kernels: ModuleType, device: torch.device) -> float:
    """Largest relative difference of values and gradients between Triton kernels and this module in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = (40, 8, 37), (10, 16, 8, 37), (10, 40, 16)
    u, w, grad_s = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    w *= 0.3
    couplings = torch.empty(10, 40, 37, dtype=torch.float64, device=device)
    v, sums = _route(u.double(), w.double(), 3, couplings)
    grads = torch.zeros_like(u, dtype=torch.float64), torch.zeros_like(w, dtype=torch.float64)
    _backward_last(u.double(), w.double(), couplings, grad_s.double(), *grads)
    expected = v, sums[-1], _squash(sums[0]) + _squash(sums[1]), *grads
    routed = kernels.route(u, w, _squash(_uniform_sum(u, w)), 3)
    found = *routed, *kernels.backward(u, w, routed[2], grad_s)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@functools.cache
def _triton(device: torch.device) -> ModuleType | None:
    """The Triton kernels, if they compile on this device and compute what they should."""
    try:
        from affbench.models.kernels import routing_triton

        return routing_triton if kernel_error(routing_triton, device) < KERNEL_TOLERANCE else None
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
        last = gradient == "last" and iterations > 1
        ctx.kernels = _kernels(u, w) if last else None
        if ctx.kernels is not None:
            v: Tensor
            with torch.cuda.device_of(u):  # Triton launches on the current device, wherever its tensors are
                v, s, total = ctx.kernels.route(u, w, _squash(_uniform_sum(u, w)), iterations)
            ctx.save_for_backward(u, weight, total, s)
            return v.transpose(0, 1).contiguous()
        couplings = u.new_empty(outputs, batch, u.shape[2]) if last else None
        v = u.new_empty(batch, outputs, out_dim)
        sums = [u.new_empty(outputs, batch, out_dim) for _ in range(1 if last else iterations)]
        for part in _parts(batch, u.device):
            v_part, sums_part = _route(u[part], w, iterations, None if couplings is None else couplings[:, part])
            v[part] = v_part.transpose(0, 1)
            for kept, s in zip(sums, sums_part[-len(sums) :], strict=True):
                kept[:, part] = s
        ctx.save_for_backward(u, weight, couplings, *sums)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of the capsules and the weight, in the layout the weight is stored in."""
        u, weight, kept, *sums = ctx.saved_tensors
        w = weight.permute(1, 2, 3, 0).contiguous()
        grad_v = grad.transpose(0, 1).contiguous()
        if ctx.kernels is not None:
            grad_u, grad_w = ctx.kernels.backward(u, w, kept, _squash_backward(sums[0], grad_v))
            return grad_u.transpose(1, 2), grad_w.permute(3, 0, 1, 2), None, None
        grad_u, grad_w = torch.zeros_like(u), torch.zeros_like(w)
        for part in _parts(len(u), u.device):
            own, grad_own = [s[:, part].contiguous() for s in sums], grad_v[:, part].contiguous()
            if kept is not None:
                grad_s = _squash_backward(own[0], grad_own)
                _backward_last(u[part], w, kept[:, part], grad_s, grad_u[part], grad_w)
                continue
            if len(own) > 1:
                grad_own = _backward_all(u[part], w, own, grad_own, grad_u[part], grad_w)
            _backward_uniform(u[part], w, _squash_backward(own[0], grad_own), grad_u[part], grad_w)
        return grad_u.transpose(1, 2), grad_w.permute(3, 0, 1, 2), None, None


def coupling_coefficients(capsules: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Coupling of the last iteration: (B, N, I), (N, J, O, I) -> (B, N, J)."""
    u, w = _inner(capsules, weight)
    couplings = u.new_empty(w.shape[0], len(u), u.shape[2])
    for part in _parts(len(u), u.device):
        _route(u[part], w, iterations, couplings[:, part])
    return couplings.permute(1, 2, 0)
