"""Raws in stores that are no folder of this machine, and raws that need another file to be pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from library.bundle import load_bundle
from library.errors import ConfigError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.inference.archive import Archive, Product, Summary, jobs_of, one_after_another
from library.inference.archive_events import Events
from library.inference.archive_inputs import find_raws
from library.inference.archive_names import ArchiveFormat
from library.inference.archive_places import local_file, opened, status_of
from library.inference.archive_work import denoising, probe_of
from library.inference.engine import Engine
from library.inference.ledger import Ledger


@pytest.fixture(scope="module")
def engine(small_bundle: Path) -> Engine:
    return Engine(load_bundle(small_bundle))


@pytest.fixture
def store() -> Iterator[str]:
    """An object store in memory."""
    files = fsspec.filesystem("memory")
    yield "memory://photos"
    files.rm("/photos", recursive=True)


def write_raw(path: Path, seed: int = 0) -> Path:
    mosaic = np.random.default_rng(seed).integers(600, 9000, (64, 64)).astype(np.uint16)
    metadata = ImageMetadata(iso=800.0)
    write_cfa_dng(path, mosaic, cfa="RGGB", black_level=np.full((2, 2), 512.0), white_level=16383, metadata=metadata)
    return path


def put(uri: str, content: bytes) -> None:
    with fsspec.open(uri, "wb") as file:
        file.write(content)  # pyright: ignore[reportAttributeAccessIssue]


def run(inputs: str | Path, output: Path, engine: Engine, **naming: str) -> Summary:
    formats: tuple[ArchiveFormat, ...] = ("dng",)
    summary = Summary(output)
    with Ledger.open(output) as ledger, Events.open(output) as events:
        archive = Archive(ledger, Product.of_denoiser(engine), summary, events)
        jobs = jobs_of([inputs], output, formats, ledger=ledger, template=naming.get("template"))
        archive.run(jobs, one_after_another(denoising(engine)))
    return summary


def counts(summary: Summary) -> tuple[int, int, int]:
    return summary.done, summary.skipped, len(summary.failures)


def test_raws_of_a_store_become_what_the_same_raws_of_a_folder_do_once(
    store: str, engine: Engine, tmp_path: Path
) -> None:
    for seed, name in enumerate(("a.dng", "trip/b.dng")):
        put(f"{store}/{name}", write_raw(tmp_path / "raws" / name, seed).read_bytes())
        (tmp_path / "raws" / name).with_suffix(".xmp").write_text("<x/>")
        put(f"{store}/{name[:-4]}.xmp", b"<x/>")
    put(f"{store}/notes.txt", b"no raw")
    put(f"{store}/.hidden.dng", b"not to be touched")
    put(f"{store}/bad.dng", b"II*\0 cut off")
    here, there = run(tmp_path / "raws", tmp_path / "here", engine), run(store, tmp_path / "there", engine)
    assert (counts(here), counts(there)) == ((2, 0, 0), (2, 0, 1))
    for name in ("a.dng", "a.xmp", "trip/b.dng", "trip/b.xmp"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    [(name, reason)] = there.failures.items()
    assert name.endswith("photos/bad.dng")
    assert reason.startswith(name)
    assert "stillgrain-" not in reason  # the copy that was read is nobody's business
    assert counts(run(store, tmp_path / "there", engine)) == (0, 2, 1)
    put(f"{store}/a.dng", write_raw(tmp_path / "other.dng", 9).read_bytes())
    assert counts(run(store, tmp_path / "there", engine)) == (1, 1, 1)


def test_a_store_is_searched_by_folder_file_or_glob_and_named_by_what_its_raws_say(
    store: str, engine: Engine, tmp_path: Path
) -> None:
    data = write_raw(tmp_path / "x.dng").read_bytes()
    for name in ("2024/a.dng", "2025/b.dng", "2025/c.txt"):
        put(f"{store}/{name}", data)

    def found(given: str) -> list[str]:
        return [raw.relative for raw in find_raws([given], tmp_path / "out")]

    assert found(store) == ["2024/a.dng", "2025/b.dng"]
    assert found(f"{store}/2025/b.dng") == ["b.dng"]
    assert found(f"{store}/*/?.dng") == ["2024/a.dng", "2025/b.dng"]
    (tmp_path / "list.txt").write_text(f"{store}/2025/b.dng\n{tmp_path}/x.dng\n")
    assert len(found(str(tmp_path / "list.txt"))) == 2
    assert counts(run(f"{store}/2025", tmp_path / "out", engine, template="{stem}_{iso}.{ext}")) == (1, 0, 0)
    assert (tmp_path / "out" / "b_800.dng").is_file()
    with pytest.raises(ConfigError, match="holds no file"):
        found(f"{store}/nowhere")
    with pytest.raises(ConfigError, match="cannot be listed"):
        found("nosuchstore://x")


def test_a_file_is_the_same_wherever_it_lies(store: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.dng")
    put(f"{store}/x.dng", path.read_bytes())
    assert probe_of(f"{store}/x.dng") == probe_of(str(path))
    assert status_of(f"{store}/x.dng").size == status_of(str(path)).size
    with opened(f"{store}/x.dng") as theirs, opened(str(path)) as ours:
        assert theirs.read(100) == ours.read(100)
    with local_file(f"{store}/x.dng") as copy:
        assert copy.read_bytes() == path.read_bytes()
    assert not copy.exists()
    with local_file(str(path)) as same:
        assert same == path
    with pytest.raises(FileNotFoundError):
        status_of(f"{store}/nowhere.dng")


@pytest.mark.parametrize("place", ["folder", "store"])
def test_editing_the_description_of_a_headless_raw_is_new_work_and_touching_it_is_none(
    place: str, store: str, engine: Engine, tmp_path: Path
) -> None:
    raws = tmp_path / "raws"
    raws.mkdir()
    samples = np.random.default_rng(0).integers(600, 9000, (64, 64)).astype("<u2").tobytes()
    description = {"width": 64, "height": 64, "cfa": "RGGB", "black_level": 512, "white_level": 16383}

    def describe(**changes: object) -> None:
        content = json.dumps({**description, **changes})
        (raws / "x.raw.json").write_text(content)
        put(f"{store}/x.raw.json", content.encode())

    (raws / "x.raw").write_bytes(samples)
    put(f"{store}/x.raw", samples)
    inputs, output = (raws if place == "folder" else store), tmp_path / "out"
    assert counts(run(inputs, output, engine)) == (0, 0, 1)  # nobody says what it is
    describe()
    assert counts(run(inputs, output, engine)) == (1, 0, 0)
    assert counts(run(inputs, output, engine)) == (0, 1, 0)
    first = (output / "x.dng").read_bytes()
    describe(black_level=500)
    assert counts(run(inputs, output, engine)) == (1, 0, 0)
    assert (output / "x.dng").read_bytes() != first
    if place == "folder":
        os.utime(raws / "x.raw.json", (1, 1))
    else:
        describe(black_level=500)
    assert counts(run(inputs, output, engine)) == (0, 1, 0)
    assert counts(run(inputs, output, engine)) == (0, 1, 0)
    describe()  # as it was first, but the file by that name is another now
    assert counts(run(inputs, output, engine)) == (1, 0, 0)
    assert (output / "x.dng").read_bytes() == first
