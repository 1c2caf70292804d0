"""The fixed header of an `.sgr` file: what was coded, by which model, and where the rest of the file lies."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from library.entropy.coders import CoderName

MAGIC = b"\x89SGR\r\n\x1a\n"
"""As PNG's: a byte that is no ASCII, both line ends and an end-of-file, so that a text-mode copy breaks it at once."""
MAJOR = 1

LAYOUTS = ("mosaic", "rgb")
CFAS = ("", "RGGB", "GRBG", "GBRG", "BGGR")
CODERS: Final[tuple[CoderName, ...]] = ("rans", "constriction")
MAX_SIDE, MAX_AREA, MAX_PASSES, MAX_QUALITY = 2**20, 2**31, 8, 63
MIN_TILE, MAX_TILE = 64, 4096

_START = struct.Struct("<8sBBH")
_FIELDS = struct.Struct("<QQQ II BBBBBB 16s 2f 2d d 4d d")
_CRC = struct.Struct("<I")
_U16 = struct.Struct("<H")
HEADER_LENGTH = _START.size + _FIELDS.size + _CRC.size
_NOISE_KNOWN = 1
_CODER_SHIFT, _CODER_MASK = 1, 3


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamHeader:
    """What a decoder must know of a picture before it reads a tile.

    width, height   photosites of the mosaic's active area, or pixels of an RGB picture; each at most 2**20, their
                    product at most 2**31
    layout          what was coded
    cfa             letters of the picture's top-left 2x2, row by row; "" for rgb
    tile            photosites a side of a tile, a power of two from 64 to 4096; cut at the right and the lower edge
    num_passes      entropy-coded streams of each tile, 1 to 8
    model_digest    16 bytes that name weights, tables and config of the model
    quality         0 to 63, of the whole file; each tile also has its own
    stabilizer      (offset, reserved), for undoing the variance stabiliser; exact in float32
    noise           (a, b): variance a*x + b at x in [0, 1], as the encoder took it; None when it knew none
    strength        0 faithful to the noisy picture to 1 denoised
    black_level     (4,) DN by CFA position, row by row, as in the original file
    white_level     DN at which a photosite saturates, as in the original file
    coder           what wrote the streams; with any but the first of `CODERS`, version 1.0 refuses the file
    raises          ValueError for what no file may say; a reader makes it an error that names the file
    """

    width: int
    height: int
    layout: Literal["mosaic", "rgb"]
    cfa: str
    tile: int
    num_passes: int
    model_digest: bytes
    quality: int
    stabilizer: tuple[float, float]
    noise: tuple[float, float] | None
    strength: float
    black_level: tuple[float, ...]
    white_level: float
    coder: CoderName = "rans"

    def __post_init__(self) -> None:
        for holds, fault in (
            (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE, "sides must be 1 to 2**20"),
            (self.width * self.height <= MAX_AREA, "the area must be at most 2**31"),
            (self.layout in LAYOUTS, f"layout must be one of {', '.join(LAYOUTS)}, not '{self.layout}'"),
            (
                self.cfa in CFAS and bool(self.cfa) == (self.layout == "mosaic"),
                f"'{self.cfa}' is no CFA of such a layout",
            ),
            (
                MIN_TILE <= self.tile <= MAX_TILE and self.tile.bit_count() == 1,
                f"a tile must be a power of two from {MIN_TILE} to {MAX_TILE}, not {self.tile}",
            ),
            (self.coder in CODERS, f"the coder must be one of {', '.join(CODERS)}, not '{self.coder}'"),
            (1 <= self.num_passes <= MAX_PASSES, f"passes must be 1 to {MAX_PASSES}, not {self.num_passes}"),
            (len(self.model_digest) == 16, f"a model's digest has 16 bytes, not {len(self.model_digest)}"),
            (0 <= self.quality <= MAX_QUALITY, f"quality must be 0 to {MAX_QUALITY}, not {self.quality}"),
            (
                len(self.stabilizer) == 2 and all(map(_is_float32, self.stabilizer)),
                f"the stabiliser must be two float32 numbers, not {self.stabilizer}",
            ),
            (
                self.noise is None or (len(self.noise) == 2 and all(map(math.isfinite, self.noise))),
                f"noise must be two numbers, not {self.noise}",
            ),
            (0 <= self.strength <= 1, f"strength must be 0 to 1, not {self.strength}"),
            (len(self.black_level) == 4, f"there must be 4 black levels, not {len(self.black_level)}"),
            (
                all(map(math.isfinite, (*self.black_level, self.white_level)))
                and self.white_level > max(self.black_level, default=0.0),
                f"white level {self.white_level} must be above black level {self.black_level}",
            ),
        ):
            if not holds:
                raise ValueError(fault)

    @property
    def minor(self) -> int:
        """The version that has all of it: files that 1.0 can say are of 1.0."""
        return 0 if self.coder == CODERS[0] else 1

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.height // self.tile), -(-self.width // self.tile)

    @property
    def num_tiles(self) -> int:
        rows, columns = self.tile_grid
        return rows * columns

    def to_json(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "height": self.height,
            "layout": self.layout,
            "cfa": self.cfa,
            "tile": self.tile,
            "tile_grid": list(self.tile_grid),
            "num_passes": self.num_passes,
            "coder": self.coder,
            "model_digest": self.model_digest.hex(),
            "quality": self.quality,
            "stabilizer": [float(x) for x in self.stabilizer],
            "noise": None if self.noise is None else [float(x) for x in self.noise],
            "strength": float(self.strength),
            "black_level": [float(x) for x in self.black_level],
            "white_level": float(self.white_level),
        }


