from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from library.bundle import load_bundle
from library.errors import DataError, ImageFileError
from library.files.dng import write_cfa_dng, write_linear_dng
from library.files.exr import write_exr
from library.files.metadata import ImageMetadata
from library.files.picture import write_png
from library.files.raw import read_raw
from library.inference.compare import compare_files, compare_paths, report_outputs
from library.inference.denoise import denoise_file
from library.inference.develop import develop_file
from library.inference.engine import Engine
from library.inference.outputs import ENCODERS, Format
from stillgrain import app

LEVELS: Mapping[str, Any] = {"black_level": np.full((2, 2), 512.0), "white_level": 16383}
METADATA = ImageMetadata(
    make="Stillgrain",
    model="Test",
    iso=800.0,
    orientation=6,
    xyz_to_camera=np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]]),
    as_shot_white_balance=np.array([2.0, 1.0, 1.5]),
    exif={"LensModel": "Prime 35.5"},
)


@pytest.fixture
def mosaic() -> np.ndarray:
    """GRBG, some 170 x 180, with noise, and a corner in which everything is clipped."""
    rows, columns = np.mgrid[:171, :181]
    noise = np.random.default_rng(0).normal(0, 60, rows.shape)
    values = np.clip(512 + 6000 * (1 + np.sin(rows / 9) * np.cos(columns / 7)) + noise, 0, 16383).astype(np.uint16)
    values[:20, :30] = 16383
    return values


@pytest.fixture
def raw(tmp_path: Path, mosaic: np.ndarray) -> Path:
    path = tmp_path / "raw.dng"
    write_cfa_dng(path, mosaic, cfa="GRBG", metadata=METADATA, **LEVELS)
    return path


def linear_of(mosaic: np.ndarray) -> np.ndarray:
    """(H, W, 3) of which the CFA samples the very mosaic; at a black of 1024 and a white of 65535."""
    codes = np.round((mosaic - 512.0) / (16383 - 512) * (65535 - 1024) + 1024).astype(np.uint16)
    return np.repeat(codes[..., None], 3, axis=2)


def test_a_file_is_identical_to_itself(raw: Path):
    comparison, picture = compare_files(raw, raw)
    assert comparison.identical
    assert comparison.metrics == {"psnr.mosaic": np.inf, "psnr": np.inf, "ms_ssim": pytest.approx(1)}
    assert set(comparison.channels) == {"R", "G1", "G2", "B"}
    assert all(channel.drift == 0 for channel in comparison.channels.values())
    assert (comparison.lost, comparison.added, comparison.changed) == ({}, {}, {})
    assert picture.dtype == np.uint8
    assert json.loads(json.dumps(comparison.to_json()))["metrics"]["psnr"] is None


def test_a_change_of_one_colour_is_found_in_that_colour(raw: Path, mosaic: np.ndarray, tmp_path: Path):
    changed = mosaic.copy()
    changed[1::2, 0::2] += 100  # blue
    changed[:20, :30] = np.minimum(changed[:20, :30], 16383)
    write_cfa_dng(tmp_path / "changed.dng", changed, cfa="GRBG", metadata=METADATA, **LEVELS)
    comparison, _ = compare_files(raw, tmp_path / "changed.dng")
    drifts = {name: channel.drift for name, channel in comparison.channels.items()}
    assert (drifts["R"], drifts["G1"], drifts["G2"]) == (0, 0, 0)
    assert drifts["B"] == pytest.approx(100 / (16383 - 512), rel=0.05)
    low, high = comparison.channels["B"].percentiles["5"]
    assert high - low == pytest.approx(100 / (16383 - 512), rel=0.05)
    assert 40 < comparison.metrics["psnr.mosaic"] < 60


def test_clipped_samples_that_are_lost_are_counted(raw: Path, mosaic: np.ndarray, tmp_path: Path):
    changed = mosaic.copy()
    changed[:10, :30] = 16000
    write_cfa_dng(tmp_path / "changed.dng", changed, cfa="GRBG", metadata=METADATA, **LEVELS)
    comparison, _ = compare_files(raw, tmp_path / "changed.dng")
    assert {name: channel.clipped for name, channel in comparison.channels.items()} == dict.fromkeys(
        ("R", "G1", "G2", "B"), (150, 75, 75)
    )
    assert "75 clipped samples are so no longer" in str(comparison)


