"""JPEG-LS (ISO/IEC 14495-1) through CharLS."""

from __future__ import annotations

from dataclasses import dataclass, field

import imagecodecs
import numpy as np

from library.inference.compressors.base import why_missing


@dataclass(frozen=True)
class JpegLs:
    family: str = field(default="JPEG-LS", init=False)
    setting: str = field(default="", init=False)
    bits: int = field(default=16, init=False)
    lossless: bool = field(default=True, init=False)

    def available(self) -> str | None:
        return why_missing("JPEGLS")

    def encode(self, samples: np.ndarray, /) -> bytes:
        return bytes(imagecodecs.jpegls_encode(samples))

    def decode(self, content: bytes, /) -> np.ndarray:
        return imagecodecs.jpegls_decode(content)