class Extents(NamedTuple):
    """Where the parts of a file lie, in bytes from its beginning. Blocks lie between the header and the tiles."""

    tiles_at: int
    index_at: int
    end: int


def index_entry(num_passes: int) -> np.dtype:
    """A tile's entry in the index."""
    return np.dtype([("offset", "<u8"), ("lengths", "<u4", (num_passes,)), ("quality", "u1"), ("crc", "<u4")])


def pack_header(header: StreamHeader, extents: Extents) -> bytes:
    data = _START.pack(MAGIC, MAJOR, header.minor, HEADER_LENGTH) + _FIELDS.pack(
        extents.end,
        extents.tiles_at,
        extents.index_at,
        header.width,
        header.height,
        LAYOUTS.index(header.layout),
        CFAS.index(header.cfa),
        header.tile.bit_length() - 1,
        header.num_passes,
        header.quality,
        (0 if header.noise is None else _NOISE_KNOWN) | CODERS.index(header.coder) << _CODER_SHIFT,
        header.model_digest,
        *header.stabilizer,
        *(header.noise or (0.0, 0.0)),
        header.strength,
        *header.black_level,
        header.white_level,
    )
    return data + _CRC.pack(zlib.crc32(data))


def header_length(start: bytes) -> int:
    """Bytes of the whole header, from the first 12 of a file.

    raises  ValueError, saying what it is instead of a beginning of an `.sgr` file
    """
    if not start:
        raise ValueError("is empty (0 bytes): copy it again")
    if len(start) >= 4 and start[:4] == MAGIC[:4] and start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise ValueError("was changed by a copy in text mode, or its first bytes are damaged: copy it again as binary")
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise ValueError("is no .sgr file: it begins with other bytes")
    if len(start) < _START.size:
        raise ValueError("is truncated: it ends within its header; copy it again")
    return _START.unpack(start)[3]