def test_a_linear_dng_is_compared_where_the_raw_was_measured_and_other_levels_are_no_difference(
    raw: Path, mosaic: np.ndarray, tmp_path: Path
):
    path = tmp_path / "linear.dng"
    write_linear_dng(path, linear_of(mosaic), black_level=1024, white_level=65535, metadata=METADATA)
    comparison, _ = compare_files(raw, path)
    assert comparison.domain == "mosaic"
    assert comparison.metrics["psnr.mosaic"] > 95  # steps of 16 bits
    assert all(channel.clipped[0] == channel.clipped[2] for channel in comparison.channels.values())
    assert comparison.changed["BlackLevel"] == ("[512, 512, 512, 512]", "[1024, 1024, 1024]")
    again, _ = compare_files(path, path)
    assert (again.domain, again.identical, set(again.channels)) == ("camera_rgb", True, {"R", "G", "B"})


def test_an_x_trans_mosaic_is_compared_by_its_three_colours(tmp_path: Path, mosaic: np.ndarray):
    path = tmp_path / "xtrans.dng"
    write_cfa_dng(path, mosaic, cfa="GBGGRGRGRBGBGBGGRGGRGGBGBGBRGRGRGGBG", metadata=METADATA, **LEVELS)
    comparison, _ = compare_files(path, path)
    assert comparison.identical
    assert sum(channel.samples for channel in comparison.channels.values()) == mosaic.size
    assert comparison.channels["G"].samples > comparison.channels["R"].samples


def test_a_raw_and_the_picture_developed_from_it_differ_by_its_8_bits_only(raw: Path, tmp_path: Path):
    develop_file(raw, tmp_path / "picture.png")
    comparison, _ = compare_files(raw, tmp_path / "picture.png")
    assert (comparison.domain, comparison.height, comparison.width) == ("srgb", 181, 171)  # upright
    assert comparison.metrics["psnr"] > 57
    assert comparison.metrics["ms_ssim"] > 0.999


def test_nan_and_infinity_are_counted_and_left_out(tmp_path: Path):
    rgb = np.full((20, 30, 3), 0.5, np.float32)
    write_exr(tmp_path / "one.exr", rgb, chromaticities="rec2020")
    write_exr(tmp_path / "other.exr", rgb * 1.5, chromaticities="rec2020")
    comparison, _ = compare_files(tmp_path / "one.exr", tmp_path / "other.exr")
    assert (comparison.domain, comparison.channels["R"].not_finite) == ("linear", 0)
    assert comparison.metrics["psnr.linear"] == pytest.approx(-20 * np.log10(0.25), abs=0.01)
    assert "ms_ssim" not in comparison.metrics  # too small


def test_values_that_are_not_finite_do_not_spoil_the_numbers(shared_data: Path):
    comparison, _ = compare_files(*[shared_data / "exr/TestImages_AllHalfValues.exr"] * 2)
    assert comparison.identical
    assert comparison.channels["R"].not_finite == 2048
    assert np.isfinite(comparison.channels["R"].mean[0])


def test_tags_that_were_lost_added_or_changed_are_named(raw: Path, mosaic: np.ndarray, tmp_path: Path):
    without = replace(METADATA, exif={}, iso=400.0, denoised_by="nafnet")
    write_cfa_dng(tmp_path / "changed.dng", mosaic, cfa="GRBG", metadata=without, **LEVELS)
    comparison, _ = compare_files(raw, tmp_path / "changed.dng")
    assert comparison.lost == {"LensModel": "Prime 35.5"}
    assert comparison.changed == {"ISOSpeedRatings": ("800", "400")} or comparison.changed == {
        "PhotographicSensitivity": ("800", "400")
    }
    assert set(comparison.added) == {"NoiseProfile"}
    assert comparison.kept > 10


