"""Highlights that the sensor clipped: no network may invent them.

What a network makes of clipped samples is a guess that no training compares with anything, and one colour of it below
white turns a blown sky magenta. So they pass through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from library.ops.cfa_planes import color_planes, interpolate_cfa_planes

MARGIN = 2
"""Photosites around a rectangle that its highlights depend on."""


def keep_clipped(camera_rgb: Tensor, mosaic: Tensor, clipped: Tensor, cfa: str) -> Tensor:
    """A denoised picture with its clipped samples as the sensor gave them.

    camera_rgb  (3, H, W) any range
    mosaic      (H, W) scene-linear, what the sensor measured of the same pixels
    clipped     (H, W) bool, where it clipped
    cfa         from the top-left
    returns     (3, H, W). The colour of a clipped photosite is its sample, exactly; that of an unclipped one is the
                picture's. Where a colour was not measured it is a mean of both, by the share of clipped ones among its
                nearest samples: a fully clipped place is the plain interpolation, and edges of highlights stay smooth.
                What lies `MARGIN` inside is the same in every larger rectangle
    """
    if not clipped.any():
        return camera_rgb
    planes = color_planes(cfa, *mosaic.shape)[None]
    share, samples = (interpolate_cfa_planes(x[None, None], planes)[0] for x in (clipped.float(), mosaic))
    # Not a sum with a weight of 1, which would round.
    mixed = torch.where(share == 1, samples, camera_rgb + share * (samples - camera_rgb))
    return torch.where(share > 0, mixed, camera_rgb)
