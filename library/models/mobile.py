"""A tiny network for phones and small cameras: inverted residual blocks (Sandler et al. 2018, "MobileNetV2") that
correct a bilinear demosaic.

Made of what every accelerator and 8-bit runtime has: convolutions, depthwise ones among them, ReLU6, addition and pixel
shuffle. No normalisation: batch statistics do not fit exposures that differ by many stops. Only the square root around
it (`CorrectedDemosaic`) stays in float32.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.correction import CorrectedDemosaic
from library.models.blocks.image_model import ImageModel, ModelConfig
from library.models.blocks.pointwise import pointwise


class Config(ModelConfig):
    kind: Literal["mobile"] = "mobile"
    in_channels: Literal[4] = 4
    """Packed R, G1, G2, B."""
    width: int = Field(default=16, gt=0)
    """Channels at the first level; doubles at each level."""
    expansion: int = Field(default=2, gt=0)
    """Channels inside a block for each one outside."""
    encoder_blocks: tuple[int, ...] = (1,)
    """Blocks at each level on the way down; between two levels the sides are halved. Empty: one level only."""
    middle_blocks: int = Field(default=4, ge=0)
    decoder_blocks: tuple[int, ...] = (1,)
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
        return self.model_copy(update={"width": 1, "expansion": 1})

    def build(self) -> Mobile:
        return Mobile(self)


class Mobile(ImageModel):
    """(N, 4, h, w) packed mosaic -> (N, 3, 2h, 2w) camera RGB; h and w multiples of the lattice."""

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
        self.scale = 2
        widths = [config.width * 2**level for level in range(len(config.encoder_blocks) + 1)]
        self.corrected = CorrectedDemosaic(config.stabilizer_offset)
        self.intro = nn.Sequential(nn.Conv2d(4, widths[0], 3, padding=1), nn.ReLU6())
        self.encoder = nn.ModuleList(
            _blocks(w, n, config.expansion) for w, n in zip(widths, config.encoder_blocks, strict=False)
        )
        self.down = nn.ModuleList(_down(w, config.expansion) for w in widths[:-1])
        self.middle = _blocks(widths[-1], config.middle_blocks, config.expansion)
        self.up = nn.ModuleList(pointwise(2 * w, 4 * w) for w in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(
            _blocks(w, n, config.expansion) for w, n in zip(reversed(widths[:-1]), config.decoder_blocks, strict=True)
        )
        self.head = nn.Conv2d(widths[0], 12, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

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


class _Block(nn.Module):
    """An inverted residual. Its last layer starts at zero, so the block starts as the identity, which stands in for
    normalisation (Zhang et al. 2019)."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        project = pointwise(expansion * width, width)
        for parameter in project.parameters():
            nn.init.zeros_(parameter)
        self.branch = nn.Sequential(*_filtered(width, expansion, stride=1), project)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _down(width: int, expansion: int) -> nn.Sequential:
    """Twice the channels at half the sides."""
    return nn.Sequential(*_filtered(width, expansion, stride=2), pointwise(expansion * width, 2 * width))


def _filtered(width: int, expansion: int, *, stride: int) -> list[nn.Module]:
    """Expand and filter each channel. What projects them back has no activation (Sandler et al. 2018, section 3.2)."""
    inner = expansion * width
    return [
        pointwise(width, inner),
        nn.ReLU6(),
        nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner),
        nn.ReLU6(),
    ]


def _blocks(width: int, num_blocks: int, expansion: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width, expansion) for _ in range(num_blocks)))
