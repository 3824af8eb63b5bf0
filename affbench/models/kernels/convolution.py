"""Convolution by Winograd's minimal filtering: the same numbers from a fifth of the multiplications.

Processors without matrix units compute the large convolutions of the capsule networks and the baselines at the rate of
their multipliers, and the library's direct algorithm is close to that rate already. What is left is to multiply less.
F(m, r) yields m outputs of a filter with r taps from 8 = m + r − 1 multiplications instead of m·r, in each of both
directions. A convolution of stride s is the sum of s×s convolutions of stride 1, one for every phase of the pixels,
whose filters have r = ⌈k/s⌉ taps; the sum is taken before the transform back. An output of the 9×9 convolution of
stride 2 before the primary capsules then costs 16 multiplications for every input channel instead of 81.

Everything is a matrix product. Sizes: B images of C channels, K filters, T tiles of m×m outputs an image, S = s·s
phases, and 64 = 8×8 products a tile. Images become tiles V (B·T, 64, S·C), by a product with a constant matrix in each
direction, and filters U (K, 64, S·C), by one for both; M = V Uᵀ for each of the 64, (B·T, 64, K), becomes outputs by
one more product; and the transposes of all that lead back.

Winograd (1980), Arithmetic Complexity of Computations; Lavin, Gray (2016), Fast Algorithms for Convolutional Neural
Networks, CVPR, arXiv 1509.09308, section 4.
"""

import functools
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from affbench.base.device import cpu_bfloat16_rate

_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
_TILE = len(_POINTS) + 1  # multiplications of F(m, r), m + r − 1: larger tiles lose digits of float32
_PRODUCTS = _TILE * _TILE
_TAPS = range(3, 6)
_BLOCK = 1 << 21  # elements that are transformed at a time: they have to stay in the cache
_GROUP = 1 << 25  # elements that are multiplied at a time: bounds memory
# What a multiplication of a transform costs in those of a product, and one of a product in those of the direct
# algorithm; fitted to 33 convolutions of 3 to 9 pixels, 32 to 512 channels and batches of 8 to 128, cautiously.
_TRANSFORM, _PRODUCT = 3.5, 1.1


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d``, from fewer multiplications where that is faster: on a CPU, with many channels.

    The result is the same up to rounding: about 3·10⁻⁶ of its norm, against 6·10⁻⁷ of the direct algorithm in float32
    and 3·10⁻³ in bfloat16. Where it is used under autocast, it computes in float32 all the same: without matrix units
    that is faster than all multiplications in bfloat16.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H', W')."""
        if images.device.type != "cpu" or images.ndim != 4 or images.shape[1] != self.in_channels:
            return super().forward(images)
        if self.in_channels == 1:
            # Their memory is channels-last as well, and what is said of it decides how the result is laid out.
            height, width = images.shape[2:]
            return super().forward(images.contiguous().as_strided(images.shape, (height * width, 1, width, 1)))
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        taken = (torch.float32, torch.bfloat16) if autocast else (torch.float32,)
        plan = _plan(self, images) if images.dtype in taken and self.weight.dtype == torch.float32 else None
        rate = cpu_bfloat16_rate() if autocast else 1.0
        if plan is None or not plan.pays(len(images), self.in_channels, self.out_channels, rate):
            return super().forward(images)
        result: Tensor = _Winograd.apply(images.float(), self.weight, self.bias, plan)
        return result


class _Matrices(NamedTuple):
    """What transforms pixels in one direction, and filters and outputs in both."""

    images: Tensor  # (8, 8): a row or column of a tile of pixels to its products
    filters: Tensor  # (64·S, k·k): a filter to its 64 products for each phase
    outputs: Tensor  # (64, m·m), transposed: products to a tile of outputs


@functools.cache
def _matrices(kernel: int, stride: int, taps: int) -> _Matrices:
    """The constant matrices of F(m, r).

    The product of two polynomials of m and r coefficients is known from its values at 7 points and its leading
    coefficient. Transposed, that is a filter; the inverse of the evaluation falls to the pixels.
    """
    outputs, filters = _evaluation(_TILE + 1 - taps), _evaluation(taps)
    # Exact up to one rounding: the entries are quotients of small numbers.
    images = np.linalg.inv(_evaluation(_TILE)).T
    by_phase = np.zeros((_TILE, stride, kernel))
    for phase in range(stride):
        own = by_phase[:, phase, phase::stride]
        own[:] = filters[:, : own.shape[1]]
    both = np.einsum("asi,btj->abstij", by_phase, by_phase)
    matrices = images, both.reshape(_PRODUCTS * stride**2, kernel**2), np.kron(outputs, outputs)
    return _Matrices(*(torch.from_numpy(matrix).to(torch.float32) for matrix in matrices))


def _evaluation(coefficients: int) -> np.ndarray:
    """A polynomial's coefficients to its values at the points and its leading coefficient: (8, n)."""
    return np.vstack([np.vander(_POINTS, coefficients, increasing=True), np.eye(coefficients)[-1]])


