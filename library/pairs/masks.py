"""Which pixels of a pair count. Masks are made where the images already lie on one another, in the full-resolution
pixels of the shifted clean image, and are stored, cut and used in these coordinates alone."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import ndimage

from library.config import Frozen

_NOISE_DEVIATIONS = 2.0
"""Of one channel; all three together are that far out once in many thousands."""
_DEMOSAICED = 1.7
"""A mean of demosaiced red or blue holds a quarter as many samples as pixels: its noise is up to twice as large."""


class Anomalies(Frozen):
    """What of a scene moved or changed its light between two shots.

    RawNIND's own rule is `{threshold: 0.4, window: 1, outliers: 0.0001}`: a pixel at a time, where noise alone passes
    the threshold in the shadows of a high ISO, so that pixels would be left out for their noise, which biases what is
    left.
    """

    threshold: float = Field(default=0.2, gt=0)
    """Sum over the three channels of |difference| after the gain and a gamma of 2.2, of local means."""
    window: int = Field(default=9, ge=1)
    """Pixels a side of these means; odd. Noise is averaged away, and an invalid spot is at least so large."""
    outliers: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pixels, those of the largest differences, that is left out in any case."""


def overexposure_mask(mosaic: np.ndarray, overexposure_lb: float, *, reach: int = 2) -> np.ndarray:
    """Where a demosaiced image owes nothing to a photosite that clipped.

    mosaic           (H, W) scene-linear, black at 0 and white at 1
    overexposure_lb  clipping level on this scale
    reach            photosites around a pixel that its colours are made of
    returns          (H, W) bool, True where valid
    """
    clipped = mosaic >= overexposure_lb
    if not reach or not clipped.any():
        return ~clipped
    return ~_spread(clipped, reach)


def gamma(linear: np.ndarray) -> np.ndarray:
    """v ** (1 / 2.2) above 0, unchanged below."""
    return np.where(linear > 0, np.maximum(linear, 1e-12) ** (1 / 2.2), linear)


def anomaly_mask(
    gt_rgb: np.ndarray, f_rgb: np.ndarray, config: Anomalies, *, noise: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """Where two images of equal brightness show the same.

    gt_rgb, f_rgb  (3, H, W) camera RGB on one another, f times its gain; below 0 and above 1 legal
    noise          (a, b) of f, after its gain: variance a x + b of a photosite. What it leaves in a local mean of the
                   brightness of gt is no anomaly, up to `_NOISE_DEVIATIONS` of its deviations
    returns        (H, W) bool, True where valid; isolated valid pixels are closed by an opening with a cross
    """
    difference = np.zeros(gt_rgb.shape[1:], np.float32)
    allowed = np.full(gt_rgb.shape[1:], config.threshold, np.float32)
    for gt, f in zip(gt_rgb, f_rgb, strict=True):
        mean = _local_mean(gt, config.window)
        difference += np.abs(gamma(mean) - gamma(_local_mean(f, config.window)))
        if any(noise):
            deviation = _DEMOSAICED * np.sqrt(noise[0] * np.maximum(mean, 0) + noise[1]) / config.window
            # How far the curve carries so much more light; its slope alone is endless at black.
            allowed += gamma(np.maximum(mean, 0) + _NOISE_DEVIATIONS * deviation) - gamma(np.maximum(mean, 0))
    if config.outliers:
        allowed = min(config.threshold, float(np.quantile(difference, 1 - config.outliers))) or 1.0
    anomalous = difference >= allowed
    # A mean passes the threshold when enough of its window is anomalous, and all of the window may be.
    valid = ~_spread(anomalous, config.window // 2)
    # An opening, but what lies outside counts as valid: scipy's own takes the picture's corners away.
    return ndimage.binary_dilation(ndimage.binary_erosion(valid, border_value=1))


def pack_mask(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool to (H, ceil(W / 8)) uint8, the first pixel in the highest bit."""
    return np.packbits(mask, axis=1)


def unpack_mask(packed: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A crop of a packed mask: (height, width) bool; only its bytes are read."""
    first = left // 8
    bits = np.unpackbits(packed[top : top + height, first : -(-(left + width) // 8)], axis=1)
    return bits[:, left - 8 * first : left - 8 * first + width].astype(bool)


def valid_fraction(mask: np.ndarray) -> float:
    """Share of the pixels that count, in [0, 1]: one number a pixel, however many channels an image has.

    mask  (H, W), (1, H, W) or (C, H, W) of equal channels; 1 or True where valid
    """
    return float(np.mean(mask, dtype=np.float64))


def _local_mean(plane: np.ndarray, window: int) -> np.ndarray:
    return plane if window == 1 else ndimage.uniform_filter(plane, window, mode="nearest")


def _spread(mask: np.ndarray, reach: int) -> np.ndarray:
    """True in the square of `reach` pixels around every True."""
    return ndimage.maximum_filter(mask, 2 * reach + 1, mode="constant", cval=0) if reach else mask
