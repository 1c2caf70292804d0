from __future__ import annotations

import pytest
import torch
from torch import nn

from library.models.mobile import Config

PORTABLE = (nn.Conv2d, nn.ReLU6)
"""The layers with anything to compute in them; addition and pixel shuffle stand between."""


def test_it_is_tiny():
    model = Config().build()
    assert model.num_parameters < 100_000
    assert model.macs_per_pixel < 5_000


def test_its_network_is_made_of_what_every_accelerator_has():
    model = Config(encoder_blocks=(1, 2), decoder_blocks=(1, 1)).build()
    for name, module in model.named_modules():
        if not list(module.children()) and not name.startswith("corrected"):
            assert isinstance(module, PORTABLE), f"{name} is a {type(module).__name__}"
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.kernel_size in ((1, 1), (3, 3))
            assert module.groups in (1, module.in_channels)


def test_a_fresh_block_passes_its_input_on():
    blocks = Config(middle_blocks=3).build().middle
    x = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blocks(x), x)


@pytest.mark.parametrize(("blocks", "lattice"), [((), 1), ((1,), 2), ((1, 1), 4)])
def test_every_level_doubles_the_lattice(blocks: tuple[int, ...], lattice: int):
    config = Config(width=2, encoder_blocks=blocks, decoder_blocks=blocks, middle_blocks=1)
    model = config.build()
    assert model.lattice == config.lattice == lattice
    assert model.halo % lattice == 0


def test_the_geometry_of_the_default_depth():
    # At the input's resolution: intro, encoder block, the filter on the way down, decoder block, head reach 1 each; the
    # four middle blocks count twice. One more for what pairing up pixels rounds.
    assert (Config().geometry.reach, Config().geometry.halo, Config().lattice) == (14, 14, 2)


def test_as_many_levels_must_go_up_as_down():
    with pytest.raises(ValueError, match="encoder_blocks has 0 levels and decoder_blocks 1: give both as many"):
        Config(encoder_blocks=())


def test_a_level_that_is_left_out_takes_its_part_with_it():
    assert Config().parts == ("encoder", "middle", "decoder", "head")
    assert Config(encoder_blocks=(), decoder_blocks=()).parts == ("encoder", "middle", "head")
    assert Config(middle_blocks=0).parts == ("encoder", "decoder", "head")
