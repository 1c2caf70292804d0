"""The bilinear demosaic of a packed mosaic as one small convolution, for networks that start from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.ops.cfa import unpack_cfa
from library.ops.demosaic import demosaic_bilinear


class BilinearDemosaic(nn.Module):
    """(N, 4, h, w) packed R, G1, G2, B -> (N, 3, 2h, 2w): equals `demosaic_bilinear` of the unpacked mosaic.

    Working on packed planes keeps the convolution at half resolution and lets it be exported. Repeating the packed
    border is the same as mirroring the mosaic, since an interpolated site needs only its nearest neighbour beyond the
    edge.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        weight = _impulse_responses().to(torch.get_default_device())
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, packed: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(F.pad(packed, (1, 1, 1, 1), mode="replicate"), self.weight), 2)


def _impulse_responses() -> Tensor:
    """(12, 4, 3, 3): the convolution's weights, read off the op itself by giving it one impulse per plane."""
    # Not on the meta device, where a bundle's weights are counted before they are loaded: its `arange` imports torch's
    # compiler, for two seconds.
    impulses = torch.zeros(4, 4, 7, 7, device="cpu")
    for plane in range(4):
        impulses[plane, plane, 3, 3] = 1
    responses = F.pixel_unshuffle(demosaic_bilinear(unpack_cfa(impulses)), 2)[..., 2:5, 2:5]
    # A response at offset d from the impulse is the weight of the input at offset -d.
    return responses.transpose(0, 1).flip(-1, -2).contiguous()
