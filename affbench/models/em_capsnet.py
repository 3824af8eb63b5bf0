"""Matrix capsules with EM routing, as in Hinton, Sabour and Frosst (2018), in the variant of their published code.

Sizes: B batch, P positions of parents, M children of each, J types of parents, D = 16 elements of a pose matrix.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from affbench.models.kernels.convolution import Conv2d
from affbench.models.options import whole, wholes
from affbench.models.receptive_fields import as_map, receptive_fields

_SIDE = 4  # of a pose matrix
_LOG_2PI = math.log(2 * math.pi)
_VOTES = {"cpu": 1 << 20}  # elements that exist at a time: on a CPU in its cache, elsewhere 256 MiB
_PAIRS = 1 << 24  # pairs of a child and a parent that are routed at a time


class EMCapsNet(nn.Module):
    """A convolution, primary capsules, two convolutions of capsules and the classes, routed by EM; trained to spread.

    With the defaults 318,420 parameters on any canvas.

    Parameters
    ----------
    canvas, classes
        Side of the square images, at least 17 pixels; number of classes, K.
    routings
        Iterations of EM; gradients flow through all of them.
    filters, types
        Filters of the convolution; types of capsules of the three layers below the classes.
    margin_steps
        The margin of the loss is 0.2 + 0.79 σ(min(10, step / margin_steps − 4)): from 0.21 to 0.99.

    Notes
    -----
    As in the authors' code (google-research/capsule_em), of which the paper differs: there the margin grows linearly,
    convolutions are padded, log σ and not log σ² counts in the activation, a mean is not averaged with the one before,
    and the inverse temperature is left open. Not as in that code: weight decay (2e-7) and its batch of 64 and learning
    rate of 0.01 · 0.96^(step/20000) belong to training; assignments are normalised exactly over the parents of each
    child, where the code first scales each type of parents by its largest term; and the loss sums over classes.

    References
    ----------
    Hinton, Sabour, Frosst (2018), Matrix Capsules with EM Routing, ICLR.
    """

    steps: Tensor

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        routings: int = 3,
        filters: int = 32,
        types: Sequence[int] = (32, 32, 32),
        margin_steps: int = 50_000,
    ) -> None:
        super().__init__()
        canvas = whole("canvas", canvas, 17)
        filters, self.margin_steps = whole("filters", filters), whole("margin_steps", margin_steps)
        first, second, third = wholes("types", types, length=3)
        self.convolution = Conv2d(1, filters, 5, stride=2)
        self.primary = nn.Conv2d(filters, first * (_SIDE**2 + 1), 1, bias=False)
        # The centre of every capsule's receptive field, in hundredths of a pixel from the middle of the canvas.
        places = (torch.arange(canvas, dtype=torch.float32) - canvas // 2)[None] / 100
        for kernel, stride in ((5, 2), (3, 2), (3, 1)):
            places = F.avg_pool1d(places, kernel, stride)
        self.capsules = nn.ModuleList(
            [
                EMRouting(first, second, 3, 2, routings),
                EMRouting(second, third, 3, 1, routings),
                EMRouting(third, whole("classes", classes), places.shape[1], 1, routings, places[0]),
            ]
        )
        self.register_buffer("steps", torch.zeros(()))
        with torch.no_grad():
            nn.init.trunc_normal_(self.convolution.weight, std=0.05, a=-0.1, b=0.1)
            nn.init.constant_(self.convolution.bias, 0.1)  # type: ignore[arg-type]
            weight = self.primary.weight.unflatten(0, (first, -1))
            nn.init.trunc_normal_(weight[:, :-1], std=0.5, a=-1, b=1)
            nn.init.trunc_normal_(weight[:, -1:], std=3, a=-6, b=6)

    def forward(self, images: Tensor) -> Tensor:
        """Activations of the classes: float32 (B, 1, H, W) in [0, 1] -> (B, K) in (0, 1)."""
        capsules = self.primary(self.convolution(images).relu()).unflatten(1, (-1, _SIDE**2 + 1))
        with torch.autocast(images.device.type, enabled=False):
            capsules = capsules.to(torch.promote_types(capsules.dtype, torch.float32))
            a, poses = (capsules[:, :, -1] - 1).sigmoid(), capsules[:, :, :-1]
            for layer in self.capsules:
                a, poses = layer(a, poses)
        scores: Tensor = a.flatten(1)
        return scores

    def loss_and_scores(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, H, W), labels (B,) -> the spread loss at the margin of this step, and scores (B, K)."""
        scores = self(images)
        margin = 0.2 + 0.79 * (self.steps / self.margin_steps - 4).clamp_max(10).sigmoid()
        if self.training:
            self.steps += 1
        return spread_loss(scores, labels, margin), scores


