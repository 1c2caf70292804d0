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
        return MSSSIM(self)


class MSSSIM(nn.Module):
    """1 - MS-SSIM over the valid pixels: see `forward`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean over images of (1 - MS-SSIM) / valid fraction; unweighted.

        Pixels that do not count are set to the target, where they are perfect and add nothing; dividing by the valid
        fraction makes up for their share of the mean.

        output, target  (N, 3, H, W), range about [0, 1], below 0 is legal; H and W at least 161
        mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
        returns         scalar, float32
        """
        valid_fraction = mask.mean(dim=(1, 2, 3))
        loss = 1 - ms_ssim(target + (output - target) * mask, target)
        return (loss / valid_fraction.clamp_min(1 / mask[0].numel())).mean()
