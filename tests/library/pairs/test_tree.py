from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from library.errors import DataError
from library.pairs.generate import PLANTED, generate
from library.pairs.tree import images_below, organize, scan_tree


def flat_name(data: bytes, scene: str = "scene", gt: str = "", label: str = "100", sensor: str = "Bayer") -> str:
    return f"{sensor}_{scene}_{gt}ISO{label}_sha1={hashlib.sha1(data).hexdigest()}.arw"


def put(folder: Path, data: bytes, name: str | None = None, **parts: str) -> Path:
    path = folder / (name or flat_name(data, **parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Every prefix, both sensors and sides, odd labels, a stray file, a folder inside."""
    folder = tmp_path / "download"
    put(folder, b"1", scene="TEST_7D-2", gt="GT_")
    put(folder, b"2", scene="TEST_7D-2", label="65535")
    put(folder, b"3", scene="UNK_under_score", label="Hi 3200")
    put(folder, b"4", scene="UNK_TEST_x", label="Unknown", gt="GT_")
    put(folder / "inside", b"5", sensor="X-Trans")
    put(folder, b"6", "README.txt")
    return folder


def test_a_download_becomes_the_tree_that_was_meant(tmp_path: Path):
    flat = generate(tmp_path / "flat", scenes=3, width=192, height=192, flat=True)
    tree = generate(tmp_path / "tree", scenes=3, width=192, height=192)
    organized = organize(flat.folder, tmp_path / "organized")
    (tree.folder / PLANTED).unlink()
    assert contents(tmp_path / "organized") == contents(tree.folder)
    assert [scene.name for scene in scan_tree(tmp_path / "organized")] == sorted(scene.name for scene in tree.scenes)
    assert [move.source.name for move in organized.having("unknown")] == [PLANTED]
    assert organized.exit_code == 0


@pytest.mark.parametrize("move", [False, True])
def test_every_file_with_a_name_finds_its_place_and_doing_it_again_changes_nothing(
    download: Path, tmp_path: Path, move: bool
):
    before, root = contents(download), tmp_path / "tree"
    first = organize(download, root, move=move)
    placed = contents(root)
    assert {name.rpartition("/")[0]: data for name, data in placed.items()} == {
        "Bayer/TEST_7D-2/gt": b"1",
        "Bayer/TEST_7D-2": b"2",
        "Bayer/UNK_under_score": b"3",
        "Bayer/UNK_TEST_x/gt": b"4",
        "X-Trans/scene": b"5",
    }
    assert contents(download) == ({"README.txt": b"6"} if move else before)
    again = organize(download, root, move=move)
    assert contents(root) == placed
    assert (len(first.having("placed")), len(again.having("placed"))) == (5, 0)
    assert len(again.having("there")) == (0 if move else 5)


def test_links_take_no_room(download: Path, tmp_path: Path):
    organize(download, tmp_path / "tree")
    for path in (p for p in (tmp_path / "tree").rglob("*") if p.is_file()):
        assert path.stat().st_nlink == 2


@pytest.mark.parametrize("move", [False, True])
def test_a_tree_may_grow_in_the_folder_of_the_download(download: Path, move: bool):
    names = {Path(name).name for name in contents(download)}
    organize(download, download, move=move)
    again = organize(download, download, move=move)
    assert not again.having("placed")
    assert {Path(name).name for name in contents(download)} == names
    assert len(contents(download)) == (6 if move else 11)


def test_a_move_that_was_killed_between_its_two_steps_is_completed(download: Path, tmp_path: Path):
    before = contents(download)
    organize(download, tmp_path / "tree")  # both names are there, as after the first step
    organize(download, tmp_path / "tree", move=True)
    assert contents(download) == {"README.txt": b"6"}
    assert sorted(contents(tmp_path / "tree").values()) == sorted(set(before.values()) - {b"6"})


@pytest.mark.parametrize("move", [False, True])
def test_other_bytes_at_a_place_are_never_replaced(download: Path, tmp_path: Path, move: bool):
    file = next(download.glob("Bayer_TEST_7D-2_GT_*"))
    damaged = put(tmp_path / "tree" / "Bayer" / "TEST_7D-2" / "gt", b"damaged", file.name)
    organized = organize(download, tmp_path / "tree", move=move)
    assert [conflict.source for conflict in organized.having("conflict")] == [file]
    assert (damaged.read_bytes(), file.read_bytes()) == (b"damaged", b"1")
    assert len(organized.having("placed")) == 4
    assert organized.exit_code == 1
    assert str(damaged) in str(organized)


def test_a_dry_run_says_what_a_run_does_and_does_nothing(download: Path, tmp_path: Path):
    put(download / "copy", b"2", flat_name(b"2", scene="TEST_7D-2", label="65535"))
    put(download / "damaged", b"x", flat_name(b"3", scene="UNK_under_score", label="Hi 3200"))
    before = contents(tmp_path)
    planned = organize(download, tmp_path / "tree", dry_run=True)
    assert contents(tmp_path) == before
    done = organize(download, tmp_path / "tree")
    assert planned.moves == done.moves
    assert "5 files would be placed" in str(planned)


def test_what_cannot_be_placed_harms_only_itself(download: Path, tmp_path: Path):
    put(tmp_path / "tree" / "Bayer", b"a file where a folder should be", "TEST_7D-2")
    organized = organize(download, tmp_path / "tree")
    assert (len(organized.having("failed")), len(organized.having("placed"))) == (2, 3)
    assert organized.exit_code == 1


def test_a_users_own_folders_are_scenes_wherever_they_lie(tmp_path: Path):
    for name in ("2024/kitchen/gt/a.CR2", "2024/kitchen/b.cr2", "2024/kitchen/c.dng", "stairs/GT/d.nef"):
        put(tmp_path, b"raw", name)
    for name in ("2024/kitchen/notes.txt", "2024/kitchen/.hidden.cr2", ".trash/x/gt/y.cr2", "no_scene/z.cr2"):
        put(tmp_path, b"other", name)
    kitchen, stairs = scan_tree(tmp_path)
    assert (kitchen.name, kitchen.sensor) == ("2024/kitchen", "Bayer")
    assert [path.name for path in kitchen.gt] == ["a.CR2"]
    assert [path.name for path in kitchen.noisy] == ["b.cr2", "c.dng"]
    assert (stairs.name, len(stairs.gt), stairs.noisy) == ("stairs", 1, ())


def test_an_xtrans_scene_counts_only_where_bayer_has_none_of_its_name(tmp_path: Path):
    for name in ("Bayer/both/gt/a.arw", "X-Trans/both/gt/b.raf", "X-Trans/alone/gt/c.raf"):
        put(tmp_path, b"raw", name)
    assert [(scene.name, scene.sensor) for scene in scan_tree(tmp_path)] == [("both", "Bayer"), ("alone", "X-Trans")]


def test_two_scenes_of_one_name_are_refused(tmp_path: Path):
    put(tmp_path, b"raw", "Bayer/scene/gt/a.arw")
    put(tmp_path, b"raw", "scene/gt/b.arw")
    with pytest.raises(DataError, match="both called scene"):
        scan_tree(tmp_path)


def test_a_single_scene_is_a_tree_too(tmp_path: Path):
    put(tmp_path / "kitchen", b"raw", "gt/a.arw")
    (scene,) = scan_tree(tmp_path / "kitchen")
    assert (scene.name, scene.folder) == ("kitchen", tmp_path / "kitchen")


def test_links_that_lead_round_in_circles_end(tmp_path: Path):
    put(tmp_path, b"raw", "scene/gt/a.arw")
    os.symlink(tmp_path, tmp_path / "scene" / "again")
    os.symlink(tmp_path, tmp_path / "again")
    assert len(scan_tree(tmp_path)) == 1
    assert len(images_below(tmp_path)) == 1


def test_a_folder_without_scenes_or_images_is_refused_with_what_to_do(tmp_path: Path):
    put(tmp_path, b"raw", "a.arw")
    with pytest.raises(DataError, match="SCENE/gt"):
        scan_tree(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match="check the path"):
        scan_tree(tmp_path)
    with pytest.raises(DataError, match="no image file"):
        images_below(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        organize(tmp_path, tmp_path / "tree")
