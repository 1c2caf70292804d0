"""constriction's range coder (Bamler 2022, "Understanding Entropy Coding With Asymmetric Numeral Systems (ANS): a
Statistician's Perspective") over our tables: integers to bytes and back, as in STREAM.md.

The second coder, for those who have the package: `pip install 'stillgrain[constriction]'`. The symbols of one table are
coded after those of another, so that each table is one call.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.entropy.symbols import (
    MAX_LEB128_BYTES,
    OTHER_CHECKSUM,
    CorruptStreamError,
    Positions,
    bytes_of,
    checksum_of,
    leb128,
    read_leb128,
    symbols_of,
)
from library.entropy.tables import TOTAL, FrequencyTables
from library.errors import ConfigError

CONSTRICTION = "0.5"
"""It keeps its bytes within a version; another one may change them."""
_CHECKSUM_BYTES = 4
_RADIX_SORTED = 1 << 16
"""NumPy sorts numbers of 16 bits in a time that does not grow with log n."""


class MissingCoderError(ConfigError):
    """The package of a coder is not installed, or not in the version whose bytes we know."""


def encode(streams: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]], tables: FrequencyTables) -> list[bytes]:
    """As `rans.encode`, and MissingCoderError where constriction is not installed."""
    models = _Models(_stream_module(), tables)
    return [_encoded(values, indices, models, number) for number, (values, indices) in enumerate(streams)]


def decode(
    streams: Sequence[tuple[bytes | memoryview, NDArray[np.integer]]], tables: FrequencyTables
) -> list[NDArray[np.int32]]:
    """As `rans.decode`, and MissingCoderError where constriction is not installed."""
    models = _Models(_stream_module(), tables)
    return [_decoded(stream, indices, models, number) for number, (stream, indices) in enumerate(streams)]


class _Models(dict[int, Any]):
    """constriction's model of each table, made when it is first asked for: most streams use few of many tables."""

    def __init__(self, stream: Any, tables: FrequencyTables) -> None:
        super().__init__()
        self.stream = stream
        self.tables = tables

    def __missing__(self, table: int) -> Any:
        # Exact in floating point, and so is what constriction makes of it (STREAM.md).
        probabilities = self.tables.frequencies[table, : self.tables.sizes[table]] / float(TOTAL)
        self[table] = self.stream.model.Categorical(probabilities, perfect=False)
        return self[table]


def _encoded(values: NDArray[np.integer], indices: NDArray[np.integer], models: _Models, number: int) -> bytes:
    tables = models.tables
    found = symbols_of(values, indices, tables, number)
    if not found.need_bytes:
        return b""
    order, (used, counts) = _by_table(found.coded_indices, tables)
    symbols = (found.coded[order] - tables.first[used].repeat(counts)).astype(np.int32)
    encoder = models.stream.queue.RangeEncoder()
    ends = np.cumsum(counts)
    for table, start, end in zip(used.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True):
        encoder.encode(symbols[start:end], models[table])
    words = encoder.get_compressed()
    checksum = found.checksum.to_bytes(_CHECKSUM_BYTES, "little")
    return b"".join((checksum, leb128([len(words)]), words.astype("<u4").tobytes(), found.escapes))


def _decoded(
    stream: bytes | memoryview, indices: NDArray[np.integer], models: _Models, number: int
) -> NDArray[np.int32]:
    tables = models.tables
    positions = Positions.of(indices, tables, number)
    data = bytes_of(stream)
    if not positions.need_bytes:
        positions.refuse_bytes(data)
        return positions.values(np.empty(0, np.int32), data, tables)
    checksum, words, escapes = _parts(data, number)
    order, (used, counts) = _by_table(positions.coded_indices, tables)
    decoder = models.stream.queue.RangeDecoder(words)
    groups = [np.empty(0, np.int32)]
    try:
        groups += [decoder.decode(models[t], n) for t, n in zip(used.tolist(), counts.tolist(), strict=True)]
    except AssertionError:  # constriction's word for it
        raise CorruptStreamError(number, "its words are none that the range coder writes") from None
    if not decoder.maybe_exhausted():
        raise CorruptStreamError(number, "it has words that no value needs")
    coded = np.empty(positions.num_coded, np.int32)
    coded[order] = np.concatenate(groups) + tables.first[used].repeat(counts)
    values = positions.values(coded, escapes, tables)
    if checksum_of(values) != checksum:
        raise CorruptStreamError(number, OTHER_CHECKSUM)
    return values


def _parts(data: NDArray[np.uint8], number: int) -> tuple[int, NDArray[np.uint32], NDArray[np.uint8]]:
    """Check sum, words and escape codes of a stream."""
    head = data[_CHECKSUM_BYTES : _CHECKSUM_BYTES + MAX_LEB128_BYTES]
    length = int((head < 128).argmax()) + 1 if len(head) else 0
    num_words = read_leb128(head[:length], 1)
    if num_words is None:
        raise CorruptStreamError(number, "it does not begin with a check sum and a number of words")
    rest = data[_CHECKSUM_BYTES + length :]
    size = 4 * int(num_words[0])
    if size > len(rest):
        raise CorruptStreamError(number, f"it ends {size - len(rest)} bytes too soon")
    words = rest[:size].copy().view("<u4").astype(np.uint32)
    return int.from_bytes(data[:_CHECKSUM_BYTES].tobytes(), "little"), words, rest[size:]


def _by_table(
    indices: NDArray[np.integer], tables: FrequencyTables
) -> tuple[NDArray[np.intp], tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """The order that puts positions of one table side by side, tables ascending; the tables that are there, and how
    many positions each has."""
    narrow = indices.astype(np.uint16) if tables.num_tables <= _RADIX_SORTED else indices
    counts = np.bincount(indices.astype(np.intp), minlength=1)
    used = counts.nonzero()[0]
    return narrow.argsort(kind="stable"), (used, counts[used])


def _stream_module() -> Any:
    """constriction.stream. MissingCoderError names the remedy."""
    remedy = "pip install 'stillgrain[constriction]'"
    try:
        constriction: Any = importlib.import_module("constriction")
        version = importlib.metadata.version("constriction")
    except ImportError:
        raise MissingCoderError(f"coder 'constriction' needs a package that is not installed: {remedy}") from None
    if not version.startswith(f"{CONSTRICTION}."):
        raise MissingCoderError(
            f"coder 'constriction' needs version {CONSTRICTION} of its package, and {version} is installed, which may "
            f"write other bytes: {remedy}"
        )
    return constriction.stream
