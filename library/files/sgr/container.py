"""Writing and reading `.sgr` files: a learned codec's streams by tile and pass, under checksums, with random access.

Nothing here knows a model, or what a stream's bytes mean. The layout is `FORMAT.md`, beside this file.

    with SgrFile("photo.sgr") as file:
        streams = [file.read_tile(index).passes for index in file.tiles_of(top, left, height, width)]

A reader believes no number: each length is held against the bytes that are there before anything of its size is made.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from upath import UPath

from library.errors import StreamFileError
from library.files.atomic import whole_file
from library.files.sgr.header import (
    CODERS,
    HEADER_LENGTH,
    MAX_QUALITY,
    Extents,
    StreamHeader,
    header_length,
    index_entry,
    pack_header,
    parse_header,
    repair_header,
)
from library.files.sgr.metadata import MAX_JSON, FileMetadata, pack_metadata, unpack_metadata

__all__ = [
    "SUFFIX",
    "DamagedTileError",
    "FileMetadata",
    "SgrFile",
    "StreamHeader",
    "StreamSizes",
    "TileRecord",
    "fixed_size",
    "write_sgr",
]

SUFFIX = ".sgr"
SYNC = b"\xa5TLE"

_META, _THUMBNAIL, _CODER = "META", "THMB", "CODR"
_BLOCK = struct.Struct("<4sBQ")
_CRITICAL = 1
_MAX_BLOCKS = 64
_HEAD = struct.Struct("<4sIIB")  # a tile record's: sync, CRC-32, tile, quality; the lengths of its passes follow
_CRC = struct.Struct("<I")
_MAX_HEAD = _HEAD.size + 5 * 8
_CHUNK = 2**20
_NO_BLOCKS: Mapping[str, bytes] = MappingProxyType({})


class DamagedTileError(StreamFileError):
    """One tile that cannot be read, `tile`. The others can."""

    def __init__(self, path: str | Path | UPath, tile: int, reason: str) -> None:
        super().__init__(path, f"tile {tile} {reason}")
        self.tile = tile
        self._of_tile = reason

    def __reduce__(self) -> tuple[type[DamagedTileError], tuple[str, int, str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self), (self.path, self.tile, self._of_tile)


@dataclass(frozen=True)
class TileRecord:
    """One tile's streams.

    index    row by row over the tile grid
    quality  0 to 63
    passes   one stream for each of the header's `num_passes`, in the order of decoding; a stream may be empty
    """

    index: int
    quality: int
    passes: tuple[bytes, ...]


@dataclass(frozen=True)
class StreamSizes:
    """Where a file's bytes go. All but `total` add up to `total`.

    header     the fixed header
    metadata   the block META
    thumbnail  the block THMB
    blocks     the other blocks
    index      index and heads of the tile records; in a salvaged file also whatever could not be read
    passes     the streams, by pass
    total      bytes of the file
    """

    header: int
    metadata: int
    thumbnail: int
    blocks: int
    index: int
    passes: tuple[int, ...]
    total: int

    @property
    def counted(self) -> int:
        """All but metadata and thumbnail: what bits per photosite are counted of."""
        return self.total - self.metadata - self.thumbnail


def fixed_size(header: StreamHeader) -> int:
    """Bytes of a file with this header that no stream, metadata or thumbnail changes: header, coder and index."""
    coder = len(_pack_block(_CODER, _coder_payload(header))) if header.coder != CODERS[0] else 0
    return HEADER_LENGTH + coder + header.num_tiles * index_entry(header.num_passes).itemsize + _CRC.size


# --- writing ----------------------------------------------------------------------------------------------------------


def write_sgr(
    path: str | Path | UPath,
    header: StreamHeader,
    metadata: FileMetadata,
    tiles: Iterable[TileRecord],
    *,
    thumbnail: bytes | None = None,
    blocks: Mapping[str, bytes] = _NO_BLOCKS,
) -> None:
    """A file that appears whole or not at all.

    tiles      each tile once, in any order; written as they come
    thumbnail  a JPEG, or another picture that a viewer knows by its first bytes
    blocks     further facts by type (4 characters of ASCII); a reader that does not know a type skips it
    raises     ValueError for a tile that is missing, there twice or not as the header says; what is no JSON in the
               metadata, TypeError too
    """
    entries = np.zeros(header.num_tiles, index_entry(header.num_passes))
    written = np.zeros(header.num_tiles, bool)
    for kind in blocks:
        if len(kind) != 4 or not kind.isascii() or not kind.isprintable() or kind in (_META, _CODER, _THUMBNAIL):
            raise ValueError(
                f"'{kind}' is no type for a block: use 4 characters of ASCII, not {_META}, {_CODER} or {_THUMBNAIL}"
            )
    ours = {_META: pack_metadata(metadata)}
    if header.coder != CODERS[0]:
        ours[_CODER] = _coder_payload(header)
    if thumbnail is not None:
        ours[_THUMBNAIL] = thumbnail
    if len(ours) + len(blocks) > _MAX_BLOCKS:
        raise ValueError(f"{len(ours) + len(blocks)} blocks are too many: a file has at most {_MAX_BLOCKS}")
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(HEADER_LENGTH))
        for kind, payload in (*ours.items(), *blocks.items()):
            file.write(_pack_block(kind, payload))
        start = file.tell()
        for tile in tiles:
            _check_tile(tile, header)
            if written[tile.index]:
                raise ValueError(f"tile {tile.index} comes twice")
            record = _pack_record(tile)
            lengths = [len(stream) for stream in tile.passes]
            entries[tile.index] = (file.tell(), lengths, tile.quality, _HEAD.unpack_from(record)[1])
            written[tile.index] = True
            file.write(record)
        if not written.all():
            raise ValueError(
                f"{np.sum(~written)} of {header.num_tiles} tiles are missing, tile {written.argmin()} first"
            )
        end_of_tiles = file.tell()
        index = entries.tobytes()
        file.write(index + _CRC.pack(zlib.crc32(index)))
        extents = Extents(start, end_of_tiles, file.tell())
        file.seek(0)
        file.write(pack_header(header, extents))


def _pack_block(kind: str, payload: bytes) -> bytes:
    block = _BLOCK.pack(kind.encode("ascii"), _CRITICAL if kind in (_META, _CODER) else 0, len(payload)) + payload
    return block + _CRC.pack(zlib.crc32(block))


def _coder_payload(header: StreamHeader) -> bytes:
    return bytes([CODERS.index(header.coder)])


def _check_tile(tile: TileRecord, header: StreamHeader) -> None:
    if not 0 <= tile.index < header.num_tiles:
        raise ValueError(f"there is no tile {tile.index}: the picture has {header.num_tiles}")
    if len(tile.passes) != header.num_passes or not 0 <= tile.quality <= MAX_QUALITY:
        raise ValueError(
            f"tile {tile.index} has {len(tile.passes)} passes and quality {tile.quality}: "
            f"the header says {header.num_passes} passes, and quality is 0 to {MAX_QUALITY}"
        )
    if any(len(stream) >= 2**32 for stream in tile.passes):
        raise ValueError(f"tile {tile.index} has a stream of 4 GiB or more: use smaller tiles")


def _pack_record(tile: TileRecord) -> bytes:
    checked = _checked_head(tile.index, tile.quality, [len(s) for s in tile.passes]) + b"".join(tile.passes)
    return SYNC + _CRC.pack(zlib.crc32(checked)) + checked


def _checked_head(index: int, quality: int, lengths: Sequence[int]) -> bytes:
    """What a tile record has between its CRC and its streams."""
    return struct.pack("<IB", index, quality) + b"".join(map(_varint, lengths))


def _varint(number: int) -> bytes:
    """Little-endian base 128; all bytes but the last have their highest bit set."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


