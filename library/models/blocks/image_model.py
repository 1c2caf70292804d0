"""The contract of every image-to-image model: what it takes, what it gives, and what it says of itself."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from library.config import Component
from library.models.blocks.reach import Geometry, asking, probe_geometry, smallest_side
from library.models.blocks.trainable import Trainable


class ModelConfig(Component):
    """Settings of an image model; `build` makes it, with fresh weights."""

    in_channels: int

    @property
    def lattice(self) -> int:
        """Input pixels that an image's sides must be multiples of; found once per process on the thinnest such
        network."""
        return measured_lattice(type(self), self.thinnest().model_dump_json())

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the model's parameter groups, from input to output."""
        with asking():
            return tuple(group.name for group in self.thinnest().build().parameter_groups())

    @property
    def geometry(self) -> Geometry:
        """Reach and lattice, measured once per process on the thinnest such network."""
        return measured_geometry(type(self), self.thinnest().model_dump_json())

    def thinnest(self) -> ModelConfig:
        """The same network with as few channels as its layers allow: it looks as far, and is quicker to ask."""
        return self

    def build(self) -> ImageModel:
        raise NotImplementedError(f"{type(self).__name__} must build its model")


@functools.cache
def measured_geometry(cls: type[ModelConfig], config: str) -> Geometry:
    """Geometry of the network that a config, as JSON, builds."""
    with asking():
        model = cls.model_validate_json(config).build()
        return probe_geometry(model, model.in_channels, model.scale)


@functools.cache
def measured_lattice(cls: type[ModelConfig], config: str) -> int:
    """Lattice of the network that a config, as JSON, builds."""
    with asking():
        model = cls.model_validate_json(config).build()
        return smallest_side(model, model.in_channels, model.scale)


class ImageModel(Trainable):
    """Base of the models that turn (N, in_channels, h, w) into (N, 3, scale * h, scale * w), float32.

    in_channels 4  packed R, G1, G2, B, (raw - black) / (white - black), unclipped, no white balance -> camera RGB at
                   the same scale
    in_channels 5  a mosaic of any CFA at full resolution, where red, green and blue are measured, and the noise's sigma
                   (`library.ops.cfa_planes`) -> camera RGB
    in_channels 3  lin_rec2020 -> lin_rec2020
    h and w        multiples of `lattice`
    """

    config: ModelConfig
    in_channels: int
    scale: int
    """Output pixels per input pixel along each axis."""

    @functools.cached_property
    def geometry(self) -> Geometry:
        """Reach and lattice, found by asking such a network itself."""
        return self.config.geometry

    @property
    def halo(self) -> int:
        """Input pixels around a tile that can change its output, rounded up to the lattice."""
        return self.geometry.halo

    @property
    def lattice(self) -> int:
        """Input pixels that a tile's origin, and an image's sides, must be multiples of."""
        return self.geometry.lattice

    @functools.cached_property
    def macs_per_pixel(self) -> float:
        """Multiply-accumulates of convolutions per pixel of the full-resolution output."""
        side = 16 * self.config.lattice
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            copy.deepcopy(self).to("meta")(torch.zeros(1, self.in_channels, side, side))
        return counter.get_total_flops() / 2 / (self.scale * side) ** 2

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say how it computes")
