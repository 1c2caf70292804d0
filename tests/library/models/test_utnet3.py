from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch

from library.models.blocks.reach import Geometry
from library.models.unet import Config as UNetConfig
from library.models.unet import UNet
from library.models.utnet3 import Config, UtNet3

HEADS = get_args(Config.model_fields["head"].annotation)
every_head = pytest.mark.parametrize("head", HEADS)

HeadOfPacked = Literal["pixelshuffle", "transposed", "preupsample"]


def built(head: HeadOfPacked) -> tuple[UtNet3, UNet]:
    """UtNet3 and the UtNet2 inside it."""
    torch.manual_seed(0)
    model = Config(funit=2, head=head).build().eval()
    inner = UNetConfig(funit=2, head=head).build().eval()
    inner.encoder, inner.decoder, inner.head = model.encoder, model.decoder, model.head
    return model, inner


@every_head
def test_every_head_of_packed_input_can_be_built_and_gives_a_picture_of_twice_the_size(head: HeadOfPacked):
    """The research code's could not be built: it refused an argument that its trainer always passed."""
    model, _ = built(head)
    side = 2 * model.lattice
    assert model(torch.rand(1, 4, side, side)).shape == (1, 3, 2 * side, 2 * side)


@every_head
def test_without_its_refinement_it_is_utnet2(head: HeadOfPacked):
    model, inner = built(head)
    x = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model(x), inner(x))
    model.refine = torch.nn.Sequential()
    assert torch.equal(model(x), inner(x))


def test_a_residual_block_whose_last_layer_is_zero_passes_its_input_on():
    model, _ = built("pixelshuffle")
    _, block, _, _ = model.refine
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(block(x), x)
    for parameter in list(block.parameters())[-2:]:
        torch.nn.init.zeros_(parameter)
    assert torch.equal(block(x), x)


def test_four_more_convolutions_look_four_pixels_farther():
    reach, lattice = UNetConfig(funit=1).geometry
    assert Config(funit=1).geometry == Geometry(reach + 4, lattice)
    # Where they work on the enlarged picture, that is two pixels of the input.
    reach, lattice = UNetConfig(funit=1, head="preupsample").geometry
    assert Config(funit=1, head="preupsample").geometry == Geometry(reach + 2, lattice)
