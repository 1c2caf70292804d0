"""Mosaics and pictures for codecs that were made for neither: what every classical compressor here has in common.

A codec of unsigned integers is given samples in which noise is about equal everywhere, as it expects of a picture, and
a mosaic as its four planes, one below the other: interleaved they take half as many bytes again. What this adds to a
codestream is written before it and counted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import imagecodecs
import numpy as np
import torch

from library.ops.cfa import crop_from_rggb, pack_cfa, pad_to_rggb, unpack_cfa
from library.ops.transfer import root_decode, root_encode


class Compressor(Protocol):
    """One codec at one setting. Equal input gives equal bytes on one machine."""

    @property
    def family(self) -> str:
        """The curve it is a point of: its members differ by their setting alone."""
        ...

    @property
    def name(self) -> str:
        """Family and setting; no other compressor has it."""
        ...

    @property
    def lossless(self) -> bool: ...

    def available(self) -> str | None:
        """None, or why it cannot run here, for a table to print."""
        ...

    def compress(self, image: np.ndarray, /) -> bytes:
        """All that `decompress` needs: its length is that of a file."""
        ...

    def decompress(self, content: bytes, /) -> np.ndarray:
        """An image of the shape and type that was compressed."""
        ...


class MosaicCompressor(Compressor, Protocol):
    """Takes float32 (H, W), scene-linear RGGB, finite, black 0, white 1, below 0 and above 1 legal; from 2 x 2 up.

    The bytes are of the photosites given: bpp is 8 * bytes / (H * W).
    """


class LosslessCompressor(Compressor, Protocol):
    """Takes uint16 (H, W), the DN of an RGGB mosaic, of any size from 2 x 2, and gives back exactly these."""


class PictureCompressor(Compressor, Protocol):
    """Takes float32 (H, W, 3), scene-linear camera RGB, balanced or not, black 0, white 1, finite, below 0 and above 1
    legal."""


class SampleCodec(Protocol):
    """A codec of unsigned integers at one setting."""

    @property
    def family(self) -> str: ...

    @property
    def setting(self) -> str:
        """As short as a table wants it; empty when there is only one."""
        ...

    @property
    def bits(self) -> int:
        """Of each sample: all are below 2^bits."""
        ...

    @property
    def lossless(self) -> bool: ...

    def available(self) -> str | None:
        """None, or why it cannot run here."""
        ...

    def encode(self, samples: np.ndarray, /) -> bytes:
        """samples  uint16 (H, W) or (H, W, 3), contiguous"""
        ...

    def decode(self, content: bytes, /) -> np.ndarray:
        """uint16 of the shape that was encoded."""
        ...


def why_missing(codec: str) -> str | None:
    """None, or that this build of imagecodecs has no such encoder.

    codec  as imagecodecs spells it: `JPEGXL`
    """
    if getattr(imagecodecs, codec).available:
        return None
    return f"imagecodecs {imagecodecs.__version__} is built without {codec} here: install its wheel from PyPI"


# --- scene-linear to integers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stabilizer:
    """`root_encode`, then whole numbers: shot noise of equal variance (Anscombe 1948).

    The integers span the encoded values of scene-linear `darkest` ... `brightest`, or of the image's own where it goes
    beyond: nothing is clipped.
    """

    offset: float = 0.02
    """Above 0: of the square root, as of `root_encode`. For noise of variance a * x + b, the curve of equal noise has
    b / a; the default is the networks'."""
    darkest: float = -1 / 32
    brightest: float = 1.25

    def quantize(self, linear: np.ndarray, bits: int) -> tuple[bytes, np.ndarray]:
        """What `_restore` needs to know, and uint16 of the image's shape, below 2^bits.

        linear  float32, scene-linear
        raises  ValueError for NaN and infinity
        """
        encoded = root_encode(torch.from_numpy(np.ascontiguousarray(linear, dtype=np.float32)), self.offset).numpy()
        ends = root_encode(torch.tensor([self.darkest, self.brightest]), self.offset).tolist()
        darkest, brightest = float(encoded.min()), float(encoded.max())
        if not np.isfinite([darkest, brightest]).all():
            raise ValueError("the image holds NaN or infinity, which no codec takes: it was made wrongly")
        low, high = min(ends[0], darkest), max(ends[1], brightest)
        prefix = _STABILIZER.pack(self.offset, low, high)
        _, low, high = _STABILIZER.unpack(prefix)  # float32, as the decoder will have them
        samples = np.rint((encoded - low) * ((2**bits - 1) / (high - low)))
        return prefix, samples.clip(0, 2**bits - 1).astype(np.uint16)


