"""Matrix capsules with EM routing, as in Hinton, Sabour and Frosst (2018), in the variant of their published code.

Sizes: B batch, N types of capsules of D = 1 + 16 numbers: an activation, and a 4×4 pose matrix column by column.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from affbench.models.kernels.convolution import Conv2d
from affbench.models.options import whole, wholes
from affbench.models.receptive_fields import receptive_fields

_POSE = 16
_LOG_2PI = math.log(2 * math.pi)
_VOTES = {"cpu": 1 << 21}  # elements that exist at a time: on a CPU in its cache, elsewhere 256 MiB
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
    child, where the code first scales each pair of types by its largest term; and the loss sums over classes.

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
        self.primary = nn.Conv2d(filters, first * (1 + _POSE), 1, bias=False)
        # The centre of every capsule's receptive field, in hundredths of a pixel from the middle of the canvas.
        places = (torch.arange(canvas, dtype=torch.float32) - canvas // 2)[None] / 100
        for kernel, stride in ((5, 2), (3, 2), (3, 1)):
            places = F.avg_pool1d(places, kernel, stride)
        self.layers = nn.Sequential(
            EMRouting(first, second, 3, 2, routings),
            EMRouting(second, third, 3, 1, routings),
            EMRouting(third, whole("classes", classes), places.shape[1], 1, routings, places[0]),
        )
        self.register_buffer("steps", torch.zeros(()))
        with torch.no_grad():
            nn.init.trunc_normal_(self.convolution.weight, std=0.05, a=-0.1, b=0.1)
            nn.init.constant_(self.convolution.bias, 0.1)  # type: ignore[arg-type]
            weight = self.primary.weight.unflatten(0, (first, -1))
            nn.init.trunc_normal_(weight[:, :1], std=3, a=-6, b=6)
            nn.init.trunc_normal_(weight[:, 1:], std=0.5, a=-1, b=1)

    def forward(self, images: Tensor) -> Tensor:
        """Activations of the classes: float32 (B, 1, H, W) in [0, 1] -> (B, K) in (0, 1)."""
        channels = self.primary(self.convolution(images).relu())
        with torch.autocast(images.device.type, enabled=False):
            channels = channels.to(torch.promote_types(channels.dtype, torch.float32))
            capsules = channels.unflatten(1, (-1, 1 + _POSE)).permute(0, 3, 4, 1, 2)
            primary = torch.cat([(capsules[..., :1] - 1).sigmoid(), capsules[..., 1:]], -1)
            scores: Tensor = self.layers(primary)[..., 0].flatten(1)
            return scores

    def loss_and_scores(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, H, W), labels (B,) -> the spread loss at the margin of this step, and scores (B, K)."""
        scores = self(images)
        margin = 0.2 + 0.79 * (self.steps / self.margin_steps - 4).clamp_max(10).sigmoid()
        if self.training:
            self.steps += 1
        return spread_loss(scores, labels, margin), scores


