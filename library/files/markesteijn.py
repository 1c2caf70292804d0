"""Frank Markesteijn's demosaic of X-Trans mosaics, as LibRaw has it, for any mosaic: of a raw, denoised or simulated.

LibRaw only develops files, so that it is given the mosaic as a DNG in memory, and asked for nothing but the demosaic:
no white balance, no colour matrix, no curve, no brightening, no clipping.
"""

from __future__ import annotations

import io

import numpy as np
import rawpy
import torch
from torch import Tensor

from library.files.tiff import Tag, TagType, tiff_header
from library.ops.cfa import BAYER_PHASES, cfa_levels, cfa_period, cfa_tile, pad_mosaic, shift_cfa
from library.ops.demosaic import demosaic_malvar

_SMALLEST_SIDE = 512
"""LibRaw works in tiles of this size and refuses, or reads beyond, what is smaller."""
_BORDER = 12
"""LibRaw only averages neighbours in the outer 8 lines; two tiles keep the phase."""


def demosaic_markesteijn(
    mosaic: Tensor, *, cfa: str, as_shot_white_balance: Tensor | np.ndarray | None = None
) -> Tensor:
    """Three passes of the algorithm in four directions, the most homogeneous of which are averaged.

    mosaic                 (H, W) scene-linear and finite, at least 6 x 6, top-left pixel at CFA tile (0, 0); below 0
                           and above 1 legal
    as_shot_white_balance  (3,) gains; colours are balanced by them while directions are compared, and back again after.
                           None: as they are
    returns                (3, H, W) float32 camera RGB in the mosaic's scale and colours, unclipped. Measured samples
                           are unchanged; the others are rounded to 1 / 65535 of the mosaic's own range

    ValueError for a CFA that is not X-Trans, or a mosaic smaller than a tile.
    """
    if cfa_period(cfa) != 6:
        raise ValueError(f"cfa is {cfa!r}, which is not X-Trans: use a demosaic for Bayer mosaics")
    height, width = mosaic.shape
    mosaic = mosaic.detach().to("cpu", torch.float32)
    gains = torch.ones(3)
    if as_shot_white_balance is not None:
        gains = torch.tensor(as_shot_white_balance.tolist())
    padded = pad_mosaic(
        mosaic,
        cfa,
        top=_BORDER,
        left=_BORDER,
        bottom=max(_BORDER, _SMALLEST_SIDE - height - _BORDER),
        right=max(_BORDER, _SMALLEST_SIDE - width - _BORDER),
    )
    balanced = padded * cfa_levels(gains[cfa_tile(shift_cfa(cfa, -_BORDER, -_BORDER))], *padded.shape)
    # All of 16 bits for the range that is there: LibRaw would cut what lies below 0 or above 65535.
    lowest = min(float(balanced.min()), 0.0)
    span = max(float(balanced.max()) - lowest, 1e-6)
    codes = ((balanced - lowest) * (65535 / span)).round().to(torch.uint16).numpy()
    rgb = _demosaic(codes, cfa)[_BORDER : _BORDER + height, _BORDER : _BORDER + width]
    camera_rgb = torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1) * (span / 65535) + lowest
    camera_rgb /= gains[:, None, None]
    labels = cfa_levels(cfa_tile(cfa), height, width)
    for color in range(3):
        camera_rgb[color] = torch.where(labels == color, mosaic, camera_rgb[color])
    return camera_rgb


def _demosaic(codes: np.ndarray, cfa: str) -> np.ndarray:
    """uint16 (H, W) to (H, W, 3), at least `_SMALLEST_SIDE` a side; `cfa` from the top-left, 12 lines further too."""
    with rawpy.imread(io.BytesIO(_dng(codes, cfa))) as raw:
        rgb = raw.postprocess(
            # For X-Trans anything better than bilinear and VNG is Markesteijn's, here with three passes.
            demosaic_algorithm=rawpy.DemosaicAlgorithm.AHD,
            output_color=rawpy.ColorSpace.raw,
            output_bps=16,
            gamma=(1, 1),
            user_wb=[1, 1, 1, 1],
            user_black=0,
            user_sat=65535,
            no_auto_scale=True,
            no_auto_bright=True,
            adjust_maximum_thr=0,
            user_flip=0,
        )
    assert rgb.shape == (*codes.shape, 3)
    return rgb


def _dng(codes: np.ndarray, cfa: str) -> bytes:
    height, width = codes.shape

    def header(start: int) -> bytes:
        return tiff_header(
            [
                Tag(254, TagType.LONG, 0),  # NewSubfileType: the main image
                Tag(256, TagType.LONG, width),
                Tag(257, TagType.LONG, height),
                Tag(258, TagType.SHORT, 16),  # BitsPerSample
                Tag(259, TagType.SHORT, 1),  # Compression: none
                Tag(262, TagType.SHORT, 32803),  # PhotometricInterpretation: CFA
                Tag(273, TagType.LONG, start),  # StripOffsets
                Tag(277, TagType.SHORT, 1),  # SamplesPerPixel
                Tag(278, TagType.LONG, height),  # RowsPerStrip
                Tag(279, TagType.LONG, 2 * height * width),  # StripByteCounts
                Tag(33421, TagType.SHORT, [6, 6]),  # CFARepeatPatternDim
                Tag(33422, TagType.BYTE, bytes("RGB".index(letter) for letter in cfa)),  # CFAPattern
                Tag(50706, TagType.BYTE, bytes([1, 4, 0, 0])),  # DNGVersion
                Tag(50708, TagType.ASCII, "Mosaic"),  # UniqueCameraModel
                Tag(50717, TagType.LONG, 65535),  # WhiteLevel
            ]
        )

    return header(len(header(0))) + np.ascontiguousarray(codes, "<u2").tobytes()


def demosaic(mosaic: Tensor, *, cfa: str, as_shot_white_balance: Tensor | np.ndarray | None = None) -> Tensor:
    """What goes before a model of pictures, or stands in for one: Malvar's demosaic of a Bayer mosaic, Markesteijn's of
    an X-Trans one. See `demosaic_malvar` and `demosaic_markesteijn`, whose errors are its own.

    mosaic   (H, W) scene-linear, top-left pixel at CFA tile (0, 0)
    returns  (3, H, W) float32 camera RGB, no white balance, unclipped
    """
    if cfa in BAYER_PHASES:
        return demosaic_malvar(mosaic, cfa=cfa)
    return demosaic_markesteijn(mosaic, cfa=cfa, as_shot_white_balance=as_shot_white_balance)
