"""What a DNG tells a raw converter beyond its samples, on the way to a DNG that is made of it.

A whitelist of camera, lens and colour tags and of the opcodes that correct the lens. Left behind is what describes the
samples as they were: OpcodeList1, whose bad pixels count from the corner of the sensor and not of the active area,
BaselineNoise, and the maker's private data.

Source: Digital Negative (DNG) Specification 1.4.0.0 (Adobe, 2012), chapters 4 to 7.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import tifffile

from library.files.parsers import metadata_or_nothing
from library.files.tiff import Tag, TagType

DngValue = str | list[int] | list[float] | bytes


class _Field(NamedTuple):
    number: int
    type: TagType
    of_samples: bool = False
    """In the IFD of the samples, which need not be the first."""


FIELDS = {
    "UniqueCameraModel": _Field(50708, TagType.ASCII),
    "ColorMatrix1": _Field(50721, TagType.SRATIONAL),
    "ColorMatrix2": _Field(50722, TagType.SRATIONAL),
    "CameraCalibration1": _Field(50723, TagType.SRATIONAL),
    "CameraCalibration2": _Field(50724, TagType.SRATIONAL),
    "AnalogBalance": _Field(50727, TagType.RATIONAL),
    "BaselineExposure": _Field(50730, TagType.SRATIONAL),
    "BaselineSharpness": _Field(50732, TagType.RATIONAL),
    "LinearResponseLimit": _Field(50734, TagType.RATIONAL),
    "CameraSerialNumber": _Field(50735, TagType.ASCII),
    "LensInfo": _Field(50736, TagType.RATIONAL),
    "ShadowScale": _Field(50739, TagType.RATIONAL),
    "CalibrationIlluminant1": _Field(50778, TagType.SHORT),
    "CalibrationIlluminant2": _Field(50779, TagType.SHORT),
    "CameraCalibrationSignature": _Field(50931, TagType.ASCII),
    "ProfileCalibrationSignature": _Field(50932, TagType.ASCII),
    "ProfileName": _Field(50936, TagType.ASCII),
    "ProfileHueSatMapDims": _Field(50937, TagType.LONG),
    "ProfileHueSatMapData1": _Field(50938, TagType.FLOAT),
    "ProfileHueSatMapData2": _Field(50939, TagType.FLOAT),
    "ProfileToneCurve": _Field(50940, TagType.FLOAT),
    "ProfileEmbedPolicy": _Field(50941, TagType.LONG),
    "ProfileCopyright": _Field(50942, TagType.ASCII),
    "ForwardMatrix1": _Field(50964, TagType.SRATIONAL),
    "ForwardMatrix2": _Field(50965, TagType.SRATIONAL),
    "ProfileLookTableDims": _Field(50981, TagType.LONG),
    "ProfileLookTableData": _Field(50982, TagType.FLOAT),
    "ProfileHueSatMapEncoding": _Field(51107, TagType.LONG),
    "ProfileLookTableEncoding": _Field(51108, TagType.LONG),
    "BaselineExposureOffset": _Field(51109, TagType.RATIONAL),
    "DefaultBlackRender": _Field(51110, TagType.LONG),
    "DefaultCropOrigin": _Field(50719, TagType.RATIONAL, of_samples=True),
    "DefaultCropSize": _Field(50720, TagType.RATIONAL, of_samples=True),
    "OpcodeList2": _Field(51009, TagType.UNDEFINED, of_samples=True),
    "OpcodeList3": _Field(51022, TagType.UNDEFINED, of_samples=True),
    "DefaultUserCrop": _Field(51125, TagType.RATIONAL, of_samples=True),
}

_COUNTS = {
    "ColorMatrix1": 9,
    "ColorMatrix2": 9,
    "CameraCalibration1": 9,
    "CameraCalibration2": 9,
    "AnalogBalance": 3,
    "LensInfo": 4,
    "ForwardMatrix1": 9,
    "ForwardMatrix2": 9,
    "DefaultCropOrigin": 2,
    "DefaultCropSize": 2,
    "DefaultUserCrop": 4,
}

_DNG_VERSION, _MOSAIC, _MAIN_IMAGE = 50706, 32803, 0
_LARGEST_VALUE = 16 * 2**20


def read_dng_tags(data: bytes) -> dict[str, DngValue]:
    """The values of `FIELDS` that a DNG has, by name: text, numbers (fractions as such), or an opcode list's bytes.

    data     the whole file
    returns  nothing for what is no DNG; what is damaged is left out
    """
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return {}
    found: dict[str, DngValue] = {}
    with metadata_or_nothing(), tifffile.TiffFile(io.BytesIO(data)) as file:
        found = _all_values(file)
    return {name: value for name, value in found.items() if _fits(name, value)}


def _all_values(file: tifffile.TiffFile) -> dict[str, DngValue]:
    first = file.pages.first
    if _DNG_VERSION not in first.tags:
        return {}
    pages = [first, *(first.pages or ())]
    samples = next((p for p in pages if p.photometric == _MOSAIC and p.subfiletype == _MAIN_IMAGE), first)
    values = {}
    for name, field in FIELDS.items():
        tag = (samples if field.of_samples else first).tags.get(field.number)
        if tag is not None and 0 < tag.valuebytecount <= _LARGEST_VALUE:
            values[name] = _value(tag, field.type)
    return values


def carried_tags(values: Mapping[str, DngValue], *, cfa: str, height: int, width: int, linear: bool) -> list[Tag]:
    """The tags of IFD0 of a DNG whose samples are those of another, denoised.

    values         of the other, by `read_dng_tags`
    cfa            of the other's active area, from its top-left; "" when unknown
    height, width  of the samples
    linear         demosaiced: opcodes for the photosites of one colour become those of its plane
    """
    values = dict(values)
    if (
        linear
        and isinstance(opcodes := values.pop("OpcodeList2", None), bytes)
        and (for_planes := opcodes_for_planes(opcodes, cfa))
    ):
        values["OpcodeList2"] = for_planes
    crop = [values.get(name, [0, 0]) for name in ("DefaultCropOrigin", "DefaultCropSize")]
    if any(start + size > side for start, size, side in zip(*crop, (width, height), strict=True)):  # pyright: ignore
        values = {name: value for name, value in values.items() if not name.startswith("DefaultCrop")}
    return [Tag(FIELDS[name].number, FIELDS[name].type, value) for name, value in values.items()]


def _value(tag: tifffile.TiffTag, kind: TagType) -> DngValue:
    value: Any = tag.value
    if kind is TagType.UNDEFINED:
        return bytes(value)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value
    numbers = list(value) if isinstance(value, tuple) else [value]
    if int(tag.dtype) in (TagType.RATIONAL, TagType.SRATIONAL):
        return [a / b if b else 0.0 for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    return [number.item() if hasattr(number, "item") else number for number in numbers]


def _fits(name: str, value: DngValue) -> bool:
    """Whether a value can be written as the type that its tag asks for, whatever type it was found in."""
    kind = FIELDS[name].type
    if isinstance(value, str) or kind is TagType.ASCII:
        return isinstance(value, str) and kind is TagType.ASCII and bool(value)
    if isinstance(value, bytes) or kind is TagType.UNDEFINED:
        return isinstance(value, bytes) and kind is TagType.UNDEFINED and parse_opcodes(value) is not None
    if not value or len(value) != _COUNTS.get(name, len(value)):
        return False
    if kind in (TagType.SHORT, TagType.LONG):
        largest = 2**16 if kind is TagType.SHORT else 2**32
        return all(isinstance(number, int) and 0 <= number < largest for number in value)
    lowest = -(2.0**31) if kind is not TagType.RATIONAL else 0.0
    return all(lowest <= number < 2.0**31 for number in value)


# --- opcodes ----------------------------------------------------------------------------------------------------------


class Opcode(NamedTuple):
    """One step of a list, as DNG 1.4, chapter 7 lays it out."""

    number: int
    version: int
    flags: int
    data: bytes


_AREA = struct.Struct(">8I")  # top, left, bottom, right, plane, planes, row pitch, column pitch
_OF_AN_AREA = range(7, 14)  # MapTable, MapPolynomial, GainMap, Delta and Scale by row and column


def parse_opcodes(data: bytes) -> list[Opcode] | None:
    """The steps of an opcode list, which is big-endian in any file; None for a damaged one."""
    try:
        [count] = struct.unpack_from(">I", data)
        at, opcodes = 4, []
        while len(opcodes) < count:
            number, version, flags, size = struct.unpack_from(">4I", data, at)
            if at + 16 + size > len(data):
                return None
            opcodes.append(Opcode(number, version, flags, data[at + 16 : at + 16 + size]))
            at += 16 + size
    except struct.error:
        return None
    return opcodes


def pack_opcodes(opcodes: list[Opcode]) -> bytes:
    """What `parse_opcodes` reads."""
    steps = [struct.pack(">4I", o.number, o.version, o.flags, len(o.data)) + o.data for o in opcodes]
    return struct.pack(">I", len(opcodes)) + b"".join(steps)


def opcodes_for_planes(data: bytes, cfa: str) -> bytes:
    """An opcode list for the photosites of a mosaic as one for the planes of the picture made of it.

    A step for every photosite becomes one for all three planes; one for every second of a row and column, such as a
    phone's gain map for each Bayer site, becomes that of its colour's plane, of the two greens the first. Others
    cannot be said of planes and are left out.

    cfa      of the mosaic, from the top-left of its active area
    returns  b"" when no step is left
    """
    steps, seen = [], set()
    for opcode in parse_opcodes(data) or []:
        if opcode.number not in _OF_AN_AREA or len(opcode.data) < _AREA.size:
            steps.append(opcode)
            continue
        top, left, bottom, right, plane, planes, row_pitch, column_pitch = _AREA.unpack_from(opcode.data)
        if (row_pitch, column_pitch) == (1, 1):
            area = (top, left, bottom, right, 0, 3, 1, 1)
        elif (row_pitch, column_pitch) == (2, 2) and len(cfa) == 4 and (plane, planes) == (0, 1):
            color = "RGB".index(cfa[2 * (top % 2) + left % 2])
            if (opcode.number, color) in seen:
                continue
            seen.add((opcode.number, color))
            area = (top - top % 2, left - left % 2, bottom, right, color, 1, 1, 1)
        else:
            continue
        steps.append(opcode._replace(data=_AREA.pack(*area) + opcode.data[_AREA.size :]))
    return pack_opcodes(steps) if steps else b""