def spread_loss(scores: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
    """Equation 3 of the paper: scores (B, K), labels (B,) and a margin () -> the mean over the batch."""
    true = scores.gather(1, labels[:, None])
    wrong = 1 - F.one_hot(labels, scores.shape[1]).to(scores.dtype)
    return (wrong * F.relu(margin - (true - scores)).square()).sum(-1).mean()


class EMRouting(nn.Module):
    """A convolution of capsules without padding, routed by EM: a Gaussian of each parent is fitted to the votes for it.

    The matrices, transposed, are ``weight`` (M, J, 4, 4). With `places`, as many as the kernel is wide, it is the layer
    of the classes: all positions share them, (N, J, 4, 4), and their places are added to the first two elements of a
    vote. ``beta_a`` and ``beta_u`` (J,) are what a parent costs, and a child that it does not describe.
    """

    grid: Tensor | None

    def __init__(
        self, types: int, parents: int, kernel: int, stride: int, iterations: int, places: Tensor | None = None
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.iterations = kernel, stride, whole("routings", iterations)
        self.register_buffer("grid", None, persistent=False)
        matrices, std, beta_a, beta_u, self.temperature = kernel**2 * types, 0.3, 0.5, 0.5, 0.01
        if places is not None:
            matrices, std, beta_a, beta_u, self.temperature = types, 0.01, 1.0, 2.0, 0.0025
            self.grid = torch.zeros(kernel**2 * types, 1, _POSE, 1)
            self.grid[:, 0, [0, 4], 0] = torch.cartesian_prod(places, places).repeat_interleave(types, 0)
        weight = torch.empty(matrices, parents, 4, 4)
        self.weight = nn.Parameter(nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std))
        self.beta_a = nn.Parameter(torch.full((parents,), beta_a))
        self.beta_u = nn.Parameter(torch.full((parents,), beta_u))

    def forward(self, capsules: Tensor) -> Tensor:
        """(B, H, W, N, D) -> (B, H', W', J, D)."""
        fields = receptive_fields(capsules, self.kernel, self.stride)
        # Which child is meant, since it may have several parents.
        numbers = torch.arange(capsules[0, ..., 0].numel(), device=capsules.device).view(1, *capsules.shape[1:4], 1)
        children = receptive_fields(numbers, self.kernel, self.stride).view(-1, fields.shape[3]).t()
        images = max(1, _PAIRS // (children.numel() * len(self.beta_a)))
        return torch.cat([self._route(part, children) for part in fields.split(images)])

    def _route(self, fields: Tensor, children: Tensor) -> Tensor:
        """Procedure 1 of the paper: (B, H', W', M, D) and children (M, H'·W') -> (B, H', W', J, D)."""
        numbers = fields.flatten(0, 2).permute(1, 2, 0).contiguous()  # (M, D, R) of R = B·H'·W' receptive fields
        a, poses, J = numbers[:, 0], numbers[:, 1:], len(self.beta_a)
        weight = self.weight.repeat(len(a) // len(self.weight), 1, 1, 1)
        r = a.new_full((len(a), J, a.shape[1]), 1 / J)
        mean = a.new_zeros(J, _POSE, a.shape[1])
        for iteration in range(self.iterations):
            fit = partial(_fit, self.temperature * (1 - 0.95 ** (iteration + 1)), self.grid)
            mean, logit, log_p = _InBlocks.apply(fit, a, poses, r, mean, weight, self.beta_a, self.beta_u)
            if iteration < self.iterations - 1:  # every child assigns itself to the parents that explain its vote
                r = _over_parents(log_p, children)
        parents: Tensor = torch.cat([logit.sigmoid()[:, None], mean], 1).permute(2, 0, 1)
        return parents.view(*fields.shape[:3], J, -1)


def _fit(inverse: float, grid: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The M step: means (J, 16, R), logits of activations (J, R), and log a p(V) (M, J, R) for the E step.

    Of activations (M, R), poses (M, 16, R), assignments (M, J, R) and last means; weight, beta_a and beta_u.
    """
    a, poses, r, mean, weight, beta_a, beta_u = tensors
    votes = (weight.flatten(1, 2) @ poses.reshape(len(a), 4, -1)).view(*r.shape[:2], _POSE, -1)
    if grid is not None:
        votes = votes + grid
    ra = r * a[:, None]
    mass = ra.sum(0) + 1e-7
    mean = 0.9 * (ra[:, :, None] * votes).sum(0) / mass[:, None] + 0.1 * mean
    squares = (votes - mean).square()
    variance = (ra[:, :, None] * squares).sum(0) / mass[:, None] + 5e-4
    log_variance = variance.log().sum(1)
    cost = mass * (log_variance + beta_u[:, None] * _POSE * (_LOG_2PI + 1))
    logit = -inverse * (cost + 5000 * beta_a[:, None])
    log_p = F.logsigmoid(logit) - (_POSE * _LOG_2PI + log_variance) / 2 - (squares * (0.5 / variance)).sum(2)
    return mean, logit, log_p


class _InBlocks(torch.autograd.Function):
    """`_fit` of a few receptive fields at a time, and in the backward pass again: votes of one image may be 38 MB.

    What stays is allocated first, since between temporary tensors it would leave holes that glibc does not fill.
    """

    @staticmethod
    def forward(ctx: Any, fit: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """What `_fit` takes -> what it returns."""
        ctx.fit = fit
        ctx.save_for_backward(*tensors)
        fields, (r, mean) = tensors[:4], tensors[2:4]
        results = torch.empty_like(mean), mean.new_empty(mean.shape[::2]), torch.empty_like(r)
        for block in _blocks(r):
            fitted = fit(*(own[..., block] for own in fields), *tensors[4:])
            for result, part in zip(results, fitted, strict=True):
                result[..., block] = part
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of fields and weights."""
        fields, fixed = ctx.saved_tensors[:4], [own.detach().requires_grad_() for own in ctx.saved_tensors[4:]]
        results, sums = [torch.empty_like(own) for own in fields], [torch.zeros_like(own) for own in fixed]
        for block in _blocks(fields[2]):
            with torch.enable_grad():
                parts = [own[..., block].detach().requires_grad_() for own in fields]
                fitted = ctx.fit(*parts, *fixed)
            found = torch.autograd.grad(fitted, [*parts, *fixed], [grad[..., block] for grad in grads])
            for result, part in zip(results, found[:4], strict=True):
                result[..., block] = part
            torch._foreach_add_(sums, found[4:])
        return None, *results, *sums


def _blocks(r: Tensor) -> list[slice]:
    size = max(1, _VOTES.get(r.device.type, 1 << 26) // (r[..., :1].numel() * _POSE))
    return [slice(start, start + size) for start in range(0, r.shape[-1], size)]


def _over_parents(log_p: Tensor, children: Tensor) -> Tensor:
    """exp(log_p), (M, J, R), divided by its sum over all the parents of each child."""
    own = log_p.logsumexp(1).unflatten(1, (-1, children.shape[1])).transpose(0, 1).flatten(1)  # (B, M·H'·W')
    index = children.flatten().expand_as(own)
    most = torch.full_like(own, -torch.inf).scatter_reduce(1, index, own.detach(), "amax").gather(1, index)
    total = torch.zeros_like(own).scatter_add(1, index, (own - most).exp()).gather(1, index)
    log_total = (most + total.log()).unflatten(1, children.shape).transpose(0, 1).flatten(1)  # (M, R)
    r: Tensor = (log_p - log_total[:, None]).exp()
    return r
