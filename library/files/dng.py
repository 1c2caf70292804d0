"""DNG files: a CFA mosaic, or demosaiced camera RGB as LinearRaw, with what a raw converter needs to develop them.

Uncompressed and with one image only: LibRaw reads both kinds back sample for sample, while deflate works for floating
point only and 16 bits in float become 14. There is no preview, so none can show what the samples no longer are.

Source: Digital Negative (DNG) Specification 1.4.0.0 (Adobe, 2012), chapters 2 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from library.files.metadata import ImageMetadata, metadata_tags
from library.files.tiff import Tag, TagType, write_tiff

_CFA, _LINEAR_RAW = 32803, 34892
_D65 = 21


def write_cfa_dng(
    path: str | Path,
    mosaic: np.ndarray,
    *,
    cfa: str,
    black_level: np.ndarray,
    white_level: int,
    metadata: ImageMetadata,
) -> None:
    """Writes a Bayer mosaic, whole or not at all.

    mosaic       uint16 (H, W) DN, all of it active area
    cfa          RGGB, GRBG, GBRG or BGGR from the mosaic's top-left
    black_level  (2, 2) DN by CFA tile position
    white_level  DN at which a photosite saturates, 1 to 65535
    raises       ImageFileError when the file would pass 4 GiB
    """
    assert sorted(cfa) == sorted("RGGB")
    height, width = mosaic.shape
    tags = [
        *_common_tags(_CFA, height, width, metadata),
        Tag(33421, TagType.SHORT, [2, 2]),  # CFARepeatPatternDim
        Tag(33422, TagType.BYTE, bytes("RGB".index(letter) for letter in cfa)),  # CFAPattern
        Tag(50710, TagType.BYTE, bytes([0, 1, 2])),  # CFAPlaneColor
        Tag(50711, TagType.SHORT, 1),  # CFALayout: rectangular
        Tag(50713, TagType.SHORT, [2, 2]),  # BlackLevelRepeatDim
        _black_level(np.asarray(black_level).reshape(4).tolist()),
        Tag(50717, TagType.LONG, white_level),
    ]
    _write(path, mosaic, tags, metadata)


def write_linear_dng(
    path: str | Path,
    camera_rgb: np.ndarray,
    *,
    black_level: int,
    white_level: int,
    metadata: ImageMetadata,
) -> None:
    """Writes demosaiced camera RGB (no white balance, no colour matrix applied), whole or not at all.

    camera_rgb   uint16 (H, W, 3) DN
    black_level  DN of all channels; above 0 it keeps the noise below black, whose loss would lift the shadows
    white_level  DN of all channels at which they saturate, 1 to 65535
    raises       ImageFileError when the file would pass 4 GiB
    """
    height, width, channels = camera_rgb.shape
    assert channels == 3
    tags = [
        *_common_tags(_LINEAR_RAW, height, width, metadata),
        Tag(50713, TagType.SHORT, [1, 1]),  # BlackLevelRepeatDim
        _black_level([black_level] * 3),
        Tag(50717, TagType.LONG, [white_level] * 3),
    ]
    _write(path, camera_rgb, tags, metadata)


def _write(path: str | Path, samples: np.ndarray, tags: Sequence[Tag], metadata: ImageMetadata) -> None:
    ifd0, exif = metadata_tags(metadata)
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    write_tiff(path, [samples], height=height, width=width, channels=channels, tags=[*ifd0, *tags], exif=exif)


def _common_tags(photometric: int, height: int, width: int, metadata: ImageMetadata) -> list[Tag]:
    aspect = metadata.pixel_aspect
    tags = [
        Tag(254, TagType.LONG, 0),  # NewSubfileType: the main image
        Tag(262, TagType.SHORT, photometric),
        Tag(50706, TagType.BYTE, bytes([1, 4, 0, 0])),  # DNGVersion
        Tag(50707, TagType.BYTE, bytes([1, 2, 0, 0])),  # DNGBackwardVersion
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
    if metadata.xyz_to_camera is not None:
        # ColorMatrix1 with its CalibrationIlluminant1: readers drop a matrix that does not name its light.
        tags.append(Tag(50721, TagType.SRATIONAL, metadata.xyz_to_camera.reshape(9).tolist()))
        tags.append(Tag(50778, TagType.SHORT, _D65))
    if metadata.as_shot_white_balance is not None:
        neutral = 1 / metadata.as_shot_white_balance
        tags.append(Tag(50728, TagType.RATIONAL, (neutral / neutral.max()).tolist()))  # AsShotNeutral
    if metadata.noise_profile:
        values = [value for pair in metadata.noise_profile for value in pair]
        tags.append(Tag(51041, TagType.DOUBLE, values))  # NoiseProfile
    if metadata.denoised_by:
        tags.append(Tag(700, TagType.BYTE, _denoised_xmp(metadata.denoised_by)))
    return tags


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
