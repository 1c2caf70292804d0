"""White balance: one gain per colour.

Networks see no white balance (noise levels would differ between the planes for no physical reason); it belongs to
developing a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PACKED = [0, 1, 1, 2]  # the gain of each plane R, G1, G2, B


def normalize_gains(gains: Tensor) -> Tensor:
    """The same balance at the scale where the smallest gain is 1, so that no channel saturates below 1.

    gains    (..., 3), above 0, at any scale
    returns  (..., 3), 1 or above

    ValueError for gains that are not positive and finite.
    """
    _check(gains)
    return gains / gains.amin(-1, keepdim=True)


def apply_white_balance(rgb: Tensor, gains: Tensor) -> Tensor:
    """Multiplies each colour by its gain.

    rgb      (..., 3, H, W), below 0 and above 1 legal
    gains    (..., 3), above 0: R, G, B
    returns  (..., 3, H, W), unclipped

    ValueError for gains that are not positive and finite.
    """
    return rgb * _per_plane(gains, rgb)


def remove_white_balance(rgb: Tensor, gains: Tensor) -> Tensor:
    """Divides each colour by its gain: the inverse of `apply_white_balance`, same shapes, ranges and errors."""
    return rgb / _per_plane(gains, rgb)


def apply_white_balance_packed(packed: Tensor, gains: Tensor) -> Tensor:
    """`apply_white_balance` for the planes R, G1, G2, B of a packed mosaic: both greens take the green gain.

    packed   (..., 4, h, w), below 0 and above 1 legal
    gains    (..., 3), above 0: R, G, B
    returns  (..., 4, h, w), unclipped

    ValueError for gains that are not positive and finite.
    """
    return packed * _per_plane(gains[..., _PACKED], packed)


def remove_white_balance_packed(packed: Tensor, gains: Tensor) -> Tensor:
    """The inverse of `apply_white_balance_packed`, same shapes, ranges and errors."""
    return packed / _per_plane(gains[..., _PACKED], packed)


def _check(gains: Tensor) -> None:
    if not ((gains > 0) & gains.isfinite()).all():
        raise ValueError(
            f"white balance gains are {gains.tolist()}, all must be positive and finite: use unit gains if unknown"
        )


def _per_plane(gains: Tensor, image: Tensor) -> Tensor:
    _check(gains)
    if gains.shape[-1] != image.shape[-3]:
        raise ValueError(f"an image of {image.shape[-3]} planes cannot take {gains.shape[-1]} gains")
    return gains.to(image.device, torch.float32)[..., None, None]
