"""A mosaic of any CFA as planes at full resolution: the mosaic, where each colour is measured, and how noisy it is.

One network can take Bayer and X-Trans alike, at any phase and from any origin, and is told the noise that it has to
remove: a camera that was calibrated later needs no retraining, and a strength is a factor of sigma.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from library.ops.cfa import cfa_levels, cfa_tile
from library.ops.noise import estimate_noise_variance

CFA_PLANES = 5
"""Mosaic; 1 where red is measured, green, blue; sigma."""

_NEAR = (1.0, 2.0, 1.0)
_FAR = (1.0, 4.0, 6.0, 4.0, 1.0)


def color_planes(cfa: str, height: int, width: int) -> Tensor:
    """(3, height, width) float32: 1 in the plane of the colour that a photosite measures, 0 elsewhere.

    ValueError for what is no CFA of 2x2 or 6x6.
    """
    labels = cfa_levels(cfa_tile(cfa), height, width)
    return torch.stack([labels == color for color in range(3)]).float()


def pack_cfa_planes(mosaic: Tensor, cfa: str, *, a: float | Tensor, b: float | Tensor, strength: float = 1.0) -> Tensor:
    """A mosaic to the input of a model of CFA planes.

    mosaic    (..., H, W) scene-linear, unclipped, top-left pixel at CFA tile (0, 0); any size
    a, b      of its noise, variance a * x + b; broadcast to `mosaic`
    strength  factor of sigma, from 0 up: the noise that the network is told of
    returns   (..., 5, H, W) float32: mosaic, red, green, blue, sigma. Sigma is that of the noisy value, the only one
              there is, and of black below black

    ValueError for an `a` or `b` below 0, and for what is no CFA.
    """
    mosaic = mosaic.to(torch.float32).unsqueeze(-3)
    planes = color_planes(cfa, *mosaic.shape[-2:]).to(mosaic.device)
    a, b = (_with_plane(value, mosaic) for value in (a, b))
    sigma = strength * estimate_noise_variance(mosaic, a, b).sqrt()
    return torch.cat([mosaic, planes.expand(*mosaic.shape[:-3], -1, -1, -1), sigma], dim=-3)


def unpack_cfa_planes(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_cfa_planes`, as far as there is one.

    packed   (..., 5, H, W)
    returns  mosaic (..., H, W), and which colour each photosite measures (..., H, W) int64, 0 red, 1 green, 2 blue

    ValueError for other than five planes.
    """
    if packed.shape[-3] != CFA_PLANES:
        raise ValueError(f"packed has {packed.shape[-3]} planes, and CFA planes are 5: mosaic, red, green, blue, sigma")
    return packed[..., 0, :, :], packed[..., 1:4, :, :].argmax(dim=-3)


def interpolate_cfa_planes(mosaic: Tensor, planes: Tensor) -> Tensor:
    """Each missing colour is the weighted mean of its samples in a window (normalised convolution, Knutsson and Westin
    1993): a demosaic for every CFA. On Bayer mosaics it is the bilinear one, away from the border.

    mosaic   (N, 1, H, W), below 0 and above 1 legal
    planes   (N, 3, H, W), 1 where a colour is measured, 0 elsewhere; each 3x3 window inside holds all colours
    returns  (N, 3, H, W) float32 within the range of the samples; measured samples unchanged
    """
    mosaic, planes = mosaic.to(torch.float32), planes.to(torch.float32)
    samples = torch.cat([mosaic * planes, planes], dim=1)
    near, near_weight = _window_sums(samples, _NEAR).chunk(2, dim=1)
    # At a border less than a 3x3 window is left, and of X-Trans that may be green alone.
    far, far_weight = _window_sums(samples, _FAR).chunk(2, dim=1)
    complete = near_weight > 0
    mean = torch.where(complete, near, far) / torch.where(complete, near_weight, far_weight)
    return torch.where(planes > 0.5, mosaic, mean)


def _window_sums(x: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Each channel's weighted sum around each pixel, in a fixed order: the same bits wherever a tile begins. No step
    knows the size, so that an exported graph takes any."""
    radius = len(weights) // 2
    for dim in (2, 3):
        padded = F.pad(x, (0, 0, radius, radius) if dim == 2 else (radius, radius))
        terms = []
        for start, weight in enumerate(weights):
            end = start - 2 * radius or None
            terms.append(weight * (padded[:, :, start:end] if dim == 2 else padded[:, :, :, start:end]))
        x = functools.reduce(torch.add, terms)
    return x


def _with_plane(value: float | Tensor, mosaic: Tensor) -> Tensor:
    """A coefficient that broadcasts to (..., H, W), as one that does to (..., 1, H, W)."""
    value = torch.as_tensor(value, dtype=torch.float32, device=mosaic.device)
    return value.unsqueeze(-3) if value.ndim >= 2 else value
