from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from library.config import validate
from library.datasets.order import weighted_at
from library.datasets.paired import Config, Paired
from library.errors import ConfigError, DataError
from library.files.places import place, remove_folder
from library.ops.cfa import pack_cfa, sample_cfa
from library.ops.color import XYZ_TO_LIN_REC2020, camera_rgb_to_lin_rec2020
from library.pairs.index import INDEX, Pair, write_index
from library.pairs.masks import pack_mask
from library.pairs.store import PairStore, mask_file
from tests.prepared_pairs import PAIR, smooth_scene, write_pair

SIZE = (216, 240)
GAIN = 2.0
Open = Callable[..., Paired]


def clean_alone(pair: Pair) -> Pair:
    """The clean image of a pair with itself."""
    return replace(
        pair,
        f_path=pair.gt_path,
        f_sha256=pair.gt_sha256,
        f_mosaic=pair.gt_mosaic,
        mask=mask_file(pair.scene, pair.gt_sha256, pair.gt_sha256),
        f_is_clean=True,
        shift_y=0,
        shift_x=0,
        raw_gain=1.0,
        rgb_gain=1.0,
        key=f"{pair.key} alone",
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes to train on, one to validate on, one reserved; odd and even shifts, and one clean image alone."""
    folder = tmp_path_factory.mktemp("prepared")
    shifts = {"a": (0, 0), "b": (3, -5), "c": (-2, 4), "valid": (1, 1), "TEST_d": (0, 2)}
    pairs = [
        replace(
            write_pair(folder, shift, name=name, size=SIZE),
            raw_gain=GAIN,
            rgb_gain=GAIN,
            f_iso=iso,
            rgb_msssim=score,
            mask_mean=0.9,
        )
        for (name, shift), iso, score in zip(
            shifts.items(), (800.0, 3200.0, 12800.0, 800.0, 800.0), (0.95, 0.9, 0.6, 0.9, 0.9), strict=True
        )
    ]
    alone = clean_alone(pairs[0])
    height, width = alone.overlap.height, alone.overlap.width
    np.save(folder / alone.mask, pack_mask(np.ones((height, width), bool)))
    write_index(folder, [*pairs, replace(alone, mask_mean=1.0)])
    return folder


@pytest.fixture
def opened(prepared: Path) -> Open:
    def open_it(seed: int = 0, **settings: Any) -> Paired:
        base = {"prepared": str(prepared), "split": {"validation": ["valid"]}, "crop": 32, "validation_crop": 192}
        config = validate(Config, base | settings, "test")
        return config.open(config.prepare(prepared), seed)

    return open_it


def scenes_of(data: Paired, number: int = 64) -> Counter[str]:
    """How often each scene comes in so many samples."""
    found = Counter()
    for slot in range(number):
        drawn = weighted_at(data.seed, 0, slot, batch_size=number, weights=data.weights)
        found[data.store.pairs[data.training_pairs[drawn]].scene] += 1
    return found


# --- what a sample is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [False, True])
def test_an_input_is_what_an_rggb_sensor_sees_of_its_truth_however_it_was_turned(opened: Open, flips: bool):
    """The scenes are smooth, so a shift of a pixel or of a colour would show."""
    data = opened(flips=flips, gain="never")
    for step in range(12):
        batch = data.batch(step, range(2), batch_size=2)
        assert batch.noisy.shape == (2, 4, 16, 16)
        assert batch.clean.shape == (2, 3, 32, 32)
        torch.testing.assert_close(batch.noisy, pack_cfa(sample_cfa(batch.clean)), atol=6e-4, rtol=0)


def test_masks_come_with_their_pixels(opened: Open, prepared: Path):
    """The mask is unlike itself at every place: one that lay elsewhere or was not turned along would differ."""
    plain, turned = opened(gain="never"), opened(gain="never", flips=True)
    for step in range(8):
        batch = plain.batch(step, range(1), batch_size=1)
        assert 0.5 < batch.mask.mean() < 0.8
        assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
        # The colours of the smooth scene say where a pixel lies, in every orientation.
        flipped = turned.batch(step, range(1), batch_size=1)
        whole = turned.store.crop(*_covering(turned, step))
        mask_at = {color: bool(m) for color, m in pixels(whole.target, whole.mask)}
        found = [(mask_at[color], bool(m)) for color, m in pixels(flipped.clean[0], flipped.mask[0])]
        assert len(mask_at) == whole.mask.numel()
        assert all(wanted == there for wanted, there in found)


def pixels(rgb: torch.Tensor, mask: torch.Tensor) -> list[tuple[tuple[float, ...], float]]:
    """Colour and mask of each pixel."""
    colors = map(tuple, rgb.flatten(1).T.tolist())
    return list(zip(colors, mask.flatten().tolist(), strict=True))


def _covering(data: Paired, step: int) -> tuple[int, int, int, int, int]:
    index = data.training_pairs[weighted_at(data.seed, step, 0, batch_size=1, weights=data.weights)]
    return index, 0, 0, *data.store.size(index)


@pytest.mark.parametrize(
    ("gain", "noisy_factor", "clean_factor"), [("never", 1, 1), ("input", GAIN, 1), ("target", 1, 1 / GAIN)]
)
def test_the_gain_goes_to_the_image_that_is_asked_for_and_into_its_noise(
    opened: Open, gain: str, noisy_factor: float, clean_factor: float
):
    plain, other = (opened(gain=g, mix={"clean_noisy": 1}).batch(0, range(2), batch_size=2) for g in ("never", gain))
    torch.testing.assert_close(other.noisy, plain.noisy * noisy_factor)
    torch.testing.assert_close(other.clean, plain.clean * clean_factor)
    expected = torch.tensor([PAIR.f_noise_a * noisy_factor, PAIR.f_noise_b * noisy_factor**2])
    torch.testing.assert_close(other.noise, expected.expand(2, 2))


def test_clean_with_clean_and_noisy_with_noisy_are_one_image_all_of_which_counts(opened: Open):
    for pairing in ("x_x", "y_y"):
        data = opened(pairing=pairing)
        batch = data.batch(0, range(4), batch_size=4)
        assert batch.mask.all()
        torch.testing.assert_close(batch.noisy, pack_cfa(sample_cfa(batch.clean)), atol=6e-4, rtol=0)
    noisy = opened(pairing="x_y", gain="never").batch(0, range(4), batch_size=4)
    torch.testing.assert_close(opened(pairing="y_y").batch(0, range(4), batch_size=4).noisy, noisy.noisy)


def test_pictures_are_in_lin_rec2020_and_of_the_same_crop(opened: Open):
    mosaics, pictures = (opened(input=i).batch(3, range(2), batch_size=2) for i in ("bayer", "linear"))
    assert pictures.noisy.shape == pictures.clean.shape == (2, 3, 32, 32)
    expected = camera_rgb_to_lin_rec2020(mosaics.clean, xyz_to_camera=mosaics.xyz_to_camera)
    torch.testing.assert_close(pictures.clean, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pictures.noisy, pictures.clean * GAIN, atol=4e-3, rtol=0)
    torch.testing.assert_close(pictures.xyz_to_camera[0], XYZ_TO_LIN_REC2020.float())
    assert torch.equal(pictures.mask, mosaics.mask)


def test_developed_pictures_are_developed_alike(opened: Open):
    batch = opened(input="developed", gain="input").batch(0, range(4), batch_size=4)
    assert 0 <= batch.noisy.min() <= batch.noisy.max() <= 1
    # The fixture's noisy images have no noise and say a gain of 2 that is not there: without it they are the truth.
    alike = opened(input="developed", gain="never").batch(0, range(4), batch_size=4)
    torch.testing.assert_close(alike.noisy, alike.clean, atol=0.05, rtol=0)
    assert not torch.allclose(batch.noisy, alike.noisy, atol=0.05)


# --- which, and in what order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [False, True])
def test_workers_share_a_batch_of_the_same_samples(opened: Open, flips: bool):
    data = opened(flips=flips, mix={"clean_noisy": 1, "clean_clean": 1}, clean_noise={"kind": "parametric"})
    whole = data.batch(5, range(4), batch_size=4)
    parts = [data.batch(5, slots, batch_size=4) for slots in (range(3), range(3, 4))]
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, torch.cat([part.tensors()[name] for part in parts])), name
    again = opened(flips=flips, mix={"clean_noisy": 1, "clean_clean": 1}, clean_noise={"kind": "parametric"})
    assert torch.equal(again.batch(5, range(4), batch_size=4).noisy, whole.noisy)
    assert not torch.equal(opened(seed=1, flips=flips).batch(5, range(4), batch_size=4).noisy, whole.noisy)


def test_no_reserved_scene_is_ever_yielded(opened: Open):
    data = opened(mix={"clean_noisy": 1, "clean_clean": 1})
    used = [*data.training_pairs, *data.validation_scenes]
    assert {data.store.pairs[i].scene for i in used} == {"a", "b", "c", "valid"}
    assert {data.store.pairs[i].scene for i in data.training_pairs}.isdisjoint({"valid", "TEST_d"})
    assert scenes_of(data, 200).keys() == {"a", "b", "c"}


def test_streams_are_mixed_by_their_shares_and_the_shorter_one_ends_nothing(opened: Open):
    # Three noisy pairs and one clean image: by share, not by number, and for as many steps as there are.
    data = opened(mix={"clean_noisy": 1, "clean_clean": 3})
    drawn = [
        data.store.pairs[data.training_pairs[i]].f_is_clean
        for i in np.random.default_rng(0).choice(len(data.training_pairs), 4000, p=data.weights / data.weights.sum())
    ]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.03)
    only = opened(mix={"clean_noisy": 0, "clean_clean": 1})
    assert scenes_of(only, 50) == {"a": 50}
    assert len(only.batch(10**7, range(2), batch_size=2)) == 2


def test_weights_are_by_scene_by_camera_and_by_iso(opened: Open):
    assert scenes_of(opened(), 60) == {"a": 20, "b": 20, "c": 20}
    assert scenes_of(opened(weights={"scenes": {"[ab]": 0}}), 60) == {"c": 60}
    by_iso = scenes_of(opened(weights={"isos": {"3200-": 2}}), 300)
    assert [by_iso[scene] for scene in "abc"] == pytest.approx([60, 120, 120], abs=6)
    assert scenes_of(opened(weights={"cameras": {"Sony*": 3}}), 60) == {"a": 20, "b": 20, "c": 20}
    both = opened(mix={"clean_noisy": 1, "clean_clean": 1}, weights={"per_scene": True})
    assert sorted(both.weights) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])  # a stream's scenes share its weight


def test_quality_leaves_out_what_is_not_good_enough(opened: Open):
    assert scenes_of(opened(quality={"min_ms_ssim": 0.8}), 40).keys() == {"a", "b"}
    assert scenes_of(opened(quality={"min_ms_ssim": 0.3, "max_ms_ssim": 0.92}), 40).keys() == {"b", "c"}
    with pytest.raises(DataError, match="asks for noisy images, and there are none"):
        opened(quality={"min_valid": 0.95}, mix={"clean_noisy": 1})


def test_what_saturates_in_the_noisy_image_does_not_count(opened: Open, prepared: Path, tmp_path: Path):
    data = opened(gain="never")
    pair = data.store.pairs[data.training_pairs[0]]
    level = float(np.median(data.store.counts(data.training_pairs[0])))
    low = replace(
        pair, f_overexposure_lb=(level - pair.f_black_level[0]) / (pair.f_white_level - pair.f_black_level[0])
    )
    data.store.pairs[data.training_pairs[0]] = low
    sample = data._sample(data.training_pairs[0], (0, 0, 128, 128), np.random.default_rng(0))
    counted = sample.mask[0].bool()
    tiles = (sample.noisy >= low.f_overexposure_lb).any(dim=0).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert tiles.any()
    assert not (counted & tiles).any()
    assert counted.any()


def test_a_pair_of_whose_centre_nothing_counts_is_not_validated_on(tmp_path: Path):
    pairs = [write_pair(tmp_path, (0, 0), name=name, size=SIZE) for name in ("train", "v1", "v2")]
    np.save(tmp_path / pairs[1].mask, pack_mask(np.zeros(SIZE, bool)))
    write_index(tmp_path, pairs)
    settings = {"prepared": str(tmp_path), "split": {"validation": ["v?"]}, "crop": 32, "validation_crop": 192}
    data = validate(Config, settings, "test").open(tmp_path, 0)
    assert [data.store.pairs[i].scene for i in data.validation_scenes] == ["v2"]


def test_a_crop_of_which_too_little_counts_is_not_taken(opened: Open, prepared: Path, tmp_path: Path):
    # Only the right half of the picture counts: no crop may lie more than half in the left one.
    pair = write_pair(tmp_path, (0, 0), name="half", size=SIZE)
    mask = np.zeros(SIZE, bool)
    mask[:, SIZE[1] // 2 :] = True
    np.save(tmp_path / pair.mask, pack_mask(mask))
    write_index(tmp_path, [replace(pair, mask_mean=0.5), replace(write_pair(tmp_path, (0, 0), name="v", size=SIZE))])
    settings = {"prepared": str(tmp_path), "split": {"validation": ["v"]}, "crop": 32, "validation_crop": 192}
    data = validate(Config, settings | {"quality": {"min_valid": 0.4}}, "test").open(tmp_path, 0)
    valid = [data.batch(step, range(1), batch_size=1).mask.mean().item() for step in range(40)]
    assert min(valid) >= 0.5
    assert min(valid) < 0.9


def test_where_no_crop_counts_enough_the_error_says_what_to_change(tmp_path: Path):
    pair = write_pair(tmp_path, (0, 0), name="dark", size=SIZE)
    np.save(tmp_path / pair.mask, pack_mask(np.zeros(SIZE, bool)))
    write_index(tmp_path, [pair, write_pair(tmp_path, (0, 0), name="v", size=SIZE)])
    settings = {"prepared": str(tmp_path), "split": {"validation": ["v"]}, "crop": 32, "validation_crop": 192}
    data = validate(Config, settings, "test").open(tmp_path, 0)
    with pytest.raises(DataError, match="min_valid_in_crop"):
        data.batch(0, range(1), batch_size=1)


def test_validation_is_the_centre_of_held_out_pairs_and_always_the_same(opened: Open):
    data = opened()
    assert len(data.validation_scenes) == 1
    name, item = data.validation_item(0)
    assert name == "valid/b"
    assert item.clean.shape == (1, 3, 192, 192)
    assert torch.equal(item.noisy, data.validation_item(0)[1].noisy)
    assert torch.equal(item.noisy, opened(flips=True).validation_item(0)[1].noisy)


def test_noise_is_added_to_clean_inputs_where_asked_for_and_nowhere_else(opened: Open):
    mix = {"clean_noisy": 0, "clean_clean": 1}
    quiet, loud = (
        opened(mix=mix, **extra).batch(0, range(2), batch_size=2)
        for extra in ({}, {"clean_noise": {"kind": "parametric"}})
    )
    torch.testing.assert_close(quiet.noisy, pack_cfa(sample_cfa(quiet.clean)), atol=6e-4, rtol=0)
    assert (loud.noisy - pack_cfa(sample_cfa(loud.clean))).std() > 1e-3
    assert (loud.noise > quiet.noise).all()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_folder_that_was_not_prepared_is_refused_with_the_command(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no index\.parquet; make it with"):
        Config(prepared=str(tmp_path)).prepare(tmp_path)


def test_a_part_of_a_prepared_folder_in_a_uri_is_refused_with_the_copy_that_is_to_be_deleted(
    prepared: Path, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """This machine's copy of it was once named alone, as something to prepare again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = place(f"memory:/{tmp_path}/prepared")
    folder.fs.put(str(prepared), folder.path, recursive=True)
    mask = next(pair.mask for pair in opened().store.pairs if pair.scene == "valid")
    (folder / mask).unlink()
    config = opened().config.model_copy(update={"prepared": str(folder)})
    with pytest.raises(DataError, match=r"cannot be read .*; then delete .*, its copy here$") as refused:
        config.open(config.prepare(tmp_path), seed=0)
    (copy,) = (tmp_path / "cache" / "stillgrain").iterdir()
    assert str(refused.value).startswith(f"{folder / mask}: ")
    assert str(copy) in str(refused.value)
    folder.fs.put_file(str(prepared / mask), (folder / mask).path)
    remove_folder(place(copy))
    batches = [data.batch(0, range(2), batch_size=2) for data in (config.open(folder, seed=0), opened())]
    assert torch.equal(batches[0].noisy, batches[1].noisy)


def test_a_tree_in_a_uri_that_is_prepared_again_is_what_is_read(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its path stays the same, and this machine once kept to the copy that it had."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = place(f"memory:/{tmp_path}/prepared")
    first = opened().store
    folder.fs.put(f"{first.folder}/", f"{folder.path}/", recursive=True)
    assert PairStore(folder).digest == first.digest
    write_index(tmp_path / "fewer", first.pairs[:-1])
    folder.fs.put_file(str(tmp_path / "fewer" / INDEX), (folder / INDEX).path)
    assert PairStore(folder).digest != first.digest
    assert PairStore(folder).digest == PairStore(folder).digest


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": {"isos": {"800": 2}}}, "is no range of ISO values"),
        ({"mix": {"clean_noisy": 0}}, "leaves nothing to train on"),
        ({"clean_noise": {"kind": "parametric"}}, "clean_noise is for clean mosaics"),
        ({"quality": {"min_ssim": 1}}, "min_ssim"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_key(opened: Open, settings: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        opened(**settings)


def test_crops_larger_than_the_pictures_are_refused_with_the_numbers(opened: Open):
    with pytest.raises(DataError, match="of these 0 have 512 px a side"):
        opened(crop=512)


def test_the_smooth_scene_is_the_one_that_pairs_are_made_of(opened: Open):
    """What the tests above lean on."""
    data = opened()
    crop = data.store.crop(data.training_pairs[0], 8, 10, 12, 12)
    assert (crop.target[0] - smooth_scene(SIZE[0] + 40, SIZE[1] + 40)[0, 28:40, 30:42]).abs().max() < 1e-3
