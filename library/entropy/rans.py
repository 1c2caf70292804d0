"""Interleaved rANS (Duda 2013; Giesen 2014, "Interleaved entropy coders"): integers to bytes and back, as in STREAM.md.

A stream is dealt out to lanes that code side by side, so that one NumPy operation advances all of them. An operation
costs as much as a thousand values, and small streams bear few lanes, so the streams of one call share operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from library.entropy.symbols import (
    OTHER_CHECKSUM,
    VALUES_PER_BLOCK,
    CorruptStreamError,
    Positions,
    blocks,
    bytes_of,
    checksum_of,
    leb128,
    read_leb128,
    symbols_of,
)
from library.entropy.tables import MAX_TABLES_BY_SLOT, PROBABILITY_BITS, TOTAL, FrequencyTables

LOWEST_STATE = 1 << 16
"""A lane's state lies in [2**16, 2**32) between two values; words have 16 bits."""
MAX_LANES = 4096
MAX_STEPS = 1 << 16
"""Values of one lane, up to `MAX_LANES`. Bounds the time for a stream that costs next to nothing."""
BYTES_PER_LANE = 640
"""Bytes of a stream for each of its lanes. A lane adds three: its state has four, one of which carries values."""


def encode(streams: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]], tables: FrequencyTables) -> list[bytes]:
    """One self-contained byte string a stream, the same whatever other streams are coded with it.

    streams  values (n), within int32, and the table of each value (n); n may be 0 and differ between streams
    tables   what the decoder will have

    ValueError for shapes that differ, an index without a table, a value beyond int32, and a value that differs from the
    one its table holds certain.
    """
    parts = [_modelled(values, indices, tables, number) for number, (values, indices) in enumerate(streams)]
    layout = _Layout([len(part.symbols) for part in parts], [part.num_lanes for part in parts])
    states = np.full(layout.num_lanes, LOWEST_STATE, np.uint32)
    symbols = layout.side_by_side([part.symbols for part in parts], filler=len(tables.frequency_of_symbol) - 1)
    for part, lanes in zip(parts, layout.lanes, strict=True):
        if part.num_lanes:
            states[lanes.start] = part.check
    words = _push(symbols, states, layout, tables)
    return [
        b"".join((leb128([part.num_lanes]), states[lanes].astype("<u4").tobytes(), its_words, part.escapes))
        if part.num_lanes
        else b""
        for part, lanes, its_words in zip(parts, layout.lanes, words, strict=True)
    ]


def decode(
    streams: Sequence[tuple[bytes | memoryview, NDArray[np.integer]]], tables: FrequencyTables
) -> list[NDArray[np.int32]]:
    """The values (n) of each stream.

    streams  what `encode` returned, and the table of each value (n)
    tables   those of the encoder

    CorruptStreamError for the first stream whose bytes do not lead to values of the check sum they hold; the others can
    be decoded without it. ValueError for an index without a table.
    """
    parts = [_opened(stream, indices, tables, number) for number, (stream, indices) in enumerate(streams)]
    layout = _Layout([part.positions.num_coded for part in parts], [len(part.states) for part in parts])
    states = np.zeros(layout.num_lanes, np.int64)
    for part, lanes in zip(parts, layout.lanes, strict=True):
        states[lanes] = part.states
    indices = layout.side_by_side([part.positions.coded_indices for part in parts], filler=tables.num_tables)
    symbols, num_words = _pull(indices, states, [part.rest for part in parts], layout, tables)
    del indices
    return [
        part.values(layout.one(symbols, number), states[layout.lanes[number]], int(num_words[number]), tables)
        for number, part in enumerate(parts)
    ]


@dataclass(frozen=True)
class _Modelled:
    """A stream before its lanes run."""

    symbols: NDArray[np.int32]
    """Of the values that are not certain."""
    num_lanes: int
    check: int
    """The state from which the encoder's lane 0 departs, and at which the decoder's arrives."""
    escapes: bytes


