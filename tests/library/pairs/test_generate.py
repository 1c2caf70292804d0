from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from library.errors import DataError, RawFileError
from library.files.raw import RawImage, read_raw
from library.ops.cfa import BAYER_PHASES, crop_to_rggb
from library.ops.demosaic import demosaic_bilinear
from library.pairs.generate import (
    Planted,
    PlantedFile,
    PlantedScene,
    generate,
    read_planted,
    true_gain,
    true_movers,
    true_shift,
)
from library.pairs.names import parse_name


def read(planted: Planted, file: PlantedFile) -> RawImage:
    return read_raw(planted.folder / file.path)


def rggb(raw: RawImage) -> torch.Tensor:
    """(H', W') scene-linear mosaic."""
    site = np.tile(raw.black_level, (raw.height // 2, raw.width // 2))
    linear = (raw.mosaic.astype(np.float32) - site) / (raw.white_level - site)
    return crop_to_rggb(torch.from_numpy(linear), raw.cfa)


def overlap(gt: torch.Tensor, f: torch.Tensor, dy: int, dx: int) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = gt.shape[-2:]
    here = gt[..., max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    there = f[..., max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return here, there


def sound_pairs(planted: Planted) -> list[tuple[PlantedScene, PlantedFile, PlantedFile]]:
    return [
        (scene, gt, f)
        for scene in planted.scenes
        for gt in scene.gt[:1]
        for f in scene.files
        if f is not gt and f.flaw is None
    ]


def same(planted: Planted, gt: PlantedFile, f: PlantedFile, shape: torch.Size) -> torch.Tensor:
    """bool, over the overlap: what neither a mover nor saturation spoils."""
    dy, dx = true_shift(gt, f)
    spoilt = np.zeros(tuple(shape), bool)
    for disc in (*true_movers(gt, f), *gt.overexposed):
        spoilt |= disc.covers(*shape)
    return ~overlap(torch.from_numpy(spoilt), torch.from_numpy(spoilt), dy, dx)[0]


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path: Path):
    one, two, other = (
        generate(tmp_path / name, scenes=2, width=192, height=192, seed=seed)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert [file.sha256 for file in one.files] == [file.sha256 for file in two.files]
    assert not {file.sha256 for file in one.files} & {file.sha256 for file in other.files}


def test_what_was_planted_can_be_read_again(planted: Planted):
    assert read_planted(planted.folder) == planted
    found = {p.relative_to(planted.folder).as_posix() for p in planted.folder.rglob("*.dng")}
    assert found == {file.path for file in planted.files}


def test_twelve_scenes_hold_everything_that_is_to_be_found_again(planted: Planted):
    assert {scene.cfa for scene in planted.scenes} == set(BAYER_PHASES)
    assert {file.flaw for file in planted.files} == {
        None,
        "truncated",
        "empty",
        "duplicate",
        "overexposed",
        "underexposed",
    }
    names = [parse_name(Path(file.path).name) for file in planted.files]
    assert all(name is not None for name in names)
    assert {"65535", "Hi 3200", "Unknown"} <= {name.iso_label for name in names if name}
    prefixes = ("TEST_", "UNK_", "UNK_TEST_", "")
    assert {next(p for p in sorted(prefixes, reverse=True) if s.name.startswith(p)) for s in planted.scenes} == set(
        prefixes
    )
    shifts = [true_shift(gt, f) for _, gt, f in sound_pairs(planted)]
    for axis in range(2):
        signs_and_parities = {(np.sign(shift[axis]), shift[axis] % 2) for shift in shifts}
        assert signs_and_parities >= set(product((-1, 1), (0, 1)))
    assert (0, 0) in shifts
    assert max(abs(s) for shift in shifts for s in shift) > 20


def test_a_file_says_of_itself_what_its_camera_would(planted: Planted):
    for scene, file in ((s, f) for s in planted.scenes for f in s.files if f.flaw in (None, "duplicate")):
        raw = read(planted, file)
        assert (raw.make, raw.model, raw.cfa, raw.iso) == (scene.make, scene.model, scene.cfa, file.iso)
        assert raw.mosaic.shape == (planted.height, planted.width)
        assert raw.xyz_to_camera is not None
        data = (planted.folder / file.path).read_bytes()
        assert hashlib.sha1(data).hexdigest() == file.sha1
        assert file.sha1 in file.path
        assert raw.sha256 == file.sha256


def test_two_images_of_a_scene_are_most_alike_at_the_shift_that_was_planted(planted: Planted):
    for _, gt, f in sound_pairs(planted):
        if f.a > 1e-4:
            continue
        clean, other = (demosaic_bilinear(rggb(read(planted, file))) for file in (gt, f))
        dy, dx = true_shift(gt, f)
        errors = {}
        for shift in ((dy, dx), (dy + 1, dx), (dy - 1, dx), (dy, dx + 1), (dy, dx - 1)):
            here, there = overlap(clean, other, *shift)
            errors[shift] = (here - there * true_gain(gt, f)).abs().mean()
        assert min(errors, key=errors.__getitem__) == (dy, dx), f.path


def test_noise_has_the_variance_that_was_planted_and_nothing_else_differs_but_movers(planted: Planted):
    checked = 0
    for _, gt, f in sound_pairs(planted):
        dy, dx = true_shift(gt, f)
        if dy % 2 or dx % 2:
            continue  # then the same place has another colour
        here, there = overlap(rggb(read(planted, gt)), rggb(read(planted, f)), dy, dx)
        gain = 1 / true_gain(gt, f)
        variance = f.a * there.clamp_min(0) + f.b + gain**2 * (gt.a * here.clamp_min(0) + gt.b)
        normal = ((there - gain * here) ** 2 / variance)[same(planted, gt, f, rggb(read(planted, gt)).shape)]
        # Rounding adds a twelfth of a squared code, which counts at the lowest ISO; clipping at 0 takes at the highest.
        assert 0.8 < normal.mean() < 1.25, f.path
        checked += 1
    assert checked >= 8


def test_a_mover_is_where_it_was_planted_and_brighter_than_what_it_hides(planted: Planted):
    moved = [(gt, f) for _, gt, f in sound_pairs(planted) if gt.mover and f.mover and f.a < 1e-3]
    assert moved
    for gt, f in moved:
        assert gt.mover is not None
        assert f.mover is not None
        clean, other = (rggb(read(planted, file)) for file in (gt, f))
        for file, mover, mosaic in ((gt, gt.mover, clean), (f, f.mover, other)):
            inside = torch.from_numpy(mover.covers(*mosaic.shape))
            assert mosaic[inside].mean() == pytest.approx(0.54 * file.exposure, rel=0.02)
        here, there = overlap(demosaic_bilinear(clean), demosaic_bilinear(other), *true_shift(gt, f))
        changed = (here - there * true_gain(gt, f)).mean(0).abs() > 0.15
        alike = same(planted, gt, f, clean.shape)
        assert changed[~alike].float().mean() > 0.5
        assert changed[alike].float().mean() < 0.002  # the rims, which demosaicing smears


def test_what_is_overexposed_is_white_and_nothing_else_is(planted: Planted):
    marked = [(s, f) for s in planted.scenes for f in s.files if f.overexposed and f.flaw is None]
    assert marked
    for _, file in marked:
        raw = read(planted, file)
        white = crop_to_rggb(torch.from_numpy(raw.mosaic >= raw.white_level), raw.cfa)
        inside = torch.from_numpy(np.any([disc.covers(*white.shape) for disc in file.overexposed], axis=0))
        assert white[inside].all()
        assert white[~inside].float().mean() < (1e-3 if file.a < 1e-3 else 0.01)


def test_broken_files_are_broken_as_was_said(planted: Planted):
    for file in planted.files:
        path = planted.folder / file.path
        if file.flaw in ("truncated", "empty"):
            with pytest.raises(RawFileError):
                read_raw(path)
        elif file.flaw == "duplicate":
            assert file.same_as is not None
            assert path.read_bytes() == (planted.folder / file.same_as).read_bytes()
        elif file.flaw == "overexposed":
            assert rggb(read_raw(path)).median() == 1
        elif file.flaw == "underexposed":
            assert rggb(read_raw(path)).quantile(0.99) < 1e-3


def test_scenes_of_an_xtrans_sensor_are_made_alike(tmp_path: Path):
    planted = generate(tmp_path / "tree", scenes=1, xtrans=1, width=256, height=200)
    bayer, xtrans = planted.scenes
    assert (bayer.sensor, xtrans.sensor, len(xtrans.cfa)) == ("Bayer", "X-Trans", 36)
    (gt, *_), f = xtrans.gt, xtrans.noisy[0]
    raw = read(planted, gt)
    assert (raw.cfa, raw.model, raw.mosaic.shape) == (xtrans.cfa, xtrans.model, (200, 256))
    assert gt.path.startswith(f"X-Trans/{xtrans.name}/gt/X-Trans_{xtrans.name}_GT_")
    images = (torch.from_numpy(read(planted, file).mosaic.astype(np.float32)) for file in (gt, f))
    letters = np.array(list(xtrans.cfa)).reshape(6, 6)
    is_green = torch.from_numpy(letters[np.ix_(np.arange(200) % 6, np.arange(256) % 6)] == "G")
    green_in_gt, green_in_f = overlap(is_green, is_green, *true_shift(gt, f))
    here, there = (image[green_in_gt & green_in_f] for image in overlap(*images, *true_shift(gt, f)))
    assert torch.corrcoef(torch.stack([here, there]))[0, 1] > 0.95
    white = raw.mosaic == raw.white_level
    inside = np.any([disc.covers(200, 256) for disc in gt.overexposed], axis=0)
    assert white[inside].all()
    assert not white[~inside].any()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path):
    (tmp_path / "photo.dng").write_bytes(b"mine")
    with pytest.raises(DataError, match="holds something"):
        generate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.dng"]


@pytest.mark.parametrize("sizes", [{"width": 190}, {"height": 301}, {"scenes": 0}])
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, sizes: dict[str, int]):
    with pytest.raises(DataError, match="cannot be made"):
        generate(tmp_path / "tree", **sizes)


def test_a_folder_that_was_not_made_here_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="stillgrain data generate"):
        read_planted(tmp_path)
    (tmp_path / "planted.json").write_text('{"scenes": [{}]}')
    with pytest.raises(DataError, match="stillgrain data generate"):
        read_planted(tmp_path)
