from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from library.ops.cfa import sample_cfa
from library.ops.demosaic import demosaic_bilinear, demosaic_malvar
from library.ops.directional import AHD_REACH, MENON_REACH, demosaic_ahd, demosaic_menon

# What holds for every method is in test_demosaic.py.


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


@pytest.mark.parametrize(("demosaic", "reach"), [(demosaic_menon, MENON_REACH), (demosaic_ahd, AHD_REACH)])
def test_strips_do_not_show(demosaic: Callable[[Tensor], Tensor], reach: int):
    # Wide enough that a strip is a few rows; the same columns in a narrow picture are one strip.
    mosaic = torch.rand(40, 3000, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25
    narrow = demosaic(mosaic[:, :200])
    assert torch.equal(demosaic(mosaic)[..., : 200 - reach], narrow[..., : 200 - reach])
