"""The loss of Charbonnier, Blanc-Feraud, Aubert and Barlaud 1994: squared for small differences, absolute for large
ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from library.losses import LossConfig, PixelLoss


class Config(LossConfig):
    kind: Literal["charbonnier"] = "charbonnier"
    epsilon: float = Field(default=1e-3, gt=0)
    """Difference at which it bends, in units of the compared pictures: squared well below it, absolute far above."""

    def build(self) -> Charbonnier:
        return Charbonnier(self)


class Charbonnier(PixelLoss):
    """sqrt((output - target)^2 + epsilon^2) - epsilon over the valid pixels: see `PixelLoss.forward`.

    Minus epsilon, which the usual form leaves in, so that equal pictures have no loss.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def penalty(self, difference: Tensor) -> Tensor:
        # d^2 / (sqrt(d^2 + e^2) + e) is the same without the cancellation, which would leave nothing of small d.
        epsilon = self.config.epsilon
        square = difference**2
        return square / ((square + epsilon**2).sqrt() + epsilon)
