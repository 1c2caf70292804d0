"""Streams that were written once, on 2026-11-22, and stay readable for ever: tests/expected/entropy.

tables.json   the tables: eight Gaussians, a certain value, a certain escape
golden.json   of each stream: number of values, the seed they come from, number of lanes, sha256 of the values as int32
NAME.stream   the bytes

A change that fails here changes the format of files that exist. It needs a new version of the format beside this one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from library.entropy.rans import decode, encode
from library.entropy.tables import FrequencyTables

FOLDER = Path(__file__).resolve().parents[2] / "expected" / "entropy"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())


def stored_tables() -> FrequencyTables:
    stored = json.loads((FOLDER / "tables.json").read_text())
    return FrequencyTables(*(np.array(stored[name]) for name in ("frequencies", "smallest", "sizes")))


def drawn(num: int, seed: int, tables: FrequencyTables) -> tuple[np.ndarray, np.ndarray]:
    """Values with the probabilities of their tables, from the one thing of numpy.random that is promised to stay."""
    raw = np.random.PCG64(seed).random_raw(num)
    indices = (raw % tables.num_tables).astype(np.int64)
    slots = (raw >> np.uint64(8)) % np.uint64(2**14)
    symbols = (tables.frequencies[indices].cumsum(1, dtype=np.int64) <= slots.astype(np.int64)[:, None]).sum(1)
    values = tables.smallest[indices] + symbols
    # As many bits as the lowest ones say, to either side.
    far = (raw >> np.uint64(32)).astype(np.int64) >> (raw & np.uint64(31)).astype(np.int64)
    beyond = np.where(slots & 1, tables.smallest[indices] - 1 - far // 4, values + far // 4)
    return np.where(symbols == tables.sizes[indices] - 1, beyond, values), indices


def test_the_stored_tables_are_those_of_the_streams() -> None:
    assert stored_tables().digest == GOLDEN["tables"]


@pytest.mark.parametrize("name", GOLDEN["streams"])
def test_a_stored_stream_still_gives_its_values_and_its_values_the_stream(name: str) -> None:
    tables, entry = stored_tables(), GOLDEN["streams"][name]
    values, indices = drawn(entry["num"], entry["seed"], tables)
    data = (FOLDER / f"{name}.stream").read_bytes()
    decoded = decode([(data, indices)], tables)[0]
    assert hashlib.sha256(decoded.astype("<i4").tobytes()).hexdigest() == entry["sha256"]
    assert data[0] == entry["lanes"]
    np.testing.assert_array_equal(decoded, values)
    assert encode([(values, indices)], tables) == [data]
