from __future__ import annotations

import contextlib
import itertools
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from library.config import validate
from library.datasets import samples, sensors
from library.datasets.batch import Batch
from library.datasets.store import Scene, SceneStore
from library.datasets.synthetic import Config, Shot, Synthetic, observe, observe_cfa_planes
from library.errors import ConfigError, DataError, RawFileError
from library.files.dng import write_cfa_dng
from library.files.exr import read_exr, write_exr
from library.files.metadata import ImageMetadata
from library.files.places import place, remove_folder
from library.ops.cfa import BAYER_PHASES, XTRANS_PHASES, cfa_levels, cfa_tile, pack_cfa, sample_cfa
from library.ops.cfa_planes import unpack_cfa_planes
from library.ops.color import LIN_SRGB_TO_XYZ, camera_rgb_to_lin_rec2020, lin_srgb_to_lin_rec2020
from library.ops.transfer import srgb_decode

SONY = np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])
SILENT = sensors.ParametricSensor(shot=(1e-10, 1e-10), read_scatter=0)
"""Noise far below a step of the store."""


def dataset(folder: Path, scenes: list[Scene], *, seed: int = 0, **settings: Any) -> Synthetic:
    SceneStore.create(folder, scenes, "digest")
    settings = {"crop": 16, "validation_crop": 162, "sensor": SILENT, "exposure_ev": (0, 0)} | settings
    return Config(**settings).open(folder, seed)


def flat(name: str, level: float, *, side: int = 162) -> Scene:
    return Scene(name, np.full((side, side, 3), level, np.float32), "camera_rgb", SONY)


def shot(light: torch.Tensor, a: float, b: float, *, seed: int = 0) -> Shot:
    return Shot(light, SONY, a, b, torch.Generator().manual_seed(seed))


def batches_equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


