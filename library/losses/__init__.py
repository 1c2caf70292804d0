"""Losses between two pictures, one file each. What they have in common stands here."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from library.config import Component
from library.metrics import masked_mean, only_valid


class LossConfig(Component):
    """Settings of a loss; `build` makes a module: (output, target, mask) -> unweighted scalar."""

    weight: float = Field(default=1.0, gt=0)
    """Factor of this loss in the sum."""

    @property
    def smallest_side(self) -> int:
        """Pixels a side that the loss needs at least."""
        return 1

    def build(self) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must build its loss")


class PixelLoss(nn.Module):
    """Base of the losses that are a mean over pixels of some penalty of their difference."""

    def penalty(self, difference: Tensor) -> Tensor:
        """Of each sample (N, 3, H, W): at least 0, and 0 for none."""
        raise NotImplementedError(f"{type(self).__name__} must say what a difference costs")

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean over images of the mean penalty over valid pixels; unweighted.

        output, target  (N, 3, H, W), any range, below 0 is legal; at pixels that do not count anything is, NaN too
        mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
        returns         scalar, float32; NaN when a pixel that counts is NaN
        """
        return masked_mean(self.penalty(only_valid(output, mask) - only_valid(target, mask)), mask)
