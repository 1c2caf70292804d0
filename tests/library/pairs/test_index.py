from __future__ import annotations

import dataclasses
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.errors import DataError
from library.pairs.index import SCHEMA, Failure, Pair, index_digest, read_index, write_index
from tests.prepared_pairs import FAILED, PAIR, of_pictures

UNKNOWN = replace(PAIR, f_path="Bayer/lamp/c.arw", gt_iso=None, xyz_to_camera=None, rgb_msssim=None, flags=(), key="k2")
PICTURES = of_pictures(PAIR, scene="garden", target="arrays/garden/a.target.npy", key="k3")


def test_rows_come_back_as_they_were_written_sorted(tmp_path: Path) -> None:
    write_index(tmp_path, [PAIR, UNKNOWN, PICTURES, FAILED])
    assert read_index(tmp_path) == [PICTURES, FAILED, PAIR, UNKNOWN]


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    write_index(tmp_path / "a", [PAIR, UNKNOWN, PICTURES, FAILED])
    write_index(tmp_path / "b", [FAILED, PICTURES, UNKNOWN, PAIR])
    assert (tmp_path / "a/index.parquet").read_bytes() == (tmp_path / "b/index.parquet").read_bytes()


def test_every_field_of_a_row_is_a_column_and_every_column_a_field() -> None:
    named = [{field.name for field in fields(cls)} for cls in (Pair, Failure)]
    assert named[0] | named[1] == set(SCHEMA.names)


def test_any_reader_of_parquet_sees_plain_columns(tmp_path: Path) -> None:
    write_index(tmp_path, [PAIR, FAILED])
    table = pq.read_table(tmp_path / "index.parquet")
    assert table.column("f_iso").to_pylist() == [None, 65535.0]
    assert table.column("error").to_pylist() == [FAILED.error, None]
    assert table.column("black_level").to_pylist() == [None, [512.0, 512.5, 511.0, 512.0]]


def test_an_index_without_pairs_is_one(tmp_path: Path) -> None:
    write_index(tmp_path, [])
    assert read_index(tmp_path) == []


def test_a_folder_without_an_index_or_with_another_kind_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare"):
        read_index(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match="prepare"):
        read_index(tmp_path)
    pq.write_table(pa.table({"scene": ["a"]}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match="format none"):
        read_index(tmp_path)


def test_the_digest_names_pairs_by_their_making_and_not_by_where_their_sources_lie() -> None:
    assert index_digest([PAIR, UNKNOWN]) == index_digest([UNKNOWN, replace(PAIR, gt_path="moved/a.arw")])
    for changed in (replace(PAIR, key="other"), replace(PAIR, scene="other")):
        assert index_digest([changed, UNKNOWN]) != index_digest([PAIR, UNKNOWN])


def test_a_pair_knows_what_its_images_share() -> None:
    assert dataclasses.astuple(PAIR.overlap) == (2, 1, 0, 4, 398, 596)
    assert dataclasses.astuple(PICTURES.overlap) == (2, 0, 0, 3, 398, 597)