@pytest.fixture(scope="session")
def opened(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    config = Config(scenes=str(scenes), crop=32, validation_crop=176)
    return config.open(config.prepare(tmp_path_factory.mktemp("stores")), seed=0)


# --- which samples ----------------------------------------------------------------------------------------------------


def test_a_batch_is_a_pure_function_of_seed_and_step(opened: Synthetic):
    first = opened.batch(5, range(4), batch_size=4)
    opened.batch(17, range(4), batch_size=4)
    opened.validation_item(0)
    assert batches_equal(opened.batch(5, range(4), batch_size=4), first)
    reopened = Synthetic(opened.config, SceneStore(opened.store.folder), seed=0)
    assert batches_equal(reopened.batch(5, range(4), batch_size=4), first)
    assert not batches_equal(Synthetic(opened.config, opened.store, seed=1).batch(5, range(4), batch_size=4), first)


def test_workers_together_make_the_batch_that_one_makes(opened: Synthetic):
    whole = opened.batch(3, range(4), batch_size=4)
    halves = [opened.batch(3, slots, batch_size=4) for slots in (range(2), range(2, 4))]
    assert batches_equal(Batch.stack(halves), whole)


def test_a_sample_is_the_same_to_the_bit_whatever_is_made_beside_it(opened: Synthetic):
    """For sides that fill no vector register too."""
    odd = Synthetic(opened.config.model_copy(update={"crop": 50}), opened.store, seed=0)
    for data in (opened, odd):
        whole = data.batch(2, range(5), batch_size=5)
        alone = [data.batch(2, [slot], batch_size=5) for slot in range(5)]
        assert batches_equal(Batch.stack(alone), whole)
        assert batches_equal(data.batch(2, [4, 1], batch_size=5), Batch.stack([alone[4], alone[1]]))


def test_no_two_samples_are_the_same(opened: Synthetic):
    crops = torch.cat([opened.batch(step, range(4), batch_size=4).noisy for step in range(20)]).flatten(1)
    assert len(torch.unique(crops, dim=0)) == 80


def test_validation_is_the_same_every_time(opened: Synthetic):
    items = [opened.validation_item(0)[1] for _ in range(2)]
    assert batches_equal(*items)
    reopened = Synthetic(opened.config, SceneStore(opened.store.folder), seed=0)
    assert batches_equal(reopened.validation_item(0)[1], items[0])


def test_scenes_held_out_are_never_trained_on(tmp_path: Path):
    levels = {f"scene{i}": 0.05 * (i + 1) for i in range(10)}
    data = dataset(tmp_path, [flat(name, level) for name, level in levels.items()], held_out=0.2)
    names = data.store.names
    validation = {names[i] for i in data.validation_scenes}
    assert len(validation) == 3
    assert validation | {names[i] for i in data.training_scenes} == set(names)
    seen = {
        round(float(x), 3) for step in range(10) for x in data.batch(step, range(7), batch_size=7).clean.amax((1, 2, 3))
    }
    assert seen == {round(level, 3) for name, level in levels.items() if name not in validation}
    for index in range(3):
        name, item = data.validation_item(index)
        assert float(item.clean.mean()) == pytest.approx(levels[name], abs=1e-4)


def test_the_split_depends_on_names_alone(tmp_path: Path):
    scenes = [flat(f"scene{i}", 0.1) for i in range(10)]
    splits = []
    for number, order in enumerate((scenes, scenes[::-1])):
        data = dataset(tmp_path / str(number), order, held_out=0.3, seed=number)
        splits.append({data.store.names[i] for i in data.validation_scenes})
    assert splits[0] == splits[1]


def test_a_growing_folder_moves_no_scene_to_the_other_side(tmp_path: Path):
    splits = []
    for count in (10, 25):
        data = dataset(tmp_path / str(count), [flat(f"scene{i}", 0.1) for i in range(count)], held_out=0.3)
        splits.append({data.store.names[i] for i in data.validation_scenes})
    assert splits[0] == splits[1] & {f"scene{i}" for i in range(10)}
    assert splits[1] - splits[0]


def test_scenes_can_be_held_out_by_name(tmp_path: Path):
    data = dataset(tmp_path, [flat(name, 0.1) for name in "abc"], held_out=("c", "a"))
    assert [data.validation_item(i)[0] for i in range(2)] == ["c", "a"]
    assert [data.store.names[i] for i in data.training_scenes] == ["b"]


@pytest.mark.parametrize("held_out", [("a",), 0.5])
def test_a_photograph_that_lies_there_twice_is_held_out_twice(tmp_path: Path, held_out: Any):
    """As photo.dng and photo.jpg, which have one name: the second one used to be trained on."""
    data = dataset(tmp_path, [flat(name, 0.1) for name in "abab"], held_out=held_out)
    validation, training = ({data.store.names[i] for i in s} for s in (data.validation_scenes, data.training_scenes))
    assert len(data.validation_scenes) == len(data.training_scenes) == 2
    assert not validation & training


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        (("z", "a", "y"), "dataset.held_out names y, z, which are no scenes; there are: a, b, c"),
        (("a", "b", "c"), "leaves 0 scenes to train on and 3 to validate on, of 3"),
        ((), "leaves 3 scenes to train on and 0 to validate on"),
        (0.1, "leaves 3 scenes to train on and 0 to validate on"),
        (0.9, "leaves 0 scenes to train on and 3 to validate on"),
    ],
)
def test_a_split_that_cannot_be_is_refused_in_words(tmp_path: Path, held_out: Any, said: str):
    with pytest.raises(DataError, match=said):
        dataset(tmp_path, [flat(name, 0.1) for name in "abc"], held_out=held_out)


@pytest.mark.parametrize("held_out", [-0.2, 0, 1, 20])
def test_a_fraction_held_out_lies_between_none_and_all(held_out: float):
    """A negative one used to hold out all but a few."""
    with pytest.raises(ConfigError, match=r"x: held_out"):
        validate(Config, {"held_out": held_out}, "x")


def test_scenes_smaller_than_a_crop_are_named(tmp_path: Path):
    scenes = [flat("a", 0.1, side=200), flat("tiny", 0.1, side=190), flat("small", 0.1, side=170)]
    with pytest.raises(
        DataError, match=r"dataset\.crop is 192 px, but these scenes are smaller: tiny, small; lower it"
    ):
        dataset(tmp_path / "a", [*scenes, flat("v", 0.1, side=300)], crop=192, held_out=("v",))
    with pytest.raises(DataError, match=r"dataset\.validation_crop is 180 px, but these scenes are smaller: small"):
        dataset(tmp_path / "b", scenes, validation_crop=180, held_out=("small",))


