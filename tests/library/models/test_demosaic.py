from __future__ import annotations

import pytest
import torch
from torch import Tensor

from library.models.blocks.reach import Geometry, probe_geometry
from library.models.demosaic import Config
from library.ops.cfa import unpack_cfa
from library.ops.demosaic import demosaic_bilinear, demosaic_malvar
from library.ops.directional import demosaic_menon

IDENTITY = Config(in_channels=3, method="identity")
every_config = pytest.mark.parametrize(
    "config", [Config(), Config(method="malvar"), Config(method="menon"), IDENTITY], ids=lambda config: config.method
)


def scene_linear(*shape: int) -> Tensor:
    """With values below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


def test_it_is_the_demosaic_of_its_name():
    x = scene_linear(2, 4, 5, 9)
    torch.testing.assert_close(Config().build()(x), demosaic_bilinear(unpack_cfa(x)), rtol=0, atol=1e-6)
    assert torch.equal(Config(method="malvar").build()(x), demosaic_malvar(unpack_cfa(x)))
    assert torch.equal(Config(method="menon").build()(x), demosaic_menon(unpack_cfa(x)))


def test_a_picture_comes_out_as_it_went_in():
    x = scene_linear(2, 3, 5, 9)
    assert torch.equal(IDENTITY.build()(x), x)


@every_config
def test_there_is_nothing_to_train(config: Config):
    model = config.build()
    assert model.num_parameters == 0
    assert not model.state_dict()
    assert model.parameter_groups() == []
    assert config.parts == ()
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("config", [Config(), Config(method="malvar"), IDENTITY], ids=lambda config: config.method)
def test_it_looks_no_farther_than_its_filters(config: Config):
    model = config.build()
    # Malvar's two photosites are one tile, the bilinear one's next photosite is in the next tile too.
    assert config.geometry == Geometry(0 if config == IDENTITY else 1, 1)
    assert probe_geometry(model, model.in_channels, model.scale) == config.geometry


@every_config
def test_a_tile_with_its_halo_gives_the_same_bits_as_the_whole_picture(config: Config):
    model = config.build()
    x, halo, scale = scene_linear(1, model.in_channels, 24, 28), model.halo, model.scale
    tile = model(x[..., 9 - halo : 14 + halo, 8 - halo : 16 + halo])
    core = tile[..., scale * halo : scale * (halo + 5), scale * halo : scale * (halo + 8)]
    assert torch.equal(core, model(x)[..., scale * 9 : scale * 14, scale * 8 : scale * 16])


@every_config
def test_bfloat16_does_not_touch_it(config: Config):
    model = config.build()
    x = scene_linear(1, model.in_channels, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert torch.equal(y, model(x))


@pytest.mark.parametrize(("in_channels", "method"), [(4, "identity"), (3, "bilinear"), (3, "malvar")])
def test_a_method_that_does_not_fit_the_input_is_refused_with_the_remedy(in_channels: int, method: str):
    with pytest.raises(
        ValueError, match="set method to 'identity' for 3 channels, to one of bilinear, malvar, ahd and menon for 4"
    ):
        Config(in_channels=in_channels, method=method)  # pyright: ignore[reportArgumentType]
