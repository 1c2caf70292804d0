"""A picture to look at, from camera RGB: white balance, colour, exposure, sRGB. Deterministic, no local tone mapping.

White balance and colour matrix are the raw file's (unknown ones are `None`): gains are scaled so that the smallest is
1, hence a channel saturates at 1 or above. Where the white balance is unknown it is taken as unit gains; where the
matrix is unknown, balanced camera RGB is taken as linear sRGB.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from library.ops.color import (
    LIN_SRGB_TO_LIN_REC2020,
    LIN_SRGB_TO_XYZ,
    XYZ_TO_LIN_SRGB,
    Matrix,
    apply_matrix,
    balanced_camera_to_xyz,
)
from library.ops.transfer import srgb_encode
from library.ops.white_balance import apply_white_balance, normalize_gains


def develop_camera_rgb(
    camera_rgb: Tensor,
    *,
    as_shot_white_balance: Tensor | np.ndarray | None,
    xyz_to_camera: Matrix | None,
    exposure_ev: float = 0.0,
) -> Tensor:
    """Camera RGB to a picture in sRGB.

    camera_rgb             (..., 3, H, W) scene-linear, 1 where the sensor saturates; below 0 and above 1 legal
    as_shot_white_balance  (3,) gains above 0 at any scale, or None
    xyz_to_camera          (3, 3), or None
    exposure_ev            stops; see `auto_exposure_ev`
    returns                (..., 3, H, W) float32 sRGB code values in 0 ... 1; what the sensor clipped is neutral

    ValueError for gains or a matrix that cannot be used.
    """
    lin_srgb = _clipped_lin_srgb(camera_rgb, as_shot_white_balance, xyz_to_camera)
    return srgb_encode((lin_srgb * 2.0**exposure_ev).clamp(0, 1))


def auto_exposure_ev(
    camera_rgb: Tensor, *, as_shot_white_balance: Tensor | np.ndarray | None, xyz_to_camera: Matrix | None
) -> float:
    """The exposure in stops that brings the 99th percentile of luminance to 0.9, within -4 ... 8.

    camera_rgb             (..., 3, H, W) scene-linear, finite, as for `develop_camera_rgb`; a batch gets one exposure
    as_shot_white_balance  (3,) gains above 0 at any scale, or None
    xyz_to_camera          (3, 3), or None
    returns                EV; 8 for a picture without light

    ValueError for gains or a matrix that cannot be used.
    """
    height, width = camera_rgb.shape[-2:]
    step = math.ceil(math.sqrt(height * width / 2**18))  # some 500 x 500 pixels say enough, and always the same ones
    lin_srgb = _clipped_lin_srgb(camera_rgb[..., ::step, ::step], as_shot_white_balance, xyz_to_camera)
    luminance = apply_matrix(lin_srgb, LIN_SRGB_TO_XYZ)[..., 1, :, :]
    bright = luminance.flatten().quantile(0.99).item()
    return min(max(math.log2(0.9 / max(bright, 1e-9)), -4.0), 8.0)


def camera_rgb_to_balanced_lin_rec2020(
    camera_rgb: Tensor, *, as_shot_white_balance: Tensor | np.ndarray | None, xyz_to_camera: Matrix | None
) -> Tensor:
    """Camera RGB to the scene as shot, in linear Rec.2020: for an EXR.

    camera_rgb             (..., 3, H, W) scene-linear, below 0 and above 1 legal
    as_shot_white_balance  (3,) gains above 0 at any scale, or None
    xyz_to_camera          (3, 3), or None
    returns                (..., 3, H, W) float32, unclipped: what the sensor clipped has the colour of the gains

    ValueError for gains or a matrix that cannot be used.
    """
    balanced = _balance(camera_rgb, as_shot_white_balance)
    return apply_matrix(balanced, LIN_SRGB_TO_LIN_REC2020 @ _balanced_to_lin_srgb_matrix(xyz_to_camera))


def _clipped_lin_srgb(
    camera_rgb: Tensor, as_shot_white_balance: Tensor | np.ndarray | None, xyz_to_camera: Matrix | None
) -> Tensor:
    balanced = _balance(camera_rgb, as_shot_white_balance)
    # Beyond 1, the saturation of the channel with the smallest gain, the balance of the channels is lost: a clipped sky
    # would be magenta.
    return apply_matrix(balanced.clamp(max=1.0), _balanced_to_lin_srgb_matrix(xyz_to_camera))


def _balance(camera_rgb: Tensor, as_shot_white_balance: Tensor | np.ndarray | None) -> Tensor:
    if as_shot_white_balance is None:
        return camera_rgb
    gains = torch.tensor(as_shot_white_balance.tolist(), dtype=torch.float64)
    return apply_white_balance(camera_rgb, normalize_gains(gains))


def _balanced_to_lin_srgb_matrix(xyz_to_camera: Matrix | None) -> Tensor:
    if xyz_to_camera is None:
        return torch.eye(3, dtype=torch.float64)
    return XYZ_TO_LIN_SRGB @ balanced_camera_to_xyz(xyz_to_camera)
