"""JPEG XL (ISO/IEC 18181) through libjxl."""

from __future__ import annotations

from dataclasses import dataclass, field

import imagecodecs
import numpy as np

from library.inference.compressors.base import why_missing


@dataclass(frozen=True)
class JpegXl:
    """Lossy, by a distance that the eye is said to see."""

    distance: float
    """Butteraugli distance, above 0 and up to 25: 1 is about the least that is visible."""
    effort: int = 7
    """1 to 10; 7 is libjxl's default."""
    family: str = field(default="JPEG XL", init=False)
    bits: int = field(default=16, init=False)
    lossless: bool = field(default=False, init=False)

    @property
    def setting(self) -> str:
        return f"d{self.distance:g}"

    def available(self) -> str | None:
        return why_missing("JPEGXL")

    def encode(self, samples: np.ndarray, /) -> bytes:
        return bytes(imagecodecs.jpegxl_encode(samples, distance=self.distance, effort=self.effort, numthreads=1))

    def decode(self, content: bytes, /) -> np.ndarray:
        return imagecodecs.jpegxl_decode(content, numthreads=1)


@dataclass(frozen=True)
class JpegXlLossless:
    effort: int = 3
    """1 to 10. On planes of a Bayer mosaic 7 takes 20 times as long as 3, and saves nothing."""
    family: str = field(default="JPEG XL", init=False)
    bits: int = field(default=16, init=False)
    lossless: bool = field(default=True, init=False)

    @property
    def setting(self) -> str:
        return f"e{self.effort}"

    def available(self) -> str | None:
        return why_missing("JPEGXL")

    def encode(self, samples: np.ndarray, /) -> bytes:
        return bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=self.effort, numthreads=1))

    def decode(self, content: bytes, /) -> np.ndarray:
        return imagecodecs.jpegxl_decode(content, numthreads=1)
