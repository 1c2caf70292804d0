"""UtNet3, RawNIND's UtNet2 with residual blocks behind it (Brummer, De Vleeschouwer 2025): many channels at the size of
the input, hence fourteen times the work.

The research code could not build it; no weights or results of it are known.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from library.models.blocks.image_model import ImageModel, ModelConfig
from library.models.blocks.pointwise import pointwise
from library.models.blocks.utnet import Decoder, Encoder, double_conv, enlargement, head_layer, init_kaiming


class Config(ModelConfig):
    kind: Literal["utnet3"] = "utnet3"
    in_channels: Literal[4] = 4
    """Packed R, G1, G2, B."""
    funit: int = Field(default=32, gt=0)
    """Channels at the input's resolution; doubles at each level. The residual blocks have eight times as many."""
    head: Literal["pixelshuffle", "transposed", "preupsample"] = "pixelshuffle"
    """How packed input becomes a full-resolution picture: `pixelshuffle` shuffles 12 channels at the end, `transposed`
    ends in a 2x2 transposed convolution, `preupsample` enlarges bilinearly before the first layer (four times the
    work)."""

    def thinnest(self) -> Config:
        return self.model_copy(update={"funit": 1})

    def build(self) -> UtNet3:
        return UtNet3(self)


class UtNet3(ImageModel):
    """(N, 4, h, w) packed mosaic -> (N, 3, 2h, 2w) camera RGB; h and w multiples of the lattice."""

    parts: ClassVar = {"encoder": ("encoder",), "decoder": ("decoder",), "refine": ("refine",), "head": ("head",)}
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.scale = 2
        f = config.funit
        self.enlarge = enlargement(config.head)
        self.encoder = Encoder(config.in_channels, f)
        self.decoder = Decoder(f)
        self.refine = nn.Sequential(pointwise(f, 8 * f), _Residual(8 * f), _Residual(8 * f), pointwise(8 * f, f))
        self.head = head_layer(config.head, f)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.refine(self.decoder(self.encoder(self.enlarge(x)))))


class _Residual(nn.Module):
    """Two 3x3 convolutions with LeakyReLU, added to their input (He et al. 2016, without normalisation)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = double_conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
