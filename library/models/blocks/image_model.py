"""The contract of every image-to-image model: what it takes, what it gives, and what it says of itself."""

from __future__ import annotations

import copy
import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from library.config import Component
from library.models.blocks.reach import Geometry, probe_geometry, smallest_side


class ModelConfig(Component):
    """Settings of an image model; `build` makes it, with fresh weights."""

    in_channels: int

    @property
    def lattice(self) -> int:
        """Input pixels that an image's sides must be multiples of; found from shapes alone, without weights."""
        with torch.device("meta"):
            model = self.build()
        return smallest_side(model, model.in_channels, model.scale)

    def build(self) -> ImageModel:
        raise NotImplementedError(f"{type(self).__name__} must build its model")


class ParameterGroup(NamedTuple):
    """Parameters that are trained alike."""

    name: str
    parameters: list[nn.Parameter]
    lr_multiplier: float
    decays: bool
    """Whether weight decay applies: not to biases, norms and other parameters of one dimension."""


class ImageModel(nn.Module):
    """Base of the models that turn (N, in_channels, h, w) into (N, 3, scale * h, scale * w), float32.

    in_channels 4  packed R, G1, G2, B, (raw - black) / (white - black), unclipped, no white balance -> camera RGB at
    the same scale in_channels 3  lin_rec2020 -> lin_rec2020 h and w        multiples of `lattice`
    """

    config: ModelConfig
    in_channels: int
    scale: int
    """Output pixels per input pixel along each axis."""

    @functools.cached_property
    def geometry(self) -> Geometry:
        """Halo and lattice, found by asking the network itself."""
        return probe_geometry(self, self.in_channels, self.scale)

    @property
    def halo(self) -> int:
        """Input pixels around a tile that can change its output, rounded up to the lattice."""
        return self.geometry.halo

    @property
    def lattice(self) -> int:
        """Input pixels that a tile's origin, and an image's sides, must be multiples of."""
        return self.geometry.lattice

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @functools.cached_property
    def macs_per_pixel(self) -> float:
        """Multiply-accumulates of convolutions per pixel of the full-resolution output."""
        side = 16 * self.lattice
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            copy.deepcopy(self).to("meta")(torch.zeros(1, self.in_channels, side, side))
        return counter.get_total_flops() / 2 / (self.scale * side) ** 2

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every trainable parameter in exactly one group."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        groups = [
            ParameterGroup("weights", [p for p in trainable if p.ndim > 1], 1.0, decays=True),
            ParameterGroup("biases_and_norms", [p for p in trainable if p.ndim <= 1], 1.0, decays=False),
        ]
        return [group for group in groups if group.parameters]

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say how it computes")
