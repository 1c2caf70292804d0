from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from library.models.nafnet import Config, NAFNet


@functools.cache
def trained_like() -> NAFNet:
    """Weights that all take part, unlike the fresh ones, most of which are multiplied by zero."""
    torch.manual_seed(0)
    model = Config(width=4).build().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def packed(*shape: int) -> Tensor:
    """Scene-linear with values below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


@pytest.mark.parametrize(("blocks", "lattice"), [((1,), 2), ((1, 1), 4), ((1, 1, 1), 8)])
def test_every_level_doubles_the_lattice(blocks: tuple[int, ...], lattice: int):
    config = Config(width=2, encoder_blocks=blocks, decoder_blocks=blocks, middle_blocks=1)
    model = config.build()
    assert model.lattice == config.lattice == lattice
    assert model.halo % lattice == 0


def test_the_geometry_of_the_default_depth():
    # At full resolution: intro, encoder block, decoder block, head reach 1 each; the middle ones count 2 and 4 times.
    assert (trained_like().geometry.reach, trained_like().halo, trained_like().lattice) == (19, 20, 4)


def test_as_many_levels_must_go_up_as_down():
    with pytest.raises(ValueError, match="encoder_blocks has 2 levels and decoder_blocks 3: give both as many"):
        Config(encoder_blocks=(1, 1), decoder_blocks=(1, 1, 1))
    with pytest.raises(ValueError, match="multiple of 2"):
        Config(width=5)


def test_shifting_the_mosaic_by_the_lattice_shifts_the_picture():
    model = trained_like()
    shift, reach = model.lattice, model.geometry.reach
    x = packed(1, 4, 64, 72 + shift)
    y, shifted = model(x[..., :-shift]), model(x[..., shift:])
    inside = slice(2 * (reach + 1), -2 * (reach + 1))
    torch.testing.assert_close(
        shifted[..., : -2 * shift][..., inside], y[..., 2 * shift :][..., inside], rtol=1e-5, atol=1e-5
    )
    x = packed(1, 4, 72 + shift, 64)
    y, shifted = model(x[..., :-shift, :]), model(x[..., shift:, :])
    torch.testing.assert_close(
        shifted[..., : -2 * shift, :][..., inside, :], y[..., 2 * shift :, :][..., inside, :], rtol=1e-5, atol=1e-5
    )


def test_no_statistic_of_the_whole_image_enters_a_pixel():
    """The original's channel attention would: a bright corner changed every pixel."""
    model = trained_like()
    x = packed(1, 4, 64, 64)
    other = x.clone()
    other[..., :4, :4] += 10
    difference = (model(other) - model(x)).abs().amax(dim=(0, 1))
    far = 2 * (4 + model.geometry.reach)
    assert difference[:far, :far].max() > 0.1
    difference[:far, :far] = 0
    assert difference.max() == 0


def test_a_network_in_bfloat16_gives_float32_within_a_few_percent():
    model = trained_like()
    x = packed(1, 4, 32, 32)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.float32
    assert not torch.equal(y, exact)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()