# --- what a sample is -------------------------------------------------------------------------------------------------


def test_without_noise_a_sample_is_the_mosaic_of_its_truth(tmp_path: Path):
    rng = np.random.default_rng(0)
    scenes = [Scene(name, rng.random((162, 162, 3)).astype(np.float32) * 0.8, "lin_srgb") for name in "ab"]
    batch = dataset(tmp_path, scenes, held_out=("a",)).batch(0, range(16), batch_size=16)
    torch.testing.assert_close(batch.noisy, pack_cfa(sample_cfa(batch.clean)), rtol=0, atol=1e-4)


def test_red_light_falls_on_red_sites_only_however_a_crop_is_flipped(tmp_path: Path):
    """Flipping a mosaic instead of the picture would exchange the colours."""
    red = np.zeros((162, 162, 3), np.float32)
    red[..., 0] = np.linspace(0.1, 0.9, 162)[:, None]
    scenes = [Scene(name, red, "camera_rgb", SONY) for name in "ab"]
    batch = dataset(tmp_path, scenes, held_out=("a",)).batch(0, range(64), batch_size=64)
    assert (batch.noisy[:, 0] > 0.05).all()
    assert batch.noisy[:, 1:].abs().max() < 1e-3


def test_crops_come_in_all_eight_orientations_and_only_if_asked(tmp_path: Path):
    picture = np.zeros((16, 16, 3), np.float32)
    picture[:8, :4] = np.linspace(0.2, 0.8, 32).reshape(8, 4, 1)
    scenes = [Scene("small", picture, "camera_rgb", SONY), flat("v", 0.1)]
    turned = [np.rot90(p, k) for p in (picture, picture[:, ::-1]) for k in range(4)]

    def orientations(folder: Path, *, flips: bool) -> set[int]:
        crops = dataset(folder, scenes, held_out=("v",), flips=flips).batch(0, range(100), batch_size=100).clean
        distances = [[np.abs(crop.permute(1, 2, 0).numpy() - t).max() for t in turned] for crop in crops]
        assert max(min(row) for row in distances) < 1e-4
        return {int(np.argmin(row)) for row in distances}

    assert orientations(tmp_path / "with", flips=True) == set(range(8))
    assert orientations(tmp_path / "without", flips=False) == {0}


def test_noise_has_the_variance_it_states_at_every_level_and_no_bias():
    a, b = 4e-3, 1e-4
    for level in (0.0, 0.02, 0.2, 0.6):
        clean = torch.full((3, 256, 256), level)
        noisy = observe([shot(clean, a, b)]).noisy
        expected = a * level + b
        for plane in noisy[0]:
            assert float(plane.var()) == pytest.approx(expected, rel=0.05)
            assert float(plane.mean()) == pytest.approx(level, abs=4 * (expected / plane.numel()) ** 0.5)
    assert noisy.min() < level


def test_noise_at_black_goes_below_it_and_white_saturates():
    dark = observe([shot(torch.zeros(3, 64, 64), 1e-3, 1e-4)])
    assert dark.noisy.min() < 0
    assert dark.clean.abs().max() == 0
    bright = observe([shot(torch.full((3, 64, 64), 3.0), 1e-3, 1e-4)])
    assert bright.noisy.max() == bright.clean.max() == 1
    assert bright.mask.sum() == 0


def test_a_pixel_saturated_in_any_channel_does_not_count():
    clean = torch.full((3, 4, 4), 0.5)
    clean[0, 0, 0] = clean[1, 1, 1] = clean[2, 2, 2] = 1.0
    mask = observe([shot(clean, 1e-6, 0)]).mask[0, 0]
    assert (mask == 0).nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]


