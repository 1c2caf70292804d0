"""Luminance and subsampled chroma, as OpenEXR stores it: Y at every pixel, RY and BY at each second of each second row.

Source: "Technical Introduction to OpenEXR" (Academy Software Foundation, 3.x), "Luminance/Chroma Images"; the taps are
those of ImfRgbaYca.cpp (BSD-3-Clause).
"""

from __future__ import annotations

import numpy as np

# Weights of the 14 nearest samples, for a pixel in the middle between the 7th and the 8th.
_TAPS = np.array([0.002128, -0.007540, 0.019597, -0.043159, 0.087929, -0.186077, 0.627123], np.float64)
_TAPS = np.concatenate([_TAPS, _TAPS[::-1]])


def luminance_chroma_to_rgb(
    y: np.ndarray, ry: np.ndarray, by: np.ndarray, *, top: int, left: int, luminance_weights: np.ndarray
) -> np.ndarray:
    """Y, (R - Y) / Y and (B - Y) / Y to RGB.

    y                  (H, W), any value
    ry, by             of the pixels whose row and column in the data window are even; or (H, W)
    top, left          of the data window
    luminance_weights  (3,) of red, green and blue; that of green is not 0
    returns            float32 (H, W, 3)
    """
    height, width = y.shape
    y, ry, by = (
        (plane if plane.shape == y.shape else _upsampled(_upsampled(plane, top, height, 0), left, width, 1))
        for plane in (channel.astype(np.float64) for channel in (y, ry, by))
    )
    red, blue = (ry + 1) * y, (by + 1) * y
    weight_r, weight_g, weight_b = luminance_weights
    green = (y - red * weight_r - blue * weight_b) / weight_g
    return np.stack([red, green, blue], axis=-1).astype(np.float32)


def _upsampled(plane: np.ndarray, start: int, size: int, axis: int) -> np.ndarray:
    """Samples at the even positions of start ... start + size - 1, at all of them; the outermost are repeated."""
    positions = np.arange(start, start + size)
    first = -(-start // 2)
    plane = np.moveaxis(plane, axis, 0)
    last = len(plane) - 1
    result = plane[np.clip(positions // 2 - first, 0, last)]
    odd = positions % 2 == 1
    before = positions[odd] // 2 - first
    result[odd] = sum(
        weight * plane[np.clip(before + offset, 0, last)] for weight, offset in zip(_TAPS, range(-6, 8), strict=True)
    )
    return np.moveaxis(result, 0, axis)
