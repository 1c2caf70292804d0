"""1 - MS-SSIM (Wang, Simoncelli, Bovik 2003), as pytorch-msssim computes it: 5 scales, 11-tap Gaussian of sigma 1.5,
range 1."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from library.losses import LossConfig
from library.metrics import MS_SSIM_SMALLEST_SIDE, ms_ssim


class Config(LossConfig):
    kind: Literal["ms_ssim"] = "ms_ssim"

    @property
    def smallest_side(self) -> int:
        """Pixels a side that the loss needs at least: four halvings must leave the 11-tap window room."""
        return MS_SSIM_SMALLEST_SIDE

    def build(self) -> MSSSIM:
        return MSSSIM()


class MSSSIM(nn.Module):
    """1 - MS-SSIM over the valid pixels: see `forward`."""

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean over images of 1 - MS-SSIM, which says how masked pixels are left out; unweighted.

        output, target  (N, 3, H, W), range about [0, 1], below 0 is legal; H and W at least 161; at pixels that do not
                        count anything is legal, NaN too
        mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
        returns         scalar, float32; an image without a valid pixel counts as 0, NaN when a pixel that counts is NaN
        """
        return (1 - ms_ssim(output, target, mask)).mean()
