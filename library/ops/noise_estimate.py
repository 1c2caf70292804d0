"""The noise of a raw that does not say how much it has: photon and read noise, from the picture alone."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

_BLOCK = 8
_BINS = 24
_FLATTEST = 0.1
"""Share of the blocks of a brightness that are taken to be flat: their variance is noise."""
_SMALLEST_A, _SMALLEST_B = 1e-6, 1e-9


def estimate_noise(packed: Tensor) -> tuple[float, float]:
    """Photon and read noise (a, b) of a mosaic, variance a * x + b: by the flattest blocks of each brightness.

    packed   (4, h, w) scene-linear, black at 0 and white at 1, at least 16 x 16
    returns  a >= 1e-6, b >= 1e-9. The variance is right within a factor of about 1.5 on pictures that have some
             flat places at two brightnesses, b alone need not be; texture makes it too large. A single brightness is
             all taken to be photon noise

    Differences of diagonal neighbours cancel ramps and edges along the axes (Immerkaer 1996); the least variance of
    many blocks is that of a flat one, and by how much it falls short of the mean of flat blocks is known.
    """
    mixed = (packed[:, 1:, 1:] - packed[:, 1:, :-1] - packed[:, :-1, 1:] + packed[:, :-1, :-1]) / 2
    levels = (packed[:, 1:, 1:] + packed[:, 1:, :-1] + packed[:, :-1, 1:] + packed[:, :-1, :-1]) / 4
    variance, level, largest = (_blocks(x) for x in (mixed**2, levels, levels))
    variance, level, largest = variance.mean(-1), level.mean(-1), largest.amax(-1)
    usable = largest < 0.95
    if int(usable.sum()) < 4 * _BINS:
        usable = torch.ones_like(usable)
    level, variance = level[usable].double().numpy(), variance[usable].double().numpy()
    order = np.argsort(level, kind="stable")
    points = []
    for part in np.array_split(order, min(_BINS, max(1, len(order) // 20))):
        flat = np.sort(variance[part])[: max(1, round(_FLATTEST * len(part)))]
        points.append((level[part].mean(), flat.mean() / _flattest_share()))
    x, v = np.array(points).T
    # Relative errors are about equal, so a point weighs by its variance.
    design = np.stack([np.maximum(x, 0), np.ones_like(x)], axis=1) / np.maximum(v, _SMALLEST_B)[:, None]
    (a, b), *_ = np.linalg.lstsq(design, np.ones_like(v), rcond=None)
    if a <= 0:
        a, b = _SMALLEST_A, float(np.median(v))
    if b <= 0:
        a, b = float(np.median(v / np.maximum(x, 1e-6))), _SMALLEST_B
    return max(float(a), _SMALLEST_A), max(float(b), _SMALLEST_B)


def _blocks(x: Tensor) -> Tensor:
    """(4, h, w) -> (blocks, 64)."""
    height, width = (side // _BLOCK * _BLOCK for side in x.shape[-2:])
    return x[:, :height, :width].unfold(1, _BLOCK, _BLOCK).unfold(2, _BLOCK, _BLOCK).reshape(-1, _BLOCK**2)


@functools.cache
def _flattest_share() -> float:
    """Mean over the flattest blocks of what white noise gives, as a share of its variance.

    By a fixed simulation: overlapping differences are correlated, so there is no formula.
    """
    noise = np.random.default_rng(0).standard_normal((1025, 1025))
    mixed = (noise[1:, 1:] - noise[1:, :-1] - noise[:-1, 1:] + noise[:-1, :-1]) / 2
    blocks = (mixed**2).reshape(128, _BLOCK, 128, _BLOCK).mean((1, 3)).ravel()
    return float(np.sort(blocks)[: round(_FLATTEST * blocks.size)].mean())
