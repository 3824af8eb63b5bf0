"""CapsNet with one transformation for all primary capsules, as in Gu and Tresp (2020)."""

from collections.abc import Sequence

from affbench.models.capsnet import MINIMUM_CANVAS, CapsuleNetwork, convolutional_primary, pixel_decoder
from affbench.models.options import whole
from affbench.models.routing import SharedCapsuleLayer


class AffCapsNet(CapsuleNetwork):
    """Aff-CapsNet: all primary capsules share one transformation matrix per class, and there is no routing.

    Parameters, primary capsules, decoder and loss are those of :class:`affbench.models.capsnet.CapsNet`;
    ``primary.network`` may be replaced by any module of output (B, T·D, H', W'), for any T, H' and W'. With the
    defaults it has 7.6 million parameters on a 40×40 canvas, 6.7 million on 28×28 images, and 5.3 million without the
    decoder, whatever the canvas; 1,280 of them are the transformations, against CapsNet's 5.9 million.

    That there is no routing is stated in the paper's abstract, the shared transformation in summaries of the paper. Not
    confirmed at the source: the sizes of the layers, which are CapsNet's here; the constant that multiplies the sum of
    the votes, here 1/J as in CapsNet's first routing iteration; squashing; and initialisation.

    References
    ----------
    Gu, Tresp (2020), Improving the Robustness of Capsule Networks to Image Affine Transformations, CVPR, arXiv
    1911.07968.
    """

    def __init__(
        self,
        *,
        canvas: int = 40,
        classes: int = 10,
        reconstruction: float = 0.0005,
        filters: int = 256,
        primary_types: int = 32,
        primary_dim: int = 8,
        digit_dim: int = 16,
        decoder: Sequence[int] = (512, 1024),
    ) -> None:
        canvas = whole("canvas", canvas, MINIMUM_CANVAS)
        primary = convolutional_primary(filters, primary_types, primary_dim)
        digits = SharedCapsuleLayer(primary_dim, whole("classes", classes), whole("digit_dim", digit_dim))
        drawing = pixel_decoder(classes * digit_dim, decoder, canvas * canvas) if reconstruction else None
        super().__init__(primary, digits, drawing, reconstruction)
