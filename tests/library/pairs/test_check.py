from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from library.errors import DataError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.raw import read_raw
from library.pairs.check import check, check_file, exposure
from library.pairs.generate import Planted, generate

BLACK, WHITE = 512, 16383


def write(path: Path, over: float, under: float, side: int = 80) -> Path:
    """A raw whose first rows of 2x2 tiles are saturated in one photosite each, and whose last rows are black."""
    mosaic = np.full((side, side), 4000, np.uint16)
    mosaic[: round(over * side) : 2, ::2] = WHITE
    mosaic[side - round(under * side) :] = BLACK
    write_cfa_dng(
        path,
        mosaic,
        cfa="GBRG",
        black_level=np.full((2, 2), BLACK),
        white_level=WHITE,
        metadata=ImageMetadata(make="A", model="B"),
    )
    return path


def kinds(path: Path) -> list[str]:
    return [kind for kind, _ in check_file(path).problems]


def test_a_check_finds_the_files_that_were_planted_broken_and_no_others(planted: Planted):
    report = check(planted.folder, workers=2)
    expected = {
        "truncated": ["unreadable"],
        "empty": ["unreadable"],
        "duplicate": ["duplicate"],
        "overexposed": ["badly exposed"],
        "underexposed": ["badly exposed"],
    }
    found = {
        Path(file.path).relative_to(planted.folder).as_posix(): [kind for kind, _ in file.problems]
        for file in report.files
    }
    twins = {frozenset((file.path, file.same_as)) for file in planted.files if file.same_as}
    for file in planted.files:
        if any(file.path in twin for twin in twins):
            continue
        assert found[file.path] == expected.get(str(file.flaw), []), file.path
    # Which of two equal files is the first, their names decide.
    assert all(sorted(found[path] for path in twin) == [[], ["duplicate"]] for twin in twins)
    assert len(report.files) == len(planted.files)
    assert report.exit_code == 1


def test_a_file_is_badly_exposed_when_more_than_three_quarters_of_it_are(tmp_path: Path):
    # The rule is about what either spoils, and a tile is over-exposed when one of its photosites is.
    assert kinds(write(tmp_path / "a.dng", over=0.5, under=0.25)) == []
    assert kinds(write(tmp_path / "b.dng", over=0.5, under=0.3)) == ["badly exposed"]
    assert kinds(write(tmp_path / "c.dng", over=0.8, under=0)) == ["badly exposed"]
    assert kinds(write(tmp_path / "d.dng", over=0, under=0.8)) == ["badly exposed"]
    checked = check_file(tmp_path / "b.dng")
    assert (checked.overexposed, checked.underexposed) == pytest.approx((0.5, 0.3))


def test_levels_count_from_the_black_of_their_own_site(tmp_path: Path):
    black = np.array([[100, 200], [300, 400]], np.float32)
    mosaic = np.tile(black.astype(np.uint16), (40, 40))
    for name, image, expected in (("black", mosaic, (0, 1, 1)), ("lit", mosaic + 60, (0, 0, 0))):
        write_cfa_dng(
            tmp_path / f"{name}.dng",
            image,
            cfa="RGGB",
            black_level=black,
            white_level=4095,
            metadata=ImageMetadata(),
        )
        assert exposure(read_raw(tmp_path / f"{name}.dng")) == expected


def test_an_xtrans_raw_is_judged_like_any_other(tmp_path: Path):
    planted = generate(tmp_path / "tree", scenes=1, xtrans=2, width=192, height=192)
    bad = [Path(file.path).relative_to(planted.folder).as_posix() for file in check(planted.folder).bad]
    assert bad == [file.path for file in planted.files if file.flaw]
    over, under, _ = exposure(read_raw(planted.folder / planted.scenes[1].gt[0].path))
    assert under == 0
    assert 0 < over < 0.05  # its blown highlight


def test_bytes_that_are_not_those_of_the_name_are_told(tmp_path: Path):
    path = write(tmp_path / "a.dng", 0, 0)
    sha1 = hashlib.sha1(path.read_bytes()).hexdigest()
    good = path.rename(tmp_path / f"Bayer_scene_ISO100_sha1={sha1}.dng")
    assert kinds(good) == []
    data = bytearray(good.read_bytes())
    data[-1] ^= 1
    good.write_bytes(data)
    assert kinds(good) == ["altered"]


def test_of_equal_files_the_first_is_kept_and_the_others_name_it(tmp_path: Path):
    first = write(tmp_path / "a.dng", 0, 0)
    for name in ("b.dng", "c.dng"):
        (tmp_path / name).write_bytes(first.read_bytes())
    for name in ("empty1.dng", "empty2.dng"):
        (tmp_path / name).write_bytes(b"")
    problems = [(Path(file.path).name, kind, reason) for file in check(tmp_path).bad for kind, reason in file.problems]
    assert [(name, kind) for name, kind, _ in problems] == [
        ("b.dng", "duplicate"),
        ("c.dng", "duplicate"),
        ("empty1.dng", "unreadable"),
        ("empty2.dng", "unreadable"),
    ]
    assert all(str(first) in reason for _, _, reason in problems[:2])


def test_a_download_and_the_tree_that_was_linked_from_it_are_the_same_files(tmp_path: Path):
    first = write(tmp_path / "a.dng", 0, 0)
    (tmp_path / "scene").mkdir()
    os.link(first, tmp_path / "scene" / "a.dng")
    assert [file.path for file in check(tmp_path).files] == [str(first)]
    os.link(first, tmp_path / "scene" / "another_name.dng")
    assert [file.problems[0][0] for file in check(tmp_path).bad] == ["duplicate"]


def test_a_good_folder_has_exit_code_0_and_json_has_every_file(tmp_path: Path):
    write(tmp_path / "a.dng", 0, 0)
    write(tmp_path / "deep.dng", 0.1, 0)
    (tmp_path / "notes.txt").write_text("no raw")
    report = check(tmp_path, workers=1)
    facts = json.loads(json.dumps(report.to_json()))
    assert [Path(file["path"]).name for file in facts["files"]] == ["a.dng", "deep.dng"]
    assert (facts["bad"], report.exit_code) == (0, 0)
    assert str(report) == "2 files, 2 of them good"


def test_a_folder_without_raws_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no image file"):
        check(tmp_path)
