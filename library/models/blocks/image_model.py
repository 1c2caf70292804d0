"""The contract of every image-to-image model: what it takes, what it gives, and what it says of itself."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

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

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the model's parameter groups, from input to output; found without weights."""
        with torch.device("meta"):
            return tuple(group.name for group in self.build().parameter_groups())

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
    # Asking a model must not change the random numbers that its weights or data are drawn from afterwards.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = cls.model_validate_json(config).build()
        return probe_geometry(model, model.in_channels, model.scale)


class ParameterGroup(NamedTuple):
    """Parameters of one part of a model, which are trained alike."""

    name: str
    parameters: list[nn.Parameter]
    lr_multiplier: float


class ImageModel(nn.Module):
    """Base of the models that turn (N, in_channels, h, w) into (N, 3, scale * h, scale * w), float32.

    in_channels 4  packed R, G1, G2, B, (raw - black) / (white - black), unclipped, no white balance -> camera RGB at
                   the same scale
    in_channels 3  lin_rec2020 -> lin_rec2020
    h and w        multiples of `lattice`
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    """What can be frozen or trained at its own rate: a part's name -> the children of the model that it is made of,
    from input to output. Children without parameters need not be named."""
    lr_multipliers: ClassVar[Mapping[str, float]] = {}
    """Of the parts that learn at another rate than the rest."""

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

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where its parameters lie; the CPU for a model without any, which runs wherever its input is."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @functools.cached_property
    def macs_per_pixel(self) -> float:
        """Multiply-accumulates of convolutions per pixel of the full-resolution output."""
        side = 16 * self.config.lattice
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            copy.deepcopy(self).to("meta")(torch.zeros(1, self.in_channels, side, side))
        return counter.get_total_flops() / 2 / (self.scale * side) ** 2

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every parameter, also a frozen one, in exactly one group; a group for each part that has any."""
        part_of = {child: part for part, children in self.parts.items() for child in children}
        name = type(self).__name__
        assert len(part_of) == sum(len(children) for children in self.parts.values()), f"{name}: a child in two parts"
        assert self.lr_multipliers.keys() <= self.parts.keys(), f"{name}: a learning rate for no part"
        parameters: dict[str, list[nn.Parameter]] = {part: [] for part in self.parts}
        for path, parameter in self.named_parameters():
            child = path.partition(".")[0]
            assert child in part_of, f"{name}.{child} has parameters, but is in none of its parts"
            parameters[part_of[child]].append(parameter)
        return [
            ParameterGroup(part, group, self.lr_multipliers.get(part, 1.0))
            for part, group in parameters.items()
            if group
        ]

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say how it computes")
