from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.reach import Geometry
from library.models.unet import Config, UNet

PLAIN: dict[str, Any] = {"in_channels": 3, "head": "plain"}
PREUPSAMPLE: dict[str, Any] = {"head": "preupsample"}
TRANSPOSED: dict[str, Any] = {"head": "transposed"}
designs = pytest.mark.parametrize(
    "design", [{}, TRANSPOSED, PREUPSAMPLE, PLAIN], ids=["pixelshuffle", "transposed", "preupsample", "plain"]
)


@functools.cache
def small_unet() -> UNet:
    torch.manual_seed(0)
    return Config(funit=2).build().eval()


def thin(design: dict[str, Any]) -> UNet:
    torch.manual_seed(0)
    return Config(funit=1, **design).build()


@designs
def test_geometry_follows_from_the_layers_alone(design: dict[str, Any]):
    # Two 3x3 convolutions at each of four levels down and up and two at the bottom, and what pooling rounds.
    assert thin(design).geometry == (Geometry(54, 8) if design == PREUPSAMPLE else Geometry(107, 16))
    assert thin(design).config.lattice == thin(design).lattice


def test_the_halo_is_112_packed_pixels():
    assert (small_unet().halo, small_unet().lattice, small_unet().geometry.reach) == (112, 16, 107)


def test_the_geometry_does_not_depend_on_the_width():
    assert Config(funit=3).build().geometry == small_unet().geometry == thin({}).geometry


@pytest.mark.parametrize(
    ("in_channels", "head"), [(4, "plain"), (3, "pixelshuffle"), (3, "transposed"), (3, "preupsample")]
)
def test_a_head_that_does_not_fit_the_input_is_refused_with_the_remedy(in_channels: int, head: str):
    remedy = "set head to 'plain' for 3 or 5 channels, to 'pixelshuffle', 'transposed' or 'preupsample' for 4"
    with pytest.raises(ValueError, match=remedy):
        Config(in_channels=in_channels, head=head)  # pyright: ignore[reportArgumentType]


@designs
def test_packed_planes_come_out_at_twice_their_size_and_a_picture_at_its_own(design: dict[str, Any]):
    model = thin(design)
    side = model.config.lattice * 2
    y = model(torch.rand(1, model.in_channels, side, side))
    assert y.shape == (1, 3, model.scale * side, model.scale * side)
    assert model.scale == (1 if design == PLAIN else 2)


def test_preupsampling_runs_the_plain_network_on_a_bilinear_enlargement():
    model = thin(PREUPSAMPLE)
    x = torch.rand(1, 4, 16, 16)
    enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    plain = thin({})
    plain.encoder, plain.decoder = model.encoder, model.decoder
    plain.head = model.head
    assert torch.equal(plain(enlarged), model(x))


def test_the_transposed_head_gives_each_feature_its_own_two_by_two_patch():
    model = thin(TRANSPOSED)
    x = torch.rand(1, 4, 16, 16)
    (features,) = model.decoder(model.encoder(x))
    assert isinstance(model.head, nn.ConvTranspose2d)
    weight, bias = model.head.weight[0], model.head.bias
    assert bias is not None
    expected = torch.kron(features, weight) + bias[:, None, None]
    torch.testing.assert_close(model(x)[0], expected)


def test_the_upsampled_tensor_stands_before_the_skip():
    """Weights of the research code load only in that order."""
    model = thin({})
    skips: list[Tensor] = []
    merged: list[Tensor] = []

    def keep_output(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        skips.append(output)

    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        merged.append(inputs[0])

    model.encoder.levels[3].register_forward_hook(keep_output)
    model.decoder.merge[0].register_forward_pre_hook(keep_input)
    model(torch.rand(1, 4, 32, 32))
    assert torch.equal(merged[0][:, merged[0].shape[1] // 2 :], skips[0])


def test_shifting_the_input_by_the_lattice_shifts_the_output():
    model = small_unet()
    shift, reach = model.lattice, model.geometry.reach
    x = torch.randn(1, 4, 48, 272 + shift)
    with torch.no_grad():
        y, shifted = model(x[..., :-shift]), model(x[..., shift:])
    inside = slice(2 * (reach + 1), -2 * (reach + 1))
    torch.testing.assert_close(shifted[..., : -2 * shift][..., inside], y[..., 2 * shift :][..., inside])


def test_shifting_the_input_by_less_than_the_lattice_gives_another_picture():
    """Or the lattice would be smaller than it says."""
    model = small_unet()
    shift = model.lattice // 2
    x = torch.randn(1, 4, 48, 272 + shift, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y, shifted = model(x[..., :-shift]), model(x[..., shift:])
    assert (shifted[..., 224:304] - y[..., 224 + 2 * shift : 304 + 2 * shift]).abs().max() > 1e-3


def test_nothing_farther_than_the_reach_changes_an_output_and_something_at_the_reach_does():
    model = small_unet().double()
    reach = model.geometry.reach
    x = torch.rand(1, 4, 32, 288, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changes = []
    with torch.no_grad():
        y = model(x)
        for position in range(128, 128 + model.lattice):
            other = x.clone()
            other[..., position] += 1
            touched = (model(other) != y).any(dim=(0, 1, 2)).nonzero().flatten() // 2
            changes += [position - int(touched.min()), int(touched.max()) - position]
    model.float()
    assert max(changes) <= reach
    assert max(changes) >= reach - 8  # the farthest dependences are too faint for a number to show