# --- reading ----------------------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """Where a tile's record lies, and what the index or the record's own head says of it."""

    offset: int
    lengths: tuple[int, ...]
    quality: int
    crc: int


class SgrFile:
    """An open `.sgr` file. Header, metadata and index are read and checked at once, tiles on demand.

    Use as a context manager, from as many threads as you like.

    path     a file, or a URI of one
    salvage  open also what is damaged or cut off, if its header is whole or has but one damaged byte: looks for every
             tile in the whole file, leaves out blocks that are damaged, and says what was wrong in `faults`
    raises   StreamFileError: not there, no `.sgr`, of an unknown major version, damaged or cut off

    header     what was coded, and how
    metadata   of the photograph; all unknown where it was not to be salvaged
    thumbnail  a picture as it would stand in a file of its own, or None
    version    of the format, as "1.0"
    faults     what is wrong with a salvaged file, tiles apart (`damaged_tiles` has those)
    """

    header: StreamHeader
    metadata: FileMetadata
    version: str
    faults: tuple[str, ...]

    def __init__(self, path: str | Path | UPath, *, salvage: bool = False) -> None:
        self.path = UPath(path)
        self.faults = ()
        self._salvage = salvage
        self._lock = threading.Lock()
        try:
            self._file = cast(BinaryIO, self.path.open("rb"))
        except FileNotFoundError as error:
            raise StreamFileError(path, "does not exist: check the path") from error
        except OSError as error:
            raise StreamFileError(path, f"cannot be read ({error.strerror}): check path and permissions") from error
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        self._size = self._file.seek(0, 2)
        try:
            self.header, extents, self.version = parse_header(self._read_header())
        except ValueError as error:
            raise StreamFileError(self.path, str(error)) from None
        if self._size < extents.end:
            self._fault(f"is truncated: {extents.end - self._size} of its {extents.end} bytes are missing")
        elif self._size > extents.end:
            self._fault(f"has {self._size - extents.end} bytes more than the {extents.end} it was written with")
        self._blocks: dict[str, tuple[int, int]] = {}
        self.metadata = FileMetadata()
        self._read_blocks(min(extents.tiles_at, self._size))
        self._numbers, self._entries = np.arange(0), np.zeros(0, index_entry(self.header.num_passes))
        self._read_index(extents)
        if self._salvage:
            self._find_tiles(extents)

    def _read_header(self) -> bytes:
        if self._salvage and self._size >= HEADER_LENGTH:
            repaired = repair_header(self._read(0, min(2**16 - 1, self._size)))
            if repaired is not None:
                self.faults += ("has a damaged byte in its header, put right by its checksum",)
                self._header_length = len(repaired)
                return repaired
        self._header_length = header_length(self._read(0, min(12, self._size)))
        if self._header_length > self._size:
            raise ValueError("is truncated: it ends within its header; copy it again")
        return self._read(0, self._header_length)

    def __enter__(self) -> SgrFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def thumbnail(self) -> bytes | None:
        return self.block(_THUMBNAIL)

    def block(self, kind: str) -> bytes | None:
        """The payload of the block of a type, None when the file has none that is whole."""
        return self._read(*self._blocks[kind]) if kind in self._blocks else None

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.header.tile_grid

    def tile_bounds(self, index: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a tile, in photosites of the picture."""
        self._check(index)
        row, column = divmod(index, self.tile_grid[1])
        tile = self.header.tile
        top, left = row * tile, column * tile
        return top, left, min(tile, self.header.height - top), min(tile, self.header.width - left)

    def tiles_of(self, top: int, left: int, height: int, width: int) -> list[int]:
        """Tiles that touch a region, row by row. What of a region lies outside of the picture touches none."""
        bottom, right = min(top + height, self.header.height), min(left + width, self.header.width)
        top, left, tile = max(top, 0), max(left, 0), self.header.tile
        if top >= bottom or left >= right:
            return []
        columns = range(left // tile, (right - 1) // tile + 1)
        return [
            row * self.tile_grid[1] + column
            for row in range(top // tile, (bottom - 1) // tile + 1)
            for column in columns
        ]

    def read_tile(self, index: int) -> TileRecord:
        """The streams of one tile, whose checksum fits.

        raises  DamagedTileError naming the tile; IndexError when the picture has no such tile
        """
        self._check(index)
        row = int(np.searchsorted(self._numbers, index))
        if row == len(self._numbers) or self._numbers[row] != index:
            raise DamagedTileError(self.path, index, "was not found in the file, or only damaged: copy the file again")
        offset, lengths, quality, crc = _entry(self._entries[row])
        head = _checked_head(index, quality, lengths)
        try:
            data = self._read(offset, 8 + len(head) + sum(lengths))
        except StreamFileError as error:
            raise DamagedTileError(self.path, index, f"cannot be read: the file {error.reason}") from error
        # The index tells the same as the record's head; both are under the checksum.
        if zlib.crc32(memoryview(data)[8:]) != crc or not data.startswith(head, 8) or quality > MAX_QUALITY:
            raise DamagedTileError(
                self.path, index, "is damaged, its checksum does not fit: copy the file again; other tiles can be read"
            )
        if data[:8] != SYNC + _CRC.pack(crc) and not self._salvage:
            raise DamagedTileError(
                self.path,
                index,
                "has a damaged head, but its streams are whole: copy the file again, or open to salvage",
            )
        passes, at = [], 8 + len(head)
        for length in lengths:
            passes.append(data[at : at + length])
            at += length
        return TileRecord(index, quality, tuple(passes))

    def damaged_tiles(self) -> list[int]:
        """Tiles that `read_tile` refuses. Reads all of them."""
        whole = {index for index in self._numbers.tolist() if self._is_whole(index)}
        return [index for index in range(self.header.num_tiles) if index not in whole]

    @property
    def sizes(self) -> StreamSizes:
        of_block = {kind: _BLOCK.size + length + _CRC.size for kind, (_, length) in self._blocks.items()}
        metadata, thumbnail = of_block.pop(_META, 0), of_block.pop(_THUMBNAIL, 0)
        blocks = sum(of_block.values())
        passes = tuple(int(column.sum(dtype=np.uint64)) for column in self._entries["lengths"].T)
        index = self._size - self._header_length - metadata - thumbnail - blocks - sum(passes)
        return StreamSizes(self._header_length, metadata, thumbnail, blocks, index, passes, self._size)

    def to_json(self) -> dict[str, Any]:
        """What can be said of the file without decoding it, in plain JSON types. bpp is bits per photosite."""
        qualities = self._entries["quality"]
        return {
            "path": str(self.path),
            "version": self.version,
            **self.header.to_json(),
            "num_tiles": self.header.num_tiles,
            "qualities": [int(qualities.min()), int(qualities.max())] if len(qualities) else None,
            "bpp": 8 * self._size / (self.header.width * self.header.height),
            "sizes": asdict(self.sizes) | {"passes": list(self.sizes.passes)},
            "blocks": sorted(self._blocks),
            "metadata": self.metadata.to_json(),
            "faults": list(self.faults),
        }

    def _check(self, index: int) -> None:
        if not 0 <= index < self.header.num_tiles:
            raise IndexError(f"there is no tile {index}: {self.path} has {self.header.num_tiles}")

    def _is_whole(self, index: int) -> bool:
        try:
            self.read_tile(index)
        except DamagedTileError:
            return False
        return True

    def _fault(self, reason: str) -> None:
        """Damage that ends the reading, unless what is whole is to be salvaged."""
        if not self._salvage:
            raise StreamFileError(self.path, f"{reason}: copy it again, or open it to salvage the tiles that are whole")
        self.faults += (reason,)

    def _read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise StreamFileError(self.path, f"has {self._size} bytes and names {length} at {offset}: copy it again")
        try:
            with self._lock:
                self._file.seek(offset)
                data = self._file.read(length)
        except OSError as error:
            raise StreamFileError(self.path, f"cannot be read ({error.strerror}): check the disk") from error
        if len(data) != length:
            raise StreamFileError(self.path, "became shorter while it was read: copy it again")
        return data

    def _crc(self, offset: int, length: int) -> int:
        crc = 0
        for start in range(offset, offset + length, _CHUNK):
            crc = zlib.crc32(self._read(start, min(_CHUNK, offset + length - start)), crc)
        return crc

    def _read_blocks(self, stop: int) -> None:
        at, count, seen = self._header_length, 0, set()
        while at < stop:
            if stop - at < _BLOCK.size + _CRC.size or count == _MAX_BLOCKS:
                return self._fault(f"has {stop - at} bytes among its blocks that are none")
            name, flags, length = _BLOCK.unpack(self._read(at, _BLOCK.size))
            start = at + _BLOCK.size
            if length > stop - start - _CRC.size:
                return self._fault(f"has a damaged block at byte {at}")
            if self._crc(at, _BLOCK.size + length) != _CRC.unpack(self._read(start + length, _CRC.size))[0]:
                self._fault(f"has a damaged block at byte {at}")
            else:
                kind = name.decode("latin-1")
                if kind in seen:
                    return self._fault(f"has two blocks {kind}")
                seen.add(kind)
                self._take_block(kind, flags, start, length)
            at, count = start + length + _CRC.size, count + 1
        if _META not in seen:
            self._fault("has no metadata")
        if self.header.coder != CODERS[0] and _CODER not in seen:
            self._fault(f"has no block {_CODER}, which its coder needs")
        return None

    def _take_block(self, kind: str, flags: int, start: int, length: int) -> None:
        if kind == _META:
            # The limit of what is unpacked bounds what is packed, but for zlib's few bytes around stored data.
            if length > MAX_JSON + MAX_JSON // 256:
                return self._fault(f"has metadata of {length} bytes")
            try:
                self.metadata = unpack_metadata(self._read(start, length))
            except ValueError as error:
                return self._fault(str(error))
        elif kind == _CODER:
            # Which coder it is the header says too: this block is there for readers of version 1.0, to stop them.
            coder = self.header.coder
            if coder == CODERS[0] or length != 1 or self._read(start, 1) != _coder_payload(self.header):
                return self._fault(f"has a block {_CODER} that is not of its header's coder, {coder}")
        elif kind != _THUMBNAIL and flags & _CRITICAL:
            raise StreamFileError(
                self.path,
                f"cannot be decoded without understanding its block {kind!r}, which is newer: update Stillgrain",
            )
        self._blocks[kind] = (start, length)
        return None

    def _read_index(self, extents: Extents) -> None:
        if self._size < extents.end:
            return None  # only to salvage
        data = self._read(extents.index_at, extents.end - extents.index_at)
        if zlib.crc32(data[:-4]) != _CRC.unpack(data[-4:])[0]:
            return self._fault("has a damaged index")
        entries = np.frombuffer(data[:-4], index_entry(self.header.num_passes))
        if not _fills(entries, extents):
            return self._fault("has an index that does not fit its tiles")
        self._numbers, self._entries = np.arange(len(entries)), entries
        return None

    def _find_tiles(self, extents: Extents) -> None:
        """Adds the tiles that a scan finds to those of the index, and prefers them: they fit their checksum."""
        found: dict[int, _Entry] = {}
        # Bytes can be missing before the tiles too. Last, since a block may hold what looks like a tile.
        tiles = min(extents.tiles_at, self._size)
        for start, stop in ((tiles, self._size), (self._header_length, tiles)):
            for number, entry in self._records(start, stop):
                found.setdefault(number, entry)
        known = dict(zip(self._numbers.tolist(), map(_entry, self._entries), strict=True)) | found
        self._numbers = np.array(sorted(known), np.int64)
        self._entries = np.array([known[number] for number in self._numbers.tolist()], self._entries.dtype)

    def _records(self, start: int, stop: int) -> Iterator[tuple[int, _Entry]]:
        """Tile records that begin from `start` to `stop`, by their sync bytes, and fit their checksum."""
        # What only looks like a record may claim the rest of the file, any number of times.
        patience = 64 * _CHUNK + 16 * self._size
        at = start
        while at < stop:
            window = self._read(at, min(_CHUNK + _MAX_HEAD, self._size - at))
            room, after = min(_CHUNK, stop - at), 0
            while (hit := window.find(SYNC, after, room + len(SYNC) - 1)) >= 0:
                after = hit + len(SYNC)
                parsed = _parse_head(window[hit : hit + _MAX_HEAD], self.header)
                if parsed is None:
                    continue
                number, entry, head = parsed
                length = head + sum(entry.lengths)
                if length > self._size - at - hit:
                    continue
                patience -= length
                if patience < 0:
                    return self._fault("holds too much that looks like tiles and is none")
                if self._crc(at + hit + 8, length - 8) == entry.crc:
                    yield number, entry._replace(offset=at + hit)
                    after = hit + length
            at += max(room, after)
        return None


def _entry(row: np.void) -> _Entry:
    return _Entry(int(row["offset"]), tuple(row["lengths"].tolist()), int(row["quality"]), int(row["crc"]))


def _fills(entries: np.ndarray, extents: Extents) -> bool:
    """Whether the records lie side by side, in any order, from the first to the last byte of the tiles' part."""
    offsets, lengths = entries["offset"], entries["lengths"].astype(np.int64)
    if ((offsets < extents.tiles_at) | (offsets > extents.index_at)).any():
        return False
    varints = 1 + sum((lengths >= 1 << bits).astype(np.int64) for bits in (7, 14, 21, 28))
    order = np.argsort(offsets, kind="stable")
    starts = offsets[order].astype(np.int64)
    ends = starts + (_HEAD.size + (varints + lengths).sum(axis=1))[order]
    return bool(starts[0] == extents.tiles_at and (starts[1:] == ends[:-1]).all() and ends[-1] == extents.index_at)


def _parse_head(data: bytes, header: StreamHeader) -> tuple[int, _Entry, int] | None:
    """Tile, entry (its offset left 0) and bytes of the head of a tile record, None when it is none."""
    if len(data) < _HEAD.size:
        return None
    _, crc, number, quality = _HEAD.unpack_from(data)
    if number >= header.num_tiles or quality > MAX_QUALITY:
        return None
    lengths, at = [], _HEAD.size
    for _ in range(header.num_passes):
        length = shift = 0
        while True:
            if at == len(data) or shift > 28:
                return None
            digit = data[at]
            length |= (digit & 127) << shift
            at, shift = at + 1, shift + 7
            if digit < 128:
                break
        lengths.append(length)
    if data[8:at] != _checked_head(number, quality, lengths) or max(lengths) >= 2**32:
        return None  # a number longer than it need be, or too large
    return number, _Entry(0, tuple(lengths), quality, crc), at
