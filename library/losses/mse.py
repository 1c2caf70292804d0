"""Mean squared error."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from library.losses import LossConfig, PixelLoss


class Config(LossConfig):
    kind: Literal["mse"] = "mse"

    def build(self) -> MSE:
        return MSE()


class MSE(PixelLoss):
    """(output - target)^2 over the valid pixels: see `PixelLoss.forward`."""

    def penalty(self, difference: Tensor) -> Tensor:
        return difference**2
