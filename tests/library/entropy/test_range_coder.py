from __future__ import annotations

import importlib.metadata
import pickle
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.entropy import rans
from library.entropy.coders import CODERS
from library.entropy.range_coder import MissingCoderError, decode, encode
from library.entropy.symbols import CorruptStreamError
from library.entropy.tables import FrequencyTables, gaussian_tables, ideal_bits
from library.errors import ConfigError
from tests.library.entropy.test_rans import DAMAGED, GAUSSIANS, MIXED, SCALES, Stream, latents, mixed

GOLDEN_VALUES = [1, 5, 0, -7, 250, 9, -300, 5, 1, 2**31 - 1, -300, -(2**31)]
"""Of tables 0 to 5 of `MIXED`, twice."""
GOLDEN = "a275addf023324cbcc71f382760de9ffffff0fd504feffffff0ffbffffff1f"


def as_described(stream: bytes, indices: np.ndarray, tables: FrequencyTables) -> list[int]:
    """A second decoder, one integer after the other, that knows library/entropy/STREAM.md and no code of others."""
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

    def integer() -> int:
        return int.from_bytes(bytes(next(data) for _ in range(4)), "little")

    crc = integer()
    words = iter([integer() for _ in range(leb128())])
    lower, width, point = 0, 2**64 - 1, next(words, 0) << 32 | next(words, 0)
    for position in sorted(coded, key=lambda position: (numbers[position], position)):
        frequencies, _ = rows[numbers[position]]
        n = len(frequencies)
        left = [sum(frequencies[:i]) * (2**24 - n) // 2**14 + i for i in range(n + 1)]
        scale = width // 2**24
        q = (point - lower) % 2**64 // scale
        assert q < 2**24
        i = max(i for i in range(n) if left[i] <= q)
        lower = (lower + scale * left[i]) % 2**64
        width = scale * (left[i + 1] - left[i])
        if width < 2**32:
            lower, width, point = (lower << 32) % 2**64, width << 32, (point << 32 | next(words, 0)) % 2**64
        symbols[position] = i
    assert next(words, None) is None
    assert (point - lower) % 2**64 < 2**33 - 1 or not coded
    values = []
    for symbol, t in zip(symbols, numbers, strict=True):
        frequencies, smallest = rows[t]
        if symbol < len(frequencies) - 1:
            values.append(smallest + symbol)
        else:
            e = leb128()
            values.append(smallest - 1 - (e - 1) // 2 if e % 2 else smallest + len(frequencies) - 1 + e // 2)
    assert crc == zlib.crc32(struct.pack(f"<{len(values)}i", *values))
    assert next(data, None) is None
    return values


def outcome(data: bytes, indices: np.ndarray, tables: FrequencyTables) -> list[int] | None:
    try:
        return decode([(data, indices)], tables)[0].tolist()
    except CorruptStreamError:
        return None


# Values and bytes


@settings(max_examples=40)
@given(st.data())
def test_any_values_come_back_by_every_coder(data: st.DataObject) -> None:
    values = st.one_of(st.integers(-4, 4), st.integers(-400, 400), st.integers(-(2**31), 2**31 - 1))
    pairs = st.tuples(values, st.integers(0, 5)).map(lambda pair: (5, 1) if pair[1] == 1 else pair)
    drawn = data.draw(st.lists(st.lists(pairs, max_size=40), max_size=5))
    streams = [(np.array(s, np.int64).reshape(-1, 2)[:, 0], np.array(s, int).reshape(-1, 2)[:, 1]) for s in drawn]
    for coder in CODERS.values():
        coded = coder.encode(streams, MIXED)
        jobs = [(stream, indices) for stream, (_, indices) in zip(coded, streams, strict=True)]
        for ours, (given_values, _) in zip(coder.decode(jobs, MIXED), streams, strict=True):
            assert ours.dtype == np.int32
            np.testing.assert_array_equal(ours, given_values)


@pytest.mark.parametrize("make", [latents, mixed])
def test_a_hundred_thousand_symbols_take_as_many_bytes_by_both_coders_within_a_hundredth(make) -> None:
    tables = GAUSSIANS if make is latents else MIXED
    values, indices = make(100_000)
    data = encode([(values, indices)], tables)[0]
    np.testing.assert_array_equal(decode([(data, indices)], tables)[0], values)
    assert len(data) == pytest.approx(len(rans.encode([(values, indices)], tables)[0]), rel=0.01)
    ideal = ideal_bits(values, indices, tables) / 8
    assert ideal < len(data) < 1.001 * ideal + 16


def test_the_bytes_of_a_stream_do_not_depend_on_its_company() -> None:
    streams = [mixed(num, seed) for seed, num in enumerate([2000, 1, 0, 300])]
    together = encode(streams, MIXED)
    assert together == [encode([stream], MIXED)[0] for stream in streams]
    certain = np.full(10, 5), np.ones(10, np.uint8)
    assert encode([certain], MIXED) == [b""] == [together[2]]


@pytest.mark.parametrize("num", [0, 1, 2, 500, 8000])
def test_a_decoder_written_from_the_description_reads_the_same_values(num: int) -> None:
    for (values, indices), tables in ((latents(num), GAUSSIANS), (mixed(num // 4), MIXED)):
        data = encode([(values, indices)], tables)[0]
        assert as_described(data, indices, tables) == values.tolist()


def test_a_stream_that_was_written_once_is_still_written_and_read() -> None:
    """On 2026-11-22, by constriction 0.5.0. Files of such streams exist."""
    values = np.array(GOLDEN_VALUES)
    indices = np.array([0, 1, 2, 3, 4, 5] * 2)
    assert encode([(values, indices)], MIXED)[0].hex() == GOLDEN
    assert decode([(bytes.fromhex(GOLDEN), indices)], MIXED)[0].tolist() == values.tolist()


def test_more_tables_than_16_bits_count_are_kept_apart() -> None:
    few = gaussian_tables(np.array([0.5, 3.0]))
    times = 2**15 + 1
    many = FrequencyTables(
        np.tile(few.frequencies, (times, 1)), np.tile(few.smallest, times), np.tile(few.sizes, times)
    )
    values, indices = np.arange(40) % 5 - 2, np.arange(40) % 2
    far = indices + 2**16
    np.testing.assert_array_equal(decode([(encode([(values, far)], many)[0], far)], many)[0], values)
    assert encode([(values, far)], many) == encode([(values, indices)], few)


# Damage


@pytest.mark.parametrize("kind", DAMAGED)
def test_no_changed_missing_nor_surplus_byte_goes_unnoticed(kind: str) -> None:
    (values, indices), tables = DAMAGED[kind]
    data = encode([(values, indices)], tables)[0]
    generator = np.random.default_rng(0)
    for place in {*generator.integers(0, len(data), 60).tolist(), *range(min(6, len(data))), len(data) - 1}:
        for flip in (1, 128, int(generator.integers(1, 256))):
            changed = bytearray(data)
            changed[place] ^= flip
            assert outcome(bytes(changed), indices, tables) in (None, values.tolist())
    for length in {*range(min(len(data), 20)), *range(max(0, len(data) - 20), len(data))}:
        assert outcome(data[:length], indices, tables) is None
    for surplus in (b"\0", b"\1", b"\x80", b"\0\0\0\0"):
        assert outcome(data + surplus, indices, tables) is None


@settings(max_examples=150)
@given(st.binary(min_size=4, max_size=4), st.integers(0, 12), st.binary(max_size=80), st.integers(0, 60))
def test_bytes_that_are_no_stream_are_refused(checksum: bytes, num_words: int, rest: bytes, num: int) -> None:
    assert outcome(checksum + bytes([num_words]) + rest, np.resize([0, 2, 3, 4, 5], num), MIXED) is None
    assert outcome(rest + b"\xff" * 9, np.resize([0, 2, 3, 4, 5], num), MIXED) is None


def test_forms_that_the_encoder_does_not_write_are_refused() -> None:
    values, indices = np.array([1, 1, 60]), np.array([0, 0, 0])
    data = encode([(values, indices)], MIXED)[0]
    words = data[5 : 5 + 4 * data[4]]
    assert outcome(data, indices, MIXED) == values.tolist()
    for changed in (
        data[:4] + bytes([data[4] | 128, 0]) + data[5:],  # a longer form of the number of words
        data[:4] + bytes([data[4] + 2]) + words + bytes(8) + data[5 + len(words) :],  # a word that no value needs
        data[:-1] + bytes([data[-1] | 128, 0]),  # a longer form of the escape
        data[:4] + b"\xff\xff\xff\xff\x0f" + data[5:],  # 16 GB of words
    ):
        assert outcome(changed, indices, MIXED) is None


def test_other_tables_indices_or_coders_are_noticed_and_the_error_names_the_stream() -> None:
    streams = [latents(2000, seed) for seed in range(3)]
    coded = encode(streams, GAUSSIANS)
    assert outcome(coded[0], streams[0][1], gaussian_tables(SCALES * 1.01)) is None
    assert outcome(coded[0], streams[0][1][:-1], GAUSSIANS) is None
    for coder, other in ((rans, CODERS["constriction"]), (CODERS["constriction"], rans)):
        with pytest.raises(CorruptStreamError):
            coder.decode([(other.encode(streams[:1], GAUSSIANS)[0], streams[0][1])], GAUSSIANS)
    coded[1] = coded[1][:-2]
    with pytest.raises(CorruptStreamError, match="stream 1") as caught:
        decode([(data, indices) for data, (_, indices) in zip(coded, streams, strict=True)], GAUSSIANS)
    assert caught.value.stream == 1


# The package


@pytest.mark.parametrize("streams", [[], [latents(10)]], ids=len)
def test_without_the_package_the_error_says_how_to_get_it_and_our_own_coder_works(
    streams: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    for call in (encode, decode):
        with pytest.raises(
            MissingCoderError, match=r"not installed: pip install 'stillgrain\[constriction\]'"
        ) as caught:
            call([(b"", indices) for _, indices in streams] if call is decode else streams, GAUSSIANS)
        assert isinstance(caught.value, ConfigError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    (data,) = rans.encode([latents(10)], GAUSSIANS)
    assert rans.decode([(data, latents(10)[1])], GAUSSIANS)[0].tolist() == latents(10)[0].tolist()


def test_another_version_of_the_package_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.51.0")
    with pytest.raises(MissingCoderError, match=r"needs version 0\.5 of its package, and 0\.51\.0 is installed"):
        encode([], GAUSSIANS)
