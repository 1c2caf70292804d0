from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from library.ops.cfa import BAYER_PHASES, sample_cfa
from library.ops.demosaic import demosaic_bilinear, demosaic_malvar
from library.ops.directional import AHD_REACH, MENON_REACH, demosaic_ahd, demosaic_menon

with warnings.catch_warnings():  # of its imports from scipy and matplotlib
    warnings.simplefilter("ignore")
    colour_demosaicing = pytest.importorskip("colour_demosaicing")

Demosaic = Callable[..., Tensor]
REACH = {demosaic_menon: MENON_REACH, demosaic_ahd: AHD_REACH}
methods = pytest.mark.parametrize("demosaic", REACH)
phases = pytest.mark.parametrize("cfa", BAYER_PHASES)
sizes = pytest.mark.parametrize("size", [(8, 10), (9, 10), (8, 11), (9, 11), (2, 2), (3, 3)])


def random_mosaic(*shape: int) -> Tensor:
    """Scene-linear with values below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


@methods
@phases
@sizes
def test_measured_samples_pass_through_exactly(demosaic: Demosaic, cfa: str, size: tuple[int, int]):
    mosaic = random_mosaic(2, *size)
    rgb = demosaic(mosaic, cfa=cfa)
    assert rgb.shape == (2, 3, *size)
    assert torch.equal(sample_cfa(rgb, cfa), mosaic)


@methods
@phases
@sizes
def test_a_constant_colour_stays_that_colour_up_to_the_border(demosaic: Demosaic, cfa: str, size: tuple[int, int]):
    rgb = torch.tensor([0.7, -0.2, 1.3])[:, None, None].expand(3, *size)
    torch.testing.assert_close(demosaic(sample_cfa(rgb, cfa), cfa=cfa), rgb, rtol=1e-5, atol=1e-6)


@phases
def test_the_result_is_that_of_colour_demosaicing_but_at_the_border(cfa: str):
    mosaic = random_mosaic(40, 46)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = colour_demosaicing.demosaicing_CFA_Bayer_Menon2007(mosaic.double().numpy(), cfa)
    expected = torch.from_numpy(np.moveaxis(theirs, -1, 0)).float()
    # Theirs continues the picture beyond its border in several ways, one for each step.
    inside = np.s_[..., MENON_REACH // 2 : -MENON_REACH // 2, MENON_REACH // 2 : -MENON_REACH // 2]
    torch.testing.assert_close(demosaic_menon(mosaic, cfa=cfa)[inside], expected[inside], rtol=0, atol=1e-6)


@pytest.mark.parametrize("transpose", [False, True])
def test_stripes_are_followed_not_crossed(transpose: bool):
    # Two photosites a stripe, along the rows: what filters across them must mistake for colour.
    stripes = torch.tensor([0.2, 0.2, 0.8, 0.8]).repeat(12)[:, None].expand(48, 48)
    grey = (stripes.T if transpose else stripes).expand(3, 48, 48)
    off = {
        f: (f(sample_cfa(grey)) - grey)[..., 8:-8, 8:-8].abs().max().item() for f in (demosaic_menon, demosaic_malvar)
    }
    assert off[demosaic_menon] < 1e-6
    assert off[demosaic_malvar] > 0.05


def test_a_picture_of_blurred_noise_comes_out_nearer_than_with_filters():
    rgb = (
        torch.rand(3, 1, 40, 40, generator=torch.Generator().manual_seed(1)).mean(0, keepdim=True).expand(1, 3, 40, 40)
    )
    rgb = torch.nn.functional.interpolate(rgb, scale_factor=3, mode="bicubic")[0]
    mse = [
        (f(sample_cfa(rgb)) - rgb)[..., 8:-8, 8:-8].square().mean().item()
        for f in (demosaic_bilinear, demosaic_malvar, demosaic_menon)
    ]
    assert all(before > 1.3 * after for before, after in pairwise(mse))


@methods
def test_what_lies_farther_than_the_reach_does_not_matter(demosaic: Demosaic):
    mosaic = random_mosaic(64, 70)
    rgb = demosaic(mosaic)
    shifted = demosaic(mosaic[4:, 6:])
    assert torch.equal(
        shifted[..., REACH[demosaic] :, REACH[demosaic] :], rgb[..., 4 + REACH[demosaic] :, 6 + REACH[demosaic] :]
    )


@methods
def test_strips_do_not_show(demosaic: Demosaic):
    # Wide enough that a strip is a few rows; the same columns in a narrow picture are one strip.
    mosaic = random_mosaic(40, 3000)
    narrow = demosaic(mosaic[:, :200])
    assert torch.equal(demosaic(mosaic)[..., : 200 - REACH[demosaic]], narrow[..., : 200 - REACH[demosaic]])


@methods
def test_every_phase_of_one_scene_gives_the_same_picture_inside(demosaic: Demosaic):
    mosaic = random_mosaic(48, 50)
    rgb, reach = demosaic(mosaic), REACH[demosaic]
    for cfa, dy, dx in (("GRBG", 0, 1), ("GBRG", 1, 0), ("BGGR", 1, 1)):
        other = demosaic(mosaic[dy:, dx:], cfa=cfa)
        assert torch.equal(other[..., reach:-reach, reach:-reach], rgb[..., dy + reach : -reach, dx + reach : -reach])


def test_scaling_and_shifting_the_light_scales_and_shifts_the_picture():
    mosaic = random_mosaic(20, 22)
    torch.testing.assert_close(demosaic_menon(4 * mosaic), 4 * demosaic_menon(mosaic), rtol=0, atol=0)
    torch.testing.assert_close(demosaic_menon(mosaic + 1), demosaic_menon(mosaic) + 1, rtol=0, atol=1e-5)


@methods
def test_a_batch_is_demosaiced_as_each_of_its_images(demosaic: Demosaic):
    mosaics = random_mosaic(2, 2, 8, 10)
    assert torch.equal(demosaic(mosaics)[1, 0], demosaic(mosaics[1, 0]))


@methods
def test_gradients_reach_every_sample(demosaic: Demosaic):
    mosaic = random_mosaic(8, 10).requires_grad_()
    demosaic(mosaic).sum().backward()
    assert mosaic.grad is not None
    assert mosaic.grad.sum().item() == pytest.approx(3 * 80, rel=1e-5)  # each output's weights sum to 1
