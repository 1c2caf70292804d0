"""What RawNIND's UtNet2 and UtNet3 share (Brummer, De Vleeschouwer 2025), after Ronneberger et al. 2015."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Head = Literal["pixelshuffle", "transposed", "preupsample", "plain"]
"""How features become a picture. From packed input: `pixelshuffle` shuffles 12 channels, `transposed` is a 2x2
transposed convolution, and `preupsample` enlarges the input before the first layer, which is four times the work. At
the input's own size: `plain`."""

_SLOPE = 0.2


class Encoder(nn.Module):
    """(N, in_channels, h, w) -> five tensors, the k-th (N, 2^k funit, h / 2^k, w / 2^k): two 3x3 convolutions at each
    level, max-pooling in between. h and w multiples of 16."""

    def __init__(self, in_channels: int, funit: int) -> None:
        super().__init__()
        widths = [in_channels, *(funit * 2**level for level in range(5))]
        self.levels = nn.ModuleList(double_conv(i, o) for i, o in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.levels[0](x)]
        for level in self.levels[1:]:
            features.append(level(F.max_pool2d(features[-1], 2)))
        return features


class Decoder(nn.Module):
    """What `Encoder` gives -> (N, funit, h, w): 2x2 transposed convolutions up, the skip concatenated after the
    upsampled tensor, two 3x3 convolutions at each level."""

    def __init__(self, funit: int) -> None:
        super().__init__()
        widths = [funit * 2**level for level in (3, 2, 1, 0)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths)
        self.merge = nn.ModuleList(double_conv(2 * width, width) for width in widths)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], dim=1))
        return x


def enlargement(head: Head) -> nn.Module:
    """What a network does to its input before the first layer."""
    if head == "preupsample":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Identity()


def head_layer(head: Head, funit: int) -> nn.Module:
    """(N, funit, h, w) -> (N, 3, h, w), or twice the sides for `pixelshuffle` and `transposed`."""
    if head == "pixelshuffle":
        return nn.Sequential(nn.Conv2d(funit, 12, 1), nn.PixelShuffle(2))
    if head == "transposed":
        return nn.ConvTranspose2d(funit, 3, 2, stride=2)
    return nn.Conv2d(funit, 3, 1)


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(_SLOPE),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(_SLOPE),
    )


def init_kaiming(network: nn.Module) -> None:
    """Weights normal with the variance that keeps the size of gradients (He et al. 2015, fan-out), biases 0."""
    for module in network.modules():
        # There is nothing to draw on the meta device, and asking it would load PyTorch's decompositions for a second.
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
