"""AVIF (AV1 Image File Format 1.1) at 12 bits, the most it has, through libavif and libaom."""

from __future__ import annotations

from dataclasses import dataclass, field

import imagecodecs
import numpy as np

from library.inference.compressors.base import why_missing


@dataclass(frozen=True)
class Avif:
    quality: int
    """Of libavif, 0 to 99; 100 would be lossless."""
    speed: int = 6
    """0, the slowest, to 10; 6 is libavif's default."""
    family: str = field(default="AVIF 12-bit", init=False)
    bits: int = field(default=12, init=False)
    lossless: bool = field(default=False, init=False)

    @property
    def setting(self) -> str:
        return f"q{self.quality}"

    def available(self) -> str | None:
        return why_missing("AVIF")

    def encode(self, samples: np.ndarray, /) -> bytes:
        # imagecodecs 2026.3.6 codes a gray image without loss, whatever the quality. So it is given as a colour image
        # without any: its chroma planes are flat, and take a few bytes.
        pixels = samples if samples.ndim == 3 else np.repeat(samples[..., None], 3, axis=-1)
        layout = "444" if samples.ndim == 3 else "420"
        return _IS_GRAY[samples.ndim == 2] + bytes(
            imagecodecs.avif_encode(
                pixels, level=self.quality, speed=self.speed, bitspersample=12, pixelformat=layout, numthreads=1
            )
        )

    def decode(self, content: bytes, /) -> np.ndarray:
        pixels = imagecodecs.avif_decode(content[1:], numthreads=1)
        # In gray, red and blue differ from green by the rounding of flat chroma only.
        return np.ascontiguousarray(pixels[..., 1]) if content[:1] == _IS_GRAY[True] else pixels


_IS_GRAY = {True: b"\x01", False: b"\x00"}
