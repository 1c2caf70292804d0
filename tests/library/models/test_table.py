"""Size and cost of every network: exact, and for UtNet2 beside what is known of RawNIND's."""

from __future__ import annotations

import pytest
import torch

from library.config import kinds
from library.models import demosaic, mobile, nafnet, unet, utnet3
from library.models.blocks.image_model import ImageModel, ModelConfig

MEGAPIXEL = 2**20

# As published or counted for RawNIND: parameters in millions, GMAC for 2^20 pixels of output.
RAWNIND = {
    "Bayer": (unet.Config(), 7.76, 48.5),
    "Bayer, transposed head": (unet.Config(head="transposed"), 7.76, 48.5),
    "Bayer, preupsampled": (unet.Config(head="preupsample"), 7.76, 193),
    "RGB": (unet.Config(in_channels=3, head="plain"), 7.76, 193),
    "Bayer, more channels": (unet.Config(funit=48), 17.5, 109),
    "RGB, 64 channels": (unet.Config(in_channels=3, head="plain", funit=64), 31.0, 771),
}

EXACT: list[tuple[ModelConfig, int, float]] = [
    (unet.Config(), 7_760_748, 46_208),
    (unet.Config(head="transposed"), 7_760_739, 46_208),
    (unet.Config(head="preupsample"), 7_760_451, 184_544),
    (unet.Config(in_channels=3, head="plain"), 7_760_163, 184_256),
    (utnet3.Config(), 10_137_740, 640_128),
    (nafnet.Config(), 94_588, 3_752),
    (mobile.Config(), 28_476, 2_846),
    (demosaic.Config(), 0, 108),
]


def without_weights(config: ModelConfig) -> ImageModel:
    with torch.device("meta"):
        return config.build()


@pytest.mark.parametrize("row", RAWNIND)
def test_utnet2_has_the_size_and_the_cost_that_rawnind_gives(row: str):
    """To three digits. (Preupsampled Bayer counts as RGB there, and has one more channel in its first layer.)"""
    config, millions, gmacs = RAWNIND[row]
    model = without_weights(config)
    assert model.num_parameters / 1e6 == pytest.approx(millions, rel=3e-3)
    assert model.macs_per_pixel * MEGAPIXEL / 1e9 == pytest.approx(gmacs, rel=3e-3)


@pytest.mark.parametrize(("config", "num_parameters", "macs_per_pixel"), EXACT, ids=lambda value: str(value))
def test_a_network_has_exactly_this_size_and_cost(config: ModelConfig, num_parameters: int, macs_per_pixel: float):
    model = without_weights(config)
    assert (model.num_parameters, model.macs_per_pixel) == (num_parameters, macs_per_pixel)


def test_every_kind_of_model_has_a_row():
    assert {config.kind for config, _, _ in EXACT} == set(kinds("library.models"))
