"""Files that no archive should hold, and every archive does: cut, empty, lying, looping, huge, unreadable.

Used by the tests and the benchmark of archives. Each must end as a failure with a reason, and harm no other file.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_SHORT, _LONG = 3, 4


def write_hostile_files(folder: Path, whole: bytes, num_files: int) -> list[Path]:
    """Write `num_files` different ones, of the kinds in turn; the same every time. Returns their paths.

    whole  a small uncompressed DNG, to be spoilt
    """
    folder.mkdir(parents=True)
    kinds = [_odd_places(folder), _lies(folder, whole), _headers(folder), _cuts(folder, whole), _headless(folder)]
    written: list[Path] = []
    while len(written) < num_files:
        assert kinds, f"only {len(written)} kinds are known"
        for kind in list(kinds):
            path = next(kind, None)
            if path is None:
                kinds.remove(kind)
            elif len(written) < num_files:
                written.append(path)
    for unused in set(folder.iterdir()) - set(written) - {Path(f"{path}.json") for path in written}:
        unused.rmdir() if unused.is_dir() and not unused.is_symlink() else unused.unlink()
    return written


def _cuts(folder: Path, whole: bytes) -> Iterator[Path]:
    lengths = (0, 500, 1, 2000, 8, len(whole) // 2, 100, len(whole) - 200, 4, 250, 1000, 30, 12, 60, 350, 750, 3000)
    for number, length in enumerate(lengths):
        yield _written(folder / f"cut {number:02}.dng", whole[:length])


def _headers(folder: Path) -> Iterator[Path]:
    """Noise behind the first bytes of a camera's format, or of no camera's."""
    starts = {
        "noise.cr2": b"II*\0\x10\0\0\0CR\2\0",
        "picture.nef": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        "noise.raf": b"FUJIFILMCCD-RAW 0201FF389501",
        "noise.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1",
        "noise.orf": b"IIRO\x08\0\0\0",
        "archive.dng": b"PK\3\4\x14\0",
        "noise.mrw": b"\0MRM\0\0\xff\xff",
        "noise.rw2": b"IIU\0\x18\0\0\0",
        "text.arw": b"these are the holiday pictures",
        "noise.x3f": b"FOVb\1\0\3\0",
        "noise.iiq": b"IIII\0\0\0\0",
        "noise.crw": b"II\x1a\0\0\0HEAPCCDR",
        "picture.dng": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "big endian.pef": b"MM\0*\0\0\0\x08\xff\xff",
        "page.3fr": b"%PDF-1.7",
        "program.kdc": b"\x7fELF\2\1\1",
    }
    for number, (name, start) in enumerate(starts.items()):
        yield _written(folder / name, start + np.random.default_rng(number).bytes(3000 + 500 * number))


def _lies(folder: Path, whole: bytes) -> Iterator[Path]:
    """A DNG whose header says what is not true."""
    lies = {
        "huge": {256: (_LONG, 100_000), 257: (_LONG, 100_000)},
        "no image": {256: (_LONG, 0)},
        "largest": {256: (_LONG, 2**32 - 1), 257: (_LONG, 2**32 - 1)},
        "samples elsewhere": {273: (_LONG, 2**32 - 16)},
        "many channels": {277: (_SHORT, 60_000)},
        "unknown compression": {259: (_SHORT, 65_000)},
        "wide": {256: (_LONG, 65_535)},
        "tall": {257: (_LONG, 65_535)},
        "finished picture": {262: (_SHORT, 2)},
        "linear": {262: (_SHORT, 34892)},
        "deflated": {259: (_SHORT, 8)},
    }
    for name, changes in lies.items():
        data = bytearray(whole)
        for tag, (kind, value) in changes.items():
            at = _entry(data, tag)
            data[at + 2 : at + 12] = struct.pack("<HII", kind, 1, value)
        yield _written(folder / f"{name}.dng", bytes(data))
    # Directories that follow each other in a circle, and one of more entries than the file has bytes.
    start = struct.unpack_from("<I", whole, 4)[0]
    num_entries = struct.unpack_from("<H", whole, start)[0]
    loop = bytearray(whole[: len(whole) // 3])
    struct.pack_into("<I", loop, start + 2 + 12 * num_entries, start)
    yield _written(folder / "loop.dng", bytes(loop))
    inner = bytearray(whole[: len(whole) // 3])
    at = _entry(inner, 34665)
    inner[at + 2 : at + 12] = struct.pack("<HII", _LONG, 1, start)
    yield _written(folder / "its own inside.dng", bytes(inner))
    crowded = bytearray(whole)
    struct.pack_into("<H", crowded, start, 65_535)
    yield _written(folder / "crowded.dng", bytes(crowded[:3000]))


def _headless(folder: Path) -> Iterator[Path]:
    """Samples with a description that does not fit them."""
    plain = {"width": 32, "height": 32, "cfa": "RGGB", "black_level": 64, "white_level": 1023}
    samples = bytes(2 * 32 * 32)
    for number, changes in enumerate(
        ({"width": 10**9}, {"cfa": "RGBW"}, {"height": -1}, {"black_level": 2000}, {"colour": "nice"})
    ):
        path = _written(folder / f"samples {number}.raw", samples)
        _written(Path(f"{path}.json"), json.dumps({**plain, **changes}).encode())
        yield path
    path = _written(folder / "undescribed.raw", samples)
    yield path


def _odd_places(folder: Path) -> Iterator[Path]:
    """What has a raw's name, and is no file, or none that can be read."""
    (folder / "folder.dng").mkdir()
    yield folder / "folder.dng"
    os.mkfifo(folder / "pipe.dng")
    yield folder / "pipe.dng"
    for name, target in (
        ("gone.dng", folder / "nowhere.dng"),
        ("itself.dng", folder / "itself.dng"),
        ("device.dng", Path("/dev/zero")),
        ("memory.dng", Path("/proc/self/mem")),
    ):
        (folder / name).symlink_to(target)
        yield folder / name
    with open(folder / "vast.dng", "wb") as file:
        file.truncate(2**40)
    yield folder / "vast.dng"
    name = os.fsencode(folder) + b"/no\xffutf8.dng"
    os.close(os.open(name, os.O_CREAT))
    yield Path(os.fsdecode(name))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _entry(data: bytes | bytearray, tag: int) -> int:
    """Where a tag's entry begins in the first directory (TIFF 6.0, section 2)."""
    start = struct.unpack_from("<I", data, 4)[0]
    for number in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * number
        if struct.unpack_from("<H", data, at)[0] == tag:
            return at
    raise AssertionError(f"the DNG has no tag {tag}")
