from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from library.datasets.store import Scene, SceneStore
from library.errors import DataError

MATRIX = np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])


def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [
        Scene("dim", (rng.random((20, 30, 3)) * 0.3).astype(np.float32), "lin_srgb"),
        Scene("bright/sun", (rng.random((11, 7, 3)) * 15).astype(np.float32), "camera_rgb", MATRIX),
        Scene("noisy", rng.normal(0.01, 0.02, (8, 8, 3)).astype(np.float32), "lin_srgb"),
    ]


@pytest.fixture
def store(tmp_path: Path) -> SceneStore:
    SceneStore.create(tmp_path / "store", iter(scenes()), "digest of the sources")
    return SceneStore(tmp_path / "store")


def test_a_scene_comes_back_within_half_a_step_of_16_bits(store: SceneStore):
    for index, scene in enumerate(scenes()):
        height, width = store.size(index)
        assert (height, width) == scene.rgb.shape[:2]
        rgb = store.crop(index, 0, 0, height, width)
        assert rgb.dtype == np.float32
        quantum = max(1.0, scene.rgb.max()) / 65535
        assert np.abs(rgb - scene.rgb.clip(0)).max() <= quantum / 2 * 1.01


def test_values_above_white_are_kept_and_values_below_black_are_not(store: SceneStore):
    assert store.crop(1, 0, 0, 11, 7).max() == pytest.approx(scenes()[1].rgb.max(), rel=1e-5)
    assert store.crop(2, 0, 0, 8, 8).min() == 0


def test_a_sun_is_cut_so_that_the_shadows_keep_their_codes(tmp_path: Path):
    rgb = np.full((4, 4, 3), 0.01, np.float32)
    rgb[0, 0] = 60000
    SceneStore.create(tmp_path / "store", [Scene("panorama", rgb, "lin_srgb")], "digest")
    crop = SceneStore(tmp_path / "store").crop(0, 0, 0, 4, 4)
    assert crop[0, 0, 0] == 16
    np.testing.assert_allclose(crop[1:], 0.01, rtol=0.02)


def test_a_crop_is_a_slice_of_the_scene(store: SceneStore):
    whole = store.crop(0, 0, 0, 20, 30)
    assert np.array_equal(store.crop(0, 3, 5, 7, 11), whole[3:10, 5:16])
    assert np.array_equal(store.crop(0, 19, 29, 1, 1), whole[19:, 29:])


def test_a_crop_can_be_changed_without_changing_the_store(store: SceneStore):
    before = store.crop(0, 0, 0, 4, 4)
    store.crop(0, 0, 0, 4, 4)[:] = 9
    assert np.array_equal(store.crop(0, 0, 0, 4, 4), before)


def test_names_digest_and_the_matrix_of_a_scene_that_has_one_come_back(store: SceneStore):
    assert store.names == ["dim", "bright/sun", "noisy"]
    assert store.digest == "digest of the sources"
    assert store.matrix(0) is None
    matrix = store.matrix(1)
    assert matrix is not None
    assert np.array_equal(matrix, MATRIX)


def test_a_store_whose_scenes_fail_midway_never_appears(tmp_path: Path):
    def failing():
        yield scenes()[0]
        raise OSError("the disk was pulled out")

    with pytest.raises(OSError, match="pulled out"):
        SceneStore.create(tmp_path / "store", failing(), "")
    assert list(tmp_path.iterdir()) == []


def test_of_two_who_make_a_store_at_once_the_first_to_end_makes_it_and_it_stays(tmp_path: Path):
    """Trials of a sweep once swapped each other's store while it was read."""
    folder = tmp_path / "store"
    made = []

    def slowly():
        SceneStore.create(folder, scenes(), "digest")
        made.append((folder.stat().st_ino, SceneStore(folder)))
        yield from scenes()

    SceneStore.create(folder, slowly(), "digest")
    (inode, opened), *_ = made
    assert folder.stat().st_ino == inode
    assert np.array_equal(opened.crop(0, 0, 0, 4, 4), SceneStore(folder).crop(0, 0, 0, 4, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_same_scenes_give_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        SceneStore.create(tmp_path / name, scenes(), "digest")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 4
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("content", [None, "", "{", "not json", '"text"', "{}", '{"format": 99, "scenes": []}'])
def test_a_folder_that_is_no_store_of_this_format_is_refused_with_the_remedy(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"delete"):
        SceneStore(tmp_path)


def test_a_store_that_lost_a_scene_or_a_part_of_one_is_refused(tmp_path: Path):
    for damage in ("missing", "cut", "pickled"):
        folder = tmp_path / damage
        SceneStore.create(folder, scenes(), "")
        file = folder / json.loads((folder / "index.json").read_text())["scenes"][1]["file"]
        if damage == "missing":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(file.read_bytes()[:-50])
        else:
            np.save(file, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
        with pytest.raises(DataError, match="delete"):
            SceneStore(folder)
