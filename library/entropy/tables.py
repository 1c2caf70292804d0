"""Integer frequency tables: computed once, when a codec is exported, then stored with its weights and only read.

exp and erfc differ in their last digit from one platform to the next; a decoder that computed its own tables would
sooner or later differ from the encoder in one frequency, and lose the rest of the image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

PROBABILITY_BITS = 14
"""The frequencies of a table sum to 2**14."""
TOTAL = 1 << PROBABILITY_BITS
MAX_TABLES_BY_SLOT = 256
"""More tables than this are searched: the symbols of 2**14 slots a table would no longer fit into a cache."""
MAX_HALF_WIDTH = 2047
"""Values to each side of a Gaussian's mean. Wider ones have too few slots left for the values near it."""
ELEMENTS_AT_ONCE = 1 << 17
"""Probabilities that become frequencies at a time: stays in a cache."""
INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class FrequencyTables:
    """Distributions over consecutive integers and an escape, in units of 2**-14.

    frequencies  (num_tables, width), by table and symbol, each row padded with 0 and summing to 2**14
    smallest     (num_tables), the value of symbol 0; symbol i is the value smallest + i
    sizes        (num_tables), symbols of each table, 1 to width. The last one is the escape: any other value

    Every symbol has a frequency of at least 1, or one has 2**14 and is certain: its positions cost nothing. A certain
    escape is a table that knows no value. The arrays are copied, as uint16, int32 and int32, and cannot be written to.
    ValueError for anything else, since tables come from files.
    """

    frequencies: NDArray[np.uint16]
    smallest: NDArray[np.int32]
    sizes: NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, dtype in (("frequencies", np.uint16), ("smallest", np.int32), ("sizes", np.int32)):
            given = np.asarray(getattr(self, name))
            if given.dtype.kind not in "iu":
                raise ValueError(f"frequency tables: {name} must be integers, and is {given.dtype}")
            ours = np.array(given, dtype=dtype, order="C")
            if not np.array_equal(ours, given):
                raise ValueError(f"frequency tables: {name} has values beyond {np.dtype(dtype)}")
            ours.setflags(write=False)
            object.__setattr__(self, name, ours)
        self._check()

    def _check(self) -> None:
        f, sizes = self.frequencies, self.sizes
        if f.ndim != 2 or not len(f) or self.smallest.shape != (len(f),) or sizes.shape != (len(f),):
            raise ValueError(
                f"frequency tables: shapes are {f.shape}, {self.smallest.shape}, {sizes.shape}, and must be "
                "(num_tables, width), (num_tables), (num_tables)"
            )
        inside = np.arange(f.shape[1]) < sizes[:, None]
        largest = self.smallest.astype(np.int64) + sizes - 2
        faults = {
            f"has a size beyond 1 to {f.shape[1]}": (sizes < 1) | (sizes > f.shape[1]),
            f"does not sum to {TOTAL}": f.sum(1, dtype=np.int64) != TOTAL,
            "has a frequency behind its last symbol": (f.astype(bool) & ~inside).any(1),
            "has a symbol of frequency 0": ((f == 0) & inside).any(1) & (f.max(1) != TOTAL),
            "has values beyond int32": largest > INT32.max,
        }
        for fault, where in faults.items():
            if where.any():
                raise ValueError(f"frequency tables: table {int(where.argmax())} {fault}")

    @property
    def num_tables(self) -> int:
        return len(self.sizes)

    @cached_property
    def digest(self) -> str:
        """sha256, hex, of the number of tables, `sizes`, `smallest` (all int32) and the frequencies without padding
        (uint16), little-endian. Equal for tables that code alike, however wide their padding is."""
        inside = np.arange(self.frequencies.shape[1]) < self.sizes[:, None]
        parts = (
            np.array([self.num_tables], "<i4"),
            self.sizes.astype("<i4"),
            self.smallest.astype("<i4"),
            self.frequencies[inside].astype("<u2"),
        )
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    # What follows is what a coder looks up. Symbols are numbered through all tables, and one that changes nothing comes
    # last: a table of its own, to fill the last step of a stream.

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """(num_tables + 1), the number of each table's symbol 0; at the end that of the filler."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    @cached_property
    def frequency_of_symbol(self) -> NDArray[np.int64]:
        inside = np.arange(self.frequencies.shape[1]) < self.sizes[:, None]
        return np.append(self.frequencies[inside], TOTAL).astype(np.int64)

    @cached_property
    def slot_of_symbol(self) -> NDArray[np.int64]:
        """The first slot of each symbol; slots, too, are numbered through all tables, 2**14 for each. Ascends."""
        return np.cumsum(self.frequency_of_symbol) - self.frequency_of_symbol

    @cached_property
    def slot_in_table(self) -> NDArray[np.int64]:
        """The first slot of each symbol within its table."""
        return self.slot_of_symbol % TOTAL

    @cached_property
    def cost_of_symbol(self) -> NDArray[np.int64]:
        """About what each symbol takes, at most 0.09 bit too much: -log2 of its frequency, straight between the powers
        of two, in units of 2**-13 bit. Integers, so that an encoder chooses its lanes alike everywhere."""
        possible = np.arange(1, TOTAL + 1)
        exponent = (possible[:, None] >> np.arange(1, PROBABILITY_BITS + 1) > 0).sum(1)
        cost = ((PROBABILITY_BITS + 1 - exponent) << 13) - ((possible << 13) >> exponent)
        return np.append(0, cost)[self.frequency_of_symbol]  # what has no slot is not coded

    @cached_property
    def value_of_symbol(self) -> NDArray[np.int32]:
        """Of an escape: 0."""
        value_minus_number = np.append(self.smallest, 0) - self.first
        value = np.arange(self.first[-1] + 1) + np.repeat(value_minus_number, np.append(self.sizes, 1))
        return np.where(self.is_escape, 0, value).astype(np.int32)

    @cached_property
    def is_escape(self) -> NDArray[np.bool_]:
        """By symbol."""
        is_escape = np.zeros(self.first[-1] + 1, bool)
        is_escape[self.first[1:] - 1] = True
        return is_escape

    @cached_property
    def certain_symbol(self) -> NDArray[np.int32]:
        """By table: the number of its certain symbol, or -1."""
        symbol = self.first[:-1] + self.frequencies.argmax(1)
        return np.where(self.frequencies.max(1) == TOTAL, symbol, -1).astype(np.int32)

    @cached_property
    def has_certain(self) -> bool:
        return bool((self.certain_symbol >= 0).any())

    @cached_property
    def symbol_of_slot(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """((num_tables + 1) * 2**14). Only for up to `MAX_TABLES_BY_SLOT` tables."""
        assert self.num_tables <= MAX_TABLES_BY_SLOT
        num_symbols = len(self.frequency_of_symbol)
        symbols = np.arange(num_symbols, dtype=np.uint32)
        repeated = symbols.repeat(self.frequency_of_symbol)
        # For 64 Gaussians 2 MB rather than 4: caches are not larger.
        return repeated.astype(np.uint16) if num_symbols <= 1 << 16 else repeated


def gaussian_tables(scales: NDArray[np.floating], *, tail: float = 4.0) -> FrequencyTables:
    """Zero-mean Gaussians, integrated over bins of width 1 around the integers. For export only: its result is stored.

    scales   (num_tables), standard deviations in bins, finite; one of 0 makes the value 0 certain
    tail     a table ends at the first integer at or beyond this many standard deviations, in any case at 2047; a value
             further out is escaped. Each one inside takes a slot at least, so that a longer tail costs the others
    returns  symmetric tables

    Of scales from 0.11 to 64, spaced evenly in log, 4 costs the least: 0.02 % over the entropy (3: 0.10 %, 5: 0.07 %).
    """
    scales = np.asarray(scales, np.float64)
    if scales.ndim != 1 or not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError("gaussian_tables: scales must be a row of finite numbers from 0 up")
    halves = [min(max(1, math.ceil(tail * scale)), MAX_HALF_WIDTH) if scale else 0 for scale in scales.tolist()]
    sides, counts = [], []
    for scale, half in zip(scales.tolist(), halves, strict=True):
        # Mass beyond each edge between two bins, to both sides: erfc keeps its digits where 1 - erf has none.
        beyond = np.array([math.erfc((k + 0.5) / (scale * math.sqrt(2))) if scale else 0.0 for k in range(half + 1)])
        sides.append(np.concatenate([[1 - beyond[0]], (beyond[:-1] - beyond[1:]) / 2, beyond[-1:]]))
        counts.append(np.array([1] + [2] * half + [1]))
    rows = [
        np.concatenate([f[half:0:-1], f]) if half else np.array([TOTAL, 0])
        for f, half in zip(_frequencies(sides, counts), halves, strict=True)
    ]
    return _padded(rows, [-half for half in halves])


def tables_from_probabilities(
    probabilities: Sequence[NDArray[np.floating]], smallest: Sequence[int]
) -> FrequencyTables:
    """Given distributions. For export only: what it returns is stored.

    probabilities  of consecutive integers, one row a table, of any lengths, each from 0 up and summing to at most 1
                   (+ 1e-6). What is missing to 1 is the escape's, which gets a slot at least
    smallest       the integer of each row's first probability
    returns        every integer of a row gets a slot at least; but the only one of a row, with probability 1, is
                   certain, and an empty row is a certain escape
    """
    rows = [np.asarray(row, np.float64) for row in probabilities]
    sums = [row.sum() for row in rows]
    flat = np.concatenate([np.empty(0), *(row.reshape(-1) for row in rows)])
    number_of = np.arange(len(rows)).repeat([row.size for row in rows])
    faulty = {number for number, row in enumerate(rows) if row.ndim != 1 or len(row) >= TOTAL}
    faulty.update(number_of[~(np.isfinite(flat) & (flat >= 0))].tolist())
    faulty.update(np.flatnonzero(np.array(sums) > 1 + 1e-6).tolist())
    if faulty:
        number = min(faulty)
        raise ValueError(
            f"tables_from_probabilities: row {number} must hold less than {TOTAL} probabilities from 0 up that sum to "
            f"at most 1 (shape {rows[number].shape}, sum {sums[number]:.7g})"
        )
    with_escape = [np.append(row, max(0.0, 1 - total)) for row, total in zip(rows, sums, strict=True)]
    found = _frequencies(with_escape, [np.ones(len(row), np.int64) for row in with_escape])
    for number, row in enumerate(rows):
        if not len(row) or row[0] == len(row) == 1:
            found[number] = np.append(row, not len(row)).astype(np.int64) * TOTAL
    return _padded(found, smallest)


def escape_code(values: NDArray[np.int64], indices: NDArray[np.integer], tables: FrequencyTables) -> NDArray[np.int64]:
    """How far values outside their tables lie: 0, 2, ... upwards of the largest, 1, 3, ... down from the smallest."""
    smallest = tables.smallest[indices].astype(np.int64)
    above = values - (smallest + tables.sizes[indices] - 1)
    return np.where(above >= 0, 2 * above, 2 * (smallest - values) - 1)


def value_of_escape(
    code: NDArray[np.int64], indices: NDArray[np.integer], tables: FrequencyTables
) -> NDArray[np.int64]:
    """The inverse of `escape_code`. May be beyond int32 where the code was not ours."""
    smallest = tables.smallest[indices].astype(np.int64)
    return np.where(code & 1, smallest - 1 - (code >> 1), smallest + tables.sizes[indices] - 1 + (code >> 1))


def ideal_bits(values: NDArray[np.integer], indices: NDArray[np.integer], tables: FrequencyTables) -> float:
    """What no coder with these tables goes below: -log2 of the frequencies, and 8 bits for each byte of an escape.

    values   (n), within int32
    indices  (n), the table of each value
    """
    values, indices = np.asarray(values).astype(np.int64), np.asarray(indices)
    within = values - tables.smallest[indices]
    escaped = (within < 0) | (within >= tables.sizes[indices] - 1)
    within = np.where(escaped, tables.sizes[indices] - 1, within)
    frequencies = tables.frequencies[indices, within].astype(np.float64)
    if not frequencies.all():
        raise ValueError("ideal_bits: a value differs from the one that its table holds certain")
    code = escape_code(values[escaped], indices[escaped], tables)
    num_bytes = sum(int((code >= limit).sum()) for limit in [0, *(1 << bits for bits in range(7, 63, 7))])
    return float(PROBABILITY_BITS * len(values) - np.log2(frequencies).sum()) + 8 * num_bytes


def _frequencies(
    probabilities: Sequence[NDArray[np.float64]], counts: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.int64]]:
    """Frequencies of at least 1 that sum to 2**14, those of the shortest code, for each of many rows.

    probabilities  rows of any lengths but 0, from 0 up and not all 0
    counts         by row: 1 or 2 symbols share each probability; some symbol is alone
    """
    found: list[NDArray[np.int64]] = []
    sizes = np.array([len(row) for row in probabilities], np.int64)
    group = (np.cumsum(sizes) - sizes) // ELEMENTS_AT_ONCE
    for start, stop in zip(*_runs(group), strict=True):
        of_group = slice(start, stop)
        f = _frequencies_of_group(
            np.concatenate(probabilities[of_group]), np.concatenate(counts[of_group]), sizes[of_group]
        )
        ends = np.cumsum(sizes[of_group]).tolist()
        found += [f[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return found


def _frequencies_of_group(
    p: NDArray[np.float64], counts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """As `_frequencies`, rows one after the other; (n) of `sizes` each."""
    starts, row_of = np.cumsum(sizes) - sizes, np.arange(len(sizes)).repeat(sizes)

    def bought(price: NDArray[np.float64], which: NDArray[np.intp] | slice) -> NDArray[np.int64]:
        # The last slot of a symbol is worth p * log2(f / (f - 1)) bits; buy all that are worth their price.
        with np.errstate(divide="ignore", over="ignore"):
            f = 1 / -np.expm1(-math.log(2) * price[row_of[which]] / p[which])
        return np.minimum(f, TOTAL).astype(np.int64)

    largest = np.maximum.reduceat(p, starts)
    cheap, dear = largest * 2.0**-16, largest * 2.0**6
    most, f = bought(cheap, slice(None)), bought(dear, slice(None))
    spent = np.add.reduceat(f * counts, starts)
    # What costs as much at both ends of the price's range is not asked again: after a few halvings that is all but a
    # few symbols.
    open_ = np.flatnonzero(most != f)
    for _ in range(64):
        if not len(open_):
            break
        price = np.sqrt(cheap * dear)
        now, rows = bought(price, open_), row_of[open_]
        more = np.bincount(rows, (now - f[open_]) * counts[open_], len(sizes)).astype(np.int64)
        too_many = spent + more > TOTAL
        cheap, dear = np.where(too_many, price, cheap), np.where(too_many, dear, price)
        spent += np.where(too_many, 0, more)
        too_many = too_many[rows]
        most[open_[too_many]] = now[too_many]
        f[open_[~too_many]] = now[~too_many]
        open_ = open_[most[open_] != f[open_]]
    left = TOTAL - spent
    while left.any():
        short = np.flatnonzero(left[row_of])
        rows = row_of[short]
        gain = np.where(counts[short] <= left[rows], p[short] * np.log2((f[short] + 1) / f[short]), -1)
        first, end = _runs(rows)
        best = np.flatnonzero(gain == np.maximum.reduceat(gain, first).repeat(end - first))
        best = short[best[_runs(rows[best])[0]]]
        f[best] += 1
        left[row_of[best]] -= counts[best]
    return f


def _runs(numbers: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each run of one number begins and ends."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    return starts, np.append(starts[1:], len(numbers)) if len(starts) else starts


def _padded(rows: Sequence[NDArray[np.int64]], smallest: Sequence[int]) -> FrequencyTables:
    sizes = np.array([len(row) for row in rows], np.int64)
    frequencies = np.zeros((len(rows), sizes.max(initial=0)), np.int64)
    if len(rows):
        frequencies[np.arange(frequencies.shape[1]) < sizes[:, None]] = np.concatenate(rows)
    # As int64: the tables check what they narrow.
    return FrequencyTables(frequencies, np.asarray(smallest, np.int64), sizes)  # pyright: ignore[reportArgumentType]