def test_a_sensor_of_all_colours_sees_the_same_scene_in_lin_rec2020(tmp_path: Path):
    """The same crops and cameras as a mosaic's; noise without bias; a camera whose matrix changes nothing any more."""
    scenes = [Scene(name, np.full((176, 176, 3), (0.2, 0.3, 0.1), np.float32), "lin_srgb") for name in "ab"]
    noisy = {"held_out": ("a",), "crop": 64, "sensor": sensors.ParametricSensor(shot=(4e-3, 4e-3))}
    mosaics = dataset(tmp_path / "mosaic", scenes, **noisy)
    pictures = dataset(tmp_path / "picture", scenes, output="lin_rec2020", **noisy)
    seen, mosaic = (data.batch(0, range(4), batch_size=4) for data in (pictures, mosaics))
    assert pictures.config.planes == seen.noisy.shape[1] == 3
    assert seen.noisy.shape == seen.clean.shape
    assert torch.equal(seen.noise, mosaic.noise)
    assert torch.equal(seen.mask, mosaic.mask)
    truth = torch.stack(
        [
            camera_rgb_to_lin_rec2020(rgb, xyz_to_camera=m)
            for rgb, m in zip(mosaic.clean, mosaic.xyz_to_camera, strict=True)
        ]
    )
    torch.testing.assert_close(seen.clean, truth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        camera_rgb_to_lin_rec2020(seen.clean, xyz_to_camera=seen.xyz_to_camera[0]), seen.clean, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(seen.noisy.mean((2, 3)), seen.clean.mean((2, 3)), rtol=0.05, atol=0.03)
    assert (seen.noisy - seen.clean).var() > 1e-4


def test_exposures_are_drawn_from_their_range_and_validation_takes_the_middle(tmp_path: Path):
    data = dataset(tmp_path, [flat("t", 0.4), flat("v", 0.4)], held_out=("v",), exposure_ev=(-3.0, 1.0))
    levels = torch.log2(data.batch(0, range(200), batch_size=200).clean.amax((1, 2, 3)) / 0.4)
    assert levels.min() >= -3 - 1e-3
    assert levels.max() <= 1 + 1e-3
    assert levels.min() < -2.8
    assert levels.max() > 0.8
    assert float(data.validation_item(0)[1].clean.mean()) == pytest.approx(0.4 / 2, rel=1e-3)


def test_grey_in_linear_srgb_is_grey_under_the_drawn_cameras_own_white_balance(tmp_path: Path):
    grey = [Scene(name, np.full((162, 162, 3), 0.3, np.float32), "lin_srgb") for name in "ab"]
    batch = dataset(tmp_path, grey, held_out=("a",)).batch(0, range(8), batch_size=8)
    assert len(torch.unique(batch.xyz_to_camera, dim=0)) == 8
    white = batch.xyz_to_camera @ LIN_SRGB_TO_XYZ.float() @ torch.ones(3)
    torch.testing.assert_close(batch.clean.mean((2, 3)), 0.3 * white, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(white[:, 1], torch.ones(8), rtol=1e-4, atol=1e-4)


def test_a_colour_outside_the_cameras_gamut_has_no_negative_light(tmp_path: Path):
    blue = np.zeros((162, 162, 3), np.float32)
    blue[..., 2] = 0.9
    batch = dataset(tmp_path, [Scene(n, blue, "lin_srgb") for n in "ab"], held_out=("a",)).batch(
        0, range(8), batch_size=8
    )
    assert batch.clean.min() >= 0


# --- folders ----------------------------------------------------------------------------------------------------------


def grey_png(path: Path, code: int = 188, *, side: int = 170) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), code, np.uint8)).save(path)


def raw(path: Path, metadata: ImageMetadata) -> np.ndarray:
    """A clean GBRG raw; returns its normalised mosaic."""
    levels = np.random.default_rng(0).uniform(0, 0.9, (340, 342))
    black = np.array([[500.0, 510], [520, 530]])
    mosaic = (np.tile(black, (170, 171)) + levels * (16000 - np.tile(black, (170, 171)))).astype(np.uint16)
    write_cfa_dng(path, mosaic, cfa="GBRG", black_level=black, white_level=16000, metadata=metadata)
    return levels


