from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from library.errors import ConfigError
from library.files.dng import write_cfa_dng
from library.files.exr import read_exr, write_exr
from library.files.metadata import ImageMetadata
from library.files.raw import RawImage, read_raw
from library.ops.cfa import BAYER_PHASES, sample_cfa
from library.ops.color import D65_WHITE_XYZ
from library.ops.levels import normalize_levels
from workloads.simulate import Config, Suite, run

HEIGHT, WIDTH = 171, 203
SCENES = ("a_gray", "b_ramp", "c_color", "more/d_edges")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear sRGB pictures of odd sizes in [0.02, 0.7], one of them in a subfolder, and one to train on."""
    folder = tmp_path_factory.mktemp("scenes")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    ramp = 0.02 + 0.6 * columns
    for name, rgb in {
        "a_gray": [ramp, ramp, ramp],
        "b_ramp": [ramp, 0.3 + 0 * rows, 0.6 - 0.5 * columns],
        "c_color": [0.5 + 0 * rows, 0.1 + 0.2 * rows, 0.3 + 0.1 * columns],
        "more/d_edges": [0.1 + 0.6 * (columns > 0.5), 0.1 + 0.4 * (rows > 0.3), 0.2 + 0 * rows],
        "to_train_on": [ramp, ramp, ramp],
    }.items():
        write_exr(folder / f"{name}.exr", np.stack(rgb, axis=-1), chromaticities="srgb")
    return folder


def config(scenes: Path, output: Path, held_out: Sequence[str] = SCENES, **changes: Any) -> Config:
    dataset = {"kind": "synthetic", "scenes": str(scenes), "held_out": held_out, "crop": 16, "validation_crop": 162}
    storage = scenes.with_name(f"{scenes.name}-storage")
    return Config.model_validate({"dataset": dataset, "output": str(output), "storage": str(storage)} | changes)


@pytest.fixture(scope="module")
def suite(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return run(config(scenes, tmp_path_factory.mktemp("suite")))


def pair(suite: Suite, name: str) -> tuple[RawImage, torch.Tensor, torch.Tensor]:
    """A raw, its normalised mosaic, and its truth sampled by its CFA."""
    raw = read_raw(suite.raws / f"{name}.dng")
    mosaic = normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))
    truth = read_exr(suite.truth / f"{name}.exr")
    assert truth.chromaticities is None
    return raw, mosaic.double(), sample_cfa(torch.from_numpy(truth.rgb).permute(2, 0, 1).double(), raw.cfa)


@pytest.mark.parametrize("scene", SCENES)
def test_a_raw_is_its_truth_through_the_mosaic_with_noise_of_the_promised_variance(suite: Suite, scene: str):
    raw, mosaic, truth = pair(suite, f"{scene}_0")
    assert raw.noise_profile is not None
    ((a, b),) = raw.noise_profile
    noise = (mosaic - truth) / torch.sqrt(a * truth + b)
    assert noise.mean().abs() < 5 / noise.numel() ** 0.5
    assert noise.square().mean() == pytest.approx(1, abs=0.05)
    median = truth.median()
    for part in (truth <= median, truth >= median):
        assert noise[part].mean().abs() < 5 / part.sum() ** 0.5
        assert noise[part].square().mean() == pytest.approx(1, abs=0.08)


def test_the_scenes_go_through_all_four_bayer_phases(suite: Suite):
    assert suite.names == tuple(f"{scene}_0" for scene in SCENES)
    assert tuple(read_raw(suite.raws / f"{name}.dng").cfa for name in suite.names) == BAYER_PHASES


def test_a_raw_says_what_a_raw_converter_needs(suite: Suite):
    raw = read_raw(suite.raws / "a_gray_0.dng")
    assert (raw.make, raw.model) == ("Stillgrain", "Simulated 1")
    assert (raw.black_level.tolist(), raw.white_level) == ([[512, 512], [512, 512]], 16383)
    assert raw.noise_profile is not None
    assert raw.iso == pytest.approx(1e6 * raw.noise_profile[0][0], abs=50)
    assert raw.xyz_to_camera is not None


def test_the_as_shot_white_balance_makes_a_gray_scene_neutral(suite: Suite):
    gains = read_raw(suite.raws / "a_gray_0.dng").as_shot_white_balance
    balanced = read_exr(suite.truth / "a_gray_0.exr").rgb * gains
    np.testing.assert_allclose(balanced[..., 0], balanced[..., 1], rtol=2e-3)
    np.testing.assert_allclose(balanced[..., 2], balanced[..., 1], rtol=2e-3)


def test_a_scene_keeps_its_size_up_to_one_line_and_is_cropped_to_its_centre_when_too_large(
    scenes: Path, suite: Suite, tmp_path: Path
):
    cropped = run(config(scenes, tmp_path, max_side=100))
    whole = read_exr(suite.truth / "b_ramp_0.exr").rgb
    centre = read_exr(cropped.truth / "b_ramp_0.exr").rgb
    assert whole.shape == (HEIGHT // 2 * 2, WIDTH // 2 * 2, 3)
    np.testing.assert_array_equal(centre, whole[35:135, 51:151])
    assert read_raw(cropped.raws / "b_ramp_0.dng").mosaic.shape == (100, 100)


def test_exposure_scales_the_truth_and_what_exceeds_white_saturates_in_the_raw_alone(
    scenes: Path, suite: Suite, tmp_path: Path
):
    bright = run(config(scenes, tmp_path, exposure_ev=2.0))
    raw, mosaic, truth = pair(bright, "a_gray_0")
    np.testing.assert_allclose(
        read_exr(bright.truth / "a_gray_0.exr").rgb, 8 * read_exr(suite.truth / "a_gray_0.exr").rgb, rtol=1e-3
    )
    assert truth.max() > 1.5
    assert raw.mosaic.max() == 16383
    assert (mosaic[truth > 1.5] == 1).all()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.*")) if f.is_file()}


def test_the_same_config_gives_the_same_files_and_another_seed_others(scenes: Path, suite: Suite, tmp_path: Path):
    again, other = run(config(scenes, tmp_path / "again")), run(config(scenes, tmp_path / "other", seed=1))
    assert contents(again.raws.parent) == contents(suite.raws.parent)
    assert contents(other.raws).keys() == contents(suite.raws).keys()
    assert all(contents(other.raws)[name] != content for name, content in contents(suite.raws).items())


def test_running_again_makes_only_what_is_missing(scenes: Path, tmp_path: Path):
    first = run(config(scenes, tmp_path, raws_per_scene=2))
    assert (first.num_written, len(first.names)) == (8, 8)
    before, times = contents(tmp_path), {f: f.stat().st_mtime_ns for f in first.raws.rglob("*.dng")}
    again = run(config(scenes, tmp_path, raws_per_scene=2))
    assert (again.num_written, again.names) == (0, first.names)
    assert {f: f.stat().st_mtime_ns for f in first.raws.rglob("*.dng")} == times
    (first.raws / "b_ramp_1.dng").unlink()
    assert run(config(scenes, tmp_path, raws_per_scene=2)).num_written == 1
    assert contents(tmp_path) == before


def test_several_raws_of_a_scene_differ_in_sensor_and_phase(scenes: Path, tmp_path: Path):
    suite = run(config(scenes, tmp_path, raws_per_scene=2))
    first, second = (read_raw(suite.raws / f"c_color_{number}.dng") for number in range(2))
    assert first.cfa != second.cfa
    assert first.noise_profile != second.noise_profile


def test_a_folder_with_the_raws_of_another_config_is_left_alone(scenes: Path, tmp_path: Path):
    run(config(scenes, tmp_path))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"holds the raws of another config .*give another output="):
        run(config(scenes, tmp_path, exposure_ev=0.0))
    assert contents(tmp_path) == before


def test_a_scene_that_a_camera_took_keeps_that_camera(tmp_path: Path):
    """Clean raws as scenes: at half size each 2x2 tile is one pixel of truth."""
    matrix = np.array([[0.7, -0.2, -0.05], [-0.5, 1.3, 0.25], [-0.1, 0.18, 0.65]])
    mosaic = np.random.default_rng(0).integers(3000, 8000, (328, 332)).astype(np.uint16)
    for name in ("held_out", "to_train_on"):
        write_cfa_dng(
            tmp_path / "scenes" / f"{name}.dng",
            mosaic,
            cfa="RGGB",
            black_level=np.zeros((2, 2)),
            white_level=10000,
            metadata=ImageMetadata(xyz_to_camera=matrix),
        )
    suite = run(config(tmp_path / "scenes", tmp_path / "suite", held_out=["held_out"]))
    raw = read_raw(suite.raws / "held_out_0.dng")
    assert raw.xyz_to_camera is not None
    assert raw.as_shot_white_balance is not None
    white = matrix @ D65_WHITE_XYZ.numpy()
    np.testing.assert_allclose(raw.xyz_to_camera, matrix, atol=1e-6)
    np.testing.assert_allclose(raw.as_shot_white_balance, white[1] / white, rtol=1e-3)
    red = read_exr(suite.truth / "held_out_0.exr").rgb[..., 0]
    np.testing.assert_allclose(red, mosaic[::2, ::2] / 10000 / 2, rtol=2e-3)
