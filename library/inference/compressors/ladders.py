"""The settings that make a curve of each codec, from about 0.05 to 4 bits per photosite where noise is moderate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from library.inference.compressors.avif import Avif
from library.inference.compressors.base import (
    LosslessCompressor,
    LosslessMosaic,
    MosaicCompressor,
    PictureCompressor,
    SampleCodec,
    StabilizedMosaic,
    StabilizedPicture,
    Stabilizer,
)
from library.inference.compressors.display import DisplayPicture
from library.inference.compressors.exr import ExrDwaa
from library.inference.compressors.htj2k import Htj2kLossless
from library.inference.compressors.jpeg_2000 import Jpeg2000
from library.inference.compressors.jpeg_ls import JpegLs
from library.inference.compressors.jpeg_xl import JpegXl, JpegXlLossless

_AS_THE_NETWORKS = Stabilizer()
# Dense where rates are low: a curve of noisy input, judged by the clean truth, rises only there.
_DISTANCES = (15, 11, 8, 6, 4, 3, 2, 1, 0.6, 0.3)  # beyond 15, fewer bytes looked better on noise
_DECIBELS = (26, 28, 30, 31, 32, 33, 34, 36, 39, 43)
_QUALITIES = (5, 12, 20, 28, 36, 44, 55, 68, 80, 92)
_DWAA_LEVELS = (50000, 20000, 12000, 8000, 5000, 3500, 2500, 1500, 1000, 500)


@overload
def ladder(kind: Literal["mosaic"], stabilizer: Stabilizer = ...) -> list[MosaicCompressor]: ...
@overload
def ladder(kind: Literal["lossless"], stabilizer: Stabilizer = ...) -> list[LosslessCompressor]: ...
@overload
def ladder(kind: Literal["display"]) -> list[PictureCompressor]: ...
@overload
def ladder(kind: Literal["picture"], stabilizer: Stabilizer = ...) -> list[PictureCompressor]: ...
def ladder(
    kind: Literal["mosaic", "lossless", "display", "picture"], stabilizer: Stabilizer = _AS_THE_NETWORKS
) -> Sequence[MosaicCompressor | LosslessCompressor | PictureCompressor]:
    """Every compressor of a kind: family by family, each from few bytes to many. A lossless family has one member.

    kind        mosaic, lossless: of raws; picture: of what is made of raws; display: of what came from sRGB
    stabilizer  of lossy codecs of integers, for raws
    """
    if kind == "lossless":
        return [LosslessMosaic(codec) for codec in (JpegXlLossless(), JpegLs(), Htj2kLossless())]
    if kind == "mosaic":
        return [StabilizedMosaic(codec, stabilizer) for codec in _lossy()]
    integers = DisplayPicture if kind == "display" else lambda codec: StabilizedPicture(codec, stabilizer)
    return [*map(integers, _lossy()), *map(ExrDwaa, _DWAA_LEVELS)]


def _lossy() -> list[SampleCodec]:
    return [*map(JpegXl, _DISTANCES), *map(Jpeg2000, _DECIBELS), *map(Avif, _QUALITIES)]
