"""Developed pictures in files that lose what is hardly seen: JPEG and JPEG XL, in sRGB, with EXIF.

Source: ITU-T T.81 (JPEG); ISO/IEC 18181-2:2021, clauses 5 to 9 (the boxes of a JPEG XL file); EXIF 2.32, 4.7.2.
"""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from library.files.atomic import whole_file
from library.files.metadata import ImageMetadata, metadata_tags
from library.files.picture import srgb_profile
from library.files.tiff import tiff_header

_FULL_COLOR_ABOVE = 90


def write_jpeg(path: str | Path, srgb: np.ndarray, metadata: ImageMetadata | None = None, *, quality: int = 92) -> None:
    """Writes an 8-bit JPEG with an sRGB profile and EXIF, whole or not at all.

    srgb     uint8 (H, W, 3), encoded, at most 65,535 pixels a side
    quality  1 to 100, as libjpeg counts it; above 90 colour is kept at full size
    """
    assert srgb.dtype == np.uint8
    exif = b"Exif\0\0" + tiff_header(*metadata_tags(metadata)) if metadata else b""
    with whole_file(path) as temporary:
        Image.fromarray(srgb).save(
            temporary,
            format="JPEG",
            quality=quality,
            subsampling="4:4:4" if quality > _FULL_COLOR_ABOVE else "4:2:0",
            optimize=True,
            icc_profile=srgb_profile(),
            exif=exif,
        )


def write_jxl(
    path: str | Path, srgb: np.ndarray, metadata: ImageMetadata | None = None, *, distance: float = 1.0
) -> None:
    """Writes a JPEG XL file in sRGB with EXIF, whole or not at all.

    srgb      uint8 or uint16 (H, W, 3), encoded
    distance  Butteraugli distance, above 0 and up to 25: 1 is about the least that is visible
    """
    codestream = imagecodecs.jpegxl_encode(
        np.ascontiguousarray(srgb), distance=distance, effort=4, usecontainer=False, numthreads=1
    )
    content = [_box(b"JXL ", b"\r\n\x87\n"), _box(b"ftyp", b"jxl \0\0\0\0jxl ")]
    if metadata:
        content.append(_box(b"Exif", bytes(4) + tiff_header(*metadata_tags(metadata))))  # 4 bytes: where TIFF begins
    content.append(_box(b"jxlc", bytes(codestream)))
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join(content))


def _box(kind: bytes, content: bytes) -> bytes:
    size = 8 + len(content)
    if size < 2**32:
        return size.to_bytes(4) + kind + content
    return (1).to_bytes(4) + kind + (size + 8).to_bytes(8) + content
