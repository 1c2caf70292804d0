"""A small NAFNet (Chen et al. 2022, "Simple Baselines for Image Restoration") for joint denoising and demosaicing.

Differs from the paper in what tiles and short training ask for: no channel attention (its global pooling would make a
tile's result depend on the tile), and the network corrects a bilinear demosaic in a variance-stabilised domain, so that
at the start, when head and residual scales are zero, it *is* the bilinear demosaic.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.cfa_stem import CorrectedCfaPlanes
from library.models.blocks.correction import CorrectedDemosaic
from library.models.blocks.image_model import ImageModel, ModelConfig
from library.models.blocks.naf import naf_blocks
from library.models.blocks.pointwise import pointwise


class Config(ModelConfig):
    kind: Literal["nafnet"] = "nafnet"
    in_channels: Literal[4, 5] = 4
    """4: packed R, G1, G2, B; 5: CFA planes of Bayer or X-Trans, and the noise's sigma."""
    width: int = Field(default=16, gt=0, multiple_of=2)
    """Channels at the first level; doubles at each level."""
    encoder_blocks: tuple[int, ...] = Field(default=(1, 1), min_length=1)
    """Blocks at each level on the way down; between two levels the sides are halved."""
    middle_blocks: int = Field(default=2, ge=0)
    decoder_blocks: tuple[int, ...] = Field(default=(1, 1), min_length=1)
    """Blocks at each level on the way up, from the coarsest; as many levels as on the way down."""
    stabilizer_offset: float = Field(default=0.02, gt=0)
    """Scene-linear value around which the square root bends; about the noise floor."""

    @model_validator(mode="after")
    def _as_many_levels_up_as_down(self) -> Config:
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"encoder_blocks has {len(self.encoder_blocks)} levels and decoder_blocks "
                f"{len(self.decoder_blocks)}: give both as many"
            )
        return self

    def thinnest(self) -> Config:
        return self.model_copy(update={"width": 2})

    def build(self) -> NAFNet:
        return NAFNet(self)


class NAFNet(ImageModel):
    """(N, 4, h, w) packed mosaic -> (N, 3, 2h, 2w) camera RGB, or (N, 5, H, W) CFA planes -> (N, 3, H, W); h and w
    multiples of the lattice."""

    parts: ClassVar = {
        "encoder": ("intro", "encoder", "down"),
        "middle": ("middle",),
        "decoder": ("up", "decoder"),
        "head": ("head",),
    }
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.scale = 2 if config.in_channels == 4 else 1
        widths = [config.width * 2**level for level in range(len(config.encoder_blocks) + 1)]
        corrected = CorrectedDemosaic if config.in_channels == 4 else CorrectedCfaPlanes
        self.corrected = corrected(config.stabilizer_offset)
        self.intro = nn.Conv2d(self.corrected.num_features, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(naf_blocks(w, n) for w, n in zip(widths, config.encoder_blocks, strict=False))
        self.down = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.middle = naf_blocks(widths[-1], config.middle_blocks)
        self.up = nn.ModuleList(pointwise(2 * w, 4 * w, bias=False) for w in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(
            naf_blocks(w, n) for w, n in zip(reversed(widths[:-1]), config.decoder_blocks, strict=True)
        )
        self.head = nn.Conv2d(widths[0], 12, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return self.corrected(x, self._network)

    def _network(self, x: Tensor) -> Tensor:
        x = self.intro(x)
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, blocks, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = blocks(F.pixel_shuffle(up(x), 2) + skip)
        return self.head(x)
