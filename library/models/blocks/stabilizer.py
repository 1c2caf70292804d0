"""A fixed variance stabiliser for absolute-scale sensor data (Anscombe 1948: the square root makes Poisson noise
uniform)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Stabilizer(nn.Module):
    """sqrt(x + offset) - sqrt(offset), continued below 0 by its tangent, so that noise below black is neither cut nor
    folded.

    The offset stands for the noise floor: around black the curve is nearly linear, as read noise wants it. Any real
    input is legal, and `inverse` undoes `forward` exactly up to rounding.
    """

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.root = offset**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Scene-linear (any shape) to stabilised: 0 stays 0, 1 becomes about 0.87 for an offset of 0.02."""
        return torch.where(x >= 0, torch.sqrt(x.clamp_min(0) + self.offset) - self.root, x / (2 * self.root))

    def inverse(self, s: Tensor) -> Tensor:
        """Stabilised (any shape) back to scene-linear."""
        return torch.where(s >= 0, (s + self.root) ** 2 - self.offset, s * (2 * self.root))
