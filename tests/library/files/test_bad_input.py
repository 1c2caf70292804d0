"""Whatever a file holds, reading it ends as an image or as an error that names it, and never harms its caller."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.files.isolate import IsolatedReader
from tests.mutants import Kind, examples, mutant, outcome

LIMITS = {"memory_bytes": 2**29, "seconds": 10.0}
MAGICS = (
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"v/1\x01\x02\0\0\0",
    b"\0\0\0\x18ftypcrx ",
    b"FUJIFILM",
    b"\xff\xd8\xff",
)


@pytest.fixture(scope="module")
def reader() -> Iterator[IsolatedReader]:
    with IsolatedReader() as reader:
        yield reader


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Kind]:
    return examples(tmp_path_factory.mktemp("examples"))


def test_every_example_is_read(reader: IsolatedReader, files: dict[Path, Kind]):
    assert {path.name: outcome(reader, path, kind, **LIMITS) for path, kind in files.items()} == {
        path.name: "read" for path in files
    }


def test_two_hundred_damaged_files_end_as_images_or_as_errors(
    reader: IsolatedReader, files: dict[Path, Kind], tmp_path: Path
):
    """The benchmark `bench_fuzz_files` does the same with thousands, of cameras too."""
    rng = np.random.default_rng(0)
    paths = list(files)
    ends = {"read": 0, "refused": 0}
    for number in range(200):
        path, donor = paths[number % len(paths)], paths[int(rng.integers(len(paths)))]
        damaged = tmp_path / f"{number}{path.suffix}"
        damaged.write_bytes(mutant(path.read_bytes(), donor.read_bytes(), rng))
        end = outcome(reader, damaged, files[path], **LIMITS)
        ends[end] = ends.get(end, 0) + 1
        damaged.unlink()
    assert sum(ends.values()) == 200
    assert ends["read"] > 20
    assert ends["refused"] > 40
    assert ends.get("too long", 0) == 0


@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=400))
@settings(max_examples=60)
def test_whatever_follows_a_signature_is_refused_or_read(
    reader: IsolatedReader, tmp_path_factory: pytest.TempPathFactory, magic: bytes, rest: bytes
):
    path = tmp_path_factory.getbasetemp() / "any.dng"
    path.write_bytes(magic + rest)
    kinds: tuple[Kind, ...] = ("raw", "image", "linear DNG")
    for kind in kinds:
        assert outcome(reader, path, kind, **LIMITS) in ("read", "refused", "too much memory")
