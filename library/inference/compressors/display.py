"""Pictures for a screen: sRGB codes, which a codec of pictures takes as it was made to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from library.inference.compressors.base import SampleCodec
from library.ops.color import lin_rec2020_to_lin_srgb, lin_srgb_to_lin_rec2020
from library.ops.transfer import srgb_decode, srgb_encode


@dataclass(frozen=True)
class DisplayPicture:
    """A `PictureCompressor` of linear Rec.2020 that came from sRGB: beyond its gamut and 0 ... 1 it clips.

    Adds nothing to the codestream. A lossless codec of n bits gives pictures of n bits back.
    """

    codec: SampleCodec

    @property
    def family(self) -> str:
        return self.codec.family

    @property
    def name(self) -> str:
        return f"{self.family} {self.codec.setting}".rstrip()

    @property
    def lossless(self) -> bool:
        return self.codec.lossless

    def available(self) -> str | None:
        return self.codec.available()

    def compress(self, lin_rec2020: np.ndarray, /) -> bytes:
        planes = torch.from_numpy(np.ascontiguousarray(lin_rec2020)).permute(2, 0, 1)
        srgb = srgb_encode(lin_rec2020_to_lin_srgb(planes).clamp(0, 1))
        codes = (srgb * (2**self.codec.bits - 1)).round().permute(1, 2, 0).numpy()
        return self.codec.encode(np.ascontiguousarray(codes, dtype=np.uint16))

    def decompress(self, content: bytes, /) -> np.ndarray:
        codes = self.codec.decode(content).astype(np.float32) / np.float32(2**self.codec.bits - 1)
        lin_rec2020 = lin_srgb_to_lin_rec2020(srgb_decode(torch.from_numpy(codes).permute(2, 0, 1)))
        return np.ascontiguousarray(lin_rec2020.permute(1, 2, 0).numpy())
