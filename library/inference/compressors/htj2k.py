"""High-throughput JPEG 2000 (ISO/IEC 15444-15) through OpenJPH: the reversible 5/3 wavelet."""

from __future__ import annotations

from dataclasses import dataclass, field

import imagecodecs
import numpy as np

from library.inference.compressors.base import why_missing


@dataclass(frozen=True)
class Htj2kLossless:
    family: str = field(default="HTJ2K", init=False)
    setting: str = field(default="", init=False)
    bits: int = field(default=16, init=False)
    lossless: bool = field(default=True, init=False)

    def available(self) -> str | None:
        return why_missing("HTJ2K")

    def encode(self, samples: np.ndarray, /) -> bytes:
        return bytes(imagecodecs.htj2k_encode(samples, reversible=True))

    def decode(self, content: bytes, /) -> np.ndarray:
        return imagecodecs.htj2k_decode(content)
