from __future__ import annotations

import os
from pathlib import Path

import pytest

from library.files.atomic import whole_file, whole_folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path):
    target = tmp_path / "new" / "folder" / "image.dng"
    with whole_file(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"half and half")
    assert target.read_bytes() == b"half and half"
    assert names(target.parent) == {"image.dng"}


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "image.dng"
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(target) as temporary:
        temporary.write_bytes(b"x")
    assert synced == [(target.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]):
    target = tmp_path / "image.dng"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with whole_file(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"image.dng"}


def test_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path: Path):
    target = tmp_path / "image.dng"
    with whole_file(target) as first, whole_file(target) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert target.read_bytes() == b"first"  # the last to finish
    assert names(tmp_path) == {"image.dng"}


def test_a_file_whose_name_is_as_long_as_the_file_system_allows_is_written(tmp_path: Path):
    target = tmp_path / ("é" * 125 + ".dng")
    with whole_file(target) as temporary:
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"


def test_a_folder_appears_with_all_its_files_and_replaces_the_one_before(tmp_path: Path):
    target = tmp_path / "runs" / "bundle"
    for content in ("old", "new"):
        with whole_folder(target) as temporary:
            (temporary / "weights").mkdir()
            (temporary / "weights" / content).write_text(content)
            assert names(tmp_path / "runs") - {temporary.name} == ({"bundle"} if content == "new" else set())
        assert names(target / "weights") == {content}
        assert names(tmp_path / "runs") == {"bundle"}


def test_an_interrupted_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")

    def interrupted() -> None:
        with whole_folder(target) as temporary:
            (temporary / "new").write_text("new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        interrupted()
    assert names(target) == {"old"}
    assert names(tmp_path) == {"bundle"}


def test_a_folder_never_replaces_a_file(tmp_path: Path):
    target = tmp_path / "bundle"
    target.write_text("a file")
    with pytest.raises(NotADirectoryError), whole_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert target.read_text() == "a file"
    assert names(tmp_path) == {"bundle"}
