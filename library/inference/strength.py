"""Less denoising than a network does: some of the noise is left, of luminance and of colour apart.

A blind network has no knob, so its output is blended with the noisy picture (as darktable and others do). Both are
scene-linear camera RGB, where noise is additive: a blend neither moves the mean nor bends a tone.

**The noisy picture.** A demosaicing network has no noisy counterpart, so the noise is: the raw's mosaic minus what the
sensor would have measured of the clean picture. That residual is demosaiced by Malvar's filters, white balanced as they
want it, and put back onto the clean picture, with the measured samples as they are. This is residual interpolation
(Kiku, Monno, Tanaka and Okutomi 2013) with the network's picture as its guide: linear filters blur and fringe edges,
and here they see hardly any. Where the network has invented or lost something, the residual brings the measured samples
and their surroundings back, so at strength 0 no photosite differs from the raw.

**Luminance and colour.** Luminance is CIE Y of the scene as shot, by the raw's own colour matrix (of linear sRGB, ITU-R
BT.709, where there is none): Y = l . rgb. What is grey has the camera RGB g, the inverse of the white balance, at
Y = 1. A difference d of two pictures then is (l . d) g, its luminance, and the rest, its colour, which has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from library.ops.cfa import BAYER_PHASES, cfa_tile, sample_cfa
from library.ops.cfa_planes import color_planes, interpolate_cfa_planes
from library.ops.color import LIN_SRGB_TO_XYZ, apply_matrix, balanced_camera_to_xyz
from library.ops.demosaic import demosaic_malvar
from library.ops.white_balance import normalize_gains

MARGIN = 2
"""Photosites around a rectangle that its noisy picture depends on: Malvar's filters reach two."""


@dataclass(frozen=True)
class Strength:
    """Shares of the noise that are taken away, 0 to 1."""

    luma: float = 1.0
    chroma: float = 1.0

    @property
    def is_full(self) -> bool:
        return self.luma == self.chroma == 1


FULL = Strength()


def noisy_picture(mosaic: Tensor, clean: Tensor, *, cfa: str, as_shot_white_balance: np.ndarray | None) -> Tensor:
    """The raw's own picture: measured samples as they are, colours in between guided by the clean picture.

    mosaic   (H, W) scene-linear, top-left pixel at CFA tile (0, 0)
    clean    (3, H, W) camera RGB of the same scene
    returns  (3, H, W) camera RGB, unclipped

    What lies `MARGIN` inside is the same for any larger rectangle of the same raw.
    """
    gains = _gains(as_shot_white_balance)[:, None, None]
    residual = (mosaic - sample_cfa(clean, cfa)) * sample_cfa(gains.expand_as(clean), cfa)
    noisy = clean + _interpolated(residual, cfa) / gains
    tile = cfa_tile(cfa)
    for (y, x), color in np.ndenumerate(tile.numpy()):
        noisy[color, y :: len(tile), x :: len(tile)] = mosaic[y :: len(tile), x :: len(tile)]
    return noisy


def _interpolated(residual: Tensor, cfa: str) -> Tensor:
    """(3, H, W) of a balanced mosaic: Malvar's filters, or of X-Trans the mean of the nearest samples."""
    if cfa in BAYER_PHASES:
        return demosaic_malvar(residual, cfa=cfa)
    return interpolate_cfa_planes(residual[None, None], color_planes(cfa, *residual.shape)[None])[0]


def blend(noisy: Tensor, clean: Tensor, strength: Strength, matrix: Tensor) -> Tensor:
    """(3, H, W) camera RGB of which the noise is taken away as far as `strength` says; 0 gives `noisy` itself.

    matrix  of `luminance_matrix`
    """
    if strength.luma == strength.chroma:
        return noisy + strength.luma * (clean - noisy)
    weights = strength.chroma * torch.eye(3, dtype=torch.float64) + (strength.luma - strength.chroma) * matrix
    return noisy + apply_matrix(clean - noisy, weights)


def luminance_matrix(as_shot_white_balance: np.ndarray | None, xyz_to_camera: np.ndarray | None) -> Tensor:
    """(3, 3) float64: camera RGB -> the grey of its luminance, in camera RGB. A projection: twice is once."""
    gains = normalize_gains(_gains(as_shot_white_balance).double())
    to_xyz = LIN_SRGB_TO_XYZ if xyz_to_camera is None else balanced_camera_to_xyz(xyz_to_camera)
    luminance = to_xyz[1] * gains
    return torch.outer(1 / gains, luminance) / (luminance @ (1 / gains))


def _gains(as_shot_white_balance: np.ndarray | None) -> Tensor:
    """(3,) float32; unknown is 1."""
    if as_shot_white_balance is None:
        return torch.ones(3)
    return torch.tensor(as_shot_white_balance.tolist(), dtype=torch.float32)
