"""A network over CFA planes: one that corrects a demosaic of any CFA and is told how noisy each photosite is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.correction import INPUT_GAIN, INPUT_MEAN, OUTPUT_GAIN
from library.models.blocks.precision import full_precision
from library.ops.cfa_planes import CFA_PLANES, interpolate_cfa_planes
from library.ops.transfer import root_decode, root_encode

_SIGMA_GAIN = 10.0
"""Brings sigma, at most about 0.1 of white, to unit size."""


class CorrectedCfaPlanes(nn.Module):
    """(N, 5, h, w) CFA planes -> (N, 3, h, w) camera RGB, even h and w: the interpolated mosaic where the network gives
    zeros.

    The network works at half resolution, as on packed planes, whatever the CFA: which colour each of the four pixels
    of a block is, it sees from the planes.

    network  (N, 20, h / 2, w / 2) stabilised, about zero mean and unit size -> (N, 12, h / 2, w / 2) corrections, to be
             shuffled
    offset   scene-linear value around which the square root bends; about the noise floor
    """

    num_features = 4 * CFA_PLANES

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        # Levels and colour stay in float32 when the network runs in bfloat16.
        with full_precision(x):
            mosaic, planes, sigma = x.float().split((1, 3, 1), dim=1)
            start = root_encode(interpolate_cfa_planes(mosaic, planes), self.offset)
            stabilized = (root_encode(mosaic, self.offset) - INPUT_MEAN) * INPUT_GAIN
            whole = torch.cat([stabilized, planes, sigma * _SIGMA_GAIN], dim=1)
            # As slices, which an exported graph keeps without knowing the size.
            features = torch.cat([whole[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=1)
        correction = F.pixel_shuffle(network(features), 2)
        with full_precision(x):
            return root_decode(start + OUTPUT_GAIN * correction.float(), self.offset)
