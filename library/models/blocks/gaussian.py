"""The discretised Gaussian that latents are coded with: scales from a fixed ladder, so that a few tables serve all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_SCALES = 64
_SMALLEST, _LARGEST = 0.11, 64.0
"""Of the ladder, in quantisation steps; its levels are spaced evenly in the logarithm."""
_LEAST_LIKELIHOOD = 2.0**-22
"""22 bits: what the entropy coder's escape takes, 14 of its table and a byte."""
CERTAIN = 0
"""Index of the narrowest scale, at which a latent is taken to be at its mean and not coded: it would differ once in
180,000."""


def scale_ladder() -> list[float]:
    """The standard deviations, by index."""
    ratio = math.log(_LARGEST / _SMALLEST) / (NUM_SCALES - 1)
    return [_SMALLEST * math.exp(ratio * index) for index in range(NUM_SCALES)]


def scale_of_index(index: Tensor) -> Tensor:
    """Standard deviation of an index, which need not be whole while training."""
    ratio = math.log(_LARGEST / _SMALLEST) / (NUM_SCALES - 1)
    return _SMALLEST * torch.exp(ratio * index)


def gaussian_bits(residual: Tensor, scale: Tensor) -> Tensor:
    """-log2 of the probability of the unit interval around a residual; float32, elementwise.

    residual  whole, or with uniform noise of a unit's width in its place (Balle et al. 2017)
    scale     above 0
    """
    # By symmetry on the side where the tails are small, so that nothing cancels.
    distance, width = residual.abs(), scale * math.sqrt(2)
    likelihood = 0.5 * (torch.erfc((distance - 0.5) / width) - torch.erfc((distance + 0.5) / width))
    # What costs the least likelihood would pull at nothing; there the distance itself does, and adds no value.
    pull = torch.relu(distance - 0.5 - 5 * scale) / scale
    return -torch.log2(likelihood.clamp_min(_LEAST_LIKELIHOOD)) + (pull - pull.detach())
