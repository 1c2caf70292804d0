"""A raw file as a picture to look at: no network, the same every time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from library.files.raw import RawImage, read_raw
from library.inference.denoise import ENCODERS, exposure_of
from library.ops.demosaic import demosaic_malvar
from library.ops.develop import develop_camera_rgb
from library.ops.levels import normalize_levels


def develop_raw(raw: RawImage, *, exposure_ev: float | None = None) -> torch.Tensor:
    """Levels, Malvar demosaic, white balance as shot, colour, exposure, sRGB curve.

    exposure_ev  stops; None exposes for the highlights
    returns      (3, H, W) sRGB in [0, 1], in the raw's own pixels, not turned upright
    """
    mosaic = normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))
    return develop_camera_rgb(
        demosaic_malvar(mosaic, cfa=raw.cfa),
        as_shot_white_balance=raw.as_shot_white_balance,
        xyz_to_camera=raw.xyz_to_camera,
        exposure_ev=exposure_of(raw) if exposure_ev is None else exposure_ev,
    )
