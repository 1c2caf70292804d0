"""Linear colour spaces: camera RGB, CIE XYZ (D65), linear Rec.2020 and linear sRGB; by name also Display P3 and ACES.

A matrix is named by its direction and acts on column vectors: `xyz = camera_to_xyz @ camera_rgb`. Matrices are built in
float64 on the CPU (a float32 inverse loses digits that a colour keeps) and applied in float32, elementwise, so that
neither autocast nor TF32 rounds a colour. Functions that build a matrix take tensors and numpy arrays, and regard them
as constants: no gradient reaches a matrix.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Matrix = Tensor | np.ndarray

# CIE xy of red, green, blue: ITU-R BT.2020 table 3, and BT.709 item 1.3 for sRGB (IEC 61966-2-1). White D65 as both
# give it.
REC2020_PRIMARIES = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
D65_WHITE = (0.3127, 0.3290)
# SMPTE RP 431-2 (the primaries of DCI-P3), with D65 as SMPTE EG 432-1 and Display P3 have it.
P3_PRIMARIES = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
# SMPTE ST 2065-1 (AP0) and Academy S-2014-004 (AP1); their white is near to D60.
AP0_PRIMARIES = ((0.7347, 0.2653), (0.0, 1.0), (0.0001, -0.0770))
AP1_PRIMARIES = ((0.713, 0.293), (0.165, 0.830), (0.128, 0.044))
ACES_WHITE = (0.32168, 0.33767)

LinearSpace = Literal["xyz", "lin_rec2020", "lin_srgb", "lin_p3", "aces_ap0", "aces_ap1"]
"""xyz: CIE 1931, white D65. lin_p3: Display P3 in linear light. aces_ap0: ACES2065-1; aces_ap1: ACEScg."""


def xy_to_xyz(xy: tuple[float, float]) -> Tensor:
    """Chromaticity (x, y) as XYZ of luminance 1: (3,) float64."""
    x, y = xy
    return torch.tensor([x / y, 1.0, (1 - x - y) / y], dtype=torch.float64)


def primaries_to_xyz_matrix(primaries: tuple[tuple[float, float], ...], white: tuple[float, float]) -> Tensor:
    """Linear RGB -> XYZ from the chromaticities of the primaries and of white (SMPTE RP 177-1993).

    primaries  CIE xy of red, green and blue
    white      CIE xy of RGB (1, 1, 1), which gets luminance 1
    returns    (3, 3) float64
    """
    columns = torch.stack([xy_to_xyz(xy) for xy in primaries], dim=1)
    return columns * torch.linalg.solve(columns, xy_to_xyz(white))


D65_WHITE_XYZ = xy_to_xyz(D65_WHITE)
LIN_REC2020_TO_XYZ = primaries_to_xyz_matrix(REC2020_PRIMARIES, D65_WHITE)
LIN_SRGB_TO_XYZ = primaries_to_xyz_matrix(SRGB_PRIMARIES, D65_WHITE)
XYZ_TO_LIN_REC2020 = torch.linalg.inv(LIN_REC2020_TO_XYZ)
XYZ_TO_LIN_SRGB = torch.linalg.inv(LIN_SRGB_TO_XYZ)
_BRADFORD = torch.tensor(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]], dtype=torch.float64
)
"""XYZ to the cone responses in which a white is adapted to another (Lam 1985, as ICC.1:2022 annex E has it)."""


def adaptation_matrix(white: tuple[float, float], to_white: tuple[float, float] = D65_WHITE) -> Tensor:
    """XYZ under one white to XYZ of the same appearance under another, after Bradford: (3, 3) float64."""
    cones, to_cones = _BRADFORD @ xy_to_xyz(white), _BRADFORD @ xy_to_xyz(to_white)
    return torch.linalg.solve(_BRADFORD, torch.diag(to_cones / cones) @ _BRADFORD)


_ACES_TO_D65 = adaptation_matrix(ACES_WHITE)
_TO_XYZ: dict[str, Tensor] = {
    "xyz": torch.eye(3, dtype=torch.float64),
    "lin_rec2020": LIN_REC2020_TO_XYZ,
    "lin_srgb": LIN_SRGB_TO_XYZ,
    "lin_p3": primaries_to_xyz_matrix(P3_PRIMARIES, D65_WHITE),
    "aces_ap0": _ACES_TO_D65 @ primaries_to_xyz_matrix(AP0_PRIMARIES, ACES_WHITE),
    "aces_ap1": _ACES_TO_D65 @ primaries_to_xyz_matrix(AP1_PRIMARIES, ACES_WHITE),
}
LIN_REC2020_TO_LIN_SRGB = XYZ_TO_LIN_SRGB @ LIN_REC2020_TO_XYZ
LIN_SRGB_TO_LIN_REC2020 = XYZ_TO_LIN_REC2020 @ LIN_SRGB_TO_XYZ


def space_matrix(source: LinearSpace, target: LinearSpace) -> Tensor:
    """One linear space -> another: (3, 3) float64. White maps to white: ACES's is adapted to D65 (Bradford).

    ValueError for a space that is not known.
    """
    for name in (source, target):
        if name not in _TO_XYZ:
            raise ValueError(f"{name!r} is no linear colour space: there are {', '.join(get_args(LinearSpace))}")
    return torch.linalg.solve(_TO_XYZ[target], _TO_XYZ[source])


def convert_space(rgb: Tensor, source: LinearSpace, target: LinearSpace) -> Tensor:
    """A picture in one linear space -> the same in another.

    rgb      (..., 3, H, W), below 0 (outside the gamut) and above 1 legal
    returns  (..., 3, H, W) float32, unclipped

    ValueError for a space that is not known, and other than three planes.
    """
    return apply_matrix(rgb, space_matrix(source, target))


def camera_to_xyz(xyz_to_camera: Matrix) -> Tensor:
    """The inverse of a raw file's colour matrix, for camera RGB without white balance.

    xyz_to_camera  (..., 3, 3), XYZ (D65) -> camera RGB
    returns        (..., 3, 3) float64 on the CPU. Rows are not normalised, so the scale of XYZ is the camera's own

    ValueError for a matrix that is singular or not finite.
    """
    matrix = _to_float64(xyz_to_camera)
    # Real cameras stay below a condition number of 20; 1e6 would turn float32 rounding into visible colour.
    if not matrix.isfinite().all() or not (torch.linalg.cond(matrix) < 1e6).all():
        raise ValueError(
            f"xyz_to_camera {matrix.tolist()} is singular or not finite, so camera RGB has no XYZ: "
            "the raw file carries no usable colour matrix; give the camera's, or work in camera RGB"
        )
    return torch.linalg.inv(matrix)


def balanced_camera_to_xyz(xyz_to_camera: Matrix) -> Tensor:
    """The same for camera RGB that has been white balanced: RGB (1, 1, 1) maps to the white D65, at luminance 1.

    xyz_to_camera  (..., 3, 3), XYZ (D65) -> camera RGB; each row is divided by its answer to D65 (as in dcraw)
    returns        (..., 3, 3) float64 on the CPU

    ValueError for a matrix that is singular or not finite, or in which a channel does not answer to white.
    """
    matrix = _to_float64(xyz_to_camera)
    camera_white = matrix @ D65_WHITE_XYZ
    if not (camera_white > 0).all():
        raise ValueError(
            f"xyz_to_camera {matrix.tolist()} gives D65 white the camera RGB {camera_white.tolist()}, not above 0: "
            "the raw file carries no usable colour matrix; give the camera's, or work in camera RGB"
        )
    return camera_to_xyz(matrix / camera_white.unsqueeze(-1))


def camera_to_lin_rec2020_matrix(xyz_to_camera: Matrix) -> Tensor:
    """Camera RGB without white balance -> linear Rec.2020: (..., 3, 3) float64. Otherwise as `camera_to_xyz`."""
    return XYZ_TO_LIN_REC2020 @ camera_to_xyz(xyz_to_camera)


def apply_matrix(rgb: Tensor, matrix: Tensor) -> Tensor:
    """Every pixel times a matrix.

    rgb      (..., 3, H, W), below 0 and above 1 legal
    matrix   (..., 3, 3), one for all images or one for each
    returns  (..., 3, H, W) float32, unclipped

    ValueError for other than three planes.
    """
    if rgb.shape[-3] != 3:
        raise ValueError(f"a colour matrix needs 3 planes, got an image of shape {tuple(rgb.shape)}")
    rgb = rgb.to(torch.float32)
    columns = matrix.to(rgb.device, torch.float32)[..., None, None].unbind(-3)
    red, green, blue = rgb.split(1, dim=-3)
    return (columns[0] * red).addcmul_(columns[1], green).addcmul_(columns[2], blue)


def camera_rgb_to_xyz(camera_rgb: Tensor, *, xyz_to_camera: Matrix) -> Tensor:
    """Unbalanced camera RGB (..., 3, H, W) -> XYZ: same shape, float32, unclipped. Errors: `camera_to_xyz`."""
    return apply_matrix(camera_rgb, camera_to_xyz(xyz_to_camera))


def camera_rgb_to_lin_rec2020(camera_rgb: Tensor, *, xyz_to_camera: Matrix) -> Tensor:
    """Camera RGB without white balance -> linear Rec.2020.

    camera_rgb     (..., 3, H, W), below 0 and above 1 legal
    xyz_to_camera  (..., 3, 3), one for all images or one for each
    returns        (..., 3, H, W) float32, unclipped, at the camera's own scale

    ValueError for a matrix that is singular or not finite.
    """
    return apply_matrix(camera_rgb, camera_to_lin_rec2020_matrix(xyz_to_camera))


def lin_srgb_to_camera_rgb(lin_srgb: Tensor, *, xyz_to_camera: Matrix) -> Tensor:
    """Linear sRGB (..., 3, H, W) -> what the camera measures before white balance: same shape, float32, unclipped."""
    return apply_matrix(lin_srgb, _to_float64(xyz_to_camera) @ LIN_SRGB_TO_XYZ)


def xyz_to_lin_rec2020(xyz: Tensor) -> Tensor:
    """XYZ (..., 3, H, W) -> linear Rec.2020: same shape, float32, unclipped."""
    return apply_matrix(xyz, XYZ_TO_LIN_REC2020)


def xyz_to_lin_srgb(xyz: Tensor) -> Tensor:
    """XYZ (..., 3, H, W) -> linear sRGB: same shape, float32, unclipped, negative outside sRGB's gamut."""
    return apply_matrix(xyz, XYZ_TO_LIN_SRGB)


def lin_rec2020_to_lin_srgb(lin_rec2020: Tensor) -> Tensor:
    """Linear Rec.2020 (..., 3, H, W) -> linear sRGB: same shape, float32, unclipped, negative outside sRGB's gamut."""
    return apply_matrix(lin_rec2020, LIN_REC2020_TO_LIN_SRGB)


def lin_srgb_to_lin_rec2020(lin_srgb: Tensor) -> Tensor:
    """Linear sRGB (..., 3, H, W) -> linear Rec.2020: same shape, float32, unclipped."""
    return apply_matrix(lin_srgb, LIN_SRGB_TO_LIN_REC2020)


def _to_float64(matrix: Matrix) -> Tensor:
    # By way of a list: one path for tensors of any device and for arrays, read-only ones too.
    return torch.tensor(matrix.tolist(), dtype=torch.float64)
