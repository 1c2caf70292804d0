"""Made-up scenes whose shifts, exposures, movers, blown highlights and broken files are known, prepared."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from library.config import validate
from library.datasets.samples import dead_leaves
from library.errors import ConfigError
from library.files.exr import write_exr
from library.pairs.generate import Planted, PlantedFile, generate, true_gain, true_movers, true_shift
from library.pairs.index import Failure, Pair, Row, write_index
from library.pairs.masks import Anomalies, unpack_mask
from library.pairs.prepare import DirectReader, ScenePreparation, Settings, Work
from library.pairs.store import PairStore
from library.pairs.tree import scan_tree

SETTINGS = Settings(tile=256)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Four scenes, one of each camera and CFA phase, with a truncated and an empty file."""
    return generate(tmp_path_factory.mktemp("planted"), scenes=4, width=320, height=256, seed=2)


@pytest.fixture(scope="module")
def prepared(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_index(folder, prepare(planted.folder, folder)[0])
    return folder


@pytest.fixture
def scene(planted: Planted, tmp_path: Path) -> Path:
    """The root of a tree of one scene, with one clean image, to be changed."""
    source = planted.folder / "Bayer" / planted.scenes[0].name
    shutil.copytree(source, tmp_path / "tree" / "lamp")
    return tmp_path / "tree"


def prepare(root: Path, folder: Path, settings: Settings = SETTINGS) -> tuple[list[Row], Work]:
    rows, work = [], Work()
    for found in scan_tree(root):
        preparation = ScenePreparation(found, root, folder, settings)
        was_done = preparation.is_done
        done = preparation.run(DirectReader())
        assert was_done == (done == Work())
        work += done
        again = ScenePreparation(found, root, folder, settings)
        assert again.is_done
        rows += again.rows()
    return rows, work


def of(planted: Planted, path: str) -> PlantedFile:
    return next(file for file in planted.files if file.path == path)


def mask_of(folder: Path, pair: Pair) -> np.ndarray:
    shared = pair.overlap
    return unpack_mask(np.load(folder / pair.mask), 0, 0, shared.height, shared.width)


def test_shifts_gains_and_noise_are_found_as_planted(planted: Planted, prepared: Path) -> None:
    pairs = PairStore(prepared).pairs
    assert len(pairs) == sum(len(s.gt) * sum(f.flaw is None for f in s.files) for s in planted.scenes)
    for pair in pairs:
        gt, f = of(planted, pair.gt_path), of(planted, pair.f_path)
        assert (pair.shift_y, pair.shift_x) == true_shift(gt, f)
        assert (pair.gt_sha256, pair.f_sha256) == (gt.sha256, f.sha256)
        assert pair.f_is_clean == f.gt
        # The highest ISOs lose photosites at white and at 0.
        tolerance = 0.05 if (f.iso or 1e6) > 50000 else 0.01
        assert pair.raw_gain == pytest.approx(true_gain(gt, f), rel=tolerance)
        assert pair.rgb_gain == pytest.approx(true_gain(gt, f), rel=tolerance)
    assert all(pair.alignment_ok for pair in pairs)


def test_masks_leave_out_what_was_planted_and_little_else(planted: Planted, prepared: Path) -> None:
    movers, highlights = 0, 0
    for pair in PairStore(prepared).pairs:
        gt, f = of(planted, pair.gt_path), of(planted, pair.f_path)
        valid = mask_of(prepared, pair)
        assert pair.mask_mean == valid.mean()
        expected = np.zeros((pair.height, pair.width), bool)
        differ = () if pair.is_one_image else true_movers(gt, f)
        for disc in (*differ, *gt.overexposed):
            expected |= disc.covers(pair.height, pair.width)
        expected = expected[pair.overlap.gt]
        movers += len(differ)
        highlights += len(gt.overexposed)
        assert (valid & expected).sum() <= 0.02 * expected.sum()
        # What lies around a disc goes too, by half a window.
        grown = np.zeros((pair.height, pair.width), bool)
        for disc in (*differ, *gt.overexposed):
            grown |= type(disc)(disc.y, disc.x, disc.radius + 12).covers(pair.height, pair.width)
        assert (~valid & ~grown[pair.overlap.gt]).mean() < 0.01
    assert movers > 5
    assert highlights > 1


def test_a_broken_file_fails_its_pairs_with_its_reason_and_no_others(planted: Planted, prepared: Path) -> None:
    rows, _ = prepare(planted.folder, prepared)
    failures = [row for row in rows if isinstance(row, Failure)]
    flawed = [file for file in planted.files if file.flaw]
    assert {failure.f_path for failure in failures} == {file.path for file in flawed}
    for failure in failures:
        flaw = of(planted, failure.f_path).flaw
        assert failure.error.startswith(f"{failure.f_path}: is {flaw}")
    assert len(rows) == sum(len(s.gt) * len(s.files) for s in planted.scenes)


def test_crops_of_both_images_show_the_same_where_the_mask_says_so(prepared: Path) -> None:
    store = PairStore(prepared)
    for index, pair in enumerate(store.pairs):
        height, width = store.size(index)
        crop = store.crop(index, 0, 0, height, width)
        measured, truth = crop.noisy[1] * pair.rgb_gain, crop.target[1, ::2, 1::2]  # green in the red rows
        valid = crop.mask[0, ::2, 1::2] > 0
        difference = (measured - truth)[valid]
        noise = (pair.f_noise_a * pair.rgb_gain * truth.clamp_min(0) + pair.f_noise_b * pair.rgb_gain**2)[valid]
        # As far apart as the noise says, which a shift by one pixel would exceed many times over.
        assert float(difference.square().mean()) < 4 * float(noise.mean()) + 1e-4


def test_a_second_run_does_nothing(scene: Path, tmp_path: Path) -> None:
    rows, work = prepare(scene, tmp_path / "out")
    assert work == Work(files_read=4, pairs_made=4)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare(scene, tmp_path / "out") == (rows, Work())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_new_and_changed_files_make_new_work_and_nothing_else_does(scene: Path, tmp_path: Path) -> None:
    prepare(scene, tmp_path / "out")
    noisy = sorted(path for path in (scene / "lamp").iterdir() if path.is_file())

    moved = noisy[0].with_name("renamed.dng")
    noisy[0].rename(moved)
    assert prepare(scene, tmp_path / "out")[1] == Work(files_read=1)  # the same bytes, so the pair is there

    data = bytearray(moved.read_bytes())
    data[-2000:] = data[-4000:-2000]
    moved.write_bytes(data)
    assert prepare(scene, tmp_path / "out")[1] == Work(files_read=1, pairs_made=1)

    (scene / "lamp" / "gone.dng").write_bytes(b"")
    rows, work = prepare(scene, tmp_path / "out")
    assert work == Work(files_read=1)
    assert [row.f_path for row in rows if isinstance(row, Failure)] == ["lamp/gone.dng"]

    (scene / "lamp" / "gone.dng").unlink()
    rows, _ = prepare(scene, tmp_path / "out")
    assert len(rows) == 4

    assert isinstance(rows[0], Pair)
    (tmp_path / "out" / rows[0].mask).unlink()
    assert prepare(scene, tmp_path / "out")[1] == Work(pairs_made=1)
    (tmp_path / "out" / str(rows[0].gt_mosaic)).unlink()
    assert prepare(scene, tmp_path / "out")[1] == Work(files_read=1)


def test_other_settings_make_the_pairs_anew_from_what_was_read(scene: Path, tmp_path: Path) -> None:
    before, _ = prepare(scene, tmp_path / "out")
    legacy = Settings(anomalies=Anomalies(threshold=0.4, window=1, outliers=1e-4), tile=256, overexposure_reach=0)
    after, work = prepare(scene, tmp_path / "out", legacy)
    assert work == Work(pairs_made=4)
    assert {row.key for row in before if isinstance(row, Pair)}.isdisjoint(
        row.key for row in after if isinstance(row, Pair)
    )


def test_a_file_that_failed_is_tried_again_when_asked(scene: Path, tmp_path: Path) -> None:
    (scene / "lamp" / "broken.dng").write_bytes(b"II*\0")
    prepare(scene, tmp_path / "out")
    found = scan_tree(scene)[0]
    again = ScenePreparation(found, scene, tmp_path / "out", SETTINGS, retry_failed=True)
    assert not again.is_done
    assert again.run(DirectReader()) == Work(files_read=1)


def test_the_same_bytes_twice_count_once(scene: Path, tmp_path: Path) -> None:
    first = sorted(path for path in (scene / "lamp").iterdir() if path.is_file())[0]
    shutil.copy(first, first.with_name("zz copy.dng"))
    rows, work = prepare(scene, tmp_path / "out")
    assert work.pairs_made == 4
    (failure,) = (row for row in rows if isinstance(row, Failure))
    assert failure.f_path == "lamp/zz copy.dng"
    assert f"has the bytes of lamp/{first.name}" in failure.error


def test_how_an_image_is_cut_into_tiles_changes_no_mask(scene: Path, tmp_path: Path) -> None:
    masks = {}
    for tile in (256, 1024):
        rows, _ = prepare(scene, tmp_path / str(tile), Settings(tile=tile))
        masks[tile] = {row.f_path: mask_of(tmp_path / str(tile), row) for row in rows if isinstance(row, Pair)}
    for path, mask in masks[256].items():
        # Running means round differently, so a pixel at the very threshold may fall on either side.
        assert (mask != masks[1024][path]).mean() < 1e-3


def test_a_stored_truth_is_what_is_else_recomputed_for_each_crop(scene: Path, tmp_path: Path) -> None:
    stores = []
    for targets in ("recomputed", "stored"):
        rows, _ = prepare(scene, tmp_path / targets, Settings(tile=256, targets=targets))
        write_index(tmp_path / targets, rows)
        stores.append(PairStore(tmp_path / targets))
    assert all(pair.target for pair in stores[1].pairs)
    for index in range(len(stores[0])):
        recomputed, stored = (store.crop(index, 20, 34, 64, 48).target.numpy() for store in stores)
        np.testing.assert_allclose(stored, recomputed, rtol=2**-10, atol=2**-20)


def test_pictures_in_linear_light_are_pairs_of_their_own_kind(tmp_path: Path) -> None:
    """RawNIND's X-Trans images are EXRs that another program demosaiced."""
    scene = dead_leaves(420, np.random.default_rng(4)) * 0.6
    folder = tmp_path / "tree" / "X-Trans" / "garden"
    (folder / "gt").mkdir(parents=True)
    write_exr(folder / "gt" / "a.exr", scene[20:320, 30:400], chromaticities="rec2020")
    noise = 0.02 * np.random.default_rng(5).standard_normal((300, 370, 3))
    write_exr(folder / "b.exr", scene[23:323, 24:394] * 0.5 + noise, chromaticities="rec2020")
    rows, _ = prepare(tmp_path / "tree", tmp_path / "out")
    write_index(tmp_path / "out", rows)
    store = PairStore(tmp_path / "out")
    (index,) = (i for i, pair in enumerate(store.pairs) if not pair.is_one_image)
    pair = store.pairs[index]
    assert (pair.sensor, pair.shift_y, pair.shift_x) == ("X-Trans", 3, -6)
    assert pair.rgb_gain == pytest.approx(2, rel=0.01)
    assert pair.raw_gain is None
    assert store.size(index) == (297, 364)
    crop = store.crop(index, 10, 20, 64, 64)
    assert crop.noisy.shape == crop.target.shape == (3, 64, 64)
    assert float((crop.noisy * pair.rgb_gain - crop.target).abs().mean()) < 0.06
    assert pair.rgb_msssim is not None


def test_xtrans_raws_are_pairs_of_pictures(tmp_path: Path) -> None:
    """Shifts would not keep the phase of their 6 x 6 tiles."""
    planted = generate(tmp_path / "tree", scenes=0, xtrans=1, width=320, height=256)
    rows, _ = prepare(planted.folder, tmp_path / "out")
    pairs = [row for row in rows if isinstance(row, Pair)]
    assert len(pairs) > 2
    for pair in pairs:
        gt, f = of(planted, pair.gt_path), of(planted, pair.f_path)
        assert (pair.sensor, pair.shift_y, pair.shift_x) == ("X-Trans", *true_shift(gt, f))
        assert pair.rgb_gain == pytest.approx(true_gain(gt, f), rel=0.02)
        assert pair.cfa is pair.gt_mosaic is pair.raw_gain is None


def test_a_raw_and_a_picture_are_no_pair(scene: Path, tmp_path: Path) -> None:
    write_exr(scene / "lamp" / "picture.exr", np.full((200, 200, 3), 0.2, np.float32), chromaticities="rec2020")
    rows, _ = prepare(scene, tmp_path / "out")
    (failure,) = (row for row in rows if isinstance(row, Failure))
    assert "cannot be a pair" in failure.error


def test_a_disk_that_cannot_be_written_fails_the_scene_and_leaves_what_was_made(scene: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "out").write_text("a file where the folder should be")
    else:
        (tmp_path / "out").mkdir(mode=0o500)
    found = scan_tree(scene)[0]
    with pytest.raises(OSError, match="out"):
        ScenePreparation(found, scene, tmp_path / "out", SETTINGS).run(DirectReader())


def test_an_unknown_demosaic_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"demosaic.*'nearest'.*menon"):
        validate(Settings, {"demosaic": "nearest"}, "test")
