"""Lossless JPEG in tiles, as DNG compresses 16-bit samples: about three quarters of their size, and every bit kept.

libjpeg-turbo encodes; LibRaw, darktable and Adobe's programs decode it.

Source: ITU-T T.81 (1992), annex H; DNG Specification 1.4.0.0, chapter 3, "Compression".
"""

from __future__ import annotations

import imagecodecs
import numpy as np

from library.files.tiff import Samples, Tag, TagType, size_tags

_TILE_SIDES = (256, 240, 128, 112, 64, 48, 32, 16)
_COMPRESSION = 7
_LEFT_NEIGHBOUR = 1
"""Predictor by table H.1. On two components it is the best of the seven for noisy mosaics."""


def lossless_jpeg_tiles(samples: np.ndarray) -> Samples | None:
    """16-bit samples, compressed.

    samples  uint16 (H, W): a mosaic, of which two neighbouring columns become the two components of a pixel, so that
             each photosite is predicted from the next of its own colour; or (H, W, 3)
    returns  None for an image narrower than the smallest tile
    """
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    # LibRaw 0.22 misreads tiles wider than the image, and tiles of two components that are half as wide as it.
    side = next((side for side in _TILE_SIDES if side <= width and (channels > 1 or 2 * side != width)), None)
    if side is None:
        return None
    tiles = [
        _encoded(samples[top : top + side, left : left + side], side)
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return Samples(
        layout=[
            *size_tags(height, width, channels, 16),
            Tag(259, TagType.SHORT, _COMPRESSION),
            Tag(322, TagType.LONG, side),  # TileWidth
            Tag(323, TagType.LONG, side),  # TileLength
            Tag(339, TagType.SHORT, [1] * channels),  # SampleFormat: unsigned integer
        ],
        sizes=[len(tile) for tile in tiles],
        blocks=tiles,
        tiled=True,
    )


def _encoded(tile: np.ndarray, side: int) -> bytes:
    height, width = tile.shape[:2]
    # Whole tiles only; what is added repeats the last samples, which costs next to nothing.
    beyond = [(0, side - height), (0, side - width), (0, 0)][: tile.ndim]
    whole = np.ascontiguousarray(np.pad(tile, beyond, mode="edge"))
    pixels = whole.reshape(side, side // 2, 2) if tile.ndim == 2 else whole
    space = None if tile.ndim == 2 else "RGB"
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels,
            lossless=True,
            bitspersample=16,
            predictor=_LEFT_NEIGHBOUR,
            colorspace=space,
            outcolorspace=space,
        )
    )
