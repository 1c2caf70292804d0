"""A writer of classic little-endian TIFF: typed tags, an EXIF IFD, sub-IFDs, samples in strips or tiles.

It exists because tifffile refuses to write the EXIF sub-IFD, without which a DNG loses its exposure and lens.
Reading is tifffile's and LibRaw's job.

Source: TIFF revision 6.0 (1992), sections 2 and 3; EXIF 2.32 (CIPA DC-008), section 4.6.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from library.errors import ImageFileError
from library.files.atomic import whole_file

EXIF_IFD, SUB_IFDS = 34665, 330


class TagType(IntEnum):
    """TIFF field types, by their code in the file."""

    BYTE = 1
    ASCII = 2
    SHORT = 3
    LONG = 4
    RATIONAL = 5
    UNDEFINED = 7
    SRATIONAL = 10
    FLOAT = 11
    DOUBLE = 12


_PACKING = {TagType.SHORT: "H", TagType.LONG: "I", TagType.FLOAT: "f", TagType.DOUBLE: "d"}


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


def tiff_header(tags: Iterable[Tag], exif: Sequence[Tag] = (), below: Sequence[Sequence[Tag]] = ()) -> bytes:
    """A TIFF file without image data: signature, IFD0, EXIF IFD, sub-IFDs. PNG's eXIf chunk holds exactly this."""
    tags = list(tags)
    pointers = {EXIF_IFD: [exif] if exif else [], SUB_IFDS: list(below)}
    places = [Tag(number, TagType.LONG, [0] * len(ifds)) for number, ifds in pointers.items() if ifds]
    at = 8 + len(_ifd([*tags, *places], 8))
    placed, blocks = [], b""
    for number, ifds in pointers.items():
        offsets = []
        for ifd in ifds:
            offsets.append(at + len(blocks))
            blocks += _ifd(ifd, offsets[-1])
        if ifds:
            placed.append(Tag(number, TagType.LONG, offsets))
    return _SIGNATURE + _ifd([*tags, *placed], 8) + blocks


@dataclass(frozen=True)
class Samples:
    """The stored samples of one image, in strips or in tiles.

    layout   tags that say how they lie and are coded, but not where
    sizes    bytes of each strip or tile
    blocks   the bytes of all of them in order, cut anywhere: an iterable, so that a large image need not exist a second
             time
    tiled    in tiles
    """

    layout: Sequence[Tag]
    sizes: Sequence[int]
    blocks: Iterable[bytes | memoryview]
    tiled: bool = False

    def directory(self, tags: Iterable[Tag], start: int) -> list[Tag]:
        """The tags of the IFD of this image, whose samples begin at `start` of the file."""
        offsets = list(itertools.accumulate(self.sizes[:-1], initial=start))
        where, how_much = (324, 325) if self.tiled else (273, 279)
        return [*self.layout, Tag(where, TagType.LONG, offsets), Tag(how_much, TagType.LONG, list(self.sizes)), *tags]


def uncompressed_strips(
    row_blocks: Iterable[np.ndarray],
    *,
    height: int,
    width: int,
    channels: int,
    dtype: type[np.uint16 | np.float16 | np.float32] = np.uint16,
    rows_per_strip: int | None = None,
) -> Samples:
    """Samples as they are, little-endian.

    row_blocks      `dtype` (n, width), or (n, width, channels) if those are several; top to bottom, `height` rows
    rows_per_strip  None: one strip
    """
    rows_per_strip = rows_per_strip or height
    bits = 8 * np.dtype(dtype).itemsize
    row_bytes = bits // 8 * width * channels

    def blocks() -> Iterator[memoryview]:
        num_rows = 0
        for block in row_blocks:
            assert block.dtype == dtype
            assert block.shape[1:] == ((width, channels) if channels > 1 else (width,))
            yield np.ascontiguousarray(block, np.dtype(dtype).newbyteorder("<")).reshape(-1).view(np.uint8).data
            num_rows += block.shape[0]
        assert num_rows == height

    return Samples(
        layout=[
            *size_tags(height, width, channels, bits),
            Tag(259, TagType.SHORT, 1),  # Compression: none
            Tag(278, TagType.LONG, rows_per_strip),
            Tag(339, TagType.SHORT, [1 if np.dtype(dtype).kind == "u" else 3] * channels),  # SampleFormat
        ],
        sizes=[min(rows_per_strip, height - top) * row_bytes for top in range(0, height, rows_per_strip)],
        blocks=blocks(),
    )


def size_tags(height: int, width: int, channels: int, bits: int) -> list[Tag]:
    """What an image is, however it is stored: its size, and its interleaved samples of `bits` bits."""
    return [
        Tag(256, TagType.LONG, width),
        Tag(257, TagType.LONG, height),
        Tag(258, TagType.SHORT, [bits] * channels),  # BitsPerSample
        Tag(277, TagType.SHORT, channels),  # SamplesPerPixel
        Tag(284, TagType.SHORT, 1),  # PlanarConfiguration: interleaved
    ]


def write_tiff(
    path: str | Path,
    row_blocks: Iterable[np.ndarray],
    *,
    height: int,
    width: int,
    channels: int,
    tags: Sequence[Tag],
    exif: Sequence[Tag] = (),
    dtype: type[np.uint16 | np.float16 | np.float32] = np.uint16,
    rows_per_strip: int | None = None,
) -> None:
    """Writes an uncompressed TIFF of one image, whole or not at all: `uncompressed_strips` by `write_images`."""
    samples = uncompressed_strips(
        row_blocks, height=height, width=width, channels=channels, dtype=dtype, rows_per_strip=rows_per_strip
    )
    write_images(path, samples, tags=tags, exif=exif)


def write_images(
    path: str | Path,
    samples: Samples,
    *,
    tags: Sequence[Tag],
    exif: Sequence[Tag] = (),
    previews: Sequence[tuple[Samples, Sequence[Tag]]] = (),
) -> None:
    """Writes a TIFF whose first IFD holds the image, whole or not at all.

    tags      of IFD0, without those of `samples`
    previews  further images with their tags, each in a sub-IFD of IFD0
    raises    ImageFileError when the file would pass the 4 GiB that a classic TIFF can address
    """
    images = [*(image for image, _ in previews), samples]  # a preview comes first, where it is found soonest
    total = sum(size for image in images for size in image.sizes)

    def header(start: int) -> bytes:
        starts = list(itertools.accumulate((sum(image.sizes) for image in images), initial=start))
        below = [image.directory(own, at) for (image, own), at in zip(previews, starts, strict=False)]
        return tiff_header(samples.directory(tags, starts[len(previews)]), exif, below)

    if total >= 2**32 or (start := len(header(0))) + total >= 2**32:
        raise ImageFileError(
            path,
            f"would have {total / 2**30:.1f} GiB of samples, and a TIFF can address 4 GiB: write tiles of the image as "
            "separate files, or EXR",
        )
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(header(start))
        for image in images:
            for block in image.blocks:
                file.write(block)
        assert file.tell() == start + total


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
