"""Mean absolute error."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from library.losses import LossConfig, PixelLoss


class Config(LossConfig):
    kind: Literal["l1"] = "l1"

    def build(self) -> L1:
        return L1()


class L1(PixelLoss):
    """|output - target| over the valid pixels: see `PixelLoss.forward`."""

    def penalty(self, difference: Tensor) -> Tensor:
        return difference.abs()