def stored(scenes: Path, store: Path) -> SceneStore:
    return SceneStore(Config(scenes=str(scenes)).prepare(store))


def test_pictures_exrs_and_raws_become_scenes_in_linear_light(tmp_path: Path):
    folder = tmp_path / "scenes"
    grey_png(folder / "sub" / "grey.png", 188)
    rgb = torch.tensor([0.5, 0.25, 2.0])[:, None, None].expand(3, 170, 180)
    write_exr(folder / "linear.exr", lin_srgb_to_lin_rec2020(rgb).permute(1, 2, 0).numpy(), chromaticities="rec2020")
    levels = raw(folder / "photo.dng", ImageMetadata(model="Nobody's", xyz_to_camera=SONY))
    (folder / "notes.txt").write_text("not a scene")
    (folder / ".hidden.png").write_bytes(b"not a scene")

    store = stored(folder, tmp_path / "stores")
    assert store.names == ["linear", "photo", "sub/grey"]
    linear, photo, grey = range(3)
    np.testing.assert_allclose(store.crop(grey, 0, 0, 170, 170), float(srgb_decode(torch.tensor(188 / 255))), atol=1e-5)
    np.testing.assert_allclose(store.crop(linear, 9, 9, 1, 1)[0, 0], [0.5, 0.25, 2.0], atol=2e-3)
    assert store.matrix(linear) is store.matrix(grey) is None
    # Each 2x2 tile of the raw is a pixel: GBRG, so red lies in the second row.
    assert store.size(photo) in ((169, 171), (170, 171))
    matrix = store.matrix(photo)
    assert matrix is not None
    np.testing.assert_allclose(matrix, SONY, atol=1e-6)
    red = store.crop(photo, 0, 0, 8, 8)[..., 0]
    rows = levels[1:17:2, 0:16:2]
    np.testing.assert_allclose(red, rows, atol=2e-4)


