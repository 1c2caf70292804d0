"""OpenEXR: scene-linear RGB in half or single float.

Source: "Technical Introduction to OpenEXR" and "Standard Optional Attributes" (Academy Software Foundation, 3.x).
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
from library.files.icc import PRIMARIES, Space
from library.files.luminance_chroma import luminance_chroma_to_rgb
from library.files.metadata import ImageMetadata
from library.files.sizes import refuse_claims_beyond_reason
from library.ops.color import XYZ_TO_LIN_REC2020, adaptation_matrix

LARGEST_HALF = 65504.0

CHROMATICITIES = {
    space: tuple(number for point in (*primaries, white) for number in point)
    for space, (primaries, white) in PRIMARIES.items()
}
"""CIE 1931 x, y of red, green, blue and white."""

Compression = Literal["zips", "zip", "piz", "dwaa", "none"]
"""All but dwaa are lossless: zips for reading single lines, zip for size, piz for noisy pictures."""

_COMPRESSIONS = {
    "zips": OpenEXR.ZIPS_COMPRESSION,
    "zip": OpenEXR.ZIP_COMPRESSION,
    "piz": OpenEXR.PIZ_COMPRESSION,
    "dwaa": OpenEXR.DWAA_COMPRESSION,
    "none": OpenEXR.NO_COMPRESSION,
}


@dataclass(frozen=True, eq=False)
class ExrImage:
    """The pixels of an EXR's data window and what its header says.

    rgb             float32 (H, W, 3), any value: below 0, above 1, and infinities and NaN where the file has them
    chromaticities  x, y of red, green, blue and white, None when the file has none (as camera RGB must not)
    attributes      text and numbers of the header beyond those that lay out the file
    data_window     left, top, right and bottom, inclusive, of the pixels that there are
    display_window  the same of the frame that they belong into
    """

    rgb: np.ndarray
    chromaticities: tuple[float, ...] | None
    attributes: dict[str, str | float]
    data_window: tuple[int, int, int, int]
    display_window: tuple[int, int, int, int]

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
    chromaticities: Space | None,
    metadata: ImageMetadata | None = None,
    attributes: Mapping[str, str | float] = MappingProxyType({}),
    pixel_type: Literal["half", "float"] = "half",
    compression: Compression = "zips",
) -> None:
    """Writes R, G, B, whole or not at all.

    rgb             floating point (H, W, 3), scene-linear, unclipped: below 0 and above 1 are kept
    chromaticities  of which space the numbers are; None for camera RGB, whose primaries no chromaticities describe
    attributes      header entries beside the standard ones that `metadata` gives
    raises          ImageFileError for NaN, and for values that the pixel type cannot hold
    """
    assert rgb.shape[2:] == (3,)
    dtype = np.float16 if pixel_type == "half" else np.float32
    _refuse_what_pixels_cannot_hold(path, rgb, dtype)
    header: dict[str, Any] = {
        "compression": _COMPRESSIONS[compression],
        "type": OpenEXR.scanlineimage,
        **(_standard_attributes(metadata) if metadata else {}),
        **attributes,
    }
    if chromaticities:
        header["chromaticities"] = CHROMATICITIES[chromaticities]
    with (
        whole_file(path) as temporary,
        OpenEXR.File(header, {"RGB": np.ascontiguousarray(rgb, dtype=dtype)}) as file,
    ):
        file.write(str(temporary))


def read_exr(path: str | Path, *, part: str | None = None) -> ExrImage:
    """Reads R, G, B, or luminance with chroma, or luminance alone as three equal channels, scanlines or tiles.

    Alpha and further channels are dropped; a mip- or rip-map gives its largest level. The data window is what is
    returned, wherever it lies in the display window.

    part    name of the one to read, where several hold a picture, as the two views of a stereo pair do
    raises  ImageFileError, saying what is there instead: deep images, whole numbers, other channels, several pictures,
            and damaged files
    """
    if not Path(path).is_file():
        raise ImageFileError(path, "is not there, or is a folder: check the path")
    _refuse_sizes_that_lie(Path(path))
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            return _exr_image(path, _the_part(path, file.parts, part))
    except ImageFileError:
        raise
    except Exception as error:
        # OpenEXR's RuntimeError and ValueError; and a damaged header makes its binding trip over anything.
        raise ImageFileError(path, f"is no EXR file or a damaged one ({error}): render or copy it again") from error


def exr_rgb_to_lin_rec2020(rgb: np.ndarray, chromaticities: Sequence[float]) -> np.ndarray:
    """A picture in the space of its chromaticities, in linear Rec.2020 (D65, by Bradford's adaptation). XYZ is taken as
    it is: the white that its file names only says that X, Y and Z are of one scale.

    rgb             (H, W, 3); NaN and infinities spread to the pixel's other channels
    chromaticities  x, y of red, green, blue and white
    returns         float32 (H, W, 3)

    LinAlgError for primaries on one line, and a white without luminance.
    """
    to_xyz = _rgb_to_xyz(chromaticities)
    if not np.allclose(chromaticities[:6], _XYZ_PRIMARIES, atol=1e-4):
        x, y = chromaticities[6:8]
        to_xyz = adaptation_matrix((x, y)).numpy() @ to_xyz
    matrix = XYZ_TO_LIN_REC2020.numpy() @ to_xyz
    with np.errstate(invalid="ignore"):
        return (rgb @ matrix.T).astype(np.float32)


_XYZ_PRIMARIES = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
_LARGEST_PIXEL = 16  # bytes of four channels in single float


def _refuse_sizes_that_lie(path: Path) -> None:
    """A header's word for a size is believed within what so many bytes can hold: OpenEXR allocates all of it first."""
    try:
        with OpenEXR.File(str(path), header_only=True) as file:
            windows = [_window(part.header["dataWindow"]) for part in file.parts]
    except Exception as error:
        raise ImageFileError(path, f"is no EXR file or a damaged one ({error}): render or copy it again") from error
    for left, top, right, bottom in windows:
        refuse_claims_beyond_reason(path, bottom - top + 1, right - left + 1, _LARGEST_PIXEL)


def _the_part(path: str | Path, parts: Sequence[Any], name: str | None) -> Any:
    if not parts:  # OpenEXR drops a part whose pixels it cannot decode
        raise ImageFileError(path, "is truncated or damaged, its pixels cannot be decoded: render or copy it again")
    if len(parts) == 1 and name is None:
        return parts[0]
    pictures = {part.header.get("name", ""): part for part in parts if _picture_channels(part.channels)}
    if name in pictures:
        return pictures[name]
    if name is None and len(pictures) == 1:
        return next(iter(pictures.values()))
    raise ImageFileError(
        path,
        f"has {len(parts)} parts, of which these hold a picture: {', '.join(pictures) or 'none'}; name one of them, or "
        "save it as a file of its own",
    )


def _picture_channels(channels: Mapping[str, Any]) -> str | None:
    if {"Y", "RY", "BY"} <= channels.keys():
        return "YC"
    return next((names for names in ("RGB", "YYY") if set(names) <= channels.keys()), None)


def _window(window: Any) -> tuple[int, int, int, int]:
    (left, top), (right, bottom) = window
    return int(left), int(top), int(right), int(bottom)


def _exr_image(path: str | Path, part: Any) -> ExrImage:
    header, channels = part.header, part.channels
    if header["type"] in (OpenEXR.deepscanline, OpenEXR.deeptile):
        raise ImageFileError(path, "is a deep image: flatten it first")
    names = _picture_channels(channels)
    if not names:
        raise ImageFileError(path, f"has the channels {', '.join(channels)}: it needs R, G and B, or Y")
    used = [channels[name] for name in (("Y", "RY", "BY") if names == "YC" else names)]
    if any(channel.pixels.dtype.kind != "f" for channel in used):
        raise ImageFileError(path, "has whole numbers in its channels, which are no light: convert it to half or float")
    sampling = [(channel.xSampling, channel.ySampling) for channel in used]
    window = _window(header["dataWindow"])
    chromaticities = header.get("chromaticities")
    if names == "YC" and sampling[0] == (1, 1) and set(sampling[1:]) <= {(1, 1), (2, 2)}:
        weights = _luminance_weights(path, chromaticities)
        planes = [channel.pixels for channel in used]
        rgb = luminance_chroma_to_rgb(*planes, top=window[1], left=window[0], luminance_weights=weights)
    elif set(sampling) == {(1, 1)}:
        rgb = np.stack([channel.pixels for channel in used], axis=-1).astype(np.float32)
    else:
        raise ImageFileError(path, f"has channels subsampled by {sampling}, as no camera or renderer does: convert it")
    return ExrImage(
        rgb=rgb,
        data_window=window,
        display_window=_window(header["displayWindow"]),
        chromaticities=chromaticities,
        attributes={
            name: value
            for name, value in header.items()
            if isinstance(value, str | int | float) and name not in _LAYOUT_ATTRIBUTES
        },
    )


def _rgb_to_xyz(chromaticities: Sequence[float]) -> np.ndarray:
    """(3, 3), white at luminance 1. Unlike the one in `library.ops.color` it takes primaries without luminance, as
    those of XYZ are (SMPTE RP 177-1993).

    raises  LinAlgError for primaries on one line, and a white without luminance
    """
    points = np.array(chromaticities, np.float64).reshape(4, 2)
    *primaries, white = np.column_stack([points, 1 - points.sum(axis=1)])
    if white[1] <= 0:
        raise np.linalg.LinAlgError("white has no luminance")
    columns = np.stack(primaries, axis=1)
    return columns * np.linalg.solve(columns, white / white[1])


def _luminance_weights(path: str | Path, chromaticities: Sequence[float] | None) -> np.ndarray:
    """How much red, green and blue give to luminance; without chromaticities those of Rec.709, OpenEXR's default."""
    points = chromaticities or CHROMATICITIES["srgb"]
    try:
        weights = _rgb_to_xyz(points)[1]
    except np.linalg.LinAlgError:
        weights = np.zeros(3)
    if not np.isfinite(weights).all() or abs(weights[1]) < 1e-6:
        raise ImageFileError(
            path, f"has the chromaticities {list(points)}, of which no luminance can be made: repair them"
        )
    return weights


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


def _refuse_what_pixels_cannot_hold(path: str | Path, rgb: np.ndarray, dtype: type[np.floating]) -> None:
    largest = np.abs(rgb).max(initial=0.0)
    if np.isnan(largest):
        raise ImageFileError(path, "would hold NaN: the image was made wrongly and is not written")
    limit = float(np.finfo(dtype).max)
    if largest > limit:
        kind = "half float, 65504" if dtype is np.float16 else f"float, {limit:g}"
        raise ImageFileError(
            path,
            f"would hold {largest:g}, beyond the largest finite {kind}: scale the image down, so that white is near 1",
        )
