"""The colour filter array: where each colour is measured, and how a mosaic becomes planes.

A `cfa` is its letters read row by row from the top-left tile: 4 of a Bayer CFA, 36 of Fujifilm's X-Trans. Every Bayer
phase is brought to RGGB by moving the origin by at most one line a side: by mirrored lines, which lose no photosite, or
by dropping lines, which invents none (Liu et al. 2019, "Learning Raw Image Denoising With Bayer Pattern Unification and
Bayer Preserving Augmentation": pad to infer, crop to train). X-Trans has no planes of its own that a network could be
given at a lower resolution; `library.ops.cfa_planes` has what both are given as.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from library.ops.cfa_letters import BAYER_PHASES, CFA_PHASES, XTRANS_PHASES, cfa_period, shift_cfa

__all__ = ["BAYER_PHASES", "CFA_PHASES", "XTRANS_PHASES", "cfa_period", "shift_cfa"]


@functools.cache
def _tile(cfa: str) -> Tensor:
    side = cfa_period(cfa)
    return torch.tensor(["RGB".index(letter) for letter in cfa]).reshape(side, side)


def cfa_tile(cfa: str) -> Tensor:
    """The colours of a CFA's tile: (2, 2) or (6, 6) int64, 0 red, 1 green, 2 blue.

    ValueError for other than 4 or 36 letters R, G and B.
    """
    return _tile(cfa).clone()


def rggb_offset(cfa: str) -> tuple[int, int]:
    """(dy, dx) of the first red site: what must be cut from the top and the left for the mosaic to read RGGB.

    ValueError for anything but one of `BAYER_PHASES`.
    """
    if cfa not in BAYER_PHASES:
        raise ValueError(
            f"cfa is {cfa!r}, which is no Bayer phase: expected one of {', '.join(BAYER_PHASES)}"
            + (", and X-Trans only goes through models of CFA planes or of pictures" if cfa in XTRANS_PHASES else "")
        )
    return divmod(cfa.index("R"), 2)


def mirror_pad(image: Tensor, dim: int, before: int, after: int) -> Tensor:
    """`before` and `after` more lines along `dim`, mirrored about the first and last line without repeating them.

    image    (...) of any dtype, at least 2 lines along `dim`
    returns  the image itself when nothing is added

    Line -i becomes line i, so its parity stays, and with it the colour of a CFA line. ValueError for fewer than 2
    lines.
    """
    if before == after == 0:
        return image
    last = image.shape[dim] - 1
    if last < 1:
        raise ValueError(f"shape {tuple(image.shape)} has fewer than 2 lines along dim {dim}: nothing to mirror")
    # The mirrored lines are a triangle wave, so an image smaller than its padding works too.
    lines = torch.arange(-before, last + 1 + after, device=image.device).remainder(2 * last)
    return image.index_select(dim, torch.minimum(lines, 2 * last - lines))


def pad_mosaic(mosaic: Tensor, cfa: str, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> Tensor:
    """A mosaic with more lines around it, mirrored about lines about which its CFA is symmetric: each added photosite
    is of the colour that the CFA has there.

    mosaic   (..., H, W) of any dtype, at least a tile a side, top-left pixel at CFA tile (0, 0)
    returns  (..., top + H + bottom, left + W + right), whose CFA is shift_cfa(cfa, -top, -left)

    A Bayer CFA is symmetric about every line, X-Trans about each third one: the last two lines before an edge may not
    be seen in its mirror. ValueError for a mosaic smaller than a tile.
    """
    tile = _tile(cfa)
    period = len(tile)
    if min(mosaic.shape[-2:]) < period:
        raise ValueError(
            f"mosaic is {tuple(mosaic.shape[-2:])}, smaller than a tile of its CFA, {period} x {period}: nothing to "
            "mirror"
        )
    for dim, before, after in ((0, top, bottom), (1, left, right)):
        if before or after:
            symmetric = [i for i in range(period) if torch.equal(tile, tile.flip(dim).roll(2 * i + 1, dim))]
            lines = _mirrored_lines(mosaic.shape[dim - 2], before, after, symmetric, period)
            mosaic = mosaic.index_select(dim - 2, lines.to(mosaic.device))
    return mosaic


def _mirrored_lines(num_lines: int, before: int, after: int, symmetric: list[int], period: int) -> Tensor:
    """Which line stands at -before ... num_lines - 1 + after, mirrored about the outermost symmetric lines."""
    first = symmetric[0]
    last = max(i + (num_lines - 1 - i) // period * period for i in symmetric)
    lines = torch.arange(-before, num_lines + after)
    wave = (lines - first).remainder(2 * (last - first))
    mirrored = first + torch.minimum(wave, 2 * (last - first) - wave)
    return torch.where((lines >= 0) & (lines < num_lines), lines, mirrored)


def crop_to_phase(mosaic: Tensor, cfa: str, phase: str) -> Tensor:
    """Drops as few lines as it takes until a mosaic begins with another tile of the same CFA and holds whole tiles.

    mosaic   (..., H, W) of any dtype, top-left pixel at CFA tile (0, 0)
    phase    one of the tiles that `cfa` can begin with; `cfa` itself only cuts the ends
    returns  (..., H', W'), a view, maybe empty

    ValueError for a phase that no shift of the CFA gives.
    """
    period = cfa_period(cfa)
    shifts = [(dy, dx) for dy in range(period) for dx in range(period) if shift_cfa(cfa, dy, dx) == phase]
    if not shifts:
        raise ValueError(f"a mosaic {cfa} cannot begin with {phase}: give a phase of the same CFA")
    dy, dx = min(shifts, key=sum)
    height, width = (max(n - d, 0) // period * period for n, d in zip(mosaic.shape[-2:], (dy, dx), strict=True))
    return mosaic[..., dy : dy + height, dx : dx + width]


def pad_to_rggb(mosaic: Tensor, cfa: str) -> Tensor:
    """Mirrors lines onto the mosaic until it starts at R and has even sizes. No photosite is lost.

    mosaic   (..., H, W) of any dtype, any size from 2 x 2, top-left pixel at CFA tile (0, 0)
    returns  (..., H', W'), RGGB: up to 2 lines more each way; undone by `crop_from_rggb`

    ValueError for a CFA that is not Bayer, or fewer than 2 lines.
    """
    dy, dx = rggb_offset(cfa)
    height, width = mosaic.shape[-2:]
    mosaic = mirror_pad(mosaic, -2, dy, (height + dy) % 2)
    return mirror_pad(mosaic, -1, dx, (width + dx) % 2)


def crop_from_rggb(image: Tensor, cfa: str, *, height: int, width: int) -> Tensor:
    """Cuts off what `pad_to_rggb` put on: the inverse, for the mosaic and for any full-resolution image made from it.

    image    (..., H', W'), as `pad_to_rggb` sized it
    height   and `width`: size of the mosaic before it was padded
    returns  (..., height, width), a view

    ValueError when the image is not of that padded size.
    """
    dy, dx = rggb_offset(cfa)
    padded = (dy + height + (height + dy) % 2, dx + width + (width + dx) % 2)
    if tuple(image.shape[-2:]) != padded:
        raise ValueError(
            f"image is {tuple(image.shape[-2:])}, but a {cfa} mosaic of {(height, width)} padded to RGGB is {padded}: "
            "give the mosaic's own height and width, and an image at full resolution"
        )
    return image[..., dy : dy + height, dx : dx + width]


def crop_to_rggb(mosaic: Tensor, cfa: str) -> Tensor:
    """Drops lines until the mosaic starts at R and has even sizes: for training, where no sample should be invented.

    mosaic   (..., H, W) of any dtype, top-left pixel at CFA tile (0, 0)
    returns  (..., H', W'), RGGB, a view: up to 2 lines less each way

    ValueError for a CFA that is not Bayer.
    """
    dy, dx = rggb_offset(cfa)
    height, width = ((n - d) // 2 * 2 for n, d in zip(mosaic.shape[-2:], (dy, dx), strict=True))
    return mosaic[..., dy : dy + height, dx : dx + width]


def pack_cfa(mosaic: Tensor) -> Tensor:
    """A mosaic to its four colour planes.

    mosaic   (..., H, W) of any dtype, RGGB, even height and width
    returns  (..., 4, H / 2, W / 2): R, G1 (in the red rows), G2 (in the blue rows), B

    ValueError on odd sizes.
    """
    height, width = mosaic.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(
            f"mosaic is {(height, width)}, packing needs even sizes: use pad_to_rggb or crop_to_rggb first"
        )
    return torch.stack([mosaic[..., y::2, x::2] for y in (0, 1) for x in (0, 1)], dim=-3)


def unpack_cfa(packed: Tensor) -> Tensor:
    """Four colour planes back to their mosaic: the inverse of `pack_cfa`.

    packed   (..., 4, h, w) of any dtype: R, G1, G2, B
    returns  (..., 2h, 2w), RGGB

    ValueError for other than four planes.
    """
    if packed.shape[-3] != 4:
        raise ValueError(f"packed has {packed.shape[-3]} planes, a Bayer mosaic has 4: R, G1, G2, B")
    tiles = packed.unflatten(-3, (2, 2)).movedim((-4, -3), (-3, -1))  # (..., h, 2, w, 2)
    return tiles.flatten(-2).flatten(-3, -2)


def sample_cfa(rgb: Tensor, cfa: str = "RGGB") -> Tensor:
    """What a sensor with this CFA keeps of a picture: at each site the filter's own colour.

    rgb      (..., 3, H, W) of any dtype and size
    returns  (..., H, W), top-left pixel at CFA tile (0, 0)

    Errors: `cfa_tile`.
    """
    tile = _tile(cfa)
    period = len(tile)
    planes = rgb.unbind(-3)
    mosaic = planes[1].clone()
    for color in (0, 2):
        for y, x in (tile == color).nonzero().tolist():
            mosaic[..., y::period, x::period] = planes[color][..., y::period, x::period]
    return mosaic


def cfa_levels(levels: Tensor, height: int, width: int) -> Tensor:
    """A value for each site of a tile, (n, n), as one for each photosite: (height, width) of the same dtype."""
    return levels.repeat(-(-height // levels.shape[0]), -(-width // levels.shape[1]))[:height, :width]