def _modelled(
    values: NDArray[np.integer], indices: NDArray[np.integer], tables: FrequencyTables, number: int
) -> _Modelled:
    found = symbols_of(values, indices, tables, number)
    num_lanes = 0
    if found.need_bytes:
        num_lanes = min(max((found.cost >> 16) // BYTES_PER_LANE, _fewest_lanes(len(found.coded))), MAX_LANES)
    return _Modelled(found.coded, num_lanes, _first_state(found.checksum), found.escapes)


@dataclass(frozen=True)
class _Opened:
    """A stream of the decoder, its head read."""

    positions: Positions
    states: NDArray[np.uint32]
    rest: NDArray[np.uint8]
    """Words, then escapes. Where one ends and the other begins is known when the lanes have run."""

    def values(
        self, coded: NDArray[np.integer], states: NDArray[np.int64], num_words: int, tables: FrequencyTables
    ) -> NDArray[np.int32]:
        """What the symbols stand for, once every check is passed.

        coded      (num_coded), symbols
        states     (lanes), those at which the lanes arrived
        num_words  that the lanes took
        """
        number = self.positions.number
        if 2 * num_words > len(self.rest):
            raise CorruptStreamError(number, f"it ends {2 * num_words - len(self.rest)} bytes too soon")
        values = self.positions.values(coded, self.rest[2 * num_words :], tables)
        if len(states) and (states[0] != _first_state(checksum_of(values)) or (states[1:] != LOWEST_STATE).any()):
            raise CorruptStreamError(number, OTHER_CHECKSUM)
        return values


def _opened(stream: bytes | memoryview, indices: NDArray[np.integer], tables: FrequencyTables, number: int) -> _Opened:
    positions = Positions.of(indices, tables, number)
    data = bytes_of(stream)
    num_coded = positions.num_coded
    if not positions.need_bytes:
        positions.refuse_bytes(data)
        return _Opened(positions, np.empty(0, np.uint32), data)
    head = 1 if len(data) and data[0] < 128 else 2
    num_lanes = read_leb128(data[:head], 1)
    if num_lanes is None:
        raise CorruptStreamError(number, "it does not begin with a number of lanes")
    lanes = int(num_lanes[0])
    if not _fewest_lanes(num_coded) <= lanes <= min(MAX_LANES, max(1, num_coded)):
        raise CorruptStreamError(number, f"{lanes} lanes are impossible for {num_coded} values")
    words = head + 4 * lanes
    states = data[head:words]
    if len(states) < 4 * lanes:
        raise CorruptStreamError(number, f"it ends within the states of its {lanes} lanes")
    states = states.copy().view("<u4").astype(np.uint32)
    if states.min() < LOWEST_STATE:
        raise CorruptStreamError(number, "a state is below 2**16")
    return _Opened(positions, states, data[words:])


@dataclass(frozen=True)
class _Section:
    """Steps in which the same lanes run."""

    steps: range
    start: int
    """Where its first step begins in what lies side by side."""
    num_streams: int
    num_lanes: int

    def blocks(self) -> Iterator[slice]:
        """Parts of what lies side by side, whole steps each, first to last."""
        end = self.start + len(self.steps) * self.num_lanes
        for part in blocks(end - self.start, max(1, VALUES_PER_BLOCK // self.num_lanes) * self.num_lanes):
            yield slice(self.start + part.start, self.start + part.stop)


class _Layout:
    """How the streams of a call lie side by side: by step, then by stream, then by lane.

    Longer streams (in steps) come first, so that the lanes that still run are the first ones.
    """

    def __init__(self, num_values: Sequence[int], num_lanes: Sequence[int]) -> None:
        lengths, widths = np.array(num_values, np.int64), np.array(num_lanes, np.int64)
        steps = -(-lengths // np.maximum(widths, 1))
        self.order = np.argsort(-steps, kind="stable")
        """Streams as they lie side by side."""
        ends = np.cumsum(widths[self.order])
        self.first_lane = np.append(0, ends)
        """By rank in `order`; at the end the number of lanes."""
        self.num_lanes = int(self.first_lane[-1])
        self.lengths = lengths
        self.steps = steps
        self.lanes: list[slice] = [slice(0, 0)] * len(lengths)
        """Of each stream, in the order of the call."""
        for rank, stream in enumerate(self.order.tolist()):
            self.lanes[stream] = slice(int(self.first_lane[rank]), int(self.first_lane[rank + 1]))
        self.sections: list[_Section] = []
        start = step = 0
        for last in np.unique(steps[steps > 0]).tolist():
            running = int((steps >= last).sum())
            section = _Section(range(step, last), start, running, int(self.first_lane[running]))
            self.sections.append(section)
            start, step = start + len(section.steps) * section.num_lanes, last
        self.size = start
        self.is_single = len(lengths) == 1

    def side_by_side(self, streams: Sequence[NDArray[np.integer]], filler: int) -> NDArray[np.int32]:
        """(size): every stream's integers in their places, and `filler` where a last step is not full."""
        together = np.full(self.size, filler, np.int32)
        if self.is_single:
            together[: self.lengths[0]] = streams[0]
            return together
        for number, stream in enumerate(streams):
            together[self._places(number)] = stream
        return together

    def one(self, together: NDArray[np.integer], number: int) -> NDArray[np.integer]:
        """The integers of one stream."""
        return together[: self.lengths[0]] if self.is_single else together[self._places(number)]

    def _places(self, number: int) -> NDArray[np.int64]:
        lanes, starts = self.lanes[number], self.start_of_step[: self.steps[number]]
        return np.add.outer(starts, np.arange(lanes.start, lanes.stop)).reshape(-1)[: self.lengths[number]]

    @cached_property
    def start_of_step(self) -> NDArray[np.int64]:
        starts = [s.start + np.arange(len(s.steps)) * s.num_lanes for s in self.sections]
        return np.concatenate([*starts, np.empty(0, np.int64)])


def _push(
    symbols: NDArray[np.int32], states: NDArray[np.uint32], layout: _Layout, tables: FrequencyTables
) -> list[bytes]:
    """Put the symbols into the states, last step first. Returns the words of each stream as the decoder takes them."""
    frequency_of = tables.frequency_of_symbol.astype(np.uint32)
    slot_of, others_of = tables.slot_in_table.astype(np.uint32), TOTAL - frequency_of
    # A symbol moves out one word at most. The last step's come to lie at the end.
    words, lanes_of_words = np.empty(layout.size, np.uint16), np.empty(layout.size, np.int32)
    end = layout.size
    scratch = np.empty((4, layout.num_lanes), np.uint32)
    for section in reversed(layout.sections):
        x = states[: section.num_lanes]
        f, slot, others, quotient = scratch[:, : section.num_lanes]
        full = np.empty(section.num_lanes, np.bool_)
        for block in reversed(list(section.blocks())):
            for row in symbols[block].astype(np.intp).reshape(-1, section.num_lanes)[::-1]:
                frequency_of.take(row, out=f, mode="clip")
                # x >= f * 2**18, which may be 2**32: from there on x would grow beyond 32 bits.
                np.right_shift(x, 32 - PROBABILITY_BITS, out=quotient)
                np.greater_equal(quotient, f, out=full)
                lanes = full.nonzero()[0]
                if len(lanes):
                    start = end - len(lanes)
                    moved = x.take(lanes)
                    words[start:end] = moved & 0xFFFF
                    lanes_of_words[start:end] = lanes
                    x[lanes] = moved >> 16
                    end = start
                # x // f * 2**14 + x % f + slot, with one division.
                np.floor_divide(x, f, out=quotient)
                others_of.take(row, out=others, mode="clip")
                np.multiply(quotient, others, out=quotient)
                np.add(x, quotient, out=x)
                slot_of.take(row, out=slot, mode="clip")
                np.add(x, slot, out=x)
    words, rank_of_word = words[end:], layout.first_lane.searchsorted(lanes_of_words[end:], side="right") - 1
    grouped = words[rank_of_word.argsort(kind="stable")].astype("<u2")
    ends = np.append(0, np.cumsum(np.bincount(rank_of_word, minlength=len(layout.order))))
    return [grouped[ends[rank] : ends[rank + 1]].tobytes() for rank in layout.order.argsort()]


def _pull(
    indices: NDArray[np.int32],
    states: NDArray[np.int64],
    rests: Sequence[NDArray[np.uint8]],
    layout: _Layout,
    tables: FrequencyTables,
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Take the symbols out of the states, first step first: the symbols side by side, and the words each stream took.

    States end as the encoder's began. A stream that has too few words takes some from its neighbour, and is found out
    by their number. Arrays are int64 throughout: an index of another width would be converted in each operation.
    """
    # An odd byte behind the words is one of the escapes; a last word is for streams that have none.
    words = np.concatenate([np.pad(rests[s], (0, len(rests[s]) % 2)) for s in layout.order] + [np.zeros(2, np.uint8)])
    words = words.view("<u2").astype(np.uint16)
    begins = np.append(0, np.cumsum([-(-len(rests[s]) // 2) for s in layout.order])).astype(np.int64)
    cursor = begins[:-1].copy()
    lookup = _BySlot(tables) if tables.num_tables <= MAX_TABLES_BY_SLOT else _BySearch(tables, layout.num_lanes)
    symbols = np.empty(layout.size, lookup.dtype)
    counting = np.arange(layout.num_lanes)
    scratch = np.empty((4, layout.num_lanes), np.int64)
    for section in layout.sections:
        x = states[: section.num_lanes]
        slot, symbol, f, first_slot = scratch[:, : section.num_lanes]
        low = np.empty(section.num_lanes, np.bool_)
        first_lanes, position = layout.first_lane[: section.num_streams + 1], cursor[: section.num_streams]
        for block in section.blocks():
            first_slots = indices[block].astype(np.int64)
            first_slots <<= PROBABILITY_BITS
            rows = zip(
                first_slots.reshape(-1, section.num_lanes), symbols[block].reshape(-1, section.num_lanes), strict=True
            )
            for table_slot, found in rows:
                np.bitwise_and(x, TOTAL - 1, out=slot)
                np.add(slot, table_slot, out=slot)
                lookup.find(slot, out=found)
                symbol[:] = found
                tables.frequency_of_symbol.take(symbol, out=f, mode="clip")
                tables.slot_of_symbol.take(symbol, out=first_slot, mode="clip")
                np.right_shift(x, PROBABILITY_BITS, out=x)
                np.multiply(x, f, out=x)
                np.add(x, slot, out=x)
                np.subtract(x, first_slot, out=x)
                np.less(x, LOWEST_STATE, out=low)
                lanes = low.nonzero()[0]
                if len(lanes):
                    # A stream's words lie in a row, and so do its lanes: the k-th lane that is low takes the k-th word.
                    if section.num_streams == 1:
                        where = counting[: len(lanes)] + position
                        position += len(lanes)
                    else:
                        before = lanes.searchsorted(first_lanes)
                        taken = before[1:] - before[:-1]
                        where = (position - before[:-1]).repeat(taken)
                        where += counting[: len(lanes)]
                        position += taken
                    moved = x.take(lanes)
                    moved <<= 16
                    moved |= words.take(where, mode="clip")
                    x[lanes] = moved
    num_words = np.empty(len(rests), np.int64)
    num_words[layout.order] = cursor - begins[:-1]
    return symbols, num_words


class _BySlot:
    """Symbols of slots, looked up."""

    def __init__(self, tables: FrequencyTables) -> None:
        self.symbol_of_slot = tables.symbol_of_slot
        self.dtype = self.symbol_of_slot.dtype

    def find(self, slot: NDArray[np.int64], out: NDArray[np.integer]) -> None:
        self.symbol_of_slot.take(slot, out=out, mode="clip")


class _BySearch:
    """Symbols of slots, by bisection within the slot's table: for so many tables that a lookup would be too large.

    Five times as fast as `searchsorted` through all tables, whose every probe waits for memory.
    """

    def __init__(self, tables: FrequencyTables, num_lanes: int) -> None:
        self.dtype = np.dtype(np.int32)
        self.first = tables.first
        # Behind the last table nothing lies at or below any slot.
        self.slot_of_symbol = np.append(tables.slot_of_symbol, np.iinfo(np.int64).max)
        self.steps = [1 << bit for bit in reversed(range((int(tables.sizes.max()) - 1).bit_length()))]
        self.scratch = np.empty((3, num_lanes), np.int64)

    def find(self, slot: NDArray[np.int64], out: NDArray[np.integer]) -> None:
        symbol, tried, reached = self.scratch[:, : len(slot)]
        np.right_shift(slot, PROBABILITY_BITS, out=tried)
        self.first.take(tried, out=symbol, mode="clip")
        for step in self.steps:
            np.add(symbol, step, out=tried)
            self.slot_of_symbol.take(tried, out=reached, mode="clip")
            np.multiply(reached <= slot, step, out=tried)
            np.add(symbol, tried, out=symbol)
        out[:] = symbol


def _first_state(checksum: int) -> int:
    """The check sum, moved up where it is no state."""
    return checksum if checksum >= LOWEST_STATE else checksum + LOWEST_STATE


def _fewest_lanes(num_coded: int) -> int:
    return min(MAX_LANES, max(1, -(-num_coded // MAX_STEPS)))
