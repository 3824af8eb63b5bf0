"""Dynamic routing between capsules: procedure 1 of Sabour, Frosst and Hinton (2017).

Sizes: B batch, N input capsules of D_in dimensions, J output capsules of D_out dimensions. First the procedure as the
paper (Dynamic Routing Between Capsules, arXiv 1710.09829) writes it; then what the package uses, the same numbers
without forming the votes (`kernels.routing_fast`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from affbench.base.errors import UsageError
from affbench.models.kernels import routing_fast
from affbench.models.options import choice, flag, whole

GRADIENTS = ("last", "all")


def dynamic_routing_reference(
    capsules: Tensor,
    weight: Tensor,
    iterations: int,
    gradient: str = "last",
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Procedure 1 as the paper writes it: as :func:`dynamic_routing`, squashed or with what takes its place."""
    u_hat = torch.einsum("njod,bnd->bnjo", weight, capsules)  # prediction vectors, the "votes"
    b = u_hat.new_zeros(u_hat.shape[:3])
    for iteration in range(iterations):
        c = b.softmax(dim=-1)
        if gradient == "last":
            c = c.detach()
        s = torch.einsum("bnj,bnjo->bjo", c, u_hat)
        v = (activation or squash)(s)
        if iteration < iterations - 1:
            b = b + torch.einsum("bnjo,bjo->bnj", u_hat, v)
    return v


def squash(vectors: Tensor) -> Tensor:
    """Scale vectors to a length in [0, 1) and keep their direction: short ones to almost 0, long ones to almost 1.

    Parameters
    ----------
    vectors
        (…, D), any floating type; computed in float32 at least.

    Returns
    -------
    Tensor
        (…, D), equation 1 of the paper; zero, with zero gradient, for an all-zero vector.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        squashed: Tensor = routing_fast.Squash.apply(vectors)
    return squashed


def dynamic_routing(capsules: Tensor, weight: Tensor, iterations: int, gradient: str = "last") -> Tensor:
    """Route input capsules to output capsules by agreement, procedure 1 of the paper.

    Parameters
    ----------
    capsules
        Input capsules u, (B, N, D_in).
    weight
        Transformation matrices W, (N, J, D_out, D_in).
    iterations
        Number of routing iterations, at least 1; with 1 the coupling is uniform.
    gradient
        ``"last"``: coupling coefficients are constants in the backward pass; ``"all"``: the exact gradient, through
        every iteration.

    Returns
    -------
    Tensor
        Output capsules v, (B, J, D_out), float32 (float64 if an input is float64), also under autocast.

    Raises
    ------
    UsageError
        If a shape, the number of iterations or ``gradient`` is not acceptable.
    """
    whole("iterations", iterations)
    choice("gradient", gradient, GRADIENTS)
    with torch.autocast(capsules.device.type, enabled=False):
        routed: Tensor = routing_fast.FastRouting.apply(*_matching(capsules, weight), iterations, gradient)
    return routed


def coupling_coefficients(capsules: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """How :func:`dynamic_routing` divides each input capsule among the output capsules: c of the last iteration.

    Without gradient; (B, N, J), each row a distribution over the output capsules, all 1/J with one iteration.
    """
    whole("iterations", iterations)
    with torch.no_grad(), torch.autocast(capsules.device.type, enabled=False):
        return routing_fast.coupling_coefficients(*_matching(capsules, weight), iterations)


class CapsuleLayer(nn.Module):
    """N capsules of D_in dimensions to J of D_out by dynamic routing, with a transformation matrix for every pair.

    Attributes
    ----------
    weight : torch.nn.Parameter
        (J, D_out, D_in, N): stored with the input capsules last, contiguous, as the fast routing and the fused
        optimiser want it.
    routing : torch.nn.Module
        May be replaced by any module (B, N, D_in), (N, J, D_out, D_in) -> (B, J, D_out).
    """

    def __init__(
        self,
        in_capsules: int,
        in_dim: int,
        out_capsules: int,
        out_dim: int,
        iterations: int = 3,
        gradient: str = "last",
        squashed: bool = True,
    ) -> None:
        super().__init__()
        self.routing: nn.Module = DynamicRouting(iterations, gradient, squashed)
        self.weight = nn.Parameter(torch.empty(out_capsules, out_dim, in_dim, in_capsules))
        nn.init.normal_(self.weight, std=0.1)

    @property
    def matrices(self) -> Tensor:
        """The transformation matrices W as :func:`dynamic_routing` takes them, (N, J, D_out, D_in): a view."""
        return self.weight.permute(3, 0, 1, 2)

    def forward(self, capsules: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, J, D_out)."""
        routed: Tensor = self.routing(capsules, self.matrices)
        return routed


