"""Developing a clean and a noisy picture alike, at random: training pairs of pictures as they come out of an editor.

The steps and ranges are those of RawNIND's proc2proc. What a step measures, it measures on the clean picture, so that
both get the same development and differ by their noise alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

_USED = 7 / 8
"""Probability of each step."""
_LUMA = (0.2627, 0.6780, 0.0593)
"""Of linear Rec.2020 (ITU-R BT.2020 table 4)."""
_DARKEST = 1e-3


@dataclass(frozen=True)
class Development:
    """One development; None: the step is left out."""

    gains: tuple[float, float, float] | None
    """Grey-world white balance."""
    tone: tuple[float, float, float] | None
    """Largest luma of the logarithm, and the range that is brought to 0 ... 1 after it."""
    edges: float | None
    """Share of the Laplacian of luma that is taken off."""
    gamma: float | None
    contrast: tuple[float, float] | None
    """Steepness and centre of a sigmoid."""
    unsharp: tuple[int, float] | None
    """Side of the blur, odd, and its sigma."""

    def __call__(self, lin_rec2020: Tensor) -> Tensor:
        """(3, H, W) linear light, below 0 and above 1 legal -> (3, H, W) developed, in [0, 1]."""
        rgb = lin_rec2020.float()
        if self.gains is not None:
            rgb = rgb * torch.tensor(self.gains)[:, None, None]
        rgb = rgb.clamp(0, 1)
        if self.tone is not None:
            rgb = _tone_mapped(rgb, *self.tone)
        if self.edges is not None:
            rgb = rgb - self.edges * _filtered(_luma(rgb), _LAPLACIAN)
        rgb = rgb.clamp(0, 1)
        if self.gamma is not None:
            rgb = rgb ** (1 / self.gamma)
        if self.contrast is not None:
            steepness, centre = self.contrast
            rgb = torch.sigmoid(steepness * (rgb - centre))
        if self.unsharp is not None:
            rgb = 1.5 * rgb - 0.5 * torch.cat([_filtered(plane[None], _blur(*self.unsharp)) for plane in rgb])
        return rgb.clamp(0, 1)


def draw_development(clean: Tensor, rng: np.random.Generator) -> Development:
    """A development for a clean picture and whatever belongs to it.

    clean    (3, H, W) linear Rec.2020
    rng      consumes the same number of random numbers each time
    """
    used = rng.uniform(size=6) < _USED
    edges, gamma = rng.uniform(0.01, 0.5), rng.uniform(1.8, 2.2)
    steepness, centre = float(rng.integers(5, 21)), rng.uniform(0.3, 0.7)
    side, sigma = int(rng.integers(1, 3)) * 2 + 1, rng.uniform(0.5, 1.5)
    means = clean.float().clamp(0, 1).mean(dim=(1, 2)).clamp_min(_DARKEST)
    gains = tuple((means.mean() / means).tolist()) if used[0] else None
    balanced = clean.float() * (torch.tensor(gains)[:, None, None] if gains else 1)
    return Development(
        gains=gains,
        tone=_tone_of(balanced.clamp(0, 1)) if used[1] else None,
        edges=edges if used[2] else None,
        gamma=gamma if used[3] else None,
        contrast=(steepness, centre) if used[4] else None,
        unsharp=(side, sigma) if used[5] else None,
    )


_LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


def _luma(rgb: Tensor) -> Tensor:
    return (rgb * torch.tensor(_LUMA)[:, None, None]).sum(dim=0, keepdim=True)


def _log_mapped(rgb: Tensor, largest: float) -> Tensor:
    """Each colour at the ratio that luma gets from a logarithm (Drago et al. 2003 without their bias)."""
    luma = _luma(rgb)
    return rgb * (torch.log1p(luma) / (np.log1p(largest) + 1e-3) / luma.clamp_min(_DARKEST))


def _tone_of(rgb: Tensor) -> tuple[float, float, float]:
    largest = float(_luma(rgb).max())
    mapped = _log_mapped(rgb, largest)
    low, high = float(mapped.min()), float(mapped.max())
    return largest, low, max(high, low + _DARKEST)


def _tone_mapped(rgb: Tensor, largest: float, low: float, high: float) -> Tensor:
    return (_log_mapped(rgb, largest) - low) / (high - low)


def _blur(side: int, sigma: float) -> Tensor:
    places = torch.arange(side) - side // 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    return weights[:, None] * weights[None, :]


def _filtered(plane: Tensor, kernel: Tensor) -> Tensor:
    """(1, H, W), borders mirrored."""
    margin = kernel.shape[0] // 2
    return conv2d(pad(plane[None], (margin,) * 4, mode="reflect"), kernel[None, None])[0]
