"""Mean absolute error."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from library.losses import LossConfig
from library.metrics import masked_mean


class Config(LossConfig):
    kind: Literal["l1"] = "l1"

    def build(self) -> L1:
        return L1(self)


class L1(nn.Module):
    """|output - target| over the valid pixels: see `forward`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean over images of the mean over valid pixels; unweighted.

        output, target  (N, 3, H, W), any range, below 0 is legal
        mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
        returns         scalar, float32
        """
        return masked_mean(torch.abs(output - target), mask)
