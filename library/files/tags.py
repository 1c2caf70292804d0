"""Every tag that an image file tells of its photograph, as text, to see what a copy has lost.

Left out is what says how the samples are stored, since that is not the photograph's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import OpenEXR
import tifffile

from library.files import ciff, exif
from library.files.parsers import metadata_or_nothing

_STRUCTURE = (
    *("ImageWidth", "ImageLength", "BitsPerSample", "Compression", "SamplesPerPixel", "RowsPerStrip", "Predictor"),
    *("StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "TileWidth", "TileLength", "SampleFormat"),
    *("PlanarConfiguration", "SubIFDs", "ExifTag", "GPSTag", "ExifVersion", "NewSubfileType", "FillOrder"),
    *("JPEGInterchangeFormat", "JPEGInterchangeFormatLength", "InteroperabilityTag", "PhotometricInterpretation"),
    *("YCbCrSubSampling", "YCbCrPositioning", "ReferenceBlackWhite", "XMP", "JPEGTables", "InterColorProfile"),
)
_LONGEST = 100
_EXR_LAYOUT = {"channels", "compression", "dataWindow", "displayWindow", "lineOrder", "type", "tiles", "chunkCount"}


def all_tags(path: str | Path) -> dict[str, str]:
    """Tags by their name in EXIF or DNG; of two of one name that of the EXIF IFD.

    returns  whatever can be read; nothing of a file without tags, or of a kind that has none
    """
    data = Path(path).read_bytes()
    if data[:4] == b"v/1\x01":
        return _exr_attributes(path)
    if data[6:14] == ciff.SIGNATURE:
        return {_name(number): _text(value) for number, value in ciff.read_tags(data).items()}
    found: dict[str, str] = {}
    for block in list(exif.exif_blocks(data)) or [data]:
        tags = exif.parse_block(block)
        for directory in ("EXIF", "GPS", "Image"):
            for name, tag in tags.items():
                if name.startswith(f"{directory} ") and (short := _name(tag.tag)) not in _STRUCTURE:
                    found.setdefault(short, _text(tag.printable))
    return found


def _exr_attributes(path: str | Path) -> dict[str, str]:
    header: dict[str, Any] = {}
    with metadata_or_nothing(), OpenEXR.File(str(path), header_only=True) as file:
        header = file.parts[0].header
    return {name: _text(value) for name, value in header.items() if name not in _EXR_LAYOUT}


def _name(number: int) -> str:
    tables: list[Any] = [tifffile.TIFF.TAGS, tifffile.TIFF.EXIF_TAGS, tifffile.TIFF.GPS_TAGS]
    return next((name for table in tables if (name := table.get(number))), f"tag {number}")


def _text(value: object) -> str:
    return str(value).strip()[:_LONGEST]
