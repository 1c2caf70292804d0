"""Pictures: PNG in sRGB and TIFF in any space out; PNG, JPEG, TIFF, JPEG XL, Radiance and EXR in.

What a file is, its first bytes say, not its name.

Source: IEC 61966-2-1 (sRGB); PNG Specification, third edition (W3C, 2025) for cICP; ICC.1:2022.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from library.errors import ImageFileError
from library.files.atomic import whole_file
from library.files.exr import exr_rgb_to_lin_rec2020, read_exr
from library.files.icc import Curve, Space, icc_profile
from library.files.metadata import ImageMetadata, metadata_tags
from library.files.parsers import silence_parsers
from library.files.sizes import refuse_claims_beyond_reason
from library.files.tiff import Tag, TagType, tiff_header, write_tiff

_ICC_PROFILE = 34675


@dataclass(frozen=True, eq=False)
class DisplayImage:
    """A picture as it is stored.

    rgb          float32 (H, W, 3); in [0, 1] when `encoding` is "srgb"; any value when it is "linear"
    encoding     "srgb": display-referred, with the sRGB transfer function; "linear": proportional to light
    color_space  whose primaries the numbers are for, "unknown" when the file does not say
    """

    rgb: np.ndarray
    encoding: Literal["srgb", "linear"]
    color_space: Literal["srgb", "rec2020", "unknown"]


def write_png(path: str | Path, srgb: np.ndarray, metadata: ImageMetadata | None = None) -> None:
    """Writes an 8-bit PNG with an sRGB profile and EXIF, whole or not at all.

    srgb  uint8 (H, W, 3), encoded
    """
    assert srgb.dtype == np.uint8
    exif = tiff_header(*metadata_tags(metadata)) if metadata else b""
    with whole_file(path) as temporary:
        Image.fromarray(srgb).save(temporary, format="PNG", icc_profile=srgb_profile(), exif=exif)


def write_tiff16(path: str | Path, srgb: np.ndarray, metadata: ImageMetadata | None = None) -> None:
    """Writes an uncompressed 16-bit TIFF with an sRGB profile and EXIF, whole or not at all: `write_rgb_tiff`.

    srgb  uint16 (H, W, 3), encoded
    """
    assert srgb.dtype == np.uint16
    write_rgb_tiff(path, srgb, space="srgb", curve="srgb", metadata=metadata)


def write_rgb_tiff(
    path: str | Path, rgb: np.ndarray, *, space: Space, curve: Curve, metadata: ImageMetadata | None = None
) -> None:
    """Writes an uncompressed TIFF with the ICC profile of its space and EXIF, whole or not at all.

    rgb     (H, W, 3) uint16, or float16 or float32, any finite value
    curve   how the numbers are encoded
    raises  ImageFileError when the file would pass 4 GiB, and for NaN and infinity
    """
    height, width, channels = rgb.shape
    assert channels == 3
    kinds = {"uint16": np.uint16, "float16": np.float16, "float32": np.float32}
    if not np.isfinite(rgb).all():
        raise ImageFileError(path, "would hold NaN or infinity: the image was made wrongly and is not written")
    ifd0, exif = metadata_tags(metadata) if metadata else ([], [])
    profile = Tag(_ICC_PROFILE, TagType.UNDEFINED, icc_profile(space, curve))
    write_tiff(
        path,
        [rgb],
        height=height,
        width=width,
        channels=channels,
        tags=[*ifd0, Tag(262, TagType.SHORT, 2), profile],
        exif=exif,
        dtype=kinds[rgb.dtype.name],
        rows_per_strip=256,
    )


def srgb_profile() -> bytes:
    """An ICC profile of sRGB, the same bytes every time."""
    return icc_profile("srgb", "srgb")


def read_image(path: str | Path) -> DisplayImage:
    """Reads a picture. Alpha is dropped, grey becomes three equal channels; the EXIF orientation is not applied.

    Integers are scaled to [0, 1]. A picture with an embedded ICC profile is converted to sRGB in its own precision,
    which clips colours outside sRGB. JPEG XL is taken as sRGB-encoded with unknown primaries, since its decoder tells
    neither; floating-point TIFF as linear with unknown primaries, unless it has a profile of `write_rgb_tiff`; Radiance
    as linear with sRGB's, its usual ones. An EXR with other chromaticities is converted to Rec.2020.

    raises  ImageFileError: missing, unknown, damaged, CMYK, HDR-encoded (PQ, HLG) and raw files
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ImageFileError(path, f"cannot be read ({error.strerror}): check the path and its permissions") from error
    for signatures, read in _READERS:
        if head.startswith(signatures):
            try:
                return read(path)
            except ImageFileError:
                raise
            except Exception as error:
                # Decoders raise whatever the damage makes them trip over.
                raise ImageFileError(path, f"is damaged and cannot be decoded ({error}): copy it again") from error
    raise ImageFileError(path, "is no picture of a known kind: use PNG, JPEG, TIFF, JPEG XL, Radiance HDR or EXR")


