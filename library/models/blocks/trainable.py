"""What training needs of any network: its parts, which can be frozen or learn at their own rate, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from library.config import Component


class ParameterGroup(NamedTuple):
    """Parameters of one part of a model, which are trained alike."""

    name: str
    parameters: list[nn.Parameter]
    lr_multiplier: float


class Trainable(nn.Module):
    """Base of everything that is trained, and remembers the config it was built from."""

    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    """What can be frozen or trained at its own rate: a part's name -> the children of the model that it is made of,
    from input to output. Children without parameters need not be named."""
    lr_multipliers: ClassVar[Mapping[str, float]] = {}
    """Of the parts that learn at another rate than the rest."""

    config: Component

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where its parameters lie; the CPU for a model without any, which runs wherever its input is."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

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
