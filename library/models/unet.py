"""UtNet2, the U-Net of RawNIND (Brummer, De Vleeschouwer 2025), after Ronneberger et al. 2015.

Four levels of two 3x3 convolutions with LeakyReLU 0.2, max-pooling down, 2x2 transposed convolutions up, the skip
concatenated after the upsampled tensor, a small head. No normalisation, no output activation, no residual link. Trained
here at absolute scale.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from library.models.blocks.image_model import ImageModel, ModelConfig
from library.models.blocks.utnet import Decoder, Encoder, Head, enlargement, head_layer, init_kaiming


class Config(ModelConfig):
    kind: Literal["unet"] = "unet"
    in_channels: Literal[3, 4, 5] = 4
    """4: packed R, G1, G2, B; 5: CFA planes of Bayer or X-Trans, and the noise's sigma; 3: lin_rec2020."""
    funit: int = Field(default=32, gt=0)
    """Channels at full resolution; doubles at each level."""
    head: Head = "pixelshuffle"
    """How packed input becomes a full-resolution picture: `pixelshuffle` shuffles 12 channels at the end, `transposed`
    ends in a 2x2 transposed convolution, `preupsample` enlarges bilinearly before the first layer (four times the
    work). A picture, or CFA planes, are at full resolution already: `plain`."""

    @model_validator(mode="after")
    def _head_fits_input(self) -> Config:
        if (self.in_channels != 4) != (self.head == "plain"):
            raise ValueError(
                f"head '{self.head}' does not fit in_channels {self.in_channels}: "
                "set head to 'plain' for 3 or 5 channels, to 'pixelshuffle', 'transposed' or 'preupsample' for 4"
            )
        return self

    def thinnest(self) -> Config:
        return self.model_copy(update={"funit": 1})

    def build(self) -> UNet:
        return UNet(self)


class UNet(ImageModel):
    """(N, 4, h, w) packed mosaic -> (N, 3, 2h, 2w) camera RGB, (N, 5, H, W) CFA planes -> (N, 3, H, W), or
    (N, 3, H, W) lin_rec2020 -> same; h and w multiples of the lattice."""

    parts: ClassVar = {"encoder": ("encoder",), "decoder": ("decoder",), "head": ("head",)}
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.scale = 2 if config.in_channels == 4 else 1
        self.enlarge = enlargement(config.head)
        self.encoder = Encoder(config.in_channels, config.funit)
        self.decoder = Decoder(config.funit)
        self.head = head_layer(config.head, config.funit)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(self.enlarge(x))))
