"""Demosaicing with linear filters, bilinear and Malvar's gradient-corrected ones; and without any, at half size.

The filters compute only what was not measured. Taps are summed in a fixed order by elementwise operations on the CFA
planes: each pixel gets the same bits wherever it lies in an image or tile, no autocast or TF32 touches it, and on a CPU
it takes no longer than a convolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from library.ops.cfa import (
    XTRANS_PHASES,
    cfa_levels,
    cfa_tile,
    crop_from_rggb,
    crop_to_phase,
    crop_to_rggb,
    mirror_pad,
    pack_cfa,
    pad_to_rggb,
)

_Kernel = tuple[tuple[float, ...], ...]


class _Filters(NamedTuple):
    """How a colour is found where another was measured. Centred on the site; red and blue are alike by symmetry."""

    green: _Kernel
    """green at a red or blue site"""
    row: _Kernel
    """red or blue at a green site, from neighbours in its row"""
    diagonal: _Kernel
    """red at a blue site, blue at a red one"""
    scale: float


_BILINEAR = _Filters(
    green=((0, 1, 0), (1, 0, 1), (0, 1, 0)),
    row=((0, 0, 0), (2, 0, 2), (0, 0, 0)),
    diagonal=((1, 0, 1), (0, 0, 0), (1, 0, 1)),
    scale=1 / 4,
)

# Malvar, He and Cutler 2004, "High-quality linear interpolation for demosaicing of Bayer-patterned color images",
# figure 2.
_MALVAR = _Filters(
    green=((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0)),
    row=((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0)),
    diagonal=((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0)),
    scale=1 / 8,
)


def demosaic_bilinear(mosaic: Tensor, *, cfa: str = "RGGB") -> Tensor:
    """Each missing colour is the mean of its two or four nearest samples.

    mosaic   (..., H, W), at least 2 x 2, top-left pixel at CFA tile (0, 0); below 0 and above 1 legal
    returns  (..., 3, H, W) float32 in the mosaic's scale, within its range; measured samples unchanged

    Borders are mirrored. ValueError for a CFA that is not Bayer, or fewer than 2 lines.
    """
    return _demosaic(mosaic, cfa, _BILINEAR)


def demosaic_malvar(mosaic: Tensor, *, cfa: str = "RGGB") -> Tensor:
    """Bilinear, corrected by the gradient of the colour that was measured at the site (Malvar, He and Cutler 2004).

    mosaic   (..., H, W), at least 2 x 2, top-left pixel at CFA tile (0, 0); below 0 and above 1 legal
    returns  (..., 3, H, W) float32 in the mosaic's scale, unclipped (overshoots at edges); measured samples unchanged

    Colours should be roughly balanced at edges, as the correction assumes that they change together. Borders are
    mirrored. ValueError for a CFA that is not Bayer, or fewer than 2 lines.
    """
    return _demosaic(mosaic, cfa, _MALVAR)


def _demosaic(mosaic: Tensor, cfa: str, filters: _Filters) -> Tensor:
    height, width = mosaic.shape[-2:]
    rggb = pad_to_rggb(mosaic.to(torch.float32), cfa)
    # One more tile on each side: the largest kernel reaches two photosites.
    planes = pack_cfa(mirror_pad(mirror_pad(rggb, -2, 2, 2), -1, 2, 2))
    column = tuple(zip(*filters.row, strict=True))
    rgb = rggb.new_empty(*rggb.shape[:-2], 3, *rggb.shape[-2:])
    for (y, x), kernels in {
        (0, 0): (None, filters.green, filters.diagonal),
        (0, 1): (filters.row, None, column),
        (1, 0): (column, None, filters.row),
        (1, 1): (filters.diagonal, filters.green, None),
    }.items():
        for color, kernel in enumerate(kernels):
            measured = rggb[..., y::2, x::2]
            rgb[..., color, y::2, x::2] = measured if kernel is None else _filter(planes, y, x, kernel, filters.scale)
    return crop_from_rggb(rgb, cfa, height=height, width=width)


def _filter(planes: Tensor, y: int, x: int, kernel: _Kernel, scale: float) -> Tensor:
    """The kernel's weighted sum around each site (2i + y, 2j + x) of a mosaic packed with a tile of padding a side."""
    height, width = planes.shape[-2] - 2, planes.shape[-1] - 2
    radius = len(kernel) // 2
    total = planes.new_zeros(*planes.shape[:-3], height, width)
    for dy, weights in enumerate(kernel, y - radius):
        for dx, weight in enumerate(weights, x - radius):
            if weight:
                top, left = 1 + dy // 2, 1 + dx // 2
                plane = planes[..., dy % 2 * 2 + dx % 2, top : top + height, left : left + width]
                total.add_(plane, alpha=weight * scale)
    return total


def demosaic_half_size(mosaic: Tensor, *, cfa: str = "RGGB") -> Tensor:
    """One pixel for each smallest block that holds all colours, of its own samples: no interpolation, hence no
    artefact, at half the resolution, of X-Trans at a third.

    mosaic   (..., H, W) floating point, any size, top-left pixel at CFA tile (0, 0)
    returns  (..., 3, H', W'), about half of H and W (2x2 blocks) or a third (3x3 blocks of X-Trans); a colour is the
             mean of its samples. Blocks that are not whole are left out

    ValueError for a CFA that is neither Bayer nor X-Trans.
    """
    if cfa in XTRANS_PHASES:
        return _xtrans_blocks(mosaic, cfa)
    red, green1, green2, blue = pack_cfa(crop_to_rggb(mosaic, cfa)).unbind(-3)
    return torch.stack([red, (green1 + green2) / 2, blue], dim=-3)


def _xtrans_blocks(mosaic: Tensor, cfa: str) -> Tensor:
    """(..., H, W) to (..., 3, H', W'): each block has five greens, and two of the other colours."""
    phase = XTRANS_PHASES[0]
    mosaic = crop_to_phase(mosaic, cfa, phase)
    labels = cfa_levels(cfa_tile(phase), *mosaic.shape[-2:]).to(mosaic.device)
    planes = torch.stack([labels == color for color in range(3)]).to(mosaic.dtype)
    return _block_sums(mosaic.unsqueeze(-3) * planes) / _block_sums(planes)


def _block_sums(x: Tensor) -> Tensor:
    """(..., 3h, 3w) -> (..., h, w)."""
    return x.unflatten(-1, (-1, 3)).unflatten(-3, (-1, 3)).sum((-3, -1))
