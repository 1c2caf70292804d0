"""The EXIF values that travel from a raw file to what is made of it: one table for reading and for writing.

A whitelist, because copied structural tags and maker notes break the file that receives them.

Source: EXIF 2.32 (CIPA DC-008), tables 4 to 9; TIFF 6.0 for Artist and Copyright.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import exifread
import tifffile

from library.files import ciff
from library.files.parsers import metadata_or_nothing
from library.files.tiff import Tag, TagType

ExifValue = str | int | float | list[int] | list[float]

MAKE, MODEL = 271, 272
EXPOSURE_TIME, F_NUMBER, DATE_TIME_ORIGINAL, FOCAL_LENGTH = 33434, 33437, 36867, 37386
ISO, SENSITIVITY_TYPE, RECOMMENDED_EXPOSURE_INDEX = 34855, 34864, 34866

_CFA = 32803
"""PhotometricInterpretation of a mosaic."""

ISO_CEILING = 65535
"""The largest value of the 16-bit ISO tag: it means "this or more", and RecommendedExposureIndex then has the speed."""


class _Field(NamedTuple):
    number: int
    type: TagType
    in_ifd0: bool = False


FIELDS = {
    "Artist": _Field(315, TagType.ASCII, in_ifd0=True),
    "Copyright": _Field(33432, TagType.ASCII, in_ifd0=True),
    "ExposureProgram": _Field(34850, TagType.SHORT),
    "DateTimeOriginal": _Field(DATE_TIME_ORIGINAL, TagType.ASCII),
    "OffsetTimeOriginal": _Field(36881, TagType.ASCII),
    "ExposureBiasValue": _Field(37380, TagType.SRATIONAL),
    "MaxApertureValue": _Field(37381, TagType.RATIONAL),
    "MeteringMode": _Field(37383, TagType.SHORT),
    "Flash": _Field(37385, TagType.SHORT),
    "SubSecTimeOriginal": _Field(37521, TagType.ASCII),
    "FocalLengthIn35mmFilm": _Field(41989, TagType.SHORT),
    "BodySerialNumber": _Field(42033, TagType.ASCII),
    "LensSpecification": _Field(42034, TagType.RATIONAL),
    "LensMake": _Field(42035, TagType.ASCII),
    "LensModel": _Field(42036, TagType.ASCII),
    "LensSerialNumber": _Field(42037, TagType.ASCII),
}


def read_tags(data: bytes) -> dict[int, Any]:
    """Tags of the first and the EXIF IFD by number: text, or a list of numbers (0 for a fraction over zero).

    data  the beginning of a raw file or the whole of it: TIFF and its relatives, RAF, CR3 or CIFF
    returns  whatever can be read; what is damaged or in an unknown container is left out
    """
    if data[6:14] == ciff.SIGNATURE:
        return {**ciff.read_tags(data)}
    tags: dict[int, Any] = {}
    for block in exif_blocks(data):
        found = parse_block(block)
        for ifd in ("EXIF", "Image"):  # Kodak keeps EXIF tags in IFD0; where both have one, EXIF's counts
            for name, tag in found.items():
                if name.startswith(f"{ifd} "):
                    tags.setdefault(tag.tag, _plain(tag.values))
    return tags


def read_mosaic_tags(data: bytes, numbers: Sequence[int]) -> dict[int, list[float]]:
    """Numeric tags of the IFD of a DNG that holds its mosaic, which in most is not the first one: where levels and
    sizes are.

    returns  nothing for what is no DNG or is damaged
    """
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return {}
    with metadata_or_nothing(), tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page for first in file.pages for page in (first, *(first.pages or ()))]
        pages = [page for page in pages if isinstance(page, tifffile.TiffPage)]
        mosaic = next((page for page in pages if page.photometric == _CFA and page.subfiletype == 0), None)
        if mosaic is not None:
            found = {number: mosaic.tags[number] for number in numbers if number in mosaic.tags}
            return {number: _flat(tag.value, int(tag.dtype)) for number, tag in found.items()}
    return {}


def _flat(value: Any, kind: int) -> list[float]:
    """A tag's value as numbers; fractions come as numerators and denominators in turn."""
    values = [float(number) for number in (value if isinstance(value, tuple) else (value,))]
    if kind in (TagType.RATIONAL, TagType.SRATIONAL):
        return [a / b if b else 0.0 for a, b in zip(values[::2], values[1::2], strict=True)]
    return values


def whitelisted(tags: Mapping[int, Any]) -> dict[str, ExifValue]:
    """The values of `FIELDS` that are there and say something, by name, ready for JSON."""
    values = {}
    for name, field in FIELDS.items():
        value = tags.get(field.number)
        if value and _fits(value, field.type):
            values[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return values


def exif_tags(values: Mapping[str, ExifValue], *, in_ifd0: bool) -> list[Tag]:
    """The tags of IFD0, or else of the EXIF IFD, that hold these values."""
    return [
        Tag(field.number, field.type, values[name])
        for name, field in FIELDS.items()
        if name in values and field.in_ifd0 == in_ifd0
    ]


def exif_blocks(data: bytes) -> Iterator[bytes]:
    """Where a container keeps TIFF structures that exifread understands."""
    if data[:8] == b"FUJIFILM":
        yield data[int.from_bytes(data[84:88], "big") :]  # RAF: in the preview JPEG
    elif data[4:8] == b"ftyp":
        for box in (b"CMT1", b"CMT2"):  # CR3: IFD0 and the EXIF IFD, each a TIFF of its own
            start = data.find(box, 0, 1 << 20)
            if start >= 0:
                yield data[start + 4 :]
    elif data[:2] in (b"II", b"MM"):
        yield data


def parse_block(block: bytes) -> dict[str, Any]:
    """exifread's tags of a TIFF structure by directory and name, `EXIF Flash`; none of a damaged one."""
    with metadata_or_nothing():
        return exifread.process_file(io.BytesIO(block), details=False, extract_thumbnail=False)
    return {}


def _fits(value: str | list[int] | list[float], kind: TagType) -> bool:
    """Whether a value can be written as the type that EXIF asks for, whatever type it was found in."""
    if isinstance(value, str) or kind is TagType.ASCII:
        return isinstance(value, str) and kind is TagType.ASCII
    if kind is TagType.SHORT:
        return all(isinstance(number, int) and 0 <= number < 2**16 for number in value)
    return all(abs(number) < 2**31 and (number >= 0 or kind is TagType.SRATIONAL) for number in value)


def _plain(values: Any) -> str | list[int] | list[float]:
    if isinstance(values, bytes):
        values = values.decode(errors="replace")
    if isinstance(values, str):
        return values.strip()
    return [_number(value) for value in values]


def _number(value: Any) -> int | float:
    if isinstance(value, Sequence):  # exifread gives a float as a tuple of one
        value = value[0]
    if isinstance(value, int | float):
        return value
    return value.numerator / value.denominator if value.denominator else 0.0
