from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from library.errors import ConfigError, DataError
from library.files.atomic import whole_folder
from library.files.places import is_local, local_copy, place, remove_folder


def written(folder: UPath, *names: str) -> UPath:
    with whole_folder(folder) as temporary:
        for name in names:
            (temporary / name).write_text(f"content of {name}")
    return folder


def contents(folder: Path | UPath) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_of_this_machine_is_an_ordinary_path(tmp_path: Path):
    for location in (str(tmp_path), tmp_path, UPath(tmp_path)):
        path = place(location)
        assert is_local(path)
        assert isinstance(path, Path)
        assert path == tmp_path
        assert is_local(path / "below")


def test_a_uri_is_a_path_that_reads_and_writes_and_is_not_local(tmp_path: Path):
    path = place(f"memory:/{tmp_path}") / "runs" / "a.txt"
    assert not is_local(path)
    assert place(path) == path
    assert (path.name, path.parent.name) == ("a.txt", "runs")
    path.parent.mkdir(parents=True)
    path.write_text("hello")
    assert place(str(path)).read_text() == "hello"


@pytest.mark.parametrize("uri", ["nowhere://bucket/runs", "gs://bucket/runs"])
def test_a_protocol_that_is_unknown_or_not_installed_is_refused_with_the_remedy(uri: str):
    with pytest.raises(ConfigError, match=rf"storage '{uri}' cannot be used: .*; for S3 install 'stillgrain\[s3\]'"):
        place(uri)


def test_the_local_copy_of_a_local_folder_is_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = written(place(tmp_path / "store"), "a", "b")
    assert local_copy(folder, last="b") == tmp_path / "store"
    assert not (tmp_path / "cache").exists()


def test_a_folder_in_a_store_is_copied_to_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy is trusted for ever, so it must not appear before it is whole: it is made like all folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = written(place(f"memory:/{tmp_path}/scenes-1234"), "a", "b")
    copy = local_copy(folder, last="b")
    assert copy.is_relative_to(tmp_path / "cache" / "stillgrain")
    assert contents(copy) == contents(folder) == {"a": "content of a", "b": "content of b"}
    remove_folder(folder)
    made = copy.stat().st_ino
    assert local_copy(folder, last="b") == copy
    assert copy.stat().st_ino == made
    assert contents(copy).keys() == {"a", "b"}


def test_folders_of_the_same_name_in_two_places_have_two_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = (
        local_copy(written(place(f"memory:/{tmp_path}/{where}/scenes"), where), last=where) for where in ("one", "two")
    )
    assert contents(first).keys() == {"one"}
    assert contents(second).keys() == {"two"}


def test_a_folder_that_was_replaced_in_its_place_has_a_new_copy_and_no_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = written(place(f"memory:/{tmp_path}/tree"), "a", "index")
    first = local_copy(folder, last="index", replaced=True)
    assert local_copy(folder, last="index", replaced=True) == first
    (folder / "b").write_text("content of b")
    (folder / "index").write_text("a, b")
    assert contents(local_copy(folder, last="index", replaced=True)).keys() == {"a", "b", "index"}
    assert contents(first).keys() == {"a", "index"}, "it may be in use"
    remove_folder(folder)
    with pytest.raises(DataError, match="holds no index"):
        local_copy(folder, last="index", replaced=True)


def test_a_copy_that_fails_halfway_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = written(place(f"memory:/{tmp_path}/scenes"), "a", "b")

    get_file = type(folder.fs).get_file

    def breaks(self, source: str, target: str, **settings) -> None:
        if source.endswith("/b"):
            raise OSError("connection lost")
        get_file(self, source, target, **settings)

    with monkeypatch.context() as network:
        network.setattr(type(folder.fs), "get_file", breaks)
        with pytest.raises(OSError, match="connection lost"):
            local_copy(folder, last="a")
    assert list((tmp_path / "cache" / "stillgrain").iterdir()) == []
    assert contents(local_copy(folder, last="a")).keys() == {"a", "b"}


def test_a_part_of_a_folder_is_neither_copied_nor_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that was copied while its writer still sent it was once kept for ever."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = written(place(f"memory:/{tmp_path}/scenes"), "a")
    with pytest.raises(DataError, match=r"^memory:/.*/scenes: holds no index, so it is not whole.* run that again"):
        local_copy(folder, last="index")
    assert not (tmp_path / "cache").exists()
    copy = local_copy(written(folder, "a", "index"), last="index")
    (copy / "index").unlink()
    assert local_copy(folder, last="index") == copy
    assert contents(copy).keys() == {"a", "index"}
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("store", ["", "memory:/"])
def test_a_removed_folder_is_gone_with_all_that_is_in_it_and_nothing_else(store: str, tmp_path: Path):
    root = place(f"{store}{tmp_path}/root")
    for name in ("folder", "folder2"):
        written(root / name / "below", "a")
        written(root / name, "b", "c")
    remove_folder(root / "folder")
    assert [path.name for path in root.iterdir()] == ["folder2"]
    assert (root / "folder2" / "b").exists()
    remove_folder(root / "folder")
