"""DNG files: a CFA mosaic, or demosaiced camera RGB as LinearRaw, with what a raw converter needs to develop them.

16 bits, as they are or in lossless JPEG: LibRaw reads both kinds back sample for sample, while deflate works for
floating point only and 16 bits in float become 14. The image is in the first directory, where the simplest readers find
it, and a preview made of the very samples in one below.

Source: Digital Negative (DNG) Specification 1.4.0.0 (Adobe, 2012), chapters 2 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

import numpy as np
import torch

from library.files.dng_tags import carried_tags
from library.files.lossless_jpeg import lossless_jpeg_tiles
from library.files.metadata import ImageMetadata, metadata_tags
from library.files.preview import camera_rgb_preview, mosaic_preview
from library.files.tiff import Samples, Tag, TagType, uncompressed_strips, write_images
from library.ops.noise_estimate import estimate_noise

Compression = Literal["none", "lossless-jpeg"]

_CFA, _LINEAR_RAW = 32803, 34892
_D65 = 21
_WINDOW, _WINDOWS_A_SIDE = 256, 4


def write_cfa_dng(
    path: str | Path,
    mosaic: np.ndarray,
    *,
    cfa: str,
    black_level: np.ndarray,
    white_level: int,
    metadata: ImageMetadata,
    compression: Compression = "none",
) -> None:
    """Writes a Bayer or X-Trans mosaic, whole or not at all.

    mosaic       uint16 (H, W) DN, all of it active area, from whose corner the CFA and the black levels count
    cfa          the letters of its top-left tile: 4, such as RGGB, or the 36 of X-Trans
    black_level  (2, 2) or (6, 6) DN by CFA tile position
    white_level  DN at which a photosite saturates, 1 to 65535
    metadata     of the photograph; of one that was denoised, the noise profile is measured
    compression  lossless-jpeg is smaller by a quarter to a half; an image less than 16 wide stays as it is
    raises       ImageFileError when the file would pass 4 GiB
    """
    side = round(len(cfa) ** 0.5)
    assert len(cfa) in (4, 36)
    assert set(cfa) == set("RGB")
    height, width = mosaic.shape
    black_level = np.asarray(black_level, np.float64)
    scale = white_level - black_level.mean()
    planes = [mosaic[y::side, x::side] for y in range(side) for x in range(side)] if side == 2 else []
    tags = [
        *_common_tags(_CFA, height, width, metadata),
        *_noise_profile(planes, float(black_level.mean()), scale, metadata),
        Tag(33421, TagType.SHORT, [side, side]),  # CFARepeatPatternDim
        Tag(33422, TagType.BYTE, bytes("RGB".index(letter) for letter in cfa)),  # CFAPattern
        Tag(50710, TagType.BYTE, bytes([0, 1, 2])),  # CFAPlaneColor
        Tag(50711, TagType.SHORT, 1),  # CFALayout: rectangular
        Tag(50713, TagType.SHORT, list(black_level.shape)),  # BlackLevelRepeatDim
        _black_level(black_level.ravel().tolist()),
        Tag(50717, TagType.LONG, white_level),
        *carried_tags(metadata.dng, cfa=cfa, height=height, width=width, linear=False),
    ]
    preview = mosaic_preview(mosaic, cfa=cfa, black_level=black_level, white_level=white_level, metadata=metadata)
    _write(path, mosaic, tags, metadata, preview, compression)


def write_linear_dng(
    path: str | Path,
    camera_rgb: np.ndarray,
    *,
    black_level: int,
    white_level: int,
    metadata: ImageMetadata,
    compression: Compression = "none",
) -> None:
    """Writes demosaiced camera RGB (no white balance, no colour matrix applied), whole or not at all.

    camera_rgb   uint16 (H, W, 3) DN
    black_level  DN of all channels; above 0 it keeps the noise below black, whose loss would lift the shadows
    white_level  DN of all channels at which they saturate, 1 to 65535
    metadata     of the photograph; its `cfa` is what the opcodes of its `dng` speak of
    compression  as for `write_cfa_dng`
    raises       ImageFileError when the file would pass 4 GiB
    """
    height, width, channels = camera_rgb.shape
    assert channels == 3
    planes = [camera_rgb[..., channel] for channel in range(3)]
    tags = [
        *_common_tags(_LINEAR_RAW, height, width, metadata),
        *_noise_profile(planes, black_level, white_level - black_level, metadata),
        Tag(50713, TagType.SHORT, [1, 1]),  # BlackLevelRepeatDim
        _black_level([black_level] * 3),
        Tag(50717, TagType.LONG, [white_level] * 3),
        *carried_tags(metadata.dng, cfa=metadata.cfa, height=height, width=width, linear=True),
    ]
    preview = camera_rgb_preview(camera_rgb, black_level=black_level, white_level=white_level, metadata=metadata)
    _write(path, camera_rgb, tags, metadata, preview, compression)


def _write(
    path: str | Path,
    samples: np.ndarray,
    tags: Sequence[Tag],
    metadata: ImageMetadata,
    preview: tuple[Samples, list[Tag]] | None,
    compression: Compression,
) -> None:
    ifd0, exif = metadata_tags(metadata)
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    stored = lossless_jpeg_tiles(samples) if compression == "lossless-jpeg" else None
    write_images(
        path,
        stored or uncompressed_strips([samples], height=height, width=width, channels=channels),
        tags=list({tag.number: tag for tag in (*ifd0, *tags)}.values()),  # what is carried comes last, and counts
        exif=exif,
        previews=[preview] if preview else [],
    )


def _common_tags(photometric: int, height: int, width: int, metadata: ImageMetadata) -> list[Tag]:
    aspect = metadata.pixel_aspect
    opcodes = any(name.startswith("OpcodeList") for name in metadata.dng)
    tags = [
        Tag(254, TagType.LONG, 0),  # NewSubfileType: the main image
        Tag(262, TagType.SHORT, photometric),
        Tag(50706, TagType.BYTE, bytes([1, 4, 0, 0])),  # DNGVersion
        Tag(50707, TagType.BYTE, bytes([1, 3 if opcodes else 2, 0, 0])),  # DNGBackwardVersion
        Tag(50708, TagType.ASCII, metadata.camera or "Unknown"),  # UniqueCameraModel, which is required
        # DefaultScale: only ever enlarges
        Tag(50718, TagType.RATIONAL, [aspect, 1] if aspect >= 1 else [1, 1 / aspect]),
        Tag(50719, TagType.LONG, [0, 0]),  # DefaultCropOrigin
        Tag(50720, TagType.LONG, [width, height]),  # DefaultCropSize
        Tag(50730, TagType.SRATIONAL, 0),  # BaselineExposure
        Tag(50829, TagType.LONG, [0, 0, height, width]),  # ActiveArea, from whose corner CFA and black levels count
    ]
    if metadata.original_name:
        tags.append(Tag(50827, TagType.ASCII, metadata.original_name))  # OriginalRawFileName
    if metadata.xyz_to_camera is not None and "ColorMatrix1" not in metadata.dng:
        # ColorMatrix1 with its CalibrationIlluminant1: readers drop a matrix that does not name its light.
        tags.append(Tag(50721, TagType.SRATIONAL, metadata.xyz_to_camera.reshape(9).tolist()))
        tags.append(Tag(50778, TagType.SHORT, _D65))
    if metadata.as_shot_white_balance is not None:
        neutral = 1 / metadata.as_shot_white_balance
        tags.append(Tag(50728, TagType.RATIONAL, (neutral / neutral.max()).tolist()))  # AsShotNeutral
    lens = metadata.exif.get("LensSpecification")
    if isinstance(lens, list) and len(lens) == 4:
        tags.append(Tag(50736, TagType.RATIONAL, lens))  # LensInfo
    if metadata.denoised_by:
        tags.append(Tag(700, TagType.BYTE, _denoised_xmp(metadata.denoised_by)))
    return tags


def _noise_profile(
    planes: Sequence[np.ndarray], black_level: float, scale: float, metadata: ImageMetadata
) -> list[Tag]:
    """NoiseProfile, by which raw converters choose how much to denoise: as `metadata` has it, but of a denoised file.

    What such a file has left is measured on its samples, since the raw's own profile would have it denoised once more,
    and none would have the converter guess from the ISO. What is measured may be texture: never more than the raw had.

    planes  (h, w) DN, each of one colour; none where they cannot be measured
    """
    profile = metadata.noise_profile
    if metadata.denoised_by and (left := _noise_left(planes, black_level, scale)):
        profile = [tuple(map(min, left, had)) for had in profile] if profile else [left]
    elif metadata.denoised_by:
        profile = None
    return [Tag(51041, TagType.DOUBLE, [value for pair in profile for value in pair])] if profile else []


def _noise_left(planes: Sequence[np.ndarray], black_level: float, scale: float) -> tuple[float, float] | None:
    """(a, b) of what windows all over the picture show; None for pictures too small to show anything."""
    if not planes or min(min(plane.shape) for plane in planes) < 16:
        return None
    height, width = (min(plane.shape[axis] for plane in planes) for axis in (0, 1))
    side_y, side_x = min(height, _WINDOW), min(width, _WINDOW)
    tops = sorted({round(top) for top in np.linspace(0, height - side_y, _WINDOWS_A_SIDE)})
    lefts = sorted({round(left) for left in np.linspace(0, width - side_x, _WINDOWS_A_SIDE)})
    windows = [plane[y : y + side_y, x : x + side_x] for plane in planes for y in tops for x in lefts]
    return estimate_noise(torch.from_numpy((np.stack(windows) - np.float32(black_level)) / np.float32(scale)))


def _black_level(levels: list[float]) -> Tag:
    whole = all(level == int(level) for level in levels)
    return Tag(50714, TagType.LONG, [int(level) for level in levels]) if whole else Tag(50714, TagType.RATIONAL, levels)


def _denoised_xmp(bundle: str) -> bytes:
    """An XMP packet that keeps others from denoising again: darktable's own marker, and which bundle did it."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about=""'
        ' xmlns:darktable="http://darktable.sf.net/" darktable:neural_restore="raw-denoise"'
        f' xmlns:stillgrain="urn:stillgrain:1.0:" stillgrain:denoised_by={quoteattr(bundle)}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()
