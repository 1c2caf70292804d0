"""Values as symbols of their tables, and back: what a stream has to carry, whichever coder writes it.

A symbol that is certain is not coded; a value that its table does not know is the table's escape, and how far it lies
outside is written behind the coded symbols. STREAM.md has all of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.entropy.tables import INT32, FrequencyTables, escape_code, value_of_escape
from library.errors import StillgrainError

MAX_LEB128_BYTES = 5
"""An escape code is less than 2**34."""
VALUES_PER_BLOCK = 1 << 16
"""What is converted at a time: stays in a cache."""
OTHER_CHECKSUM = "its values do not have the check sum it holds"


class CorruptStreamError(StillgrainError):
    """Bytes that no encoder wrote for these tables and indices: `stream`, its number in the call, and `reason`."""

    def __init__(self, stream: int, reason: str) -> None:
        super().__init__(
            f"entropy-coded stream {stream} is damaged, or was coded with other tables or indices: {reason}"
        )
        self.stream = stream
        self.reason = reason

    def __reduce__(self) -> tuple[type[CorruptStreamError], tuple[int, str]]:
        # Exceptions cross process boundaries by their constructor's arguments.
        return type(self), (self.stream, self.reason)


@dataclass(frozen=True)
class Symbols:
    """What a stream carries. Symbols are numbered through all tables."""

    coded: NDArray[np.int32]
    """Of the values that are not certain."""
    coded_indices: NDArray[np.integer]
    """The tables of these."""
    escapes: bytes
    checksum: int
    cost: int
    """About what all symbols take, in units of 2**-13 bit."""

    @property
    def need_bytes(self) -> bool:
        return bool(len(self.coded) or self.escapes)


def symbols_of(
    values: NDArray[np.integer], indices: NDArray[np.integer], tables: FrequencyTables, number: int
) -> Symbols:
    """
    values   (n), within int32
    indices  (n), the table of each value
    number   of the stream in its call, for the errors

    ValueError for shapes that differ, an index without a table, a value beyond int32, and a value that differs from the
    one its table holds certain.
    """
    values, indices = np.asarray(values), _checked(indices, tables, number)
    if values.shape != indices.shape or values.dtype.kind not in "iu":
        raise ValueError(
            f"stream {number}: values {values.shape} of {values.dtype} for indices {indices.shape}: both must be rows "
            "of integers, of one length"
        )
    if len(values) and (values.min() < INT32.min or values.max() > INT32.max):
        raise ValueError(f"stream {number}: a value is beyond int32")
    symbols, codes = np.empty(len(values), np.int32), []
    smallest, last, first = tables.smallest.astype(np.int64), tables.sizes.astype(np.int64) - 1, tables.first[:-1]
    cost = 0
    for part in blocks(len(values), VALUES_PER_BLOCK):
        value, index = values[part].astype(np.int64), indices[part]
        within = value - smallest.take(index)
        escape = last.take(index)
        escaped = np.flatnonzero((within < 0) | (within >= escape))
        if len(escaped):
            within[escaped] = escape[escaped]
            codes.append(escape_code(value[escaped], index[escaped], tables))
        within += first.take(index)
        cost += int(tables.cost_of_symbol.take(within).sum())
        symbols[part] = within
    checksum = checksum_of(values)
    certain = tables.certain_symbol.take(indices) if tables.has_certain else None
    if certain is not None:
        wrong = np.flatnonzero((certain >= 0) & (certain != symbols))
        if len(wrong):
            raise ValueError(
                f"stream {number}: value {values[wrong[0]]} at {wrong[0]} is not the one that its table, "
                f"{indices[wrong[0]]}, holds certain"
            )
        symbols, indices = symbols[certain < 0], indices[certain < 0]
    return Symbols(symbols, indices, leb128(np.concatenate(codes)) if codes else b"", checksum, cost)


@dataclass(frozen=True)
class Positions:
    """What a reader knows of a stream before its bytes."""

    number: int
    """Of the stream in its call."""
    indices: NDArray[np.integer]
    certain: NDArray[np.int32] | None
    """The certain symbol of each position or -1; None where no table holds any certain."""
    num_coded: int
    need_bytes: bool
    """Whether a position is coded, or is a certain escape."""

    @staticmethod
    def of(indices: NDArray[np.integer], tables: FrequencyTables, number: int) -> Positions:
        """ValueError for an index without a table."""
        indices = _checked(indices, tables, number)
        certain = tables.certain_symbol.take(indices) if tables.has_certain else None
        num_coded = len(indices) if certain is None else int((certain < 0).sum())
        escapes = certain is not None and bool(tables.is_escape.take(certain[certain >= 0]).any())
        return Positions(number, indices, certain, num_coded, bool(num_coded or escapes))

    @property
    def coded_indices(self) -> NDArray[np.integer]:
        return self.indices if self.certain is None else self.indices[self.certain < 0]

    def refuse_bytes(self, data: NDArray[np.uint8]) -> None:
        if len(data):
            raise CorruptStreamError(self.number, f"it has {len(data)} bytes for values that need none")

    def values(
        self, coded: NDArray[np.integer], escapes: NDArray[np.uint8], tables: FrequencyTables
    ) -> NDArray[np.int32]:
        """(n), what the symbols stand for; their check sum is for the caller to compare.

        coded    (num_coded), symbols
        escapes  the last bytes of the stream
        """
        symbols = coded
        if self.certain is not None:
            symbols = self.certain.copy()
            symbols[symbols < 0] = coded
        values, escaped = np.empty(len(symbols), np.int32), []
        for part in blocks(len(symbols), VALUES_PER_BLOCK):
            symbol = symbols[part].astype(np.intp)
            tables.value_of_symbol.take(symbol, out=values[part], mode="clip")
            escaped.append(part.start + np.flatnonzero(tables.is_escape.take(symbol)))
        self._read_escapes(values, np.concatenate(escaped) if escaped else np.empty(0, np.intp), escapes, tables)
        return values

    def _read_escapes(
        self, values: NDArray[np.int32], where: NDArray[np.intp], escapes: NDArray[np.uint8], tables: FrequencyTables
    ) -> None:
        codes = read_leb128(escapes, len(where))
        if codes is None:
            raise CorruptStreamError(self.number, f"its last bytes are not {len(where)} escaped values")
        found = value_of_escape(codes, self.indices[where], tables)
        if ((found < INT32.min) | (found > INT32.max)).any():
            raise CorruptStreamError(self.number, "an escaped value is beyond int32")
        values[where] = found


def checksum_of(values: NDArray[np.integer]) -> int:
    """CRC-32 of the values as int32, little-endian."""
    return zlib.crc32(np.ascontiguousarray(values, "<i4").data)


def bytes_of(stream: bytes | memoryview) -> NDArray[np.uint8]:
    return np.frombuffer(stream, np.uint8) if len(stream) else np.empty(0, np.uint8)


def leb128(numbers: Sequence[int] | NDArray[np.int64]) -> bytes:
    """7 bits a byte, lowest first; the top bit says that more follow."""
    numbers = np.asarray(numbers, np.int64)[:, None]
    shifts = 7 * np.arange(MAX_LEB128_BYTES)
    digits = (numbers >> shifts) & 127
    more = (numbers >> shifts + 7) > 0
    used = np.hstack([np.ones_like(more[:, :1]), more[:, :-1]])
    return (digits | more << 7)[used].astype(np.uint8).tobytes()


def read_leb128(data: NDArray[np.uint8], num: int) -> NDArray[np.int64] | None:
    """The `num` numbers that `data` holds, or None if it does not hold exactly so many, each as short as can be."""
    last = np.flatnonzero(data < 128)
    if len(last) != num or (data[-1:] >= 128).any():
        return None
    if not num:
        return np.empty(0, np.int64)
    first = np.append(0, last[:-1] + 1)
    lengths = last - first + 1
    if lengths.max() > MAX_LEB128_BYTES or ((lengths > 1) & (data[last] == 0)).any():
        return None
    shifts = 7 * (np.arange(len(data)) - first.repeat(lengths))
    return np.add.reduceat((data & 127).astype(np.int64) << shifts, first)


def blocks(size: int, block: int) -> Iterator[slice]:
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))


def _checked(indices: NDArray[np.integer], tables: FrequencyTables, number: int) -> NDArray[np.integer]:
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"stream {number}: indices {indices.shape} of {indices.dtype} must be a row of integers, one for each value"
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= tables.num_tables):
        raise ValueError(
            f"stream {number}: an index is not one of the {tables.num_tables} tables, 0 to {tables.num_tables - 1}"
        )
    return indices
