from __future__ import annotations

import os
from pathlib import Path

import pytest
from upath import UPath

from library.files.atomic import whole_file, whole_folder


def names(folder: Path | UPath) -> set[str]:
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


# --- object stores ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> UPath:
    """A folder in an object store: in this process's memory, under a name that no other test has."""
    return UPath(f"memory:/{tmp_path}")


def test_a_file_for_a_store_arrives_when_it_is_whole(store: UPath):
    target = store / "new" / "folder" / "image.dng"
    with whole_file(target) as temporary:
        assert isinstance(temporary, Path)
        assert temporary.name == "image.dng"  # what it is read by may go by the suffix
        temporary.write_bytes(b"half")
        assert not target.exists()
        temporary.write_bytes(b"half and half")
        assert not target.exists()
    assert target.read_bytes() == b"half and half"
    assert names(target.parent) == {"image.dng"}
    assert not temporary.parent.exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_to_a_store_leaves_the_old_file(store: UPath, error: type[BaseException]):
    target = store / "image.dng"
    with whole_file(target) as temporary:
        temporary.write_bytes(b"old")

    def interrupted() -> None:
        with whole_file(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"old"
    assert names(store) == {"image.dng"}


def test_a_folder_in_a_store_holds_all_its_files_and_none_of_the_one_before(store: UPath):
    target = store / "runs" / "bundle"
    for content in ("old", "new"):
        with whole_folder(target) as temporary:
            (temporary / "weights").mkdir()
            (temporary / "weights" / content).write_text(content)
            (temporary / "manifest.json").write_text(content)
            if content == "new":
                assert (target / "manifest.json").read_text() == "old"
            else:
                assert not target.exists()
        assert names(target) == {"weights", "manifest.json"}
        assert names(target / "weights") == {content}
        assert (target / "manifest.json").read_text() == content
        assert not temporary.exists()


def test_an_interrupted_folder_leaves_the_old_one_in_the_store(store: UPath):
    target = store / "bundle"
    with whole_folder(target) as temporary:
        (temporary / "old").write_text("old")

    def interrupted() -> None:
        with whole_folder(target) as temporary:
            (temporary / "new").write_text("new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        interrupted()
    assert names(target) == {"old"}
    assert names(store) == {"bundle"}


@pytest.mark.parametrize("last", ["a", "b", "c"])
def test_the_file_that_vouches_for_the_others_arrives_after_them(
    store: UPath, last: str, monkeypatch: pytest.MonkeyPatch
):
    arrived = []
    put_file = type(store.fs).put_file

    def watched(self, source: str, target: str, **settings) -> None:
        put_file(self, source, target, **settings)
        arrived.append(target.rpartition("/")[2])

    monkeypatch.setattr(type(store.fs), "put_file", watched)
    with whole_folder(store / "bundle", last=last) as temporary:
        (temporary / "below").mkdir()
        for name in ("a", "b", "c", "below/d"):
            (temporary / name).write_text(name)
    assert sorted(arrived) == ["a", "b", "c", "d"]
    assert arrived[-1] == last


def test_a_folder_whose_sending_breaks_off_lacks_the_file_that_vouches_for_it(
    store: UPath, monkeypatch: pytest.MonkeyPatch
):
    put_file = type(store.fs).put_file

    def breaks(self, source: str, target: str, **settings) -> None:
        if target.endswith("weights2"):
            raise OSError("connection lost")
        put_file(self, source, target, **settings)

    for attempt in range(2):
        if attempt:
            monkeypatch.setattr(type(store.fs), "put_file", breaks)
        try:
            with whole_folder(store / "bundle", last="manifest.json") as temporary:
                for name in ("manifest.json", "weights1", "weights2"):
                    (temporary / name).write_text(f"attempt {attempt}")
        except OSError:
            assert attempt == 1
    # Nothing of the first attempt's either, which the second's weights do not belong to.
    assert names(store / "bundle") == {"weights1"}
    assert (store / "bundle" / "weights1").read_text() == "attempt 1"