class EMRouting(nn.Module):
    """A convolution of capsules, routed by EM; without padding.

    With `places`, of as many positions as the kernel is wide, it is the layer of the classes: its matrices are shared
    by all positions, whose coordinates are added to the first two elements of a vote.

    Attributes
    ----------
    weight : torch.nn.Parameter
        (M, J, 4, 4), or (N, J, 4, 4) where it is shared by all positions.
    beta_a, beta_u : torch.nn.Parameter
        What a type of parents costs, and each child that it does not describe: (J,).
    """

    grid: Tensor

    def __init__(
        self, types: int, parents: int, kernel: int, stride: int, iterations: int, places: Tensor | None = None
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.iterations = kernel, stride, whole("routings", iterations)
        self.shared = places is not None
        std, beta_a, beta_u = (0.01, 1.0, 2.0) if self.shared else (0.3, 0.5, 0.5)
        self.temperature = 0.0025 if self.shared else 0.01  # inverse, after many iterations
        weight = torch.empty(types * (1 if self.shared else kernel**2), parents, _SIDE, _SIDE)
        self.weight = nn.Parameter(nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std))
        self.beta_a = nn.Parameter(torch.full((parents,), beta_a))
        self.beta_u = nn.Parameter(torch.full((parents,), beta_u))
        grid = torch.zeros(1, 2) if places is None else torch.cartesian_prod(places, places).repeat_interleave(types, 0)
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, a: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Activations (B, N, H, W) and poses (B, N, D, H, W) -> the parents' (B, J, H', W') and (B, J, D, H', W')."""
        numbers = torch.arange(a[0].numel(), device=a.device, dtype=torch.float64).view(1, a.shape[1], 1, *a.shape[2:])
        children = receptive_fields(numbers, self.kernel, self.stride)[0, :, :, 0].long()
        images = max(1, _PAIRS // (children.numel() * len(self.beta_a)))
        poses = receptive_fields(poses, self.kernel, self.stride)
        a = receptive_fields(a[:, :, None], self.kernel, self.stride).squeeze(3)
        routed = [self.route(*part, children) for part in zip(a.split(images), poses.split(images), strict=True)]
        a, poses = (torch.cat(part) for part in zip(*routed, strict=True))
        return as_map(a[..., None]).squeeze(2), as_map(poses)

    def route(self, a: Tensor, poses: Tensor, children: Tensor) -> tuple[Tensor, Tensor]:
        """Fit a Gaussian of every parent to the votes of its children, procedure 1 of the paper.

        Activations (B, P, M) and poses (B, P, M, D) of the children, and which child each of them is, (P, M), since it
        may have several parents -> activations (B, P, J) and poses (B, P, J, D) of the parents.
        """
        (B, P, M, D), J = poses.shape, len(self.beta_a)
        weight = self.weight.repeat(self.kernel**2, 1, 1, 1) if self.shared else self.weight
        r = poses.new_full((B * P, J, M), 1 / J)
        mean = poses.new_zeros(B * P, J, D)
        for iteration in range(self.iterations):
            inverse = self.temperature * (1 - 0.95 ** (iteration + 1))
            fields = poses.flatten(0, 1), a.flatten(0, 1), r, mean
            mean, logit, log_p = _InBlocks.apply(inverse, self.grid, *fields, weight, self.beta_a, self.beta_u)
            if iteration < self.iterations - 1:  # every child assigns itself to the parents that explain its vote
                r = _over_parents(log_p.view(B, P, J, M), children).flatten(0, 1)
        return logit.sigmoid().view(B, P, J), mean.view(B, P, J, D)


def spread_loss(scores: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
    """Equation 3 of the paper: scores (B, K), labels (B,) and a margin () -> the mean over the batch."""
    true = scores.gather(1, labels[:, None])
    wrong = 1 - F.one_hot(labels, scores.shape[1]).to(scores.dtype)
    return (wrong * F.relu(margin - (true - scores)).square()).sum(-1).mean()


def _fit(inverse: float, grid: Tensor, fields: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """M step, and what the E step needs of it: means (R, J, D), logits of activations (R, J), log a p(V) (R, J, M)."""
    (poses, a, r, mean), (weight, beta_a, beta_u), D = fields, fixed, fields[0].shape[2]
    votes = torch.einsum("imrk,mjkc->ijmrc", poses.unflatten(2, (_SIDE, _SIDE)), weight).flatten(3)  # (R, J, M, D)
    votes = votes + F.pad(grid, (0, D - 2))
    ra = r * a[:, None]
    mass = ra.sum(-1, keepdim=True) + 1e-7
    mean = 0.9 * (ra[:, :, None] @ votes).squeeze(2) / mass + 0.1 * mean
    squares = (votes - mean[:, :, None]).square()
    variance = 5e-4 + (ra[:, :, None] @ squares).squeeze(2) / mass
    log_variance = variance.log().sum(-1)  # (R, J)
    logit = -inverse * (mass.squeeze(-1) * (log_variance + beta_u * D * (_LOG_2PI + 1)) + 5000 * beta_a)
    log_p = F.logsigmoid(logit) - (D * _LOG_2PI + log_variance) / 2
    return mean, logit, log_p[..., None] - (squares @ (0.5 / variance)[..., None]).squeeze(-1)


class _InBlocks(torch.autograd.Function):
    """`_fit` of a few receptive fields at a time, and in the backward pass again: votes of one image may be 38 MB.

    What stays is allocated first, since between temporary tensors it would leave holes that glibc does not fill.
    """

    @staticmethod
    def forward(ctx: Any, inverse: float, grid: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Fields (R, …): poses, a, r, mean; and weight, beta_a, beta_u -> as `_fit`."""
        ctx.inverse = inverse
        ctx.save_for_backward(grid, *tensors)
        fields, (r, mean) = tensors[:4], tensors[2:4]
        results = torch.empty_like(mean), mean.new_empty(mean.shape[:2]), torch.empty_like(r)
        for block in _blocks(r, mean):
            fitted = _fit(inverse, grid, [own[block] for own in fields], tensors[4:])
            for result, part in zip(results, fitted, strict=True):
                result[block] = part
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of fields and weights."""
        grid, *tensors = ctx.saved_tensors
        fields, fixed = tensors[:4], [own.detach().requires_grad_() for own in tensors[4:]]
        results, sums = [torch.empty_like(own) for own in fields], [torch.zeros_like(own) for own in fixed]
        for block in _blocks(*fields[2:]):
            with torch.enable_grad():
                parts = [own[block].detach().requires_grad_() for own in fields]
                fitted = _fit(ctx.inverse, grid, parts, fixed)
            found = torch.autograd.grad(fitted, [*parts, *fixed], [grad[block] for grad in grads])
            for result, part in zip(results, found[:4], strict=True):
                result[block] = part
            torch._foreach_add_(sums, found[4:])
        return None, None, *results, *sums


def _blocks(r: Tensor, mean: Tensor) -> list[slice]:
    rows = max(1, _VOTES.get(r.device.type, 1 << 26) // (r[0].numel() * mean.shape[2]))
    return [slice(start, start + rows) for start in range(0, len(r), rows)]


def _over_parents(log_p: Tensor, children: Tensor) -> Tensor:
    """exp(log_p), (B, P, J, M), divided by its sum over all the parents of each child."""
    own = log_p.logsumexp(2).flatten(1)  # (B, P·M)
    index = children.flatten().expand_as(own)
    most = torch.full_like(own, -torch.inf).scatter_reduce(1, index, own.detach(), "amax").gather(1, index)
    total = torch.zeros_like(own).scatter_add(1, index, (own - most).exp()).gather(1, index)
    return (log_p - (most + total.log()).view(-1, *children.shape)[:, :, None]).exp()
