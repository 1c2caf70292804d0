from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from library.ops.cfa import BAYER_PHASES, crop_to_rggb, sample_cfa
from library.ops.demosaic import demosaic_bilinear, demosaic_half_size, demosaic_malvar
from library.ops.directional import AHD_REACH, MENON_REACH, demosaic_ahd, demosaic_menon

with warnings.catch_warnings():  # of its imports from scipy and matplotlib
    warnings.simplefilter("ignore")
    colour_demosaicing = pytest.importorskip("colour_demosaicing")

Demosaic = Callable[..., Tensor]
# Photosites around a pixel that can change it.
REACH = {demosaic_bilinear: 1, demosaic_malvar: 2, demosaic_menon: MENON_REACH, demosaic_ahd: AHD_REACH}
methods = pytest.mark.parametrize("demosaic", REACH)
filters = pytest.mark.parametrize("demosaic", [demosaic_bilinear, demosaic_malvar])
phases = pytest.mark.parametrize("cfa", BAYER_PHASES)
sizes = pytest.mark.parametrize("size", [(8, 10), (9, 10), (8, 11), (9, 11), (2, 2), (3, 3)])


def random_mosaic(*shape: int) -> Tensor:
    """Scene-linear with values below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


def inside(rgb: Tensor, demosaic: Demosaic) -> Tensor:
    """What a method does not see the border from."""
    reach = REACH[demosaic]
    return rgb[..., reach:-reach, reach:-reach]


@methods
@phases
@sizes
def test_measured_samples_pass_through_exactly(demosaic: Demosaic, cfa: str, size: tuple[int, int]):
    mosaic = random_mosaic(2, *size)
    rgb = demosaic(mosaic, cfa=cfa)
    assert rgb.shape == (2, 3, *size)
    assert rgb.dtype == torch.float32
    assert torch.equal(sample_cfa(rgb, cfa), mosaic)


@methods
@phases
@sizes
def test_a_constant_colour_stays_that_colour_up_to_the_border(demosaic: Demosaic, cfa: str, size: tuple[int, int]):
    rgb = torch.tensor([0.7, -0.2, 1.3])[:, None, None].expand(3, *size)
    torch.testing.assert_close(demosaic(sample_cfa(rgb, cfa), cfa=cfa), rgb)


@filters
@phases
def test_linear_ramps_are_exact_inside(demosaic: Demosaic, cfa: str):
    # Steps are binary fractions, so that float32 sums have no rounding to hide behind.
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(14.0), indexing="ij")
    rgb = torch.stack([y / 16 + x / 32, 0.5 - y / 32, x / 8 - 1])
    assert torch.equal(inside(demosaic(sample_cfa(rgb, cfa), cfa=cfa), demosaic), inside(rgb, demosaic))


@methods
@pytest.mark.parametrize(("dy", "dx"), [(2, 0), (0, 2), (4, 6), (10, 34)])
def test_shifting_the_mosaic_by_whole_tiles_shifts_the_picture_bit_for_bit(demosaic: Demosaic, dy: int, dx: int):
    mosaic, reach = random_mosaic(64, 86), REACH[demosaic]
    shifted = demosaic(mosaic[dy:, dx:])
    assert torch.equal(shifted[..., reach:, reach:], demosaic(mosaic)[..., dy + reach :, dx + reach :])


@methods
def test_every_phase_of_one_scene_gives_the_same_picture_inside(demosaic: Demosaic):
    mosaic = random_mosaic(48, 50)
    rgb = demosaic(mosaic)
    for cfa, dy, dx in (("GRBG", 0, 1), ("GBRG", 1, 0), ("BGGR", 1, 1)):
        other = demosaic(mosaic[dy:, dx:], cfa=cfa)
        assert torch.equal(inside(other, demosaic), inside(rgb[..., dy:, dx:], demosaic))


@methods
def test_a_batch_is_demosaiced_as_each_of_its_images(demosaic: Demosaic):
    mosaics = random_mosaic(2, 2, 8, 10)
    assert torch.equal(demosaic(mosaics)[1, 0], demosaic(mosaics[1, 0]))


# Not AHD, which judges likeness in CIELAB.
@pytest.mark.parametrize("demosaic", [demosaic_bilinear, demosaic_malvar, demosaic_menon])
def test_scaling_and_shifting_the_light_scales_and_shifts_the_picture(demosaic: Demosaic):
    mosaic = random_mosaic(20, 22)
    rgb = demosaic(mosaic)
    torch.testing.assert_close(demosaic(4 * mosaic), 4 * rgb, rtol=0, atol=0)
    torch.testing.assert_close(demosaic(mosaic + 1), rgb + 1, rtol=0, atol=1e-5)


@methods
def test_gradients_reach_every_sample(demosaic: Demosaic):
    mosaic = random_mosaic(8, 10).requires_grad_()
    demosaic(mosaic).sum().backward()
    assert mosaic.grad is not None
    assert mosaic.grad.sum().item() == pytest.approx(3 * 80, rel=1e-6)  # each output's weights sum to 1


@methods
def test_autocast_does_not_round_a_picture(demosaic: Demosaic):
    mosaic = random_mosaic(8, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rgb = demosaic(mosaic)
    assert torch.equal(rgb, demosaic(mosaic))


def test_bilinear_stays_within_the_range_of_its_samples():
    rgb = demosaic_bilinear(random_mosaic(30, 30).clamp(0, 1))
    assert rgb.min() >= 0
    assert rgb.max() <= 1


def test_malvar_overshoots_at_an_edge_and_is_not_clipped():
    mosaic = torch.zeros(12, 12)
    mosaic[:, 6:] = 1
    rgb = demosaic_malvar(mosaic)
    assert rgb.min() < 0
    assert rgb.max() > 1


@phases
@pytest.mark.parametrize(
    ("demosaic", "theirs"),
    [
        (demosaic_bilinear, colour_demosaicing.demosaicing_CFA_Bayer_bilinear),
        (demosaic_malvar, colour_demosaicing.demosaicing_CFA_Bayer_Malvar2004),
        (demosaic_menon, colour_demosaicing.demosaicing_CFA_Bayer_Menon2007),
    ],
)
def test_the_result_is_that_of_colour_demosaicing_but_at_the_border(
    demosaic: Demosaic, theirs: Callable[..., np.ndarray], cfa: str
):
    mosaic = random_mosaic(54, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.from_numpy(np.moveaxis(theirs(mosaic.double().numpy(), cfa), -1, 0)).float()
    # Their filters repeat the edge sample, which brings the wrong colour in; their Menon continues the picture beyond
    # its border in several ways, one for each step.
    ours = demosaic(mosaic, cfa=cfa)
    torch.testing.assert_close(inside(ours, demosaic), inside(expected, demosaic), rtol=0, atol=1e-6)


def test_malvar_is_far_better_than_bilinear_on_a_photograph(shared_data: Path):
    with Image.open(shared_data / "rgb" / "kodak" / "kodim05.png") as picture:
        rgb = torch.from_numpy(np.array(picture)).movedim(-1, 0) / 255
    mosaic = sample_cfa(rgb)
    mse = {f: (f(mosaic) - rgb)[..., 8:-8, 8:-8].square().mean().item() for f in (demosaic_bilinear, demosaic_malvar)}
    assert mse[demosaic_bilinear] > 2.5 * mse[demosaic_malvar]


@phases
@sizes
def test_half_size_keeps_a_constant_colour_at_every_phase(cfa: str, size: tuple[int, int]):
    rgb = torch.tensor([0.7, -0.2, 1.3])[:, None, None].expand(2, 3, *size)
    half = demosaic_half_size(sample_cfa(rgb, cfa), cfa=cfa)
    assert half.shape == (2, 3, *(n // 2 for n in crop_to_rggb(torch.zeros(size), cfa).shape))
    torch.testing.assert_close(half, rgb[..., : half.shape[-2], : half.shape[-1]])


def test_half_size_takes_a_tiles_own_samples_and_the_mean_of_its_greens():
    mosaic = torch.tensor([[1.0, 2.0, 5.0, 6.0], [4.0, 9.0, 8.0, 7.0]])
    assert demosaic_half_size(mosaic).tolist() == [[[1.0, 5.0]], [[3.0, 7.0]], [[9.0, 7.0]]]


@methods
def test_what_is_not_a_bayer_mosaic_is_refused(demosaic: Demosaic):
    with pytest.raises(ValueError, match="no Bayer phase"):
        demosaic(torch.zeros(6, 6), cfa="XTRANS")
    with pytest.raises(ValueError, match="fewer than 2 lines"):
        demosaic(torch.zeros(6, 1))
