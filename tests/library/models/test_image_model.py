from __future__ import annotations

from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from library.models.blocks.image_model import ImageModel, ModelConfig
from library.models.blocks.reach import Geometry


class Config(ModelConfig):
    kind: Literal["two_layers"] = "two_layers"
    in_channels: Literal[3] = 3
    width: int = 8

    def thinnest(self) -> Config:
        return self.model_copy(update={"width": 1})

    def build(self) -> TwoLayers:
        builds.append(self.width)
        return TwoLayers(self)


class TwoLayers(ImageModel):
    parts: ClassVar = {"body": ("first", "activation"), "head": ("last",)}
    lr_multipliers: ClassVar = {"head": 0.1}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = 3
        self.scale = 1
        self.first = nn.Conv2d(3, config.width, 3, padding=1)
        self.activation = nn.PReLU()
        self.last = nn.Conv2d(config.width, 3, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x)))


class NobodysLayer(TwoLayers):
    parts: ClassVar = {"head": ("last",)}


class LayerInTwoParts(TwoLayers):
    parts: ClassVar = {"body": ("first", "activation"), "head": ("last", "activation")}


class RateOfNoPart(TwoLayers):
    lr_multipliers: ClassVar = {"tail": 0.1}


builds: list[int] = []
"""Widths of the networks that were built."""


def test_a_part_has_the_parameters_of_its_children_and_its_own_rate():
    model = Config().build()
    body, head = model.parameter_groups()
    assert (body.name, head.name) == Config().parts == ("body", "head")
    assert {id(p) for p in body.parameters} == {
        id(p) for p in (*model.first.parameters(), *model.activation.parameters())
    }
    assert {id(p) for p in head.parameters} == {id(p) for p in model.last.parameters()}
    assert (body.lr_multiplier, head.lr_multiplier) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (NobodysLayer, "NobodysLayer.first has parameters, but is in none of its parts"),
        (LayerInTwoParts, "a child in two parts"),
        (RateOfNoPart, "a learning rate for no part"),
    ],
)
def test_a_model_whose_parts_are_not_whole_is_a_bug(model: type[TwoLayers], fault: str):
    with pytest.raises(AssertionError, match=fault):
        model(Config()).parameter_groups()


def test_the_geometry_is_measured_once_and_on_the_thinnest_network():
    builds.clear()
    # Two widths of the same network, asked twice.
    for width in (7, 9, 7, 9):
        assert Config(width=width).geometry == Geometry(3, 1)
    assert builds.count(1) <= 1
    assert not {7, 9} & set(builds)


def test_the_geometry_can_be_asked_where_tensors_are_made_elsewhere():
    with torch.device("meta"):
        assert Config(width=3).build().geometry == Geometry(3, 1)


def test_a_model_lies_where_its_parameters_do():
    assert Config().build().device == torch.device("cpu")
    assert Config().build().to("meta").device == torch.device("meta")