def test_a_sample_of_a_raw_has_that_cameras_own_matrix(tmp_path: Path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    raw(folder / "photo.dng", ImageMetadata(xyz_to_camera=SONY))
    grey_png(folder / "v.png")
    config = Config(scenes=str(folder), crop=16, validation_crop=162, held_out=("v",))
    batch = config.open(config.prepare(tmp_path / "stores"), seed=0).batch(0, range(3), batch_size=3)
    torch.testing.assert_close(batch.xyz_to_camera, torch.from_numpy(SONY).float().expand(3, 3, 3))


def test_a_store_is_made_once_and_anew_when_names_or_contents_change(tmp_path: Path):
    folder, stores = tmp_path / "scenes", tmp_path / "stores"
    grey_png(folder / "a.png")
    grey_png(folder / "b.png", 90)
    config = Config(scenes=str(folder))
    made = [config.prepare(stores)]
    before = made[0].stat().st_mtime_ns
    os.utime(folder / "a.png", (1, 1))
    assert config.prepare(stores) == made[0]
    assert made[0].stat().st_mtime_ns == before

    grey_png(folder / "a.png", 91)
    made.append(config.prepare(stores))
    (folder / "a.png").rename(folder / "c.png")
    made.append(config.prepare(stores))
    (folder / "sub").mkdir()
    (folder / "c.png").rename(folder / "sub" / "c.png")
    made.append(config.prepare(stores))
    assert SceneStore(made[-1]).names == ["b", "sub/c"]
    grey_png(folder / "d.png", 9)
    made.append(config.prepare(stores))
    assert len(set(made)) == 5
    assert len({SceneStore(store).digest for store in made}) == 5


@pytest.mark.parametrize("num_sent", [0, 1, 2])
@pytest.mark.parametrize("is_killed", [True, False])
def test_however_much_of_a_store_another_run_has_sent_it_is_opened_whole(
    num_sent: int, is_killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In an object store a folder is there with its first file. A part of it, whose sender was killed or was still at
    it, was once taken for the store by every later run, and kept as this machine's copy."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(2):
        grey_png(tmp_path / "scenes" / f"{number}.png", 90 + number)
    config = Config(scenes=str(tmp_path / "scenes"), held_out=("1",), crop=32, validation_crop=168)
    stores = place(f"memory:/{tmp_path}/stores")
    memory = type(stores.fs)
    put_file, num_puts = memory.put_file, itertools.count()
    expected = config.open(config.prepare(tmp_path / "stores"), seed=0).batch(0, range(1), batch_size=1)

    def opens_whole() -> bool:
        return batches_equal(config.open(config.prepare(stores), seed=0).batch(0, range(1), batch_size=1), expected)

    def interrupted(self, *where, **settings) -> None:
        if next(num_puts) == num_sent:
            if is_killed:
                raise KeyboardInterrupt
            assert opens_whole()
        put_file(self, *where, **settings)

    monkeypatch.setattr(memory, "put_file", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        config.prepare(stores)
    assert next(num_puts) > num_sent
    assert opens_whole()


def test_a_broken_store_in_a_uri_is_refused_with_both_folders_that_are_to_be_deleted(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """This machine's copy was once named alone, and was then made again of the same part."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = Config(scenes=str(scenes), held_out=("scene1",), crop=32, validation_crop=168)
    store = config.prepare(place(f"memory:/{tmp_path}"))
    (store / "000001.npy").unlink()
    with pytest.raises(DataError, match=r": holds no scene store .*; delete the folder and .*, its copy") as refused:
        config.open(store, seed=0)
    (copy,) = (tmp_path / "cache" / "stillgrain").iterdir()
    assert str(refused.value).startswith(f"{store}: ")
    assert str(copy) in str(refused.value)
    for named in (store, place(copy)):
        remove_folder(named)
    assert config.open(config.prepare(store.parent), seed=0).store.names == [f"scene{i}" for i in range(6)]


def test_a_changed_sidecar_makes_another_store(tmp_path: Path):
    """What it says of a headless raw decides what the scene is; a store once stayed as it was."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "x.raw").write_bytes(np.random.default_rng(0).integers(600, 9000, 340 * 340).astype("<u2").tobytes())
    sidecar = {
        "width": 340,
        "height": 340,
        "cfa": "RGGB",
        "black_level": 500,
        "white_level": 16000,
        "xyz_to_camera": SONY.tolist(),
    }
    made = []
    for white_level in (16000, 12000):
        (folder / "x.raw.json").write_text(json.dumps(sidecar | {"white_level": white_level}))
        made.append(stored(folder, tmp_path / "stores"))
    assert made[0].names == made[1].names == ["x"]
    ratio = made[1].crop(0, 0, 0, 1, 1) / made[0].crop(0, 0, 0, 1, 1)
    np.testing.assert_allclose(ratio, (16000 - 500) / (12000 - 500), rtol=1e-2)


def test_a_folder_that_cannot_be_used_is_refused_by_its_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"dataset\.scenes: .*absent is not a folder"):
        Config(scenes=str(tmp_path / "absent")).prepare(tmp_path / "stores")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"dataset\.scenes: .*empty holds no files"):
        Config(scenes=str(tmp_path / "empty")).prepare(tmp_path / "stores")
    assert not (tmp_path / "stores").exists()


def test_a_file_that_cannot_be_a_scene_is_refused_by_its_name_and_leaves_no_store(tmp_path: Path):
    folder = tmp_path / "scenes"
    grey_png(folder / "a.png")
    bad = folder / "sub" / "z.dng"
    bad.parent.mkdir()
    bad.write_bytes(b"no raw file at all")
    with pytest.raises(RawFileError, match=r"z\.dng"):
        stored(folder, tmp_path / "stores")
    bad.unlink()
    raw(folder / "unknown.dng", ImageMetadata(model="Nobody's"))
    with pytest.raises(RawFileError, match=r"unknown\.dng: its camera's colour matrix is unknown"):
        stored(folder, tmp_path / "stores")
    (folder / "unknown.dng").unlink()
    blinding = np.full((170, 170, 3), 0.5, np.float32)
    blinding[5, 5, 1] = np.inf
    tifffile.imwrite(folder / "sun.tif", blinding, photometric="rgb")
    with pytest.raises(DataError, match=r"sun\.tif: holds infinities or NaN"):
        stored(folder, tmp_path / "stores")
    assert not any((tmp_path / "stores").glob("scenes-*"))


# --- the scenes that need no folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sample_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Config().prepare(tmp_path_factory.mktemp("samples"))


def test_the_samples_are_a_score_of_scenes_that_training_and_validation_can_use(sample_store: Path):
    store = SceneStore(sample_store)
    data = Config().open(sample_store, seed=0)
    assert len(store.names) == len(set(store.names)) >= 12
    assert len(data.validation_scenes) >= 2
    assert data.digest == samples.DIGEST
    for index in range(len(store.names)):
        height, width = store.size(index)
        rgb = store.crop(index, 0, 0, height, width)
        assert 256 <= min(height, width) <= max(height, width) <= 1500
        assert 0 <= rgb.min() <= rgb.max() <= 1
        assert 0.01 < rgb.mean() < 0.6
        assert rgb.std() > 0.02


def test_dead_leaves_cover_the_picture_and_are_the_same_every_time():
    pictures = [samples.dead_leaves(64, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert pictures[0].shape == (64, 64, 3)
    assert pictures[0].dtype == np.float32
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert (pictures[0].max(axis=2) > 0).mean() > 0.99
    assert 0 <= pictures[0].min() <= pictures[0].max() <= 1


def test_dead_leaves_have_edges_at_every_scale():
    """Their spectrum falls with a power of the frequency near that of natural images (Lee, Mumford and Huang 2001)."""
    spectra = []
    for seed in range(4):
        grey = samples.dead_leaves(128, np.random.default_rng(seed)).mean(axis=2)
        spectra.append(np.abs(np.fft.fft2(grey - grey.mean())) ** 2)
    power = np.mean(spectra, axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    bands = [power[(low <= frequency) & (frequency < 2 * low)].mean() for low in (0.02, 0.04, 0.08, 0.16)]
    slope = np.polyfit(np.log([0.02, 0.04, 0.08, 0.16]), np.log(bands), 1)[0]
    assert -3.5 < slope < -1.5


# --- CFA planes, and demosaiced pictures ------------------------------------------------------------------------------


def phase_of(sample: torch.Tensor) -> str:
    """The tile that CFA planes begin with, told from where each colour is measured."""
    labels = unpack_cfa_planes(sample)[1]
    phases = (*BAYER_PHASES, *XTRANS_PHASES)
    return next(cfa for cfa in phases if torch.equal(labels, cfa_levels(cfa_tile(cfa), *labels.shape)))


def test_cfa_planes_are_of_every_cfa_that_is_asked_for_and_say_the_noise_that_is_in_them(scenes: Path, tmp_path: Path):
    settings = {"scenes": str(scenes), "crop": 32, "validation_crop": 176, "output": "cfa_planes"}
    for cfas, phases in (
        (("bayer", "xtrans"), {*BAYER_PHASES, *XTRANS_PHASES}),
        (("bayer",), set(BAYER_PHASES)),
        (("xtrans",), set(XTRANS_PHASES)),
    ):
        config = Config(**settings, cfas=cfas)  # pyright: ignore
        opened = config.open(config.prepare(tmp_path), seed=0)
        batch = opened.batch(0, range(64), batch_size=64)
        assert batch.noisy.shape == (64, config.planes, 32, 32) == (64, 5, 32, 32)
        assert batch.clean.shape == (64, 3, 32, 32)
        found = [phase_of(sample) for sample in batch.noisy]
        assert set(found) <= phases
        assert {len(cfa) for cfa in found} == {len(cfa) for cfa in phases}
        scores = []
        for sample, clean, cfa, (a, b) in zip(batch.noisy, batch.clean, found, batch.noise, strict=True):
            error, bright = sample[0] - sample_cfa(clean, cfa), sample_cfa(clean, cfa) < 0.8
            scores.append((error / sample[4])[bright])
            torch.testing.assert_close(sample[4], (a * sample[0].clamp_min(0) + b).sqrt())
        assert float(torch.cat(scores).var()) == pytest.approx(1, abs=0.2)


def test_cfa_planes_of_an_rggb_sensor_hold_the_mosaic_that_is_packed_elsewhere():
    light = torch.rand(3, 12, 14, generator=torch.Generator().manual_seed(1))
    planes = observe_cfa_planes([shot(light, 1e-12, 0.0)])
    packed = observe([shot(light, 1e-12, 0.0)])
    torch.testing.assert_close(pack_cfa(planes.noisy[:, 0]), packed.noisy, rtol=0, atol=1e-5)
    assert torch.equal(planes.clean, packed.clean)
    assert torch.equal(planes.mask, packed.mask)


@pytest.mark.parametrize("cfas", [("bayer",), ("xtrans",)])
def test_a_demosaiced_picture_without_noise_is_nearly_its_truth(scenes: Path, tmp_path: Path, cfas: tuple[str, ...]):
    config = Config(
        scenes=str(scenes),
        crop=48,
        validation_crop=176,
        output="demosaiced",
        cfas=cfas,
        sensor=SILENT,  # pyright: ignore
    )
    opened = config.open(config.prepare(tmp_path), seed=0)
    batch = opened.batch(0, range(3), batch_size=3)
    assert batch.noisy.shape == (3, config.planes, 48, 48) == (3, 3, 48, 48)
    inside = batch.mask.expand_as(batch.clean).bool()
    error = (batch.noisy - batch.clean)[inside].abs()
    assert 0 < float(error.mean()) < 0.02
    assert float(error.median()) < 5e-3


def test_cfas_that_nothing_asks_for_are_refused():
    with pytest.raises(ConfigError, match="output 'mosaic' has no use for it: set output to cfa_planes or demosaiced"):
        validate(Config, {"cfas": ["xtrans"]}, "dataset")
    assert validate(Config, {"cfas": ["bayer", "xtrans"]}, "dataset").output == "mosaic"


def test_an_x_trans_raw_is_a_scene_of_a_third_of_its_size(shared_data: Path, tmp_path: Path):
    (tmp_path / "scenes").mkdir()
    for name in ("alps_fujifilm_x-e2_iso00200.dng", "shop_pentax_k-5_iso00080.dng"):
        os.link(shared_data / "synthetic" / name, tmp_path / "scenes" / name)
    config = Config(scenes=str(tmp_path / "scenes"), crop=16, validation_crop=162)
    store = SceneStore(str(config.prepare(tmp_path / "stores")))
    assert [store.size(index) for index in range(2)] == [(192, 256), (287, 383)]  # BGGR: a line less
    truth = read_exr(shared_data / "synthetic/alps_gt_camera_linear.exr").rgb.reshape(192, 3, 256, 3, 3).mean((1, 3))
    scene = store.crop(0, 0, 0, 192, 256)
    assert np.abs(scene - truth).mean() < 0.02


def test_the_white_level_of_raws_among_the_scenes_is_chosen_and_names_the_store(tmp_path: Path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    stores = {}
    for name in ("a", "b"):
        write_image(folder / f"{name}.dng")
    for policy in ("decoder", "camera", "minimum"):
        config = Config(scenes=str(folder), crop=16, validation_crop=162, white_level=policy)
        stores[policy] = config.prepare(tmp_path / "stores")
    assert len(set(stores.values())) == 3
    # LibRaw knows of no other level of this camera, so that the scenes themselves are alike.
    scenes = [SceneStore(str(path)).crop(0, 0, 0, 20, 20) for path in stores.values()]
    assert all(np.array_equal(scene, scenes[0]) for scene in scenes)


def write_image(path: Path) -> None:
    mosaic = np.random.default_rng(0).integers(600, 9000, (340, 340)).astype(np.uint16)
    metadata = ImageMetadata(xyz_to_camera=SONY, as_shot_white_balance=np.ones(3))
    write_cfa_dng(path, mosaic, cfa="RGGB", black_level=np.full((2, 2), 512.0), white_level=16383, metadata=metadata)
