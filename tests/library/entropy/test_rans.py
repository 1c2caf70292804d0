from __future__ import annotations

import pickle
import struct
import zlib

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.entropy.rans import MAX_STEPS, CorruptStreamError, decode, encode
from library.entropy.tables import (
    MAX_TABLES_BY_SLOT,
    FrequencyTables,
    gaussian_tables,
    ideal_bits,
    tables_from_probabilities,
)
from library.errors import StillgrainError

SCALES = np.geomspace(0.11, 64, 64)
GAUSSIANS = gaussian_tables(SCALES)
MIXED = tables_from_probabilities(
    [
        np.array([0.5, 0.2, 0.1, 0.1]),  # a tenth escapes
        np.array([1.0]),  # certain
        np.array([0.001, 0.998, 0.001]),
        np.array([]),  # a certain escape
        np.full(700, 1 / 700),
        np.array([0.0]),  # all but always an escape
    ],
    [-1, 5, -1, 0, -300, 2**31 - 2],
)
Stream = tuple[np.ndarray, np.ndarray]


def latents(num: int, seed: int = 0, spread: float = 1.2) -> Stream:
    """Values and tables as a hyperprior gives them: most scales are small, about 1 bit a value."""
    generator = np.random.default_rng(seed)
    scale = 0.11 * np.exp(generator.exponential(spread, num))
    indices = np.clip(np.rint(np.log(scale / 0.11) / np.log(64 / 0.11) * 63), 0, 63).astype(np.uint8)
    return np.rint(generator.normal(size=num) * SCALES[indices]).astype(np.int32), indices


def mixed(num: int, seed: int = 0) -> Stream:
    """Values of every kind of table, far and near."""
    generator = np.random.default_rng(seed)
    indices = generator.integers(0, MIXED.num_tables, num)
    values = (generator.standard_cauchy(num) * 10.0 ** generator.integers(0, 4, num)).clip(-(2**31), 2**31 - 1)
    values = values.astype(np.int64)
    values[indices == 1] = 5
    return values, indices


def round_trip(streams: list[Stream], tables: FrequencyTables) -> list[bytes]:
    coded = encode(streams, tables)
    decoded = decode([(data, indices) for data, (_, indices) in zip(coded, streams, strict=True)], tables)
    for ours, (values, _) in zip(decoded, streams, strict=True):
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, values)
    return coded


def as_described(stream: bytes, indices: np.ndarray, tables: FrequencyTables) -> list[int]:
    """A second decoder, one integer after the other, that knows library/entropy/STREAM.md and no code of ours."""
    rows = [
        (row[:size].tolist(), smallest)
        for row, smallest, size in zip(
            tables.frequencies.astype(int), tables.smallest.tolist(), tables.sizes.tolist(), strict=True
        )
    ]
    numbers = [int(t) for t in indices]
    symbols = [rows[t][0].index(2**14) if 2**14 in rows[t][0] else -1 for t in numbers]
    coded = [position for position, symbol in enumerate(symbols) if symbol < 0]
    if not coded and all(symbol != len(rows[t][0]) - 1 for symbol, t in zip(symbols, numbers, strict=True)):
        assert stream == b""
        return [rows[t][1] + symbol for symbol, t in zip(symbols, numbers, strict=True)]
    data = iter(stream)

    def leb128() -> int:
        number = shift = 0
        while (byte := next(data)) >= 128:
            number, shift = number | (byte & 127) << shift, shift + 7
        return number | byte << shift

    def integer(num_bytes: int) -> int:
        return int.from_bytes(bytes(next(data) for _ in range(num_bytes)), "little")

    num_lanes = leb128()
    states = [integer(4) for _ in range(num_lanes)]
    for j, position in enumerate(coded):
        frequencies, _ = rows[numbers[position]]
        x = states[j % num_lanes]
        slot, i, start = x % 2**14, 0, 0
        while slot >= start + frequencies[i]:
            start, i = start + frequencies[i], i + 1
        x = frequencies[i] * (x // 2**14) + slot - start
        states[j % num_lanes] = x * 2**16 + integer(2) if x < 2**16 else x
        symbols[position] = i
    values = []
    for symbol, t in zip(symbols, numbers, strict=True):
        frequencies, smallest = rows[t]
        if symbol < len(frequencies) - 1:
            values.append(smallest + symbol)
        else:
            e = leb128()
            values.append(smallest - 1 - (e - 1) // 2 if e % 2 else smallest + len(frequencies) - 1 + e // 2)
    crc = zlib.crc32(struct.pack(f"<{len(values)}i", *values))
    assert states == [crc + 2**16 * (crc < 2**16)] + [2**16] * (num_lanes - 1)
    assert next(data, None) is None
    return values


# Round trips


@settings(max_examples=60)
@given(st.data())
def test_any_values_come_back_whatever_their_tables_say(data: st.DataObject) -> None:
    values = st.one_of(st.integers(-4, 4), st.integers(-400, 400), st.integers(-(2**31), 2**31 - 1))
    pairs = st.tuples(values, st.integers(0, 5)).map(lambda pair: (5, 1) if pair[1] == 1 else pair)
    streams = data.draw(st.lists(st.lists(pairs, max_size=40), max_size=5))
    round_trip(
        [(np.array(s, np.int64).reshape(-1, 2)[:, 0], np.array(s, int).reshape(-1, 2)[:, 1]) for s in streams], MIXED
    )


@settings(max_examples=20)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=6), st.integers(0, 9))
def test_streams_of_any_lengths_come_back_side_by_side(lengths: list[int], seed: int) -> None:
    round_trip([latents(num, seed + number, spread=1.5) for number, num in enumerate(lengths)], GAUSSIANS)


