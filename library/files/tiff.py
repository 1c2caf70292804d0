"""A writer of classic little-endian TIFF: typed tags, an EXIF IFD, uncompressed 16-bit samples in strips.

It exists because tifffile refuses to write the EXIF sub-IFD, without which a DNG loses its exposure and lens.
Reading is tifffile's and LibRaw's job.

Source: TIFF revision 6.0 (1992), sections 2 and 3; EXIF 2.32 (CIPA DC-008), section 4.6.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from library.errors import ImageFileError
from library.files.atomic import whole_file

EXIF_IFD = 34665

_ROOM_FOR_TAGS = 2**20


class TagType(IntEnum):
    """TIFF field types, by their code in the file."""

    BYTE = 1
    ASCII = 2
    SHORT = 3
    LONG = 4
    RATIONAL = 5
    UNDEFINED = 7
    SRATIONAL = 10
    DOUBLE = 12


_PACKING = {TagType.SHORT: "H", TagType.LONG: "I", TagType.DOUBLE: "d"}


@dataclass(frozen=True)
class Tag:
    """One field of an IFD.

    value  text for ASCII, bytes for BYTE and UNDEFINED, otherwise one number or a sequence of them; RATIONAL and
           SRATIONAL take any finite number and store the nearest fraction whose denominator is at most a million
    """

    number: int
    type: TagType
    value: str | bytes | SupportsFloat | Sequence[SupportsFloat]

    def encoded(self) -> tuple[int, bytes]:
        """The field's count and its bytes."""
        if isinstance(self.value, str):
            text = self.value.replace("\0", "").encode() + b"\0"
            return len(text), text
        if isinstance(self.value, bytes):
            return len(self.value), self.value
        numbers = self.value if isinstance(self.value, Sequence) else [self.value]
        if self.type in (TagType.RATIONAL, TagType.SRATIONAL):
            pairs = [part for number in numbers for part in _fraction(float(number))]
            return len(numbers), struct.pack(f"<{len(pairs)}{'I' if self.type is TagType.RATIONAL else 'i'}", *pairs)
        return len(numbers), struct.pack(f"<{len(numbers)}{_PACKING[self.type]}", *numbers)


def tiff_header(tags: Iterable[Tag], exif: Sequence[Tag] = ()) -> bytes:
    """A TIFF file without image data: signature, IFD0 and the EXIF IFD. PNG's eXIf chunk holds exactly this."""
    tags = list(tags)
    if exif:
        offset = 8 + len(_ifd([*tags, Tag(EXIF_IFD, TagType.LONG, 0)], 8))
        tags.append(Tag(EXIF_IFD, TagType.LONG, offset))
        return _SIGNATURE + _ifd(tags, 8) + _ifd(exif, offset)
    return _SIGNATURE + _ifd(tags, 8)


def write_tiff(
    path: str | Path,
    row_blocks: Iterable[np.ndarray],
    *,
    height: int,
    width: int,
    channels: int,
    tags: Sequence[Tag],
    exif: Sequence[Tag] = (),
    rows_per_strip: int | None = None,
) -> None:
    """Writes an uncompressed TIFF of 16-bit samples, whole or not at all.

    row_blocks      uint16 (n, width), or (n, width, channels) if those are several, top to bottom, `height` rows in
                    all: an iterable, so that a large image need not exist a second time
    tags            IFD0 without sizes, strips and sample layout, which are added here
    rows_per_strip  None: one strip
    raises          ImageFileError when the file would pass the 4 GiB that a classic TIFF can address
    """
    rows_per_strip = rows_per_strip or height
    row_bytes = 2 * width * channels
    strips = [min(rows_per_strip, height - top) * row_bytes for top in range(0, height, rows_per_strip)]

    if sum(strips) > 2**32 - _ROOM_FOR_TAGS:
        raise ImageFileError(
            path,
            f"{height} x {width} x {channels} samples of 16 bits are more than the 4 GiB that a TIFF can address: "
            "write tiles of the image as separate files, or EXR",
        )

    def header(start: int) -> bytes:
        offsets = [start + sum(strips[:index]) for index in range(len(strips))]
        layout = [
            Tag(256, TagType.LONG, width),
            Tag(257, TagType.LONG, height),
            Tag(258, TagType.SHORT, [16] * channels),  # BitsPerSample
            Tag(259, TagType.SHORT, 1),  # Compression: none
            Tag(273, TagType.LONG, offsets),
            Tag(277, TagType.SHORT, channels),
            Tag(278, TagType.LONG, rows_per_strip),
            Tag(279, TagType.LONG, strips),
            Tag(284, TagType.SHORT, 1),  # PlanarConfiguration: interleaved
            Tag(339, TagType.SHORT, [1] * channels),  # SampleFormat: unsigned integer
        ]
        return tiff_header([*layout, *tags], exif)

    start = len(header(0))
    assert start <= _ROOM_FOR_TAGS
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(header(start))
        num_rows = 0
        for block in row_blocks:
            assert block.dtype == np.uint16
            assert block.shape[1:] == ((width, channels) if channels > 1 else (width,))
            file.write(np.ascontiguousarray(block, dtype="<u2").data)
            num_rows += block.shape[0]
        assert num_rows == height


_SIGNATURE = struct.pack("<2sHI", b"II", 42, 8)


def _ifd(tags: Sequence[Tag], offset: int) -> bytes:
    """An IFD that begins at `offset` of the file, followed by those values that do not fit in their entry."""
    tags = sorted(tags, key=lambda tag: tag.number)
    assert len({tag.number for tag in tags}) == len(tags)
    entries, values = b"", b""
    values_start = offset + 2 + 12 * len(tags) + 4
    for tag in tags:
        count, data = tag.encoded()
        if len(data) > 4:
            place = struct.pack("<I", values_start + len(values))
            values += data + b"\0" * (len(data) % 2)  # values begin at even offsets
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag.number, tag.type, count) + place
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + values


def _fraction(number: float) -> tuple[int, int]:
    # Both parts must fit in a signed 32-bit integer.
    largest = max(1, min(10**6, (2**31 - 1) // max(1, math.ceil(abs(number)))))
    fraction = Fraction(number).limit_denominator(largest)
    return fraction.numerator, fraction.denominator