class DynamicRouting(nn.Module):
    """:func:`dynamic_routing` as a layer without parameters; where capsules are not squashed it forms the votes."""

    def __init__(self, iterations: int = 3, gradient: str = "last", squashed: bool = True) -> None:
        super().__init__()
        self.iterations = whole("routings", iterations)
        self.gradient = choice("routing_gradient", gradient, GRADIENTS)
        self.squashed = flag("squash", squashed)

    def forward(self, capsules: Tensor, matrices: Tensor) -> Tensor:
        """(B, N, D_in), (N, J, D_out, D_in) -> (B, J, D_out)."""
        if self.squashed:
            return dynamic_routing(capsules, matrices, self.iterations, self.gradient)
        with torch.autocast(capsules.device.type, enabled=False):
            inputs = *_in_precision(capsules, matrices), self.iterations, self.gradient
            return dynamic_routing_reference(*inputs, activation=nn.Identity())


class SharedCapsuleLayer(nn.Module):
    """A layer of capsules with one transformation matrix per output capsule, shared by all input capsules.

    It is :class:`CapsuleLayer` with N equal matrices, by default with one iteration: every coupling coefficient is
    1/J. As the votes are W u, none is formed: s = W Σ c u, and a vote agrees with v as u does with Wᵀ v. Neither the
    order of the input capsules nor, up to the borders, the place of what they see matters. The weight is
    (J, D_out, D_in).
    """

    def __init__(
        self,
        in_dim: int,
        out_capsules: int,
        out_dim: int,
        iterations: int = 1,
        gradient: str = "last",
        squashed: bool = True,
    ) -> None:
        super().__init__()
        self.iterations = whole("routings", iterations)
        self.gradient = choice("routing_gradient", gradient, GRADIENTS)
        self.activation = squash if flag("squash", squashed) else nn.Identity()
        self.weight = nn.Parameter(torch.empty(out_capsules, out_dim, in_dim))
        nn.init.normal_(self.weight, std=0.1)

    def forward(self, capsules: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, J, D_out), for any N."""
        with torch.autocast(capsules.device.type, enabled=False):
            u, weight = _in_precision(capsules, self.weight)
            b = u.new_zeros(*u.shape[:2], len(weight))
            v: Tensor = self.activation(torch.einsum("joi,bi->bjo", weight, u.sum(1) / len(weight)))
            for _ in range(self.iterations - 1):
                b = b + u @ torch.einsum("joi,bjo->bij", weight, v)
                c = b.softmax(-1)
                if self.gradient == "last":
                    c = c.detach()
                v = self.activation(torch.einsum("joi,bji->bjo", weight, c.transpose(1, 2) @ u))
            return v


def _in_precision(capsules: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or float64 if one is."""
    dtype = torch.promote_types(torch.promote_types(capsules.dtype, weight.dtype), torch.float32)
    return capsules.to(dtype), weight.to(dtype)


def _matching(capsules: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    if capsules.ndim != 3 or weight.ndim != 4 or capsules.shape[1:] != (weight.shape[0], weight.shape[3]):
        raise UsageError(
            "dynamic_routing needs capsules (B, N, D_in) and weight (N, J, D_out, D_in), "
            f"not {tuple(capsules.shape)} and {tuple(weight.shape)}."
        )
    return _in_precision(capsules, weight)
