"""A small JPEG of the samples of a DNG, made of these very samples, so that it shows what they are now.

Source: DNG Specification 1.4.0.0 (Adobe, 2012), chapter 2, "Preview images"; TIFF Technical Note 2 (1995).
"""

from __future__ import annotations

import io
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

from library.files.metadata import ImageMetadata
from library.files.tiff import Samples, Tag, TagType, size_tags
from library.ops.develop import auto_exposure_ev, develop_camera_rgb

_LARGEST_SIDE = 1600
_QUALITY = 88
_LINES = 32
_SRGB = 2  # PreviewColorSpace


def mosaic_preview(
    mosaic: np.ndarray, *, cfa: str, black_level: np.ndarray, white_level: int, metadata: ImageMetadata
) -> tuple[Samples, list[Tag]] | None:
    """A developed picture of a mosaic and the tags of its IFD. Each pixel is the mean of one or more CFA tiles.

    mosaic       (H, W) DN
    cfa          the letters of its top-left tile
    black_level  (s, s) DN by tile position, where s is 2 or divides the tile's side
    returns      None for a mosaic smaller than a tile
    """
    side = round(len(cfa) ** 0.5)
    height, width = mosaic.shape
    block = side * max(1, -(-max(height, width) // (side * _LARGEST_SIDE)))
    rows, columns = height // block, width // block
    if not rows or not columns:
        return None
    sums, counts = np.zeros((3, rows, columns), np.float32), np.zeros(3)
    for y in range(block):
        for x in range(block):
            color = "RGB".index(cfa[y % side * side + x % side])
            black = black_level[y % black_level.shape[0], x % black_level.shape[1]]
            sums[color] += mosaic[y : rows * block : block, x : columns * block : block] - np.float32(black)
            counts[color] += 1
    camera_rgb = sums / (counts * (white_level - black_level.mean()))[:, None, None].astype(np.float32)
    return _developed(camera_rgb, metadata)


def camera_rgb_preview(
    camera_rgb: np.ndarray, *, black_level: int, white_level: int, metadata: ImageMetadata
) -> tuple[Samples, list[Tag]] | None:
    """As `mosaic_preview`, of demosaiced samples (H, W, 3). None for a strip that is too narrow to be made smaller."""
    height, width, _ = camera_rgb.shape
    block = -(-max(height, width) // _LARGEST_SIDE)
    rows, columns = height // block, width // block
    if not rows or not columns:
        return None
    sums = np.empty((rows, columns, 3), np.float32)
    # A few lines at a time, which stay in the cache, and whole lines first, which lie in one piece.
    for first in range(0, rows, _LINES):
        last = min(first + _LINES, rows)
        lines = np.zeros((last - first, columns * block, 3), np.uint32)
        for y in range(block):
            lines += camera_rgb[first * block + y : last * block : block, : columns * block]
        sums[first:last] = lines[:, ::block]
        for x in range(1, block):
            sums[first:last] += lines[:, x::block]
    scaled = (sums / block**2 - black_level) / (white_level - black_level)
    return _developed(np.moveaxis(scaled, -1, 0), metadata)


def _developed(camera_rgb: np.ndarray, metadata: ImageMetadata) -> tuple[Samples, list[Tag]]:
    picture = torch.from_numpy(np.ascontiguousarray(camera_rgb))
    color = {"as_shot_white_balance": metadata.as_shot_white_balance, "xyz_to_camera": metadata.xyz_to_camera}
    try:
        exposure_ev = auto_exposure_ev(picture, **color)
    except ValueError:  # a matrix or white balance that makes no sense: the samples are as good as ever
        color = dict.fromkeys(color)
        exposure_ev = auto_exposure_ev(picture, **color)
    srgb = develop_camera_rgb(picture, **color, exposure_ev=exposure_ev)
    return _jpeg((srgb * 255).round().byte().permute(1, 2, 0).numpy())


def _jpeg(srgb: np.ndarray) -> tuple[Samples, list[Tag]]:
    height, width, _ = srgb.shape
    file = io.BytesIO()
    Image.fromarray(srgb).save(file, format="JPEG", quality=_QUALITY, subsampling="4:2:0")
    data = file.getvalue()
    layout = [*size_tags(height, width, 3, 8), Tag(259, TagType.SHORT, 7), Tag(278, TagType.LONG, height)]
    return Samples(layout=layout, sizes=[len(data)], blocks=[data]), [
        Tag(254, TagType.LONG, 1),  # NewSubfileType: a preview
        Tag(262, TagType.SHORT, 6),  # PhotometricInterpretation: YCbCr
        Tag(530, TagType.SHORT, [2, 2]),  # YCbCrSubSampling
        Tag(531, TagType.SHORT, 1),  # YCbCrPositioning: centred, as in JPEG
        Tag(532, TagType.RATIONAL, [0, 255, 128, 255, 128, 255]),  # ReferenceBlackWhite: full range
        Tag(50966, TagType.ASCII, "Stillgrain"),  # PreviewApplicationName
        Tag(50967, TagType.ASCII, version("stillgrain")),
        Tag(50970, TagType.LONG, _SRGB),
    ]