def test_no_streams_are_no_bytes() -> None:
    assert encode([], GAUSSIANS) == []
    assert decode([], GAUSSIANS) == []


def test_an_empty_stream_is_no_bytes_and_neither_are_certain_values() -> None:
    none = np.empty(0, np.int16), np.empty(0, np.int64)
    certain = np.full(1000, 5), np.ones(1000, np.uint8)
    assert round_trip([none, certain, none], MIXED) == [b"", b"", b""]


def test_certain_values_cost_nothing_between_others() -> None:
    values, indices = latents(5000)
    indices = indices.astype(int)
    tables = gaussian_tables(np.append(SCALES, 0.0))
    alone = round_trip([(values, indices)], tables)[0]
    with_zeros = round_trip(
        [(np.stack([values, 0 * values], 1).ravel(), np.stack([indices, 0 * indices + 64], 1).ravel())], tables
    )[0]
    assert abs(len(alone) - len(with_zeros)) <= 2  # other check sums
    assert encode([(values, indices)], GAUSSIANS) == [alone]


def test_a_value_that_a_table_excludes_is_the_callers_error() -> None:
    with pytest.raises(ValueError, match=r"stream 1: value 6 at 2 .* 1, holds certain"):
        encode([(np.array([0]), np.array([0])), (np.array([5, 0, 6]), np.array([1, 0, 1]))], MIXED)


@pytest.mark.parametrize("value", [-(2**31), -(2**31) + 1, -301, 400, 2**31 - 2, 2**31 - 1])
@pytest.mark.parametrize("table", [0, 2, 3, 4, 5])
def test_the_ends_of_int32_and_of_every_table_survive(value: int, table: int) -> None:
    round_trip([(np.array([value]), np.array([table]))], MIXED)
    round_trip([(np.full(3000, value), np.full(3000, table))], MIXED)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64, ">i4", ">u2"])
def test_integers_of_every_width_and_byte_order_give_the_same_bytes(dtype: str) -> None:
    values, indices = latents(3000)
    values = values.clip(0, 127)
    assert encode([(values.astype(dtype), indices.astype(dtype))], GAUSSIANS) == encode([(values, indices)], GAUSSIANS)
    assert (
        decode(list(zip(encode([(values, indices)], GAUSSIANS), [indices.astype(dtype)], strict=True)), GAUSSIANS)[0][
            :9
        ].tolist()
        == values[:9].tolist()
    )


