"""Networks that correct a bilinear demosaic: before they are trained, they are one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from library.models import mobile, nafnet
from library.models.blocks.bilinear import BilinearDemosaic
from library.models.blocks.image_model import ImageModel, ModelConfig
from library.ops.cfa import sample_cfa, unpack_cfa
from library.ops.demosaic import demosaic_bilinear

CONFIGS: dict[str, ModelConfig] = {
    "nafnet": nafnet.Config(width=4),
    "nafnet, one level": nafnet.Config(width=2, encoder_blocks=(1,), decoder_blocks=(2,), middle_blocks=0),
    "mobile": mobile.Config(width=4),
    "mobile, flat": mobile.Config(width=4, encoder_blocks=(), decoder_blocks=()),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def fresh(config: ModelConfig) -> ImageModel:
    torch.manual_seed(0)
    return config.build()


def packed(*shape: int) -> Tensor:
    """Scene-linear with values below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (6, 9)])
def test_the_convolution_is_the_bilinear_demosaic_up_to_the_borders(size: tuple[int, int]):
    x = packed(2, 4, *size)
    torch.testing.assert_close(BilinearDemosaic()(x), demosaic_bilinear(unpack_cfa(x)), rtol=0, atol=1e-6)


def test_the_demosaics_weights_are_constants_and_no_part_of_a_checkpoint():
    assert not BilinearDemosaic().state_dict()
    assert not list(BilinearDemosaic().parameters())
    weight = BilinearDemosaic().weight
    # Each output is a mean: its weights sum to 1.
    torch.testing.assert_close(weight.sum(dim=(1, 2, 3)), torch.ones(12))
    assert weight.min() == 0


@every_config
def test_a_fresh_network_is_the_bilinear_demosaic(config: ModelConfig):
    x = packed(2, 4, 16, 24)
    torch.testing.assert_close(fresh(config)(x), demosaic_bilinear(unpack_cfa(x)), rtol=1e-5, atol=1e-6)


@every_config
def test_a_fresh_network_in_bfloat16_is_still_the_exact_demosaic(config: ModelConfig):
    """Levels and colour stay in float32: autocast would leave eight bits of them."""
    x = packed(1, 4, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fresh(config)(x)
    torch.testing.assert_close(y, demosaic_bilinear(unpack_cfa(x)), rtol=1e-5, atol=1e-6)


@every_config
def test_a_clean_grey_stays_at_its_level_in_a_fresh_network(config: ModelConfig):
    model = fresh(config)
    for level in (-0.01, 0.0, 0.001, 0.18, 1.0, 3.0):
        grey = torch.full((1, 4, 16, 16), level)
        torch.testing.assert_close(model(grey), torch.full((1, 3, 32, 32), level), rtol=1e-5, atol=1e-6)


@every_config
def test_a_colour_comes_out_in_the_order_red_green_blue(config: ModelConfig):
    rgb = torch.tensor([0.7, 0.2, 0.05])[:, None, None].expand(3, 16, 16)
    mosaic = sample_cfa(rgb)
    planes = torch.stack([mosaic[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    torch.testing.assert_close(fresh(config)(planes[None])[0], rgb, rtol=1e-5, atol=1e-6)
