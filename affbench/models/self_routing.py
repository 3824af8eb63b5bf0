"""Self-routing capsules, as in Hahn, Pyeon and Kim (2019): every capsule decides itself where it goes, in one pass.

Sizes: B batch, M children of a parent, J types of parents, C and D dimensions of a child's and a parent's pose.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affbench.models.kernels.convolution import Conv2d
from affbench.models.options import whole
from affbench.models.receptive_fields import receptive_fields

_TINY = torch.finfo(torch.float32).tiny  # keeps quotients and logarithms of capsules that are all off finite


class SelfRoutingCapsNet(nn.Module):
    """A convolution, primary capsules, a convolution of self-routed capsules, and the classes from its whole map.

    The small network of the authors' code: 2,557,984 parameters on a 40×40 canvas with the defaults. Its scores are the
    logarithms of the activations of the classes, which sum to 1, so that the usual cross-entropy is the paper's loss.

    Parameters
    ----------
    canvas, classes
        Side of the square images, at least 9 pixels; number of classes, K.
    filters, types, pose
        Filters of the convolution; types of capsules at each position, of both layers; dimensions of their poses.

    Notes
    -----
    As in the authors' code (coder3000/SR-CapsNet), which trains with SGD (0.1, momentum 0.9, weight decay 1e-4, batches
    of 64); affbench trains with Adam. The sizes of the maps are what its layers make of a 40×40 canvas.

    References
    ----------
    Hahn, Pyeon, Kim (2019), Self-Routing Capsule Networks, NeurIPS.
    """

    def __init__(
        self, *, canvas: int = 40, classes: int = 10, filters: int = 256, types: int = 16, pose: int = 16
    ) -> None:
        super().__init__()
        canvas = whole("canvas", canvas, 9)
        filters, types, pose = whole("filters", filters), whole("types", types), whole("pose", pose)
        first = Conv2d(1, filters, 7, stride=2, padding=1, bias=False)
        self.features = nn.Sequential(first, nn.BatchNorm2d(filters), nn.ReLU())
        second = Conv2d(filters, types, 5, padding=1, bias=False)
        self.activations = nn.Sequential(second, nn.BatchNorm2d(types), nn.Sigmoid())
        third = Conv2d(filters, types * pose, 5, padding=1, bias=False)
        self.poses = nn.Sequential(third, nn.BatchNorm2d(types * pose))
        self.routing = SelfRouting(9 * types, pose, types)
        self.transformation = PoseTransformation(9 * types, pose, types, pose)
        self.norm = nn.BatchNorm1d(types * pose)
        self.side = ((canvas - 5) // 2 - 1 - 1) // 2 + 1  # of the second capsule layer's map
        self.classes = SelfRouting(self.side**2 * types, pose, whole("classes", classes))
        for convolution in (first, second, third):
            nn.init.kaiming_uniform_(convolution.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logarithms of the classes' activations: float32 (B, 1, H, W) in [0, 1] -> (B, K)."""
        features = self.features(images)
        a, poses = self.activations(features), self.poses(features)
        with torch.autocast(images.device.type, enabled=False):
            dtype = torch.promote_types(a.dtype, torch.float32)
            a, poses = (maps.to(dtype).permute(0, 2, 3, 1).unflatten(3, (a.shape[1], -1)) for maps in (a, poses))
            around = (0, 0, 0, 0, 1, 1, 1, 1)  # capsules that are off
            a, poses = (receptive_fields(F.pad(maps, around), 3, stride=2) for maps in (a, poses))
            a, shares = self.routing(a.squeeze(4), poses)
            poses = self.transformation(poses, shares)
            poses = self.norm(poses.flatten(3).flatten(0, 2)).view_as(poses)
            a, _ = self.classes(a.flatten(1), poses.flatten(1, 3))
            scores: Tensor = a.clamp_min(_TINY).log()
            return scores


class SelfRouting(nn.Module):
    """How children divide themselves among the J types of parents (section 3).

    ``weight``, W₂ (M, J, C), and ``bias``, b₂ (M, J), start at 0: uniform coupling.
    """

    def __init__(self, children: int, pose: int, types: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(children, types, pose))
        self.bias = nn.Parameter(torch.zeros(children, types))

    def forward(self, a: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Activations (…, M) and poses (…, M, C) -> the parents' activations (…, J), and shares (…, M, J).

        The shares of the children in a parent's pose sum to 1.
        """
        r = (torch.einsum("...mc,mjc->...mj", poses, self.weight) + self.bias).softmax(-1)
        ar = a[..., None] * r
        total = ar.sum(-2)
        return total / a.sum(-1, keepdim=True).clamp_min(_TINY), ar / total[..., None, :].clamp_min(_TINY)


class PoseTransformation(nn.Module):
    """The poses of parents: the votes W₁ u of their children by their shares, with ``weight``, W₁ (M, J, D, C)."""

    def __init__(self, children: int, pose: int, types: int, out_pose: int) -> None:
        super().__init__()
        weight = nn.init.kaiming_uniform_(torch.empty(children, types * out_pose, pose))
        self.weight = nn.Parameter(weight.unflatten(1, (types, out_pose)))

    def forward(self, poses: Tensor, shares: Tensor) -> Tensor:
        """Poses (…, M, C) and shares (…, M, J) of the children -> the parents' poses (…, J, D)."""
        votes = torch.einsum("...mc,mjdc->...mjd", poses, self.weight)  # faster than weighting the children first
        return torch.einsum("...mj,...mjd->...jd", shares, votes)