@pytest.mark.parametrize(
    ("values", "indices", "fault"),
    [
        ([1, 2], [0], "of one length"),
        ([[1]], [[0]], "row of integers"),
        ([1.0], [0], "integers"),
        ([1], [0.0], "integers"),
        ([1], [6], "not one of the 6 tables"),
        ([1], [-1], "not one of the 6 tables"),
        ([2**31], [0], "int32"),
        ([-(2**31) - 1], [0], "int32"),
    ],
)
def test_what_cannot_be_coded_is_refused(values: list, indices: list, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        encode([(np.array(values), np.array(indices))], MIXED)


def test_a_view_that_skips_and_a_memoryview_are_as_good_as_copies() -> None:
    values, indices = latents(4000)
    data = encode([(values[::2], indices[::2])], GAUSSIANS)
    assert data == encode([(values[::2].copy(), indices[::2].copy())], GAUSSIANS)
    padded = memoryview(b"xyz" + data[0] + b"z")[3:-1]
    np.testing.assert_array_equal(decode([(padded, indices[::2])], GAUSSIANS)[0], values[::2])


# Bytes


@pytest.mark.parametrize("make", [latents, mixed])
def test_the_bytes_of_a_stream_do_not_depend_on_its_company(make) -> None:
    tables = GAUSSIANS if make is latents else MIXED
    streams = [make(num, seed) for seed, num in enumerate([20_000, 1, 7000, 20_000, 0, 300, 90_000])]
    together = round_trip(streams, tables)
    assert together == [encode([stream], tables)[0] for stream in streams]
    assert together[::-1] == round_trip(streams[::-1], tables)


@pytest.mark.parametrize("num", [0, 1, 2, 500, 40_000])
def test_a_decoder_written_from_the_description_reads_the_same_values(num: int) -> None:
    for (values, indices), tables in ((latents(num), GAUSSIANS), (mixed(num // 4), MIXED)):
        data = encode([(values, indices)], tables)[0]
        assert as_described(data, indices, tables) == values.tolist()


def test_the_description_covers_several_lanes() -> None:
    assert encode([latents(40_000)], GAUSSIANS)[0][0] > 4


@pytest.mark.parametrize("make", [latents, mixed])
def test_many_tables_are_searched_and_few_looked_up_with_one_result(make) -> None:
    few = GAUSSIANS if make is latents else MIXED
    times = MAX_TABLES_BY_SLOT // few.num_tables + 1
    many = FrequencyTables(
        np.tile(few.frequencies, (times, 1)), np.tile(few.smallest, times), np.tile(few.sizes, times)
    )
    streams = [make(num, seed) for seed, num in enumerate([12_000, 100])]
    data = encode(streams, few)
    generator = np.random.default_rng(0)
    for copy in (0, times - 1, generator.integers(0, times, 12_000)):
        moved = [(values, indices + few.num_tables * np.resize(copy, len(indices))) for values, indices in streams]
        assert round_trip(moved, many) == data


# Size


@pytest.mark.parametrize(("num", "spread"), [(17_000, 1.2), (50_000, 1.2), (500_000, 0.6), (500_000, 3.0)])
def test_a_stream_of_two_kilobytes_or_more_is_within_a_hundredth_of_the_ideal(num: int, spread: float) -> None:
    values, indices = latents(num, spread=spread)
    ideal = ideal_bits(values, indices, GAUSSIANS) / 8
    assert ideal > 2000
    assert ideal <= len(round_trip([(values, indices)], GAUSSIANS)[0]) <= 1.01 * ideal


@pytest.mark.parametrize("num", [1, 2, 5, 20, 100, 400, 1000])
def test_a_small_stream_is_at_most_eight_bytes_above_the_ideal(num: int) -> None:
    streams = [latents(num, seed) for seed in range(50)]
    ideal = np.array([ideal_bits(*stream, GAUSSIANS) / 8 for stream in streams])
    above = np.array([len(data) for data in encode(streams, GAUSSIANS)]) - ideal
    assert above.max() <= 8
    assert 4.5 < above.mean() < 6.5


def test_a_stream_that_costs_next_to_nothing_still_has_a_bounded_number_of_steps() -> None:
    values = np.zeros(300_000, np.int32)
    data = round_trip([(values, values)], GAUSSIANS)[0]
    assert data[0] == -(-300_000 // MAX_STEPS)
    assert len(data) < 40


@pytest.mark.parametrize("num", [20_000, 200_000])
def test_constriction_needs_as_many_bytes_for_the_same_symbols_and_tables(num: int) -> None:
    """A range coder of other hands, over the very same integer tables."""
    values, indices = latents(num)
    values = values.clip(GAUSSIANS.smallest[indices], -GAUSSIANS.smallest[indices])  # it knows no escapes
    encoder = constriction.stream.queue.RangeEncoder()
    for number in range(GAUSSIANS.num_tables):
        size = GAUSSIANS.sizes[number]
        model = constriction.stream.model.Categorical(
            GAUSSIANS.frequencies[number, :size].astype(np.float64) / 2**14, perfect=False
        )
        encoder.encode((values - GAUSSIANS.smallest[indices])[indices == number].astype(np.int32), model)
    theirs = encoder.get_compressed().nbytes
    assert len(encode([(values, indices)], GAUSSIANS)[0]) == pytest.approx(theirs, rel=0.01)


# Damage


def outcome(data: bytes, indices: np.ndarray, tables: FrequencyTables) -> list[int] | None:
    try:
        return decode([(data, indices)], tables)[0].tolist()
    except CorruptStreamError:
        return None


DAMAGED = {
    "one lane": (latents(300), GAUSSIANS),
    "several lanes": (latents(2500, spread=6), GAUSSIANS),
    "escapes": (mixed(120), MIXED),
    "one value": ((np.array([1]), np.array([0])), MIXED),
    "certain escapes": ((np.array([1, -999]), np.array([3, 3])), MIXED),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_no_changed_byte_goes_unnoticed(kind: str) -> None:
    (values, indices), tables = DAMAGED[kind]
    data = encode([(values, indices)], tables)[0]
    assert (data[0] > 1) == (kind == "several lanes")
    generator = np.random.default_rng(0)
    for place in {*generator.integers(0, len(data), 60).tolist(), 0, 1, 2, 3, 4, len(data) - 1}:
        for flip in (1, 128, int(generator.integers(1, 256))):
            changed = bytearray(data)
            changed[place] ^= flip
            assert outcome(bytes(changed), indices, tables) in (None, values.tolist())


@pytest.mark.parametrize("kind", DAMAGED)
def test_no_missing_nor_surplus_byte_goes_unnoticed(kind: str) -> None:
    stream, tables = DAMAGED[kind]
    data = encode([stream], tables)[0]
    for length in {*range(min(len(data), 20)), *range(max(0, len(data) - 20), len(data))}:
        assert outcome(data[:length], stream[1], tables) is None
    for surplus in (b"\0", b"\1", b"\x80", b"\0\0", b"\0\0\0\0"):
        assert outcome(data + surplus, stream[1], tables) is None


def test_bytes_where_none_are_needed_are_refused() -> None:
    assert outcome(b"\0", np.empty(0, int), MIXED) is None
    assert outcome(b"\0", np.ones(3, int), MIXED) is None


@settings(max_examples=150)
@given(st.binary(max_size=80), st.lists(st.integers(0, 5), max_size=60))
def test_bytes_that_are_no_stream_are_refused(data: bytes, indices: list[int]) -> None:
    if any(index != 1 for index in indices) or data:
        assert outcome(data, np.array(indices, int), MIXED) is None


@settings(max_examples=80)
@given(st.data())
def test_bytes_with_a_sound_head_are_refused_too(data: st.DataObject) -> None:
    """Past the checks of the number of lanes and of the states, into lanes and escapes."""
    num_lanes = data.draw(st.integers(1, 5))
    states = data.draw(st.lists(st.integers(2**16, 2**32 - 1), min_size=num_lanes, max_size=num_lanes))
    rest = data.draw(st.binary(max_size=200))
    indices = np.resize([0, 2, 4, 5], data.draw(st.integers(num_lanes, 60)))
    assert outcome(bytes([num_lanes]) + struct.pack(f"<{num_lanes}I", *states) + rest, indices, MIXED) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: b"\x80\x00" + data[1:], id="a longer form of the number of lanes"),
        pytest.param(lambda data: data[:-1] + bytes([data[-1] | 128]) + b"\0", id="a longer form of the last escape"),
        pytest.param(lambda data: data[:-1] + b"\xff\xff\xff\xff\x3f", id="an escape beyond int32"),
        pytest.param(lambda data: data[:-1] + b"\xff\xff\xff\xff\xff\x01", id="an escape of six bytes"),
        pytest.param(lambda data: data[:1] + b"\xff\xff\x00\x00" + data[5:], id="a state below the lowest"),
        pytest.param(lambda data: b"\0" + data[1:], id="no lanes"),
        pytest.param(lambda data: b"\xff\x7f" + data[1:] + b"\xff" * 80_000, id="more lanes than values"),
    ],
)
def test_forms_that_the_encoder_does_not_write_are_refused(change) -> None:
    values, indices = np.array([1, 1, 60]), np.array([0, 0, 0])
    data = encode([(values, indices)], MIXED)[0]
    assert outcome(data, indices, MIXED) == values.tolist()
    assert outcome(change(data), indices, MIXED) is None


def test_other_tables_or_indices_than_the_encoders_are_noticed() -> None:
    values, indices = latents(2000)
    data = encode([(values, indices)], GAUSSIANS)[0]
    assert outcome(data, indices, gaussian_tables(SCALES * 1.01)) is None
    indices[1000] += 1
    assert outcome(data, indices, GAUSSIANS) is None
    assert outcome(data, indices[:-1], GAUSSIANS) is None


def test_the_error_names_the_stream_and_the_others_can_still_be_decoded() -> None:
    streams = [latents(2000, seed) for seed in range(4)]
    coded = encode(streams, GAUSSIANS)
    coded[2] = coded[2][:-2]
    with pytest.raises(CorruptStreamError, match="stream 2") as caught:
        decode([(data, indices) for data, (_, indices) in zip(coded, streams, strict=True)], GAUSSIANS)
    assert caught.value.stream == 2
    assert isinstance(caught.value, StillgrainError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.stream, again.reason, str(again)) == (2, caught.value.reason, str(caught.value))
    del coded[2], streams[2]
    decoded = decode([(data, indices) for data, (_, indices) in zip(coded, streams, strict=True)], GAUSSIANS)
    for ours, (values, _) in zip(decoded, streams, strict=True):
        np.testing.assert_array_equal(ours, values)
