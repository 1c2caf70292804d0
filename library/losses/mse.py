"""Mean squared error."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from library.losses import LossConfig
from library.metrics import masked_mean


class Config(LossConfig):
    kind: Literal["mse"] = "mse"

    def build(self) -> MSE:
        return MSE(self)


class MSE(nn.Module):
    """(output - target)^2 over the valid pixels: see `forward`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean over images of the mean over valid pixels; unweighted.

        output, target  (N, 3, H, W), any range, below 0 is legal
        mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
        returns         scalar, float32
        """
        return masked_mean((output - target) ** 2, mask)
