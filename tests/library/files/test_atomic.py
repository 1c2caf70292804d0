from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from library.files.atomic import folder_made_once, whole_file, whole_folder


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


@pytest.mark.parametrize(("renames", "there"), [(1, "old"), (2, "new")])
def test_interrupted_between_its_renames_a_folder_is_the_old_or_the_new_one(
    renames: int, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write(text: str) -> None:
        with whole_folder(tmp_path / "bundle") as temporary:
            (temporary / "weights").write_text(text)

    write("old")
    rename, done = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "weights").read_text() == there


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


def texts(folder: UPath) -> dict[str, str]:
    found = folder.fs.find(folder.path)
    return {file.removeprefix(f"{folder.path}/"): folder.fs.cat_file(file).decode() for file in found}


def send(folder: UPath, content: dict[str, str]) -> None:
    with whole_folder(folder, last="manifest.json") as temporary:
        for name, text in content.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text)


def cut_off(change: Callable[..., None], folder: UPath, after: int, error: BaseException, seen: list) -> Any:
    """A way to change a store, which fails from the `after`th change of any kind on; before each, `folder` is seen."""

    def changed(self, *where, **settings) -> None:
        seen.append(texts(folder))
        if len(seen) > after:
            raise error
        change(self, *where, **settings)

    return changed


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("connection lost")])
def test_whenever_the_sending_of_a_folder_ends_one_is_whole_and_a_mixture_never_is_vouched_for(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The older folder was once removed before the new one was sent, so that a kill left neither."""
    old = {"manifest.json": "old", "weights": "old", "card": "old"}
    new = {"manifest.json": "new", "weights": "new", "below/golden": "new"}
    memory = type(UPath("memory:/").fs)
    for num_changes in itertools.count():
        root, seen = UPath(f"memory:/{tmp_path}/{num_changes}"), []
        send(root / "bundle", old)
        with monkeypatch.context() as connection:
            for name in ("put_file", "cp_file", "rm_file", "rm"):
                change = cut_off(getattr(memory, name), root / "bundle", num_changes, error, seen)
                connection.setattr(memory, name, change)
            with contextlib.suppress(type(error)):
                send(root / "bundle", new)
        there = [texts(folder) for folder in root.iterdir()]
        assert old in there or new in there
        for content in (*seen, texts(root / "bundle")):
            assert "manifest.json" not in content or content in (old, new)
        if len(seen) <= num_changes:
            break
    assert len(seen) > len(new)
    assert texts(root / "bundle") == new
    assert names(root) == {"bundle"}


# --- folders whose path names their content ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "memory:/"])
def test_of_many_who_make_a_folder_at_once_the_first_to_end_makes_it(where: str, tmp_path: Path):
    target = UPath(f"{where}{tmp_path}/store")
    with folder_made_once(target, last="index") as slow:
        with folder_made_once(target, last="index") as quick:
            for name in ("scene", "index"):
                (quick / name).write_text("quick")
        for name in ("scene", "index", "more"):
            (slow / name).write_text("slow")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"scene": "quick", "index": "quick"}
    assert names(target.parent) == {"store"}


@pytest.mark.parametrize("where", ["", "memory:/"])
def test_a_part_of_such_a_folder_gives_way_to_the_whole(where: str, tmp_path: Path):
    target = UPath(f"{where}{tmp_path}/store")
    target.mkdir(parents=True)
    (target / "scene").write_text("half")
    with folder_made_once(target, last="index") as temporary:
        for name in ("scene", "index"):
            (temporary / name).write_text("whole")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"scene": "whole", "index": "whole"}
    assert names(target.parent) == {"store"}


def test_such_a_folder_never_replaces_a_file(tmp_path: Path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(NotADirectoryError), folder_made_once(tmp_path / "store", last="index") as temporary:
        (temporary / "index").write_text("new")
    assert (tmp_path / "store").read_text() == "a file"
    assert names(tmp_path) == {"store"}
