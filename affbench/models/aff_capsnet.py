"""CapsNet with one transformation for all primary capsules, as in Gu and Tresp (2020)."""

from collections.abc import Sequence

from affbench.models.capsnet import CapsuleNetwork, convolutional_primary, pixel_decoder
from affbench.models.options import whole
from affbench.models.routing import SharedCapsuleLayer


class AffCapsNet(CapsuleNetwork):
    """Aff-CapsNet: all primary capsules share one transformation matrix per class, by default without routing.

    Primary capsules, decoder and loss are those of :class:`affbench.models.capsnet.CapsNet`;
    ``primary.network`` may be replaced by any module of output (B, T·D, H', W'), for any T, H' and W'. With the
    defaults it has 7.6 million parameters on a 40×40 canvas, 6.7 million on 28×28 images, and 5.3 million without the
    decoder, whatever the canvas; 1,280 of them are the transformations, against CapsNet's 5.9 million.

    That there is no routing is stated in the paper's abstract, the shared transformation in summaries of the paper. Not
    confirmed at the source: the sizes of the layers, which are CapsNet's here; the constant that multiplies the sum of
    the votes, here 1/J as in CapsNet's first routing iteration; squashing; and initialisation.

    Parameters
    ----------
    routings, routing_gradient
        Iterations of routing, which make it Aff-CapsNet-DR, or None for no routing; their gradient as in CapsNet.
    canvas, classes, reconstruction, conditional, loss, squash, kernel
        As those of CapsNet.
    filters, primary_types, primary_dim, digit_dim, decoder
        As those of CapsNet.

    References
    ----------
    Gu, Tresp (2020), Improving the Robustness of Capsule Networks to Image Affine Transformations, CVPR, arXiv
    1911.07968; Gu, Tresp, Hu (2021), Capsule Network is Not More Robust than Convolutional Network, arXiv 2103.15459
    (with dynamic routing, and the ablation).
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        routings: int | None = None,
        routing_gradient: str = "last",
        reconstruction: float = 0.0005,
        conditional: bool = True,
        loss: str = "margin",
        squash: bool = True,
        kernel: int = 9,
        filters: int = 256,
        primary_types: int = 32,
        primary_dim: int = 8,
        digit_dim: int = 16,
        decoder: Sequence[int] = (512, 1024),
    ) -> None:
        canvas = whole("canvas", canvas, 2 * whole("kernel", kernel) - 1)
        primary = convolutional_primary(filters, primary_types, primary_dim, kernel, squash)
        sizes = primary_dim, whole("classes", classes), whole("digit_dim", digit_dim)
        digits = SharedCapsuleLayer(*sizes, 1 if routings is None else routings, routing_gradient, squash)
        drawing = pixel_decoder(classes * digit_dim, decoder, canvas * canvas) if reconstruction else None
        super().__init__(primary, digits, drawing, reconstruction, conditional, loss)
