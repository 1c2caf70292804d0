"""Sensor counts (DN) to scene-linear values and back.

Levels follow the position in the CFA tile, never a decoder's colour index, and nothing is clipped on the way in:
clipping at black moves the mean of dark patches (Foi et al. 2008 treat clipped raw noise), and a denoiser would learn
that as a lift.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from library.ops.cfa import cfa_levels

WhiteLevel = Literal["decoder", "camera", "minimum"]
"""Which count of a raw file is scene-linear 1, where sources disagree (by up to 24 percent between decoders): that of
the decoder, LibRaw; the camera's own, from its maker notes; or the lower one, by which all that clipped is white."""


def normalize_levels(mosaic: Tensor, black_level: Tensor, white_level: float) -> Tensor:
    """Sensor counts to scene-linear: black level to 0, white level to 1.

    mosaic       (..., H, W) DN of any dtype and size, top-left pixel at CFA tile (0, 0)
    black_level  (2, 2) or (6, 6) DN, by CFA tile position
    white_level  DN at which a photosite saturates
    returns      (..., H, W) float32, unclipped: noise around black stays negative, a count above white exceeds 1

    ValueError when a black level reaches the white level.
    """
    black = _tile_levels(black_level, white_level, mosaic)
    return (mosaic.to(torch.float32) - black) / (white_level - black)


def denormalize_levels(scene_linear: Tensor, black_level: Tensor, white_level: float) -> Tensor:
    """Scene-linear to sensor counts: the inverse of `normalize_levels`.

    scene_linear  (..., H, W), below 0 and above 1 legal
    black_level   (2, 2) or (6, 6) DN, by CFA tile position
    white_level   DN at which a photosite saturates
    returns       (..., H, W) DN as float32, unclipped and not rounded: see `quantize`

    ValueError when a black level reaches the white level.
    """
    black = _tile_levels(black_level, white_level, scene_linear)
    return scene_linear.to(torch.float32) * (white_level - black) + black


def quantize(values: Tensor) -> Tensor:
    """Counts as a file stores them: rounded to the nearest integer (ties to even) and clipped to 0 ... 65535.

    values   (...) DN, finite
    returns  (...) uint16
    """
    return values.round().clamp_(0, torch.iinfo(torch.uint16).max).to(torch.uint16)


def file_levels(black_level: np.ndarray, white_level: float, *, room: int) -> tuple[np.ndarray, int]:
    """Levels of a 16-bit file for a mosaic that was read at others: none of its counts is lost, nor what a denoiser
    puts between them.

    black_level  (2, 2) or (6, 6) DN, by CFA tile position
    white_level  DN at which a photosite saturates
    room         DN below black that shadow noise shall have
    returns      black level by site, and white. The mosaic's own where they have the steps of 13 bits or more and a
                 hundredth of them below black, so that a program that knows the camera better than the file is right;
                 else black at `room` and so many steps for each of the mosaic's as 16 bits hold
    """
    lowest = float(black_level.min())
    steps = white_level - lowest
    if steps >= 2**13 - 1 and 100 * lowest >= steps:
        return black_level.astype(np.float64), round(white_level)
    factor = max(1, int((65535 - room) // steps))
    return room + factor * (black_level.astype(np.float64) - lowest), room + round(factor * steps)


def dither(height: int, width: int, top: int, left: int) -> Tensor:
    """What to add to values before they are rounded, so that a smooth shadow does not fall into bands: evenly spread
    from -0.49 to 0.49, which leaves whole numbers as they are.

    top, left  of the rectangle in its picture: the same pixel gets the same wherever a tile begins
    returns    (height, width) float32

    Interleaved gradient noise (Jimenez 2014, "Next Generation Post Processing in Call of Duty: Advanced Warfare").
    """
    rows = torch.arange(top, top + height, dtype=torch.float64)[:, None]
    columns = torch.arange(left, left + width, dtype=torch.float64)
    return ((52.9829189 * (0.06711056 * columns + 0.00583715 * rows).frac()).frac() * 0.98 - 0.49).float()


def _tile_levels(black_level: Tensor, white_level: float, mosaic: Tensor) -> Tensor:
    """The black level of every site of `mosaic`: (H, W) float32."""
    if not (black_level < white_level).all():
        raise ValueError(
            f"black_level {black_level.tolist()} is not below white_level {white_level}: check the raw's levels"
        )
    return cfa_levels(black_level.to(mosaic.device, torch.float32), *mosaic.shape[-2:])
