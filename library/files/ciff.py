"""Make, model and capture time of a Canon CRW, whose CIFF container exifread cannot read and rawpy does not report.

A CIFF heap ends with its directory: a count, then records of (type, size, offset), some of which are heaps again.
Source: "CIFF Specification on Image Data File", version 1.0 revision 4 (Canon, 1997).
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime

SIGNATURE = b"HEAPCCDR"
"""At byte 6, after the byte order and the header's length."""

_MAKE_MODEL = 0x080A
_CAPTURE_TIME = 0x180E
_HEAPS = (0x2800, 0x3000)
_STORED_IN_DIRECTORY = 0x4000


def read_tags(data: bytes) -> dict[int, str]:
    """EXIF's Make (271), Model (272) and DateTimeOriginal (36867), as far as the heap has them.

    returns  nothing when the directory at the end of the file is missing or damaged, as in a truncated file
    """
    order = "<" if data[:2] == b"II" else ">"
    try:
        records = _records(data, order)
    except struct.error:
        return {}
    tags: dict[int, str] = {}
    if _MAKE_MODEL in records:
        make, model = [*data[records[_MAKE_MODEL]].split(b"\0"), b"", b""][:2]
        tags |= {271: make.decode("latin-1").strip(), 272: model.decode("latin-1").strip()}
    if _CAPTURE_TIME in records:
        # Seconds since 1970 on the camera's own clock, whose zone is unknown: none is applied.
        seconds = struct.unpack_from(f"{order}I", data, records[_CAPTURE_TIME].start)[0]
        if seconds:
            tags[36867] = datetime.fromtimestamp(seconds, UTC).strftime("%Y:%m:%d %H:%M:%S")
    return tags


def _records(data: bytes, order: str) -> dict[int, slice]:
    """Where each kind of record lies, through all heaps."""
    records: dict[int, slice] = {}
    (header_length,) = struct.unpack_from(f"{order}I", data, 2)
    heaps, seen = [slice(header_length, len(data))], set()
    while heaps:
        heap = heaps.pop()
        if heap.start in seen:  # a damaged directory may name itself
            continue
        seen.add(heap.start)
        (directory,) = struct.unpack_from(f"{order}I", data, heap.stop - 4)
        (count,) = struct.unpack_from(f"{order}H", data, heap.start + directory)
        for index in range(count):
            kind, size, offset = struct.unpack_from(f"{order}HII", data, heap.start + directory + 2 + 10 * index)
            place = slice(heap.start + offset, heap.start + offset + size)
            if kind & _STORED_IN_DIRECTORY or place.stop > heap.stop:
                continue
            if kind & 0x3800 in _HEAPS:
                heaps.append(place)
            else:
                records[kind & 0x3FFF] = place
    return records
