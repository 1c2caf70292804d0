"""A network that corrects a bilinear demosaic, in a domain where noise is about uniform."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.bilinear import BilinearDemosaic
from library.models.blocks.precision import full_precision
from library.ops.transfer import root_decode, root_encode

# Brings stabilised samples, mostly in [0, 1], to about zero mean and unit size, and the head's first corrections to
# theirs.
INPUT_MEAN, INPUT_GAIN, OUTPUT_GAIN = 0.3, 4.0, 0.1


class CorrectedDemosaic(nn.Module):
    """(N, 4, h, w) packed mosaic -> (N, 3, 2h, 2w) camera RGB: the bilinear demosaic where the network gives zeros.

    network  (N, 4, h, w) stabilised, about zero mean and unit size -> (N, 12, h, w) corrections, to be shuffled
    offset   scene-linear value around which the square root bends; about the noise floor
    """

    num_features = 4

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.demosaic = BilinearDemosaic()

    def forward(self, packed: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        # Levels and colour stay in float32 when the network runs in bfloat16.
        with full_precision(packed):
            start = root_encode(self.demosaic(packed.float()), self.offset)
            features = (root_encode(packed.float(), self.offset) - INPUT_MEAN) * INPUT_GAIN
        correction = F.pixel_shuffle(network(features), 2)
        with full_precision(packed):
            return root_decode(start + OUTPUT_GAIN * correction.float(), self.offset)
