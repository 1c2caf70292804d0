from __future__ import annotations

import pytest
import torch

from library.ops.cfa import BAYER_PHASES, CFA_PHASES, XTRANS_PHASES, cfa_levels, cfa_tile, sample_cfa, shift_cfa
from library.ops.cfa_planes import color_planes, interpolate_cfa_planes, pack_cfa_planes, unpack_cfa_planes
from library.ops.demosaic import demosaic_bilinear, demosaic_half_size

every_phase = pytest.mark.parametrize("cfa", CFA_PHASES)
SIZES = ((6, 6), (7, 9), (13, 8))


def noisy(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1


@every_phase
def test_packing_a_mosaic_of_any_phase_and_size_and_unpacking_it_gives_it_back(cfa: str):
    for height, width in SIZES:
        mosaic = noisy(2, height, width)
        packed = pack_cfa_planes(mosaic, cfa, a=1e-3, b=1e-5)
        assert packed.shape == (2, 5, height, width)
        again, labels = unpack_cfa_planes(packed)
        assert torch.equal(again, mosaic)
        assert torch.equal(labels[0], cfa_levels(cfa_tile(cfa), height, width))


@every_phase
def test_exactly_one_colour_is_measured_at_each_photosite(cfa: str):
    assert (color_planes(cfa, 7, 8).sum(0) == 1).all()


def test_sigma_is_that_of_the_noise_and_strength_is_its_factor():
    mosaic = torch.tensor([[-0.1, 0.0], [0.25, 1.0]])
    sigma = pack_cfa_planes(mosaic, "RGGB", a=0.04, b=0.01)[4]
    torch.testing.assert_close(sigma, torch.tensor([[0.1, 0.1], [0.02**0.5, 0.05**0.5]]))
    for strength in (0.0, 0.5, 2.0):
        stronger = pack_cfa_planes(mosaic, "RGGB", a=0.04, b=0.01, strength=strength)
        torch.testing.assert_close(stronger[4], strength * sigma)
        assert torch.equal(stronger[:4], pack_cfa_planes(mosaic, "RGGB", a=0.04, b=0.01)[:4])


def test_a_camera_for_each_image_of_a_batch_gives_what_each_gets_alone():
    mosaic = noisy(2, 6, 8)
    a, b = (torch.tensor(pair)[:, None, None] for pair in ((1e-3, 4e-3), (1e-5, 2e-5)))
    together = pack_cfa_planes(mosaic, "GRBG", a=a, b=b)
    for index, (own_a, own_b) in enumerate(((1e-3, 1e-5), (4e-3, 2e-5))):
        assert torch.equal(together[index], pack_cfa_planes(mosaic[index], "GRBG", a=own_a, b=own_b))


def test_other_planes_are_refused():
    with pytest.raises(ValueError, match="has 4 planes"):
        unpack_cfa_planes(torch.zeros(4, 6, 6))


def interpolated(mosaic: torch.Tensor, cfa: str) -> torch.Tensor:
    """(H, W) -> (3, H, W)"""
    return interpolate_cfa_planes(mosaic[None, None], color_planes(cfa, *mosaic.shape)[None])[0]


@every_phase
def test_interpolation_keeps_measured_samples_and_flat_colours_to_the_border(cfa: str):
    for height, width in SIZES:
        mosaic = noisy(height, width)
        assert torch.equal(sample_cfa(interpolated(mosaic, cfa), cfa), mosaic)
        flat = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, height, width)
        torch.testing.assert_close(interpolated(sample_cfa(flat, cfa), cfa), flat)


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_inside_a_bayer_mosaic_interpolation_is_bilinear(cfa: str):
    mosaic = noisy(12, 15)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(interpolated(mosaic, cfa)[inside], demosaic_bilinear(mosaic, cfa=cfa)[inside])


@every_phase
def test_interpolation_moves_with_the_mosaic(cfa: str):
    mosaic = noisy(20, 22)
    moved = interpolated(mosaic[3:, 4:], shift_cfa(cfa, 3, 4))
    torch.testing.assert_close(moved[:, 2:, 2:], interpolated(mosaic, cfa)[:, 5:, 6:], rtol=0, atol=0)


@pytest.mark.parametrize("cfa", XTRANS_PHASES)
def test_a_block_of_x_trans_is_one_pixel_of_the_mean_of_its_samples(cfa: str):
    flat = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, 19, 20)
    small = demosaic_half_size(sample_cfa(flat, cfa), cfa=cfa)
    assert min(small.shape[1:]) >= 4
    torch.testing.assert_close(small, flat[:, : small.shape[1], : small.shape[2]])
    tile = noisy(6, 6)
    first = demosaic_half_size(tile, cfa=XTRANS_PHASES[0])[:, 0, 0]
    colors = cfa_tile(XTRANS_PHASES[0])[:3, :3]
    torch.testing.assert_close(first, torch.stack([tile[:3, :3][colors == color].mean() for color in range(3)]))
