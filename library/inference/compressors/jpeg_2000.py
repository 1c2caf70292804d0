"""JPEG 2000 (ISO/IEC 15444-1) through OpenJPEG: the irreversible 9/7 wavelet."""

from __future__ import annotations

from dataclasses import dataclass, field

import imagecodecs
import numpy as np

from library.inference.compressors.base import why_missing


@dataclass(frozen=True)
class Jpeg2000:
    """Lossy, by a PSNR to reach. Colour goes through the irreversible component transform."""

    decibels: int
    """PSNR of the samples, peak 2^16 - 1, which OpenJPEG aims at: it reaches about this, and does not check."""
    family: str = field(default="JPEG 2000", init=False)
    bits: int = field(default=16, init=False)
    lossless: bool = field(default=False, init=False)

    @property
    def setting(self) -> str:
        return f"{self.decibels} dB"

    def available(self) -> str | None:
        return why_missing("JPEG2K")

    def encode(self, samples: np.ndarray, /) -> bytes:
        # A bare codestream: the boxes of a JP2 file would add 85 bytes that say nothing more.
        return bytes(
            imagecodecs.jpeg2k_encode(
                samples, level=self.decibels, codecformat="j2k", reversible=False, mct=samples.ndim == 3, numthreads=1
            )
        )

    def decode(self, content: bytes, /) -> np.ndarray:
        return imagecodecs.jpeg2k_decode(content, numthreads=1)
