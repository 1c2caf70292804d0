"""The colour filter array: where each colour is measured, and how a mosaic becomes planes.

A `cfa` is its letters read row by row from the top-left tile. Every Bayer phase is brought to RGGB by moving the origin
by at most one line a side: by mirrored lines, which lose no photosite, or by dropping lines, which invents none (Liu et
al. 2019, "Learning Raw Image Denoising With Bayer Pattern Unification and Bayer Preserving Augmentation": pad to infer,
crop to train).
"""

from __future__ import annotations

import torch
from torch import Tensor

BAYER_PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")


def rggb_offset(cfa: str) -> tuple[int, int]:
    """(dy, dx) of the first red site: what must be cut from the top and the left for the mosaic to read RGGB.

    ValueError for anything but one of `BAYER_PHASES`.
    """
    if cfa not in BAYER_PHASES:
        raise ValueError(f"cfa is {cfa!r}, which is no Bayer phase: expected one of {', '.join(BAYER_PHASES)}")
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

    ValueError for a CFA that is not Bayer.
    """
    dy, dx = rggb_offset(cfa)
    red, green, blue = rgb.unbind(-3)
    mosaic = green.clone()
    mosaic[..., dy::2, dx::2] = red[..., dy::2, dx::2]
    mosaic[..., 1 - dy :: 2, 1 - dx :: 2] = blue[..., 1 - dy :: 2, 1 - dx :: 2]
    return mosaic
