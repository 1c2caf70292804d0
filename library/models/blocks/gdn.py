"""Generalised divisive normalisation: each channel of a pixel is divided by what all of them amount to (Balle et al.
2016, "Density Modeling of Images Using a Generalized Normalization Transformation")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.bounds import bounded
from library.models.blocks.precision import full_precision

_OFFSET = 2.0**-18
_PEDESTAL = _OFFSET**2
"""Parameters are roots of the value plus this, so that the gradient at a value of 0 is small but not 0."""
_SMALLEST_BETA = 1e-6


class GDN(nn.Module):
    """y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2), over the channels of each pixel: (N, channels, h, w) to the
    same, float32 also where the network is not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((channels,), math.sqrt(1 + _PEDESTAL)))
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + _PEDESTAL).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return x.float() * self._energy(x).rsqrt()

    def _energy(self, x: Tensor) -> Tensor:
        """beta_i + sum_j gamma_ij x_j^2."""
        beta = bounded(self.beta, math.sqrt(_SMALLEST_BETA + _PEDESTAL), math.inf).square() - _PEDESTAL
        gamma = bounded(self.gamma, _OFFSET, math.inf).square() - _PEDESTAL
        # As in `pointwise`, a dilation that means nothing keeps PyTorch from its slow kernel for 1x1.
        return F.conv2d(x.float().square(), gamma[:, :, None, None], beta, dilation=2)


class InverseGDN(GDN):
    """x_i = y_i * sqrt(beta_i + sum_j gamma_ij y_j^2), for decoders. An inverse in the strict sense where gamma is
    0."""

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return x.float() * self._energy(x).sqrt()
