"""UtNet2, the U-Net of RawNIND (Brummer, De Vleeschouwer 2025), after Ronneberger et al. 2015.

Four levels of two 3x3 convolutions with LeakyReLU 0.2, max-pooling down, 2x2 transposed convolutions up, the skip
concatenated after the upsampled tensor, a 1x1 head. No normalisation, no output activation, no residual link. Trained
here at absolute scale.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.image_model import ImageModel, ModelConfig


class Config(ModelConfig):
    kind: Literal["unet"] = "unet"
    in_channels: Literal[3, 4] = 4
    """4: packed R, G1, G2, B; 3: lin_rec2020."""
    funit: int = Field(default=32, gt=0)
    """Channels at full resolution; doubles at each level."""
    head: Literal["pixelshuffle", "preupsample", "plain"] = "pixelshuffle"
    """How packed input becomes a full-resolution picture: 12 channels shuffled at the end, or bilinear upsampling
    before the first layer (four times the work). Three-channel input is at full resolution already: plain."""

    @model_validator(mode="after")
    def _head_fits_input(self) -> Config:
        if (self.in_channels == 3) != (self.head == "plain"):
            raise ValueError(
                f"head '{self.head}' does not fit in_channels {self.in_channels}: "
                "set head to 'plain' for 3 channels, to 'pixelshuffle' or 'preupsample' for 4"
            )
        return self

    def build(self) -> UNet:
        return UNet(self)


class UNet(ImageModel):
    """(N, 4, h, w) packed mosaic -> (N, 3, 2h, 2w) camera RGB, or (N, 3, H, W) lin_rec2020 -> same; h and w multiples
    of the lattice."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.scale = 2 if config.in_channels == 4 else 1
        f = config.funit
        self.down = nn.ModuleList(
            _double_conv(i, o) for i, o in [(config.in_channels, f), (f, 2 * f), (2 * f, 4 * f), (4 * f, 8 * f)]
        )
        self.bottom = _double_conv(8 * f, 16 * f)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, stride=2) for o in (8 * f, 4 * f, 2 * f, f))
        self.merge = nn.ModuleList(_double_conv(2 * o, o) for o in (8 * f, 4 * f, 2 * f, f))
        self.head = nn.Conv2d(f, 12 if config.head == "pixelshuffle" else 3, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.head == "preupsample":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for upsample, block, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = block(torch.cat([upsample(x), skip], dim=1))
        x = self.head(x)
        return F.pixel_shuffle(x, 2) if self.config.head == "pixelshuffle" else x


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(0.2),
    )
