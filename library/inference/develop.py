"""A raw file as a picture to look at: no network, the same every time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from library.files.markesteijn import demosaic
from library.files.picture import write_png
from library.files.raw import RawImage, read_raw
from library.inference.outputs import exposure_of, upright
from library.ops.develop import develop_camera_rgb
from library.ops.levels import normalize_levels


def develop_raw(raw: RawImage, *, exposure_ev: float | None = None) -> torch.Tensor:
    """Levels, Malvar's demosaic (Markesteijn's of X-Trans), white balance as shot, colour, exposure, sRGB curve.

    exposure_ev  stops; None exposes for the highlights
    returns      (3, H, W) sRGB in [0, 1], in the raw's own pixels, not turned upright
    """
    mosaic = normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))
    return develop_camera_rgb(
        demosaic(mosaic, cfa=raw.cfa, as_shot_white_balance=raw.as_shot_white_balance),
        as_shot_white_balance=raw.as_shot_white_balance,
        xyz_to_camera=raw.xyz_to_camera,
        exposure_ev=exposure_of(raw) if exposure_ev is None else exposure_ev,
    )


def develop_file(raw_path: str | Path, output: str | Path, *, exposure_ev: float | None = None) -> Path:
    """A raw file as a PNG, upright, whole or not at all. Returns its path.

    raises  RawFileError, ImageFileError
    """
    raw = read_raw(raw_path)
    codes = (develop_raw(raw, exposure_ev=exposure_ev) * 255).round().byte().permute(1, 2, 0).numpy()
    write_png(output, upright(codes, raw.orientation), dataclasses.replace(raw.metadata(), orientation=1))
    return Path(output)
