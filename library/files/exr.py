"""OpenEXR: scene-linear RGB in half float.

Source: "Technical Introduction to OpenEXR" and "Standard Optional Attributes" (Academy Software Foundation, 3.x);
primaries from ITU-R BT.2020 and BT.709.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import OpenEXR

from library.errors import ImageFileError
from library.files.atomic import whole_file
from library.files.metadata import ImageMetadata

LARGEST_HALF = 65504.0

CHROMATICITIES = {
    "rec2020": (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    "srgb": (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
}
"""CIE 1931 x, y of red, green, blue and white (D65)."""


@dataclass(frozen=True, eq=False)
class ExrImage:
    """The pixels of an EXR's data window and what its header says.

    rgb             float32 (H, W, 3), any value: below 0, above 1, and infinities and NaN where the file has them
    chromaticities  x, y of red, green, blue and white, None when the file has none (as camera RGB must not)
    attributes      text and numbers of the header beyond those that lay out the file
    """

    rgb: np.ndarray
    chromaticities: tuple[float, ...] | None
    attributes: dict[str, str | float]

    @property
    def color_space(self) -> Literal["rec2020", "srgb", "unknown"]:
        """The space whose primaries these are."""
        for name in ("rec2020", "srgb"):
            if self.chromaticities and np.allclose(self.chromaticities, CHROMATICITIES[name], atol=1e-4):
                return name
        return "unknown"


def write_exr(
    path: str | Path,
    rgb: np.ndarray,
    *,
    chromaticities: Literal["rec2020", "srgb"] | None,
    metadata: ImageMetadata | None = None,
    attributes: Mapping[str, str | float] = MappingProxyType({}),
) -> None:
    """Writes half-float R, G, B with ZIPS compression, whole or not at all.

    rgb             floating point (H, W, 3), scene-linear, unclipped: below 0 and above 1 are kept
    chromaticities  of which space the numbers are; None for camera RGB, whose primaries no chromaticities describe
    attributes      header entries beside the standard ones that `metadata` gives
    raises          ImageFileError for NaN, and for values that half float cannot hold
    """
    assert rgb.shape[2:] == (3,)
    _refuse_what_half_cannot_hold(path, rgb)
    header: dict[str, Any] = {
        "compression": OpenEXR.ZIPS_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        **(_standard_attributes(metadata) if metadata else {}),
        **attributes,
    }
    if chromaticities:
        header["chromaticities"] = CHROMATICITIES[chromaticities]
    with (
        whole_file(path) as temporary,
        OpenEXR.File(header, {"RGB": np.ascontiguousarray(rgb, dtype=np.float16)}) as file,
    ):
        file.write(str(temporary))


def read_exr(path: str | Path) -> ExrImage:
    """Reads R, G, B, or one luminance channel as three equal ones, from a scanline or tiled EXR of one part.

    Alpha and further channels are dropped; a mip-map gives its largest level. The data window is what is returned,
    wherever it lies in the display window.

    raises  ImageFileError, saying what is there instead: deep, multi-part or subsampled luminance-chroma images,
            other channels, and damaged files
    """
    if not Path(path).is_file():
        raise ImageFileError(path, "is not there, or is a folder: check the path")
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            return _exr_image(path, file.parts)
    except (RuntimeError, ValueError) as error:
        # OpenEXR's own; a UnicodeDecodeError from a damaged header is a ValueError.
        raise ImageFileError(path, f"is no EXR file or a damaged one ({error}): render or copy it again") from error


def _exr_image(path: str | Path, parts: Sequence[Any]) -> ExrImage:
    if not parts:  # OpenEXR drops a part whose pixels it cannot decode
        raise ImageFileError(path, "is truncated or damaged, its pixels cannot be decoded: render or copy it again")
    if len(parts) > 1:
        raise ImageFileError(path, f"has {len(parts)} parts: save the one you need as a file of its own")
    header, channels = parts[0].header, parts[0].channels
    if header["type"] in (OpenEXR.deepscanline, OpenEXR.deeptile):
        raise ImageFileError(path, "is a deep image: flatten it first")
    if any((channel.xSampling, channel.ySampling) != (1, 1) for channel in channels.values()):
        raise ImageFileError(path, "has subsampled luminance-chroma channels: convert it to R, G and B")
    names = next((names for names in ("RGB", "YYY") if set(names) <= channels.keys()), None)
    if not names:
        raise ImageFileError(path, f"has the channels {', '.join(channels)}: it needs R, G and B, or Y")
    return ExrImage(
        rgb=np.stack([channels[name].pixels for name in names], axis=-1).astype(np.float32),
        chromaticities=header.get("chromaticities"),
        attributes={
            name: value
            for name, value in header.items()
            if isinstance(value, str | int | float) and name not in _LAYOUT_ATTRIBUTES
        },
    )


_LAYOUT_ATTRIBUTES = ("pixelAspectRatio", "screenWindowWidth", "chunkCount", "version")


def _standard_attributes(metadata: ImageMetadata) -> dict[str, str | float]:
    known = {
        "isoSpeed": metadata.iso,
        "expTime": metadata.exposure_time,
        "aperture": metadata.f_number,
        "capDate": metadata.exif_time,
        "cameraMake": metadata.make,
        "cameraModel": metadata.model,
    }
    return {name: value for name, value in known.items() if value}


def _refuse_what_half_cannot_hold(path: str | Path, rgb: np.ndarray) -> None:
    largest = np.abs(rgb).max(initial=0.0)
    if np.isnan(largest):
        raise ImageFileError(path, "would hold NaN: the image was made wrongly and is not written")
    if largest > LARGEST_HALF:
        raise ImageFileError(
            path,
            f"would hold {largest:g}, beyond the largest finite half float, 65504: scale the image down, "
            "so that white is near 1",
        )
