"""Losses between two pictures, one file each. What they have in common stands here."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from library.config import Component


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
