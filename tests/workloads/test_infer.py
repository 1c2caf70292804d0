"""Denoising a tree of raws with actors: mirrored, resumable, and the same files as without Ray."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from library.bundle import load_bundle
from library.config import validate
from library.errors import BundleError, ConfigError
from library.inference.archive import Summary, denoise_files, jobs_of_files, jobs_of_tree
from library.inference.denoise import denoise_file
from library.inference.engine import Engine
from library.inference.ledger import Ledger
from workloads import infer


@pytest.fixture
def archive(raw_dng: Path, tmp_path: Path) -> Path:
    """Two raws in a tree, one broken file, and files that are none."""
    raws = tmp_path / "raws"
    for name in ("a.dng", "trip/day 1/b.dng"):
        (raws / name).parent.mkdir(parents=True, exist_ok=True)
        (raws / name).write_bytes(raw_dng.read_bytes())
    (raws / "trip" / "broken.cr2").write_bytes(b"II*\0 cut off")
    (raws / "trip" / "notes.txt").write_text("not a raw")
    (raws / ".hidden.dng").write_bytes(b"not to be touched")
    return raws


def run(archive: Path, bundle: Path, output: Path, **changes: object) -> Summary:
    places = {"raws": str(archive), "output": str(output), "bundle": str(bundle)}
    return infer.run(validate(infer.Config, {**places, "formats": ["dng", "exr"], **changes}, "test"))


def files_below(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file that is no ledger."""
    paths = [p for p in folder.rglob("*") if p.is_file() and ".stillgrain" not in p.parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@pytest.mark.slow
def test_outputs_mirror_the_tree_and_one_bad_file_harms_only_itself(
    ray_cluster: str, archive: Path, small_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    summary = run(archive, small_bundle, output)
    assert (summary.done, summary.skipped, len(summary.failures)) == (2, 0, 1)
    assert "broken.cr2" in next(iter(summary.failures))
    assert summary.exit_code == 1
    assert files_below(output).keys() == {"a.dng", "a.exr", "trip/day 1/b.dng", "trip/day 1/b.exr"}
    with Ledger.open(output) as ledger:
        assert ledger.counts() == {"done": 4, "failed": 2, "quarantined": 0}

    # The same files as without Ray, bit for bit.
    engine = Engine(load_bundle(small_bundle))
    denoise_file(archive / "a.dng", {"dng": tmp_path / "a.dng", "exr": tmp_path / "a.exr"}, engine)
    for name in ("a.dng", "a.exr"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()

    # Again: nothing is done twice, and nothing changes.
    before = files_below(output)
    again = run(archive, small_bundle, output)
    assert (again.done, again.skipped) == (0, 2)
    assert files_below(output) == before

    # An output that went away, and an input that changed, are work again; the rest is not.
    (output / "a.exr").unlink()
    os.utime(archive / "trip" / "day 1" / "b.dng", (1, 1))
    third = run(archive, small_bundle, output)
    assert (third.done, third.skipped) == (2, 0)
    assert files_below(output) == before


def test_a_bundle_that_is_none_stops_it_before_anything_is_written(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        run(archive, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_raws_that_differ_in_their_suffix_only_keep_it_in_their_outputs(tmp_path: Path) -> None:
    for name in ("x.cr2", "x.dng", "y.nef"):
        (tmp_path / name).write_bytes(b"")
    jobs = list(jobs_of_tree(tmp_path, tmp_path / "out", ["dng"]))
    assert [job.outputs["dng"].name for job in jobs] == ["x.cr2.dng", "x.dng.dng", "y.dng"]


def test_the_output_folder_inside_the_archive_is_not_searched(raw_dng: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.dng").write_bytes(raw_dng.read_bytes())
    assert list(jobs_of_tree(tmp_path, tmp_path / "out", ["dng"])) == []


def test_two_files_of_one_name_are_refused_rather_than_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)1/x\.cr2 and .*2/x\.cr2 would both be written to"):
        jobs_of_files([tmp_path / "1" / "x.cr2", tmp_path / "2" / "x.cr2"], tmp_path / "out", "dng")


def test_two_formats_of_one_suffix_are_refused(archive: Path, small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"formats: dng, cfa-dng would write the same file names"):
        run(archive, small_bundle, tmp_path / "out", formats=["dng", "cfa-dng"])


def test_the_archive_itself_is_refused_as_output(archive: Path, small_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="output: is the folder of the raw files itself"):
        run(archive, small_bundle, archive)


def test_a_file_that_was_not_made_here_is_never_overwritten(raw_dng: Path, small_bundle: Path, tmp_path: Path) -> None:
    """`denoise IMG.CR2 -o .` beside an IMG.dng that the camera or another program wrote."""
    (tmp_path / "x.cr2").write_bytes(raw_dng.read_bytes())
    (tmp_path / "x.dng").write_bytes(b"an original")
    engine = Engine(load_bundle(small_bundle))
    summary = denoise_files([tmp_path / "x.cr2"], tmp_path, engine, "dng")
    assert (summary.done, summary.exit_code) == (0, 1)
    assert "would overwrite" in summary.failures[str(tmp_path / "x.cr2")]
    assert (tmp_path / "x.dng").read_bytes() == b"an original"
    (tmp_path / "x.dng").unlink()
    assert denoise_files([tmp_path / "x.cr2"], tmp_path, engine, "dng").done == 1
    os.utime(tmp_path / "x.cr2", (1, 1))
    assert denoise_files([tmp_path / "x.cr2"], tmp_path, engine, "dng").done == 1  # its own output it may replace


def test_an_archive_that_is_no_folder_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        run(tmp_path / "gone", small_bundle, tmp_path / "out")
