"""Demosaicing that looks where an edge runs: by an a posteriori decision (DDFAPD), and by homogeneity (AHD).

Both interpolate green along rows and along columns, and red and blue by their differences to green. At each site Menon
takes the direction along which the differences vary less, and smooths them along it; Hirakawa and Parks take the one
whose picture has neighbours that look more alike.

All of it can be said in differences of colours on the four CFA planes, at a quarter of the pixels each, and so it is.
Operations are elementwise and in a fixed order, as in `library.ops.demosaic`: a pixel gets the same bits wherever it
lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from library.ops.cfa import crop_from_rggb, mirror_pad, pack_cfa, pad_to_rggb
from library.ops.color import D65_WHITE_XYZ, LIN_SRGB_TO_XYZ, apply_matrix

_STAGES = 7
"""Of Menon's; each looks one CFA tile further."""
MENON_REACH, AHD_REACH = 2 * _STAGES, 6
"""Photosites around a pixel that can change it."""
_STRIP = 2**17
"""Photosites that are worked on at a time: what a step writes, the next finds in the cache."""
_LAB_TOE = 6 / 29
"""Below its cube CIELAB is linear (CIE 15:2004)."""


Colors = tuple[Tensor, Tensor, Tensor]


def demosaic_menon(mosaic: Tensor, *, cfa: str = "RGGB") -> Tensor:
    """Directional filtering with an a posteriori decision, with its refining step (Menon, Andriani and Calvagno 2007,
    IEEE Transactions on Image Processing 16(1)).

    mosaic   (..., H, W), at least 2 x 2, top-left pixel at CFA tile (0, 0); below 0 and above 1 legal
    returns  (..., 3, H, W) float32 in the mosaic's scale, unclipped (overshoots at edges); measured samples unchanged

    Colours should be roughly balanced, as differences between them are what is smoothed; the decision is not
    differentiable, the rest is. Borders are mirrored. ValueError for a CFA that is not Bayer, or fewer than 2 lines.
    """
    height, width = mosaic.shape[-2:]
    rggb = pad_to_rggb(mosaic.to(torch.float32), cfa)
    planes = pack_cfa(mirror_pad(mirror_pad(rggb, -2, MENON_REACH, MENON_REACH), -1, MENON_REACH, MENON_REACH))
    rgb = rggb.new_empty(*rggb.shape[:-2], 3, *rggb.shape[-2:])
    rows = max(1, _STRIP // (4 * planes.shape[-1]))
    for top in range(0, rggb.shape[-2] // 2, rows):
        strip = planes[..., top : top + rows + 2 * _STAGES, :]
        _decide_afterwards(strip, rgb[..., 2 * top : 2 * (top + rows), :])
    return crop_from_rggb(rgb, cfa, height=height, width=width)


def demosaic_ahd(mosaic: Tensor, *, cfa: str = "RGGB", rgb_to_xyz: Tensor = LIN_SRGB_TO_XYZ) -> Tensor:
    """Adaptive homogeneity-directed (Hirakawa and Parks 2005, IEEE Transactions on Image Processing 14(3)), without its
    median filter, which changes measured samples.

    mosaic      (..., H, W), at least 2 x 2, top-left pixel at CFA tile (0, 0); below 0 and above 1 legal
    rgb_to_xyz  (3, 3): likeness is judged in CIELAB; for camera RGB give the camera's
    returns     (..., 3, H, W) float32 in the mosaic's scale, unclipped; measured samples unchanged

    The decision is not differentiable, the rest is. Borders are mirrored. ValueError for a CFA that is not Bayer, or
    fewer than 2 lines.
    """
    height, width = mosaic.shape[-2:]
    rggb = pad_to_rggb(mosaic.to(torch.float32), cfa)
    planes = pack_cfa(mirror_pad(mirror_pad(rggb, -2, AHD_REACH, AHD_REACH), -1, AHD_REACH, AHD_REACH))
    to_white = rgb_to_xyz / D65_WHITE_XYZ[:, None]
    rgb = rggb.new_empty(*rggb.shape[:-2], 3, *rggb.shape[-2:])
    rows = max(1, _STRIP // (4 * planes.shape[-1]))
    for top in range(0, rggb.shape[-2] // 2, rows):
        strip = planes[..., top : top + rows + AHD_REACH, :]
        rgb[..., 2 * top : 2 * (top + rows), :] = _more_homogeneous(strip, to_white)
    return crop_from_rggb(rgb, cfa, height=height, width=width)


def _more_homogeneous(planes: Tensor, to_white: Tensor) -> Tensor:
    """(..., 4, h + AHD_REACH, w + AHD_REACH) packed -> (..., 3, 2h, 2w); `to_white` gives XYZ over that of white."""
    r, g1, g2, b = planes.unbind(-3)
    r_h, r_v, b_h, b_v = _less_green(r, g1, g2, b)
    pictures = [_picture(planes, r_h, b_h), _picture(planes, r_v, b_v)]
    row_score, column_score = (score.unsqueeze(-3) for score in _homogeneities(pictures, to_white))
    by_row, by_column = (_at(rgb, trim=2) for rgb in pictures)
    return torch.where(
        row_score == column_score, _mean(by_row, by_column), torch.where(row_score > column_score, by_row, by_column)
    )


@torch.no_grad()
def _homogeneities(pictures: list[Tensor], to_white: Tensor) -> list[Tensor]:
    """Of the picture by rows and of that by columns: how many neighbours look alike, summed over 3 x 3 pixels; two less
    on each side."""
    labs = [_lab(rgb, to_white) for rgb in pictures]
    row_steps, column_steps = ([_steps(lab, *place) for place in ((0, -1), (0, 1), (-1, 0), (1, 0))] for lab in labs)
    # Neighbours are alike that differ by no more than they do along the direction of interpolation; of the two pictures
    # that in which it is less.
    limits = [
        torch.minimum(torch.maximum(left, right), torch.maximum(above, below))
        for left, right, above, below in zip(*row_steps[:2], *column_steps[2:], strict=True)
    ]
    return [_sum_of_nine(_num_alike(steps, limits)) for steps in (row_steps, column_steps)]


def _picture(planes: Tensor, r_g: Tensor, b_g: Tensor) -> Tensor:
    """(..., 3, H, W) of packed planes and the differences to green at red and at blue sites; between these the mean of
    the differences around."""
    g1_r, g1_b, g2_r, g2_b = _at_green(r_g, b_g)
    r_b = _mean(_mean(_at(b_g, -1, -1), _at(b_g, -1, 0)), _mean(_at(b_g, 0, -1), _at(b_g)))
    b_r = _mean(_mean(_at(r_g), _at(r_g, 0, 1)), _mean(_at(r_g, 1, 0), _at(r_g, 1, 1)))
    r, g1, g2, b = _at(planes, trim=2).unbind(-3)
    r_green, b_green = r - _at(r_g), b - _at(b_g)
    rgb = planes.new_empty(*planes.shape[:-3], 3, 2 * r.shape[-2], 2 * r.shape[-1])
    _write(
        rgb,
        (r, r_green, r_green + r_b),
        (g1 + g1_r, g1, g1 + g1_b),
        (g2 + g2_r, g2, g2 + g2_b),
        (b_green + b_r, b_green, b),
    )
    return rgb


def _lab(rgb: Tensor, to_white: Tensor) -> Tensor:
    """CIELAB (..., 3, H, W); what is below black is on the straight part."""
    relative = apply_matrix(rgb, to_white)
    root = relative.clamp_min(_LAB_TOE**3) ** (1 / 3)
    x, y, z = torch.where(relative > _LAB_TOE**3, root, relative / (3 * _LAB_TOE**2) + 4 / 29).unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def _steps(lab: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """How far a neighbour is in lightness, and in chroma, squared: (..., H - 2, W - 2)."""
    lightness, a, b = (_at(lab) - _at(lab, dy, dx)).unbind(-3)
    return lightness.abs_(), a.square_().add_(b.square_())


def _num_alike(steps: list[tuple[Tensor, Tensor]], limits: list[Tensor]) -> Tensor:
    return torch.stack([(lightness <= limits[0]) & (chroma <= limits[1]) for lightness, chroma in steps]).sum(dim=0)


def _sum_of_nine(x: Tensor) -> Tensor:
    above, here, below = (_at(x, dy, -1) + _at(x, dy) + _at(x, dy, 1) for dy in (-1, 0, 1))
    return above + here + below


def _decide_afterwards(planes: Tensor, rgb: Tensor) -> None:
    """Write what a strip of packed planes, with `_STAGES` tiles around, shows.

    planes  (..., 4, h + 2 * _STAGES, w + 2 * _STAGES)
    rgb     (..., 3, 2h, 2w), written to
    """
    r, g1, g2, b = planes.unbind(-3)

    r_h, r_v, b_h, b_v = _less_green(r, g1, g2, b)

    # How much the differences vary from one site of a colour to the next.
    steps_r_h = (_at(r_h) - _at(r_h, 0, 1)).abs_()
    steps_r_v = (_at(r_v) - _at(r_v, 1, 0)).abs_()
    steps_b_h = (_at(b_h) - _at(b_h, 0, 1)).abs_()
    steps_b_v = (_at(b_v) - _at(b_v, 1, 0)).abs_()

    # The decision: over a neighbourhood, the direction of less variation.
    by_row_r = _variation(steps_r_v, -2) + _at(steps_b_v, -1, 0) + _at(steps_b_v, -1, -1) >= (
        _variation(steps_r_h, -1) + _at(steps_b_h, 0, -1) + _at(steps_b_h, -1, -1)
    )
    by_row_b = _variation(steps_b_v, -2) + _at(steps_r_v) + _at(steps_r_v, 0, 1) >= (
        _variation(steps_b_h, -1) + _at(steps_r_h) + _at(steps_r_h, 1, 0)
    )
    r_g = torch.where(by_row_r, _at(r_h, trim=2), _at(r_v, trim=2))
    b_g = torch.where(by_row_b, _at(b_h, trim=2), _at(b_v, trim=2))

    # Differences to green where green was measured; of red and blue where one of them was.
    g1_r, g1_b, g2_r, g2_b = _at_green(r_g, b_g)
    r_g, b_g = _at(r_g), _at(b_g)
    by_row_r, by_row_b = _at(by_row_r, trim=2), _at(by_row_b, trim=2)
    g1_rb, g2_rb = g1_r - g1_b, g2_r - g2_b
    r_rb = torch.where(by_row_r, _mean(_at(g1_rb, 0, -1), _at(g1_rb)), _mean(_at(g2_rb, -1, 0), _at(g2_rb)))
    b_rb = torch.where(by_row_b, _mean(_at(g2_rb), _at(g2_rb, 0, 1)), _mean(_at(g1_rb), _at(g1_rb, 1, 0)))

    # The refining step: differences smoothed along the direction, green first, then what follows from it.
    r_g = torch.where(
        by_row_r,
        _mean_of_three(_at(g1_r, 0, -1), _at(r_g), _at(g1_r)),
        _mean_of_three(_at(g2_r, -1, 0), _at(r_g), _at(g2_r)),
    )
    b_g = torch.where(
        by_row_b,
        _mean_of_three(_at(g2_b), _at(b_g), _at(g2_b, 0, 1)),
        _mean_of_three(_at(g1_b), _at(b_g), _at(g1_b, 1, 0)),
    )
    g1_r, g1_b, g2_r, g2_b = _at_green(r_g, b_g)
    g1_rb, g2_rb = g1_r - g1_b, g2_r - g2_b
    by_row_r, by_row_b, r_rb, b_rb = (_at(x, trim=2) for x in (by_row_r, by_row_b, r_rb, b_rb))
    r_rb = torch.where(
        by_row_r,
        _mean_of_three(_at(g1_rb, 0, -1), r_rb, _at(g1_rb)),
        _mean_of_three(_at(g2_rb, -1, 0), r_rb, _at(g2_rb)),
    )
    b_rb = torch.where(
        by_row_b,
        _mean_of_three(_at(g2_rb), b_rb, _at(g2_rb, 0, 1)),
        _mean_of_three(_at(g1_rb), b_rb, _at(g1_rb, 1, 0)),
    )
    r, g1, g2, b = (_like(x, r_rb) for x in (r, g1, g2, b))
    r_g, b_g, g1_r, g1_b, g2_r, g2_b = (_like(x, r_rb) for x in (r_g, b_g, g1_r, g1_b, g2_r, g2_b))
    _write(rgb, (r, r - r_g, r - r_rb), (g1 + g1_r, g1, g1 + g1_b), (g2 + g2_r, g2, g2 + g2_b), (b + b_rb, b - b_g, b))


def _write(rgb: Tensor, r: Colors, g1: Colors, g2: Colors, b: Colors) -> None:
    """The colours at each site of the CFA tile, into (..., 3, 2h, 2w)."""
    for place, colors in enumerate((r, g1, g2, b)):
        for channel, values in enumerate(colors):
            rgb[..., channel, place // 2 :: 2, place % 2 :: 2] = values


def _less_green(r: Tensor, g1: Tensor, g2: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Red less green at red sites, with green along the row and along the column; then blue less green likewise."""
    # g1 lies right of r and above b, g2 below r and left of b.
    return (
        _unlike(_at(r, 0, -1), _at(r), _at(r, 0, 1), _at(g1, 0, -1), _at(g1)),
        _unlike(_at(r, -1, 0), _at(r), _at(r, 1, 0), _at(g2, -1, 0), _at(g2)),
        _unlike(_at(b, 0, -1), _at(b), _at(b, 0, 1), _at(g2), _at(g2, 0, 1)),
        _unlike(_at(b, -1, 0), _at(b), _at(b, 1, 0), _at(g1), _at(g1, 1, 0)),
    )


def _at(plane: Tensor, dy: int = 0, dx: int = 0, *, trim: int = 1) -> Tensor:
    """The neighbour (dy, dx) tiles away from each inner site: a view, `trim` tiles smaller on each side."""
    height, width = plane.shape[-2:]
    return plane[..., trim + dy : height - trim + dy, trim + dx : width - trim + dx]


def _like(plane: Tensor, other: Tensor) -> Tensor:
    """The middle of a plane, as large as another."""
    return _at(plane, trim=(plane.shape[-1] - other.shape[-1]) // 2)


def _unlike(before: Tensor, here: Tensor, after: Tensor, green_before: Tensor, green_after: Tensor) -> Tensor:
    """A colour less green, which is interpolated along a line and corrected by the colour's own second derivative."""
    return (before + after).mul_(0.25).add_(here, alpha=0.5).sub_((green_before + green_after).mul_(0.5))


def _variation(steps: Tensor, dim: int) -> Tensor:
    """Steps along `dim` to and from each site, its own line's three times, those of the lines beside it once."""
    both = _at(steps) + (_at(steps, -1, 0) if dim == -2 else _at(steps, 0, -1))
    wide = _beside(steps, dim)
    return both.mul_(3).add_(wide)


def _beside(steps: Tensor, dim: int) -> Tensor:
    if dim == -2:
        return _at(steps, 0, -1) + _at(steps, -1, -1) + _at(steps, 0, 1) + _at(steps, -1, 1)
    return _at(steps, -1, 0) + _at(steps, -1, -1) + _at(steps, 1, 0) + _at(steps, 1, -1)


def _at_green(r_g: Tensor, b_g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Red and blue less green at both kinds of green sites, between the two that lie beside them: g1_r, g1_b, g2_r,
    g2_b."""
    r, b = _at(r_g), _at(b_g)
    return _mean(r, _at(r_g, 0, 1)), _mean(_at(b_g, -1, 0), b), _mean(r, _at(r_g, 1, 0)), _mean(_at(b_g, 0, -1), b)


def _mean(x: Tensor, y: Tensor) -> Tensor:
    return (x + y).mul_(0.5)


def _mean_of_three(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x + y).add_(z).mul_(1 / 3)