def _read_png(path: Path) -> DisplayImage:
    data = path.read_bytes()
    _refuse_hdr(path, data)
    if data[24] < 16:  # IHDR's bit depth
        return _read_with_pillow(path)
    with Image.open(io.BytesIO(data)) as image:
        profile = image.info.get("icc_profile")
        refuse_claims_beyond_reason(path, image.height, image.width, 8)
    return _display(path, imagecodecs.png_decode(data), profile)  # Pillow would cut 16 bits to 8


def _read_with_pillow(path: Path) -> DisplayImage:
    with Image.open(path) as image:
        if image.mode in ("CMYK", "YCCK"):
            raise ImageFileError(path, "is a CMYK picture, made for print: convert it to sRGB")
        grey = image.mode in ("1", "L", "LA")
        return _display(path, np.asarray(image.convert("L" if grey else "RGB")), image.info.get("icc_profile"))


def _read_tiff(path: Path) -> DisplayImage:
    silence_parsers()
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            kind = getattr(page.photometric, "name", page.photometric)
            raise ImageFileError(path, f"is a TIFF of kind {kind}: it needs RGB or grey; a raw file is read as such")
        refuse_claims_beyond_reason(
            path, page.imagelength, page.imagewidth, page.samplesperpixel * page.bitspersample / 8
        )
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        profile = page.tags.valueof(_ICC_PROFILE)
    return _display(path, pixels, profile)


def _read_jxl(path: Path) -> DisplayImage:
    image = _display(path, imagecodecs.jpegxl_decode(path.read_bytes()), None)
    return DisplayImage(image.rgb, image.encoding, "unknown")


def _read_radiance(path: Path) -> DisplayImage:
    return DisplayImage(imagecodecs.rgbe_decode(path.read_bytes()).astype(np.float32), "linear", "srgb")


def _read_exr(path: Path) -> DisplayImage:
    image = read_exr(path)
    if image.color_space == "unknown" and image.chromaticities:
        try:
            return DisplayImage(exr_rgb_to_lin_rec2020(image.rgb, image.chromaticities), "linear", "rec2020")
        except np.linalg.LinAlgError:
            return DisplayImage(image.rgb, "linear", "unknown")  # chromaticities of no space
    return DisplayImage(image.rgb, "linear", image.color_space)


_READERS: tuple[tuple[tuple[bytes, ...], Callable[[Path], DisplayImage]], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), _read_png),
    ((b"\xff\xd8\xff",), _read_with_pillow),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _read_tiff),
    ((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"), _read_jxl),
    ((b"#?RADIANCE", b"#?RGBE"), _read_radiance),
    ((b"v/1\x01",), _read_exr),
)


def _display(path: Path, pixels: np.ndarray, profile: bytes | None) -> DisplayImage:
    """Decoded samples (H, W) or (H, W, channels), with or without alpha, as an image."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] > 4:
        raise ImageFileError(path, f"has samples of shape {pixels.shape}: it needs one image, grey or RGB")
    pixels = pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
    if pixels.dtype.kind == "f":
        return DisplayImage(_three_channels(pixels.astype(np.float32)), *_meaning_of_floats(profile))
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageFileError(path, f"has samples of type {pixels.dtype}: it needs 8 or 16 bits, or floating point")
    if profile:
        pixels = _to_srgb(path, pixels, profile)
    return DisplayImage(_three_channels(pixels / np.float32(np.iinfo(pixels.dtype).max)), "srgb", "srgb")


def _meaning_of_floats(
    profile: bytes | None,
) -> tuple[Literal["srgb", "linear"], Literal["srgb", "rec2020", "unknown"]]:
    """Encoding and space by a profile of ours; a foreign one would have to be applied in floating point."""
    if profile == srgb_profile():
        return "srgb", "srgb"
    if profile == icc_profile("srgb", "linear"):
        return "linear", "srgb"
    return "linear", "rec2020" if profile == icc_profile("rec2020", "linear") else "unknown"


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _to_srgb(path: Path, pixels: np.ndarray, profile: bytes) -> np.ndarray:
    space = "rgb" if pixels.shape[2] == 3 else "gray"
    pixels = np.ascontiguousarray(pixels if space == "rgb" else pixels[..., 0])
    try:
        return imagecodecs.cms_transform(pixels, profile, srgb_profile(), colorspace=space, outcolorspace="rgb")
    except Exception as error:
        raise ImageFileError(
            path, f"has an ICC profile that cannot be applied ({error}): convert it to sRGB"
        ) from error


def _refuse_hdr(path: Path, data: bytes) -> None:
    """PNG's cICP chunk, which overrides the profile: colour primaries and transfer function by ITU-T H.273."""
    start = data.find(b"cICP", 0, 1 << 16)
    if start < 0:
        return
    primaries, transfer = data[start + 4 : start + 6]
    if (primaries, transfer) != (1, 13):
        kind = {16: "PQ", 18: "HLG"}.get(transfer, f"transfer function {transfer}, primaries {primaries}")
        raise ImageFileError(path, f"is encoded for another display than sRGB (cICP: {kind}): convert it to sRGB")
