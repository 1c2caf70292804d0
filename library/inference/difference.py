"""Two pictures and their difference side by side, as a picture: the whole, and below it the places that differ most."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

_PANEL, _GAP, _LINE = 480, 8, 18
_PAPER, _INK = (24, 24, 24), (220, 220, 220)
_LARGEST_GAIN = 64


def difference_picture(one: Tensor, other: Tensor) -> np.ndarray:
    """First, second, and second less first around grey, amplified by a power of two so that a large difference is seen.

    The upper row is the whole picture, made smaller where it is large; the lower is the square that differs most, in
    the pixels' own size or larger.

    one, other  (3, H, W) sRGB in [0, 1]
    returns     uint8 (h, w, 3)
    """
    difference = other - one
    gain = _gain(difference)
    pictures = [one, other, (0.5 + gain * difference).clamp(0, 1)]
    top, left, side = _where_most(difference)
    closer = [x[:, top : top + side, left : left + side] for x in pictures]
    titles = ("first", "second", f"second - first, times {gain}")
    rows = [_row([_scaled(x) for x in pictures], titles), _row([_scaled(x) for x in closer], _at(top, left, side))]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), _PAPER)
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    return np.asarray(sheet)


def _at(top: int, left: int, side: int) -> tuple[str, str, str]:
    return f"{side} x {side} at row {top}, column {left}", "", ""


def _gain(difference: Tensor) -> int:
    """The power of two that brings the 99.9th percentile to a quarter of the range."""
    values = difference.abs().flatten()
    values = values[:: max(1, values.numel() // 2**20)]
    large = float(values.kthvalue(max(1, round(0.999 * values.numel()))).values)
    gain = 1
    while gain < _LARGEST_GAIN and 2 * gain * large <= 0.25:
        gain *= 2
    return gain


def _where_most(difference: Tensor) -> tuple[int, int, int]:
    """(top, left, side) of the square of a grid whose mean squared difference is largest."""
    height, width = difference.shape[-2:]
    side = min(_PANEL // 2, height, width)
    error = (difference**2).mean(0)[None, None]
    means = F.avg_pool2d(error, side, stride=max(1, side // 2))[0, 0]
    row, column = divmod(int(means.flatten().argmax()), means.shape[1])
    return row * max(1, side // 2), column * max(1, side // 2), side


def _scaled(picture: Tensor) -> Image.Image:
    codes = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(codes)
    scale = _PANEL / max(image.size)
    if scale >= 2:  # whole pixels stay whole
        return image.resize((image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX) if scale < 1 else image


def _row(panels: list[Image.Image], titles: tuple[str, ...]) -> Image.Image:
    width, height = panels[0].size
    cell = max(width, _PANEL)
    row = Image.new("RGB", (len(panels) * (cell + _GAP) + _GAP, height + _LINE + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(row)
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        x = _GAP + index * (cell + _GAP)
        draw.text((x, _GAP // 2), title, fill=_INK)
        row.paste(panel, (x, _GAP + _LINE))
    return row
