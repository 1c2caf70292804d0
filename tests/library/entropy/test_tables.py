from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.entropy.tables import (
    ELEMENTS_AT_ONCE,
    FrequencyTables,
    escape_code,
    gaussian_tables,
    ideal_bits,
    tables_from_probabilities,
    value_of_escape,
)

SCALES = np.geomspace(0.11, 64, 64)


def entropy(probabilities: np.ndarray) -> float:
    p = probabilities[probabilities > 0]
    return float(-(p * np.log2(p)).sum())


def gaussian(scale: float, values: np.ndarray) -> np.ndarray:
    edges = np.append(values - 0.5, values[-1] + 0.5) / (scale * math.sqrt(2))
    return np.diff([math.erf(edge) for edge in edges]) / 2


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=4), st.floats(0.5, 8))
def test_every_symbol_of_a_gaussian_has_a_slot_and_each_table_uses_all(scales: list[float], tail: float) -> None:
    tables = gaussian_tables(np.array(scales), tail=tail)
    assert (tables.frequencies.sum(1, dtype=np.int64) == 2**14).all()
    for f, size in zip(tables.frequencies, tables.sizes, strict=True):
        assert (f[:size] >= 1).all()
        assert not f[size:].any()


@given(st.floats(1e-3, 1e5), st.floats(0.5, 8))
def test_a_gaussian_table_is_symmetric_around_0_and_falls_from_there(scale: float, tail: float) -> None:
    tables = gaussian_tables(np.array([scale]), tail=tail)
    f = tables.frequencies[0, :-1].astype(int)
    assert tables.smallest[0] == -(len(f) // 2)
    np.testing.assert_array_equal(f, f[::-1])
    assert (np.diff(f[len(f) // 2 :]) <= 1).all()  # the centre takes an odd slot, or gives it


@pytest.mark.parametrize("tail", [1.0, 2.0, 3.0])
def test_the_escape_has_the_mass_beyond_the_tail(tail: float) -> None:
    tables = gaussian_tables(SCALES, tail=tail)
    for scale, smallest, size, f in zip(SCALES, tables.smallest, tables.sizes, tables.frequencies, strict=True):
        beyond = math.erfc((0.5 - smallest) / (scale * math.sqrt(2))) * 2**14
        assert f[size - 1] == pytest.approx(max(beyond, 1), rel=0.02, abs=1)


def test_gaussian_tables_cost_a_thousandth_more_than_the_entropy() -> None:
    tables = gaussian_tables(SCALES)
    spent = wanted = 0.0
    for number, scale in enumerate(SCALES):
        values = np.arange(-math.ceil(8 * scale), math.ceil(8 * scale) + 1)
        p = gaussian(scale, values)
        spent += sum(
            q * ideal_bits(np.array([v]), np.array([number]), tables) for q, v in zip(p, values, strict=True) if q
        )
        wanted += entropy(p)
    assert spent / wanted - 1 == pytest.approx(0.0002, abs=0.0002)


def test_a_scale_of_0_is_the_certain_value_0() -> None:
    tables = gaussian_tables(np.array([0.0, 1.0]))
    assert ideal_bits(np.zeros(1000, int), np.zeros(1000, int), tables) == 0
    with pytest.raises(ValueError, match="certain"):
        ideal_bits(np.array([1]), np.array([0]), tables)


@pytest.mark.parametrize("scales", [[-1.0], [math.nan], [math.inf], [[1.0]]])
def test_a_scale_that_is_none_is_refused(scales: list[float]) -> None:
    with pytest.raises(ValueError, match="scales"):
        gaussian_tables(np.array(scales))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=300), st.floats(0, 1))
def test_given_probabilities_become_frequencies_within_a_slot_where_there_is_room(
    weights: list[float], missing: float
) -> None:
    p = np.array(weights) + 1e-3
    p *= (1 - 0.9 * missing) / p.sum()
    f = tables_from_probabilities([p], [-7]).frequencies[0]
    wanted = np.append(p, 1 - p.sum()) * 2**14
    assert f.sum(dtype=int) == 2**14
    assert (f >= 1).all()
    roomy = wanted > 100
    np.testing.assert_allclose(f[roomy], wanted[roomy], rtol=0.03)


def test_no_slot_given_to_another_symbol_makes_a_table_cheaper() -> None:
    p = np.random.default_rng(0).dirichlet(np.full(20, 0.3))
    f = tables_from_probabilities([p], [0]).frequencies[0, :-1].astype(float)
    cost = -(p * np.log2(f)).sum()
    for giver, taker in np.ndindex(20, 20):
        if giver != taker and f[giver] > 1:
            changed = f.copy()
            changed[[giver, taker]] += (-1, 1)
            assert -(p * np.log2(changed)).sum() >= cost - 1e-12


def test_one_value_of_probability_1_is_certain_and_no_value_a_certain_escape() -> None:
    tables = tables_from_probabilities([np.array([1.0]), np.array([]), np.array([0.0, 1.0])], [5, 0, 0])
    assert ideal_bits(np.array([5]), np.array([0]), tables) == 0
    assert ideal_bits(np.array([3, -300]), np.array([1, 1]), tables) == 8 + 16  # its side bytes only
    assert tables.frequencies[2].tolist() == [1, 2**14 - 2, 1]  # a computed 1 is not a promise


def test_a_table_does_not_depend_on_those_made_with_it() -> None:
    rng = np.random.default_rng(0)
    rows = [0.99 * rng.dirichlet(np.full(rng.integers(1, 900), 0.3)) for _ in range(400)]
    rows[5:8] = [np.array([]), np.array([1.0]), np.full(700, 1 / 700)]
    assert sum(map(len, rows)) > ELEMENTS_AT_ONCE
    together = tables_from_probabilities(rows, list(range(400)))
    for number in [*range(10), *range(10, 400, 13), 399]:
        alone = tables_from_probabilities([rows[number]], [number])
        assert together.sizes[number] == alone.sizes[0] == max(1, len(rows[number]) + 1)
        assert together.smallest[number] == number
        np.testing.assert_array_equal(together.frequencies[number, : alone.sizes[0]], alone.frequencies[0])


@pytest.mark.parametrize("row", [[0.7, 0.4], [-0.1, 0.5], [math.nan], [[0.5]]])
def test_a_row_that_is_no_distribution_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="row 1"):
        tables_from_probabilities([np.array([0.5]), np.array(row)], [0, 0])


@pytest.mark.parametrize(
    ("frequencies", "smallest", "sizes", "fault"),
    [
        ([[16383, 2]], [0], [2], "sum"),
        ([[16383, 1], [16384, 1]], [0, 0], [2, 1], "table 1 does not sum"),
        ([[16383, 1]], [0], [1], "behind its last"),
        ([[16383, 0, 1]], [0], [3], "frequency 0"),
        ([[16384]], [0], [2], "size"),
        ([[16384]], [0], [0], "size"),
        ([[16384, 0]], [2**31 - 1], [2], None),
        ([[16383, 0, 1]], [2**31 - 1], [3], "frequency 0"),
        ([[16382, 1, 1]], [2**31 - 1], [3], "int32"),
        ([[16383, 1]], [2**31], [2], "smallest has values beyond int32"),
        ([[16384 - 65536, 65536]], [0], [2], "frequencies has values beyond uint16"),
        ([[16384.0]], [0], [1], "integers"),
        ([16384], [0], [1], "shapes"),
        ([[16384]], [0, 0], [1], "shapes"),
        (np.zeros((0, 1), int), np.zeros(0, int), np.zeros(0, int), "shapes"),
    ],
)
def test_tables_that_no_one_could_code_with_are_refused(
    frequencies: list, smallest: list, sizes: list, fault: str | None
) -> None:
    arrays = np.array(frequencies), np.array(smallest), np.array(sizes)
    if fault is None:
        FrequencyTables(*arrays)
    else:
        with pytest.raises(ValueError, match=fault):
            FrequencyTables(*arrays)


def test_the_digest_tells_tables_apart_and_does_not_see_padding_or_byte_order() -> None:
    tables = gaussian_tables(np.array([0.3, 2.0]))
    wider = np.pad(tables.frequencies, ((0, 0), (0, 3))).astype(">u2")
    same = FrequencyTables(wider, tables.smallest.astype(">i4"), tables.sizes.astype(np.int64))
    assert same.digest == tables.digest
    others = [
        gaussian_tables(np.array([0.3, 2.01])),
        gaussian_tables(np.array([2.0, 0.3])),
        FrequencyTables(tables.frequencies, tables.smallest + np.int32(1), tables.sizes),
    ]
    assert len({tables.digest, *(other.digest for other in others)}) == 4


def test_the_digest_is_what_its_description_says() -> None:
    """Written down once: a stored digest must be found again by every later version."""
    tables = FrequencyTables(np.array([[10000, 6383, 1], [16384, 0, 0]]), np.array([-1, 7]), np.array([3, 2]))
    assert tables.digest == "3caf7cd2f71ccfac05486eafa0538c857575b01a216e6b27464dd74d496b823a"


def test_tables_cannot_be_written_to() -> None:
    given = np.array([[16383, 1]], np.uint16)
    tables = FrequencyTables(given, np.zeros(1, np.int32), np.full(1, 2, np.int32))
    given[:] = 0
    assert tables.frequencies.tolist() == [[16383, 1]]
    with pytest.raises(ValueError, match="read-only"):
        tables.frequencies[0, 0] = 1


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 5), st.integers(0, 3))
def test_an_escape_code_is_small_next_to_the_table_and_tells_every_value(value: int, smallest: int, num: int) -> None:
    tables = tables_from_probabilities([np.full(num, 0.1)], [smallest])
    if smallest <= value < smallest + num:
        return
    values, indices = np.array([value]), np.array([0])
    code = escape_code(values, indices, tables)
    assert value_of_escape(code, indices, tables).tolist() == [value]
    distance = value - (smallest + num - 1) if value >= smallest else smallest - value
    assert 2 * distance - 2 <= code[0] <= 2 * distance


def test_ideal_bits_count_the_bytes_of_escapes() -> None:
    tables = FrequencyTables(np.array([[8192, 8192]]), np.array([0]), np.array([2]))
    for value, num_bytes in [(1, 1), (64, 1), (65, 2), (-64, 1), (-65, 2), (2**31 - 1, 5), (-(2**31), 5)]:
        assert ideal_bits(np.array([value]), np.array([0]), tables) == 1 + 8 * num_bytes