_STABILIZER = struct.Struct("<3f")  # offset; the encoded values of 0 and of the largest sample
_PADDING = struct.Struct("<2B")  # lines and columns that make the sides even


def _restore(prefix: bytes, samples: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `Stabilizer.quantize`: float32, scene-linear."""
    offset, low, high = _STABILIZER.unpack(prefix)
    encoded = samples.astype(np.float32) * np.float32((high - low) / (2**bits - 1)) + np.float32(low)
    return root_decode(torch.from_numpy(encoded), offset).numpy()


# --- a mosaic to planes -----------------------------------------------------------------------------------------------


def _to_planes(mosaic: np.ndarray) -> tuple[bytes, np.ndarray]:
    """What `_from_planes` needs to know, and R, G1, G2, B one below the other: (4h, w)."""
    padded = pad_to_rggb(torch.from_numpy(np.ascontiguousarray(mosaic)), "RGGB")
    planes = pack_cfa(padded).flatten(0, 1)
    return _PADDING.pack(mosaic.shape[0] % 2, mosaic.shape[1] % 2), planes.numpy()


def _from_planes(prefix: bytes, planes: np.ndarray) -> np.ndarray:
    rows, columns = _PADDING.unpack(prefix)
    mosaic = unpack_cfa(torch.from_numpy(np.ascontiguousarray(planes)).unflatten(0, (4, -1)))
    height, width = mosaic.shape[0] - rows, mosaic.shape[1] - columns
    return crop_from_rggb(mosaic, "RGGB", height=height, width=width).numpy()


# --- compressors ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StabilizedMosaic:
    """A `MosaicCompressor`: stabilised planes. The codec may be lossless: then all that is lost is the rounding."""

    codec: SampleCodec
    stabilizer: Stabilizer = Stabilizer()

    @property
    def family(self) -> str:
        return f"{self.codec.family} planes"

    @property
    def name(self) -> str:
        return f"{self.family} {self.codec.setting}".rstrip()

    @property
    def lossless(self) -> bool:
        return False

    def available(self) -> str | None:
        return self.codec.available()

    def compress(self, mosaic: np.ndarray, /) -> bytes:
        padding, planes = _to_planes(mosaic)
        scale, samples = self.stabilizer.quantize(planes, self.codec.bits)
        return padding + scale + self.codec.encode(samples)

    def decompress(self, content: bytes, /) -> np.ndarray:
        padding, scale, codestream = _split(content, _PADDING.size, _STABILIZER.size)
        return _from_planes(padding, _restore(scale, self.codec.decode(codestream), self.codec.bits))


@dataclass(frozen=True)
class LosslessMosaic:
    """A `LosslessCompressor`: the planes as they are, by a lossless codec of 16 bits."""

    codec: SampleCodec

    def __post_init__(self) -> None:
        assert self.codec.lossless
        assert self.codec.bits == 16

    @property
    def family(self) -> str:
        return f"{self.codec.family} lossless"

    @property
    def name(self) -> str:
        return f"{self.family} {self.codec.setting}".rstrip()

    @property
    def lossless(self) -> bool:
        return True

    def available(self) -> str | None:
        return self.codec.available()

    def compress(self, mosaic: np.ndarray, /) -> bytes:
        assert mosaic.dtype == np.uint16
        padding, planes = _to_planes(mosaic)
        return padding + self.codec.encode(planes)

    def decompress(self, content: bytes, /) -> np.ndarray:
        padding, codestream = _split(content, _PADDING.size)
        return _from_planes(padding, self.codec.decode(codestream))


@dataclass(frozen=True)
class StabilizedPicture:
    """A `PictureCompressor`: the picture through the same curve, which to a codec of pictures is about a gamma."""

    codec: SampleCodec
    stabilizer: Stabilizer = Stabilizer()

    @property
    def family(self) -> str:
        return self.codec.family

    @property
    def name(self) -> str:
        return f"{self.family} {self.codec.setting}".rstrip()

    @property
    def lossless(self) -> bool:
        return False

    def available(self) -> str | None:
        return self.codec.available()

    def compress(self, camera_rgb: np.ndarray, /) -> bytes:
        scale, samples = self.stabilizer.quantize(camera_rgb, self.codec.bits)
        return scale + self.codec.encode(samples)

    def decompress(self, content: bytes, /) -> np.ndarray:
        scale, codestream = _split(content, _STABILIZER.size)
        return _restore(scale, self.codec.decode(codestream), self.codec.bits)


def _split(content: bytes, *sizes: int) -> list[bytes]:
    """The pieces of these sizes that it begins with, and the rest."""
    pieces = []
    for size in sizes:
        pieces.append(content[:size])
        content = content[size:]
    return [*pieces, content]