class Plan(NamedTuple):
    """How one convolution of square filters is cut into tiles."""

    kernel: int
    stride: int
    padding: int
    size: tuple[int, int]  # of the images, (H, W)
    outputs: tuple[int, int]  # (H', W')
    step: int  # m, outputs of a tile in one direction
    tiles: tuple[int, int]  # in each direction
    matrices: _Matrices

    def elements(self, channels: int) -> int:
        """Of the tiles V of one image."""
        return self.tiles[0] * self.tiles[1] * _PRODUCTS * self.stride**2 * channels

    def pays(self, images: int, channels: int, filters: int, rate: float) -> bool:
        """Whether fewer multiplications outweigh the transforms; the direct algorithm's are `rate` times as fast."""
        tiles, inputs = images * self.tiles[0] * self.tiles[1], self.stride**2 * channels
        products = tiles * inputs * filters
        transforms = tiles * (_PRODUCTS * inputs + self.step**2 * filters)
        of_filters = filters * inputs * self.kernel**2
        direct = images * self.outputs[0] * self.outputs[1] * self.kernel**2 * channels * filters
        return direct > rate * _PRODUCT * _PRODUCTS * (products + _TRANSFORM * transforms + of_filters)


def _plan(convolution: nn.Conv2d, images: Tensor) -> Plan | None:
    """The tiles of a convolution, or None where it is not one for F(m, r)."""
    (kernel, width), (stride, across) = convolution.kernel_size, convolution.stride
    padding = convolution.padding
    if isinstance(padding, str):  # to keep the size, an even filter needs more on one side
        padding = ((kernel - 1) // 2, kernel // 2) if padding == "same" else (0, 0)
    plain = convolution.groups == 1 and convolution.dilation == (1, 1) and convolution.padding_mode == "zeros"
    taps = -(-kernel // stride)  # r, of the filter of one phase
    if not plain or (kernel, stride, padding[0]) != (width, across, padding[1]) or taps not in _TAPS:
        return None
    size = images.shape[2], images.shape[3]
    rows, columns = ((pixels + 2 * padding[0] - kernel) // stride + 1 for pixels in size)
    if min(len(images), rows, columns) < 1:
        return None
    step = _TILE + 1 - taps
    tiles = -(-rows // step), -(-columns // step)
    return Plan(kernel, stride, padding[0], size, (rows, columns), step, tiles, _matrices(kernel, stride, taps))


class _Winograd(torch.autograd.Function):
    """The convolution and its gradients, in groups of images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        """(B, C, H, W), (K, C, k, k), (K,) -> (B, K, H', W'), channels last in memory."""
        with torch.autocast("cpu", enabled=False):
            pixels, filters = _padded(images, plan), _filters(weight, plan)
            result = images.new_empty(len(images), *plan.outputs, len(weight))
            groups = []
            for group in _groups(len(images), plan, pixels.shape[3]):
                tiles = _tiles(pixels[group], plan)
                products = torch.bmm(tiles.transpose(0, 1), filters.permute(1, 2, 0))
                result[group] = _outputs(products.transpose(0, 1), plan)
                groups.append(tiles)
            if bias is not None:
                result += bias
        ctx.save_for_backward(filters, *groups)
        ctx.plan = plan
        return result.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients of images, filters and bias."""
        plan: Plan = ctx.plan
        grad = grad.permute(0, 2, 3, 1).contiguous()
        filters, *groups = ctx.saved_tensors
        channels = filters.shape[2] // plan.stride**2
        pixels = _pixel_grid(len(grad), channels, plan) if ctx.needs_input_grad[0] else None
        grad_filters = grad.new_zeros(_PRODUCTS, len(filters), filters.shape[2]) if ctx.needs_input_grad[1] else None
        with torch.autocast("cpu", enabled=False):
            for group, tiles in zip(_groups(len(grad), plan, channels), groups, strict=True):
                products = _output_products(grad[group], plan)
                if grad_filters is not None:
                    grad_filters.baddbmm_(products.permute(1, 2, 0), tiles.transpose(0, 1))
                if pixels is not None:
                    grad_tiles = torch.bmm(products.transpose(0, 1), filters.transpose(0, 1))
                    _add_tiles(pixels[group], grad_tiles, plan)
            grad_images = None if pixels is None else _grad_images(pixels, plan)
            grad_weight = None if grad_filters is None else _filters_backward(grad_filters.transpose(0, 1), plan)
        return grad_images, grad_weight, grad.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None, None


def _groups(images: int, plan: Plan, channels: int) -> Iterator[slice]:
    """Images to multiply at a time, in groups of nearly equal size."""
    count = min(images, -(-images * plan.elements(channels) // _GROUP))
    bounds = [images * place // count for place in range(count + 1)]
    return (slice(first, last) for first, last in pairwise(bounds))


def _padded(images: Tensor, plan: Plan) -> Tensor:
    """(B, C, H, W) -> (B, H', W', C), contiguous, zeros around the images, at least as large as the tiles need."""
    pixels = images.permute(0, 2, 3, 1).contiguous()
    needed = [((count - 1) * plan.step + _TILE) * plan.stride for count in plan.tiles]
    height, width = (max(needs, size + 2 * plan.padding) for needs, size in zip(needed, plan.size, strict=True))
    if (height, width) == plan.size:
        return pixels
    padded = pixels.new_zeros(len(pixels), height, width, pixels.shape[3])
    padded[:, plan.padding : plan.padding + plan.size[0], plan.padding : plan.padding + plan.size[1]] = pixels
    return padded


def _blocks(images: int, plan: Plan, channels: int) -> Iterator[slice]:
    """Images to transform at a time."""
    size = max(1, _BLOCK // plan.elements(channels))
    return (slice(first, min(first + size, images)) for first in range(0, images, size))


def _tiles(pixels: Tensor, plan: Plan) -> Tensor:
    """V: (B, H', W', C) -> (B·T, 64, S·C)."""
    (rows, columns), stride, channels = plan.tiles, plan.stride, pixels.shape[3]
    image, line, pixel, _ = pixels.stride()
    cut = pixels.as_strided(
        (len(pixels), rows, columns, _TILE, _TILE, stride, stride, channels),
        (image, plan.step * stride * line, plan.step * stride * pixel, stride * line, stride * pixel, line, pixel, 1),
    )
    matrix = plan.matrices.images
    result = pixels.new_empty(len(pixels), rows * columns, _PRODUCTS, stride**2 * channels)
    for block in _blocks(len(pixels), plan, channels):
        tiles = cut[block].reshape(-1, _TILE, _TILE * stride**2 * channels)
        half = torch.bmm(matrix.expand(len(tiles), -1, -1), tiles).view(-1, _TILE, stride**2 * channels)
        torch.bmm(matrix.expand(len(half), -1, -1), half, out=result[block].view(half.shape))
    return result.flatten(0, 1)


def _pixel_grid(images: int, channels: int, plan: Plan) -> Tensor:
    """Zeros for the gradient of padded images: rows of m, m, s; columns of m, m, s; room for what tiles reach into."""
    beyond = -(-_TILE // plan.step) - 1  # a tile reaches into so many of the next
    rows, columns = (count + beyond for count in plan.tiles)
    return torch.zeros(images, rows, plan.step, plan.stride, columns, plan.step, plan.stride, channels)


def _add_tiles(grid: Tensor, grad_tiles: Tensor, plan: Plan) -> None:
    """Add the gradient of V, (64, B·T, S·C), to that of the pixels, where the tiles lie."""
    (rows, columns), stride, step, channels = plan.tiles, plan.stride, plan.step, grid.shape[-1]
    grad_tiles = grad_tiles.view(_TILE, _TILE, -1, rows * columns * stride**2 * channels)
    matrix = plan.matrices.images.t()
    for block in _blocks(len(grid), plan, channels):
        half = torch.bmm(matrix.expand(_TILE, -1, -1), grad_tiles[:, :, block].flatten(2))
        pixels = torch.mm(matrix, half.flatten(1))
        pixels = pixels.view(_TILE, _TILE, -1, rows, columns, stride, stride, channels)
        pixels = pixels.permute(2, 3, 0, 5, 4, 1, 6, 7)  # (b, rows, 8, s, columns, 8, s, C)
        for i, y in enumerate(range(0, _TILE, step)):
            for j, x in enumerate(range(0, _TILE, step)):
                piece = pixels[:, :, y : y + step, :, :, x : x + step]
                grid[block, i : i + rows, : piece.shape[2], :, j : j + columns, : piece.shape[5]] += piece


def _grad_images(grid: Tensor, plan: Plan) -> Tensor:
    """The gradient of the images, (B, C, H, W), channels last in memory."""
    padded = grid.flatten(4, 6).flatten(1, 3)
    inside = padded[:, plan.padding :, plan.padding :][:, : plan.size[0], : plan.size[1]]
    height, width = inside.shape[1:3]
    if (height, width) != plan.size:  # pixels that no filter has seen
        inside = F.pad(inside, (0, 0, 0, plan.size[1] - width, 0, plan.size[0] - height))
    return inside.permute(0, 3, 1, 2)


def _filters(weight: Tensor, plan: Plan) -> Tensor:
    """U: (K, C, k, k) -> (K, 64, S·C)."""
    products = torch.bmm(plan.matrices.filters.expand(len(weight), -1, -1), weight.flatten(2).transpose(1, 2))
    return products.view(len(weight), _PRODUCTS, -1)


def _filters_backward(grad: Tensor, plan: Plan) -> Tensor:
    """Gradient of U (K, 64, S·C) to that of the filters (K, C, k, k)."""
    by_channel = grad.contiguous().view(len(grad), _PRODUCTS * plan.stride**2, -1).transpose(1, 2)
    products = torch.bmm(by_channel, plan.matrices.filters.expand(len(grad), -1, -1))
    return products.view(*products.shape[:2], plan.kernel, plan.kernel)


def _outputs(products: Tensor, plan: Plan) -> Tensor:
    """M (B·T, 64, K) to outputs (B, H', W', K)."""
    (rows, columns), step = plan.tiles, plan.step
    tiles = torch.bmm(plan.matrices.outputs.t().expand(len(products), -1, -1), products)
    tiles = tiles.view(-1, rows, columns, step, step, products.shape[2]).transpose(2, 3)
    whole = tiles.reshape(-1, rows * step, columns * step, products.shape[2])
    return whole[:, : plan.outputs[0], : plan.outputs[1]]


def _output_products(grad: Tensor, plan: Plan) -> Tensor:
    """Gradient of the outputs (B, H', W', K) to that of M, (B·T, 64, K)."""
    (rows, columns), step = plan.tiles, plan.step
    height, width = rows * step, columns * step
    if (height, width) != plan.outputs:
        grad = F.pad(grad, (0, 0, 0, width - grad.shape[2], 0, height - grad.shape[1]))
    tiles = grad.view(-1, rows, step, columns, step, grad.shape[3]).transpose(2, 3)
    tiles = tiles.reshape(-1, step * step, grad.shape[3])
    return torch.bmm(plan.matrices.outputs.expand(len(tiles), -1, -1), tiles)
