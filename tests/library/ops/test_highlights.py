from __future__ import annotations

import pytest
import torch

from library.ops.cfa import BAYER_PHASES, XTRANS_PHASES, sample_cfa, shift_cfa
from library.ops.cfa_planes import color_planes, interpolate_cfa_planes
from library.ops.highlights import MARGIN, keep_clipped

PHASES = (*BAYER_PHASES, XTRANS_PHASES[0], XTRANS_PHASES[11])
every_phase = pytest.mark.parametrize("cfa", PHASES)


def scene(height: int = 30, width: int = 26) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network's picture, a mosaic, and where it clipped: a place with edges, and some photosites alone."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, height, width, generator=generator)
    mosaic = torch.rand(height, width, generator=generator) * 0.9
    clipped = torch.zeros(height, width, dtype=torch.bool)
    clipped[8:17, 5:15] = True
    clipped[22, 20] = clipped[0, 0] = True
    return picture, torch.where(clipped, 1.0, mosaic), clipped


@every_phase
def test_a_clipped_photosite_is_its_sample_and_another_is_the_networks(cfa: str):
    picture, mosaic, clipped = scene()
    sampled = sample_cfa(keep_clipped(picture, mosaic, clipped, cfa), cfa)
    assert torch.equal(sampled[clipped], mosaic[clipped])
    assert torch.equal(sampled[~clipped], sample_cfa(picture, cfa)[~clipped])


@every_phase
def test_inside_of_a_highlight_all_colours_are_white(cfa: str):
    """A network's guess of one colour below white would turn it magenta or green."""
    picture, mosaic, clipped = scene()
    kept = keep_clipped(picture, mosaic, clipped, cfa)
    assert (kept[:, 10:15, 7:13] == 1).all()


@every_phase
def test_far_from_a_highlight_nothing_changes_and_without_one_nothing_at_all(cfa: str):
    picture, mosaic, clipped = scene()
    kept = keep_clipped(picture, mosaic, clipped, cfa)
    assert torch.equal(kept[:, 2:6, 2:], picture[:, 2:6, 2:])
    assert torch.equal(keep_clipped(picture, mosaic, torch.zeros_like(clipped), cfa), picture)


@every_phase
def test_what_is_kept_does_not_depend_on_the_rectangle_that_is_looked_at(cfa: str):
    picture, mosaic, clipped = scene(300, 26)
    clipped[120:140, 3:20] = True  # across the bands that it is computed in
    mosaic = torch.where(clipped, 1.0, mosaic)
    whole = keep_clipped(picture, mosaic, clipped, cfa)
    for top, left in ((0, 0), (7, 3), (101, 5)):
        part = keep_clipped(
            picture[:, top:, left:], mosaic[top:, left:], clipped[top:, left:], shift_cfa(cfa, top, left)
        )
        first_row, first_column = (MARGIN if start else 0 for start in (top, left))
        assert torch.equal(part[:, first_row:, first_column:], whole[:, top + first_row :, left + first_column :])
    planes = color_planes(cfa, 300, 26)[None]
    share = interpolate_cfa_planes(clipped.float()[None, None], planes)[0]
    plain = interpolate_cfa_planes(mosaic[None, None], planes)[0]
    torch.testing.assert_close(whole, picture + share * (plain - picture))


def test_a_picture_that_is_not_finite_in_a_highlight_does_no_harm():
    picture, mosaic, clipped = scene()
    picture[:, 10:15, 7:13] = torch.nan
    assert keep_clipped(picture, mosaic, clipped, "RGGB").isfinite().all()
