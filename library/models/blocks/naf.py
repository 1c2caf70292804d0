"""The building block of NAFNet (Chen et al. 2022, "Simple Baselines for Image Restoration").

Without channel attention: its global pooling would make a tile's result depend on the tile.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from library.models.blocks.pointwise import pointwise


class NAFBlock(nn.Module):
    """Figure 2c of the paper, without channel attention: (N, width, h, w) to the same.

    Residual scales start at zero, so the block starts as the identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.expand = pointwise(width, 2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project = pointwise(width, width)
        self.beta = nn.Parameter(torch.zeros(width))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed = pointwise(width, 2 * width)
        self.merge = pointwise(width, width)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.project(_gate(self.depthwise(self.expand(_per_pixel(self.norm1, x)))))
        x = torch.addcmul(x, self.beta[:, None, None], mixed)
        fed = self.merge(_gate(self.feed(_per_pixel(self.norm2, x))))
        return torch.addcmul(x, self.gamma[:, None, None], fed)


def naf_blocks(width: int, num_blocks: int) -> nn.Sequential:
    """(N, width, h, w) through so many blocks."""
    return nn.Sequential(*(NAFBlock(width) for _ in range(num_blocks)))


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a * b


def _per_pixel(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise over the channels of each pixel: the same result wherever a tile begins."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