def parse_header(data: bytes) -> tuple[StreamHeader, Extents, str]:
    """Header, extents and format version.

    data    as many bytes as `header_length` says
    raises  ValueError: damaged, of an unknown major version, or saying what cannot be
    """
    if len(data) < _START.size + _CRC.size or zlib.crc32(data[:-4]) != _CRC.unpack(data[-4:])[0]:
        raise ValueError("its header is damaged: copy it again")
    _, major, minor, length = _START.unpack_from(data)
    if major != MAJOR:
        raise ValueError(
            f"has format version {major}.{minor}, and this Stillgrain reads {MAJOR}.x: "
            "read it with the Stillgrain that wrote it, or a newer one"
        )
    if length < HEADER_LENGTH:
        raise ValueError(f"its header has {length} bytes where {HEADER_LENGTH} belong: it was written wrongly")
    end, tiles, index, *rest = _FIELDS.unpack_from(data, _START.size)
    width, height, layout, cfa, tile, num_passes, quality, flags, digest, *numbers = rest
    coder = flags >> _CODER_SHIFT & _CODER_MASK
    if coder >= len(CODERS):
        raise ValueError(f"its streams are of an unknown coder ({coder}): update Stillgrain")
    if layout >= len(LAYOUTS) or cfa >= len(CFAS) or tile > MAX_TILE.bit_length():
        raise ValueError(
            f"its header has an unknown layout ({layout}), CFA ({cfa}) or tile ({tile}): update Stillgrain"
        )
    try:
        header = StreamHeader(
            width=width,
            height=height,
            layout=LAYOUTS[layout],
            cfa=CFAS[cfa],
            tile=1 << tile,
            num_passes=num_passes,
            model_digest=digest,
            quality=quality,
            stabilizer=(numbers[0], numbers[1]),
            noise=(numbers[2], numbers[3]) if flags & _NOISE_KNOWN else None,
            strength=numbers[4],
            black_level=tuple(numbers[5:9]),
            white_level=numbers[9],
            coder=CODERS[coder],
        )
    except ValueError as error:
        raise ValueError(f"its header cannot be: {error}; it was written wrongly") from None
    if not length <= tiles <= index or end != index + header.num_tiles * index_entry(num_passes).itemsize + _CRC.size:
        raise ValueError("its header places its parts where they cannot be: it was written wrongly")
    return header, Extents(tiles, index, end), f"{major}.{minor}"


def repair_header(data: bytes) -> bytes | None:
    """A damaged header with the one byte put right that makes its checksum fit.

    data     a beginning of the file, at least `HEADER_LENGTH` bytes
    returns  None when the header is not damaged, or when no byte or several would do. A header with more damage passes
             for one with less in 1 case of 100,000.
    """
    lengths = {HEADER_LENGTH, int.from_bytes(data[10:12], "little")}
    # By how much the checksum is off, for each length the header may have.
    offs = {
        length: zlib.crc32(data[: length - 4]) ^ int.from_bytes(data[length - 4 : length], "little")
        for length in lengths
        if HEADER_LENGTH <= length <= len(data)
    }
    if 0 in offs.values():
        return None
    # A CRC is linear: one changed byte shows in what the checksum is off by, carried on over the bytes after it. So
    # carry that back, byte by byte: the damage may be where a single byte is left of it.
    table = [zlib.crc32(bytes([byte])) ^ zlib.crc32(b"\0") for byte in range(256)]
    by_high_byte = {carried >> 24: byte for byte, carried in enumerate(table)}
    repaired = []
    for length, off in offs.items():
        changes = [(length - 4 + i, off >> 8 * i) for i in range(4) if off == (off >> 8 * i & 255) << 8 * i]
        for at in reversed(range(length - 4)):
            byte = by_high_byte[off >> 24]
            off = (off ^ table[byte]) << 8 | byte
            if off < 256:
                changes.append((at, off))
        repaired += [data[:at] + bytes([data[at] ^ change]) + data[at + 1 : length] for at, change in changes]
    fitting = [header for header in repaired if header.startswith(MAGIC) and header[10:12] == _U16.pack(len(header))]
    return fitting[0] if len(fitting) == 1 else None


def _is_float32(value: float) -> bool:
    try:
        return math.isfinite(value) and struct.unpack("<f", struct.pack("<f", value))[0] == value
    except OverflowError:
        return False
