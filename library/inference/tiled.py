"""A network over an image of any size, one tile at a time: in float32 the same bits as the whole at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from library.inference.backends.base import Precision
from library.models.blocks.image_model import ImageModel
from library.ops.tiles import Tile, plan_tiles


class Patch(NamedTuple):
    """A rectangle of a picture."""

    top: int
    left: int
    pixels: Tensor
    """(3, height, width) float32"""


def run_tiled(
    model: ImageModel,
    height: int,
    width: int,
    window: Callable[[Tile], Tensor],
    *,
    tile: int,
    precision: Precision = "fp32",
    run: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Patch]:
    """Run a model over an image of `height` x `width` input pixels, one tile at a time.

    window     gives the (C, h, w) input of a tile's window
    precision  of PyTorch
    run        what computes the model's (1, C, h, w) input instead
    yields     patches in output pixels, on the CPU
    """
    scale = model.scale
    for t in plan_tiles(height, width, tile=tile, halo=model.halo, lattice=model.lattice):
        x = window(t)[None]
        y = (run(x) if run is not None else _in_torch(model, x, precision))[0]
        top, left = t.rows.start - t.window_rows.start, t.columns.start - t.window_columns.start
        bottom, right = top + t.rows.stop - t.rows.start, left + t.columns.stop - t.columns.start
        core = y[:, scale * top : scale * bottom, scale * left : scale * right]
        yield Patch(scale * t.rows.start, scale * t.columns.start, core.cpu())


def _in_torch(model: ImageModel, x: Tensor, precision: Precision) -> Tensor:
    device = model.device
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return model(x).float()
