from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from library.files.exr import read_exr
from library.files.markesteijn import demosaic, demosaic_markesteijn
from library.files.raw import RawImage, read_raw
from library.ops.cfa import XTRANS_PHASES, sample_cfa, shift_cfa
from library.ops.cfa_planes import color_planes, interpolate_cfa_planes
from library.ops.demosaic import demosaic_malvar
from library.ops.levels import normalize_levels


@pytest.fixture(scope="module")
def raw(shared_data: Path) -> RawImage:
    return read_raw(shared_data / "synthetic/alps_fujifilm_x-e2_iso00200.dng")


@pytest.fixture(scope="module")
def mosaic(raw: RawImage) -> torch.Tensor:
    return normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))


def psnr(picture: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * (picture - truth).square().mean().log10())


def test_it_is_nearer_to_the_truth_than_interpolation_and_nearer_still_when_balanced(
    raw: RawImage, mosaic: torch.Tensor, shared_data: Path
):
    truth = torch.from_numpy(read_exr(shared_data / "synthetic/alps_gt_camera_linear.exr").rgb).permute(2, 0, 1)
    plain = interpolate_cfa_planes(mosaic[None, None], color_planes(raw.cfa, *mosaic.shape)[None])[0]
    balanced = demosaic_markesteijn(mosaic, cfa=raw.cfa, as_shot_white_balance=raw.as_shot_white_balance)
    scores = [psnr(x, truth) for x in (plain, demosaic_markesteijn(mosaic, cfa=raw.cfa), balanced)]
    assert scores[0] + 1 < scores[1]
    assert scores[1] + 1 < scores[2]


@pytest.mark.parametrize(("cfa", "height", "width"), [(XTRANS_PHASES[0], 6, 7), (XTRANS_PHASES[13], 50, 521)])
def test_a_mosaic_of_any_size_and_phase_keeps_its_samples_and_its_flat_colours(cfa: str, height: int, width: int):
    """LibRaw itself takes nothing below 512 pixels a side, and cuts what lies below black or above white."""
    flat = torch.tensor([-0.2, 0.5, 1.7])[:, None, None].expand(3, height, width)
    mosaic = sample_cfa(flat, cfa)
    for gains in (None, np.array([2.0, 1.0, 1.5])):
        picture = demosaic_markesteijn(mosaic, cfa=cfa, as_shot_white_balance=gains)
        torch.testing.assert_close(picture, flat, rtol=0, atol=1e-4)
        assert torch.equal(sample_cfa(picture, cfa), mosaic)


def test_it_moves_with_the_mosaic(raw: RawImage, mosaic: torch.Tensor):
    """But for ties between directions, which LibRaw breaks by how its own tiles lie."""
    part = mosaic[:300, :300]
    whole = demosaic_markesteijn(part, cfa=raw.cfa)[:, 35:-30, 34:-30]
    moved = demosaic_markesteijn(part[5:, 4:], cfa=shift_cfa(raw.cfa, 5, 4))[:, 30:-30, 30:-30]
    assert float((moved - whole).abs().mean()) < 1e-3
    wrong = demosaic_markesteijn(part[5:, 4:], cfa=raw.cfa)[:, 30:-30, 30:-30]
    assert float((wrong - whole).abs().mean()) > 1e-2


def test_bayer_mosaics_are_malvars():
    mosaic = torch.rand(12, 14, generator=torch.Generator().manual_seed(0))
    assert torch.equal(demosaic(mosaic, cfa="GBRG"), demosaic_malvar(mosaic, cfa="GBRG"))
    with pytest.raises(ValueError, match="not X-Trans"):
        demosaic_markesteijn(mosaic, cfa="GBRG")
