"""OpenEXR with DWAA compression: the lossy scheme of film, on scene-linear half floats."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR

from library.files.exr import LARGEST_HALF, read_exr


@dataclass(frozen=True)
class ExrDwaa:
    """A `PictureCompressor`. Half float below 0 and above 1 is as good as between; DWAA has a curve of its own."""

    level: float
    """`dwaCompressionLevel`, from 0 up; 45 is OpenEXR's default, and most files'."""
    family: str = field(default="EXR half DWAA", init=False)
    lossless: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return f"{self.family} {self.level:g}"

    def available(self) -> str | None:
        return (
            None if hasattr(OpenEXR, "DWAA_COMPRESSION") else "this OpenEXR has no DWAA: install OpenEXR 3.3 or later"
        )

    def compress(self, camera_rgb: np.ndarray, /) -> bytes:
        """raises  ValueError for NaN, and for values that half float cannot hold"""
        if not np.abs(camera_rgb).max(initial=0.0) <= LARGEST_HALF:
            raise ValueError(f"the image holds NaN or values beyond {LARGEST_HALF:g}, which half float cannot hold")
        header: dict[str, Any] = {
            "compression": OpenEXR.DWAA_COMPRESSION,
            "type": OpenEXR.scanlineimage,
            "dwaCompressionLevel": float(self.level),
        }
        pixels = np.ascontiguousarray(camera_rgb, dtype=np.float16)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "picture.exr")
            with OpenEXR.File(header, {"RGB": pixels}) as file:
                file.write(str(path))
            return path.read_bytes()

    def decompress(self, content: bytes, /) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "picture.exr")
            path.write_bytes(content)
            return read_exr(path).rgb