def test_files_of_different_sizes_and_files_that_are_none_are_refused_in_words(raw: Path, tmp_path: Path):
    write_png(tmp_path / "small.png", np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(ImageFileError, match=r"small\.png: is 4 x 5 and .*raw\.dng is 171 x 181"):
        compare_files(raw, tmp_path / "small.png")
    (tmp_path / "text.txt").write_text("no picture")
    with pytest.raises(ImageFileError, match=r"text\.txt: is no picture"):
        compare_files(raw, tmp_path / "text.txt")


def test_a_child_process_compares_the_same(raw: Path, tmp_path: Path):
    develop_file(raw, tmp_path / "picture.png")
    apart, _ = compare_files(raw, tmp_path / "picture.png", isolate=True)
    assert apart == compare_files(raw, tmp_path / "picture.png")[0]


def test_folders_are_compared_by_name_and_a_bad_file_harms_only_itself(raw: Path, tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other/deep"
    for folder in (one / "deep", other):
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / f"{name}.dng").write_bytes(raw.read_bytes())
    (other / "b.dng").write_bytes(raw.read_bytes()[:1000])
    (one / "alone.dng").write_bytes(b"")
    good, bad = compare_paths(one, other.parent, picture=tmp_path / "pictures")
    assert not isinstance(good, Exception)
    assert good.identical
    assert isinstance(bad, Exception)
    assert [p.name for p in (tmp_path / "pictures/deep").iterdir()] == ["a.png"]
    with pytest.raises(DataError, match="called alike"):
        list(compare_paths(one, tmp_path / "pictures/deep"))


def test_a_report_is_written_beside_each_output(raw: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "raw.dng").write_bytes(raw.read_bytes())
    [page] = report_outputs([raw, tmp_path / "skipped.dng"], out, "dng")
    assert page == out / "raw.report.json"
    assert json.loads(page.read_text())["identical"] is True
    with Image.open(out / "raw.report.png") as picture:
        assert picture.width > 1000


def test_the_command_prints_a_table_or_json_and_writes_the_picture(raw: Path, tmp_path: Path):
    words = ["compare", str(raw), str(raw)]
    shown = CliRunner().invoke(app, [*words, "--picture", str(tmp_path / "difference.png")])
    assert shown.exit_code == 0
    assert "every sample identical" in shown.output
    assert (tmp_path / "difference.png").exists()
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).output)["domain"] == "mosaic"


def test_a_phase_error_shows_as_a_difference_of_the_greens(raw: Path, tmp_path: Path):
    image = read_raw(raw)
    moved = np.roll(image.mosaic, 1, axis=1)
    write_cfa_dng(tmp_path / "moved.dng", moved, cfa="GRBG", metadata=METADATA, **LEVELS)
    comparison, _ = compare_files(raw, tmp_path / "moved.dng")
    assert not comparison.identical
    assert comparison.metrics["psnr.mosaic"] < 40


def test_every_output_of_a_denoiser_can_be_compared_with_its_raw(raw_dng: Path, small_bundle: Path, tmp_path: Path):
    outputs: dict[Format, Path] = {name: tmp_path / name / f"photo{e.suffix}" for name, e in ENCODERS.items()}
    denoise_file(raw_dng, outputs, Engine(load_bundle(small_bundle)))
    domains = {name: compare_files(raw_dng, path)[0].domain for name, path in outputs.items()}
    assert domains["dng"] == domains["cfa-dng"] == "mosaic"
    assert domains["exr"] == "lin_rec2020"
    assert {domains[name] for name in outputs if name not in ("dng", "cfa-dng", "exr")} == {"srgb"}


def test_an_x_trans_mosaic_is_compared_with_a_linear_dng_where_it_was_measured(tmp_path: Path, mosaic: np.ndarray):
    raw, linear = tmp_path / "raw.dng", tmp_path / "linear.dng"
    write_cfa_dng(raw, mosaic, cfa="GBGGRGRGRBGBGBGGRGGRGGBGBGBRGRGRGGBG", metadata=METADATA, **LEVELS)
    write_linear_dng(linear, linear_of(mosaic), black_level=1024, white_level=65535, metadata=METADATA)
    assert compare_files(raw, linear)[0].metrics["psnr.mosaic"] > 95


def test_denoise_reports_what_it_changed(raw_dng: Path, small_bundle: Path, tmp_path: Path):
    words = ["denoise", str(raw_dng), "-o", str(tmp_path / "out"), "--bundle", str(small_bundle), "--report"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out/photo.report.json").read_text())
    assert report["domain"] == "mosaic"
    assert "LensModel" not in report["tags"]["lost"]
    assert (tmp_path / "out/photo.report.png").exists()


@pytest.mark.parametrize("height", [511, 513, 1300])
def test_a_picture_developed_in_bands_is_the_picture_developed_at_once(tmp_path: Path, height: int):
    path = tmp_path / "tall.dng"
    values = np.random.default_rng(0).integers(600, 9000, (height, 40)).astype(np.uint16)
    write_cfa_dng(path, values, cfa="GBRG", metadata=replace(METADATA, orientation=1), **LEVELS)
    develop_file(path, tmp_path / "whole.png")
    comparison, _ = compare_files(path, tmp_path / "whole.png")
    drifts = [channel.drift for channel in comparison.channels.values()]
    assert np.abs(drifts).max() < 1e-4
    assert comparison.metrics["psnr"] > 57  # rounding to 8 bits gives 58.9
