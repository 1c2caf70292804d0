from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from library.errors import ImageFileError
from library.files.exr import CHROMATICITIES, read_exr, write_exr
from library.files.metadata import ImageMetadata

# height, width, or the reason of the refusal
CONFORMANCE = {
    "Chromaticities_Rec709.exr": (406, 610),
    "Chromaticities_XYZ_YC.exr": "luminance-chroma",
    "DisplayWindow_t01.exr": (300, 400),
    "DisplayWindow_t08.exr": (300, 400),
    "DisplayWindow_t12.exr": (300, 400),
    "LuminanceChroma_Garden.exr": (493, 874),
    "MultiResolution_ColorCodedLevels.exr": (512, 512),
    "MultiResolution_PeriodicPattern.exr": (517, 517),
    "TestImages_AllHalfValues.exr": (256, 256),
    "TestImages_BrightRingsNanInf.exr": (800, 800),
    "TestImages_GammaChart.exr": (800, 800),
    "TestImages_GrayRampsHorizontal.exr": (800, 800),
    "TestImages_WideFloatRange.exr": "channels G",
    "TestImages_stripes.exr": (50, 100),
}


def image() -> np.ndarray:
    rgb = np.random.default_rng(0).normal(0.5, 1.0, (11, 7, 3)).astype(np.float16)
    rgb[0, 0] = (65504, -65504, 6e-8)
    return rgb


@pytest.mark.parametrize("color_space", ["rec2020", "srgb", None])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_half_values_come_back_exactly(tmp_path: Path, color_space: str | None, dtype: type):
    path = tmp_path / "image.exr"
    write_exr(path, image().astype(dtype), chromaticities=color_space)  # pyright: ignore[reportArgumentType]
    read = read_exr(path)
    assert read.rgb.dtype == np.float32
    assert np.array_equal(read.rgb, image().astype(np.float32))
    assert read.color_space == (color_space or "unknown")
    assert (read.chromaticities is None) == (color_space is None)
    if read.chromaticities and color_space:
        np.testing.assert_allclose(read.chromaticities, CHROMATICITIES[color_space], rtol=1e-6)


def test_the_file_is_half_float_zips_and_rgb(tmp_path: Path):
    path = tmp_path / "image.exr"
    write_exr(path, image().astype(np.float32), chromaticities="rec2020")
    with OpenEXR.File(str(path), separate_channels=True) as file:
        assert file.header()["compression"] == OpenEXR.ZIPS_COMPRESSION
        assert {name: channel.pixels.dtype for name, channel in file.channels().items()} == dict.fromkeys(
            "RGB", np.dtype(np.float16)
        )


def test_attributes_say_what_is_known_and_no_more(tmp_path: Path):
    path = tmp_path / "image.exr"
    metadata = ImageMetadata(make="Canon", iso=100, exposure_time=0.25, timestamp="2024-02-03T04:05:06")
    write_exr(path, image(), chromaticities=None, metadata=metadata, attributes={"bundle": "nafnet", "gain": 1.5})
    assert read_exr(path).attributes == {
        "bundle": "nafnet",
        "gain": 1.5,
        "cameraMake": "Canon",
        "isoSpeed": 100.0,
        "expTime": 0.25,
        "capDate": "2024:02:03 04:05:06",
    }


@pytest.mark.parametrize(("value", "reason"), [(65505.0, "65504"), (-1e9, "65504"), (np.inf, "65504"), (np.nan, "NaN")])
def test_what_half_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path, value: float, reason: str):
    rgb = np.zeros((4, 4, 3), np.float32)
    rgb[1, 2, 0] = value
    with pytest.raises(ImageFileError, match=reason):
        write_exr(tmp_path / "image.exr", rgb, chromaticities=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CONFORMANCE)
def test_every_conformance_file_is_read_or_refused_in_words(shared_data: Path, name: str):
    expected = CONFORMANCE[name]
    if isinstance(expected, str):
        with pytest.raises(ImageFileError, match=expected):
            read_exr(shared_data / "exr" / name)
    else:
        assert read_exr(shared_data / "exr" / name).rgb.shape == (*expected, 3)


def test_the_table_covers_every_conformance_file(shared_data: Path):
    assert {path.name for path in (shared_data / "exr").iterdir()} == set(CONFORMANCE)


def test_the_data_window_counts_wherever_it_lies(shared_data: Path):
    """The three files hold one image; only the windows differ."""
    first, *others = (read_exr(shared_data / f"exr/DisplayWindow_t{number}.exr").rgb for number in ("01", "08", "12"))
    for other in others:
        assert np.array_equal(first, other)


def test_nan_and_infinity_are_read_as_they_are(shared_data: Path):
    rgb = read_exr(shared_data / "exr/TestImages_AllHalfValues.exr").rgb
    every_half = np.arange(65536, dtype=np.uint16).view(np.float16)
    assert np.isnan(rgb).any()
    assert np.isinf(rgb).any()
    finite = rgb[np.isfinite(rgb)]
    assert set(finite.tolist()) <= set(every_half[np.isfinite(every_half)].astype(float).tolist())
    assert finite.max() == 65504


def test_luminance_becomes_three_equal_channels(shared_data: Path):
    rgb = read_exr(shared_data / "exr/TestImages_GrayRampsHorizontal.exr").rgb
    assert np.array_equal(rgb[..., 0], rgb[..., 1])
    assert np.array_equal(rgb[..., 0], rgb[..., 2])
    assert rgb.max() == 18


def test_several_parts_are_refused(tmp_path: Path):
    path = tmp_path / "stereo.exr"
    parts = [OpenEXR.Part({"name": name}, {"RGB": image()}) for name in ("left", "right")]
    with OpenEXR.File(parts) as file:
        file.write(str(path))
    with pytest.raises(ImageFileError, match="2 parts"):
        read_exr(path)


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.95])
def test_a_cut_file_is_refused(tmp_path: Path, part: float):
    """OpenEXR only prints a warning for pixels that it cannot decode, and returns no part."""
    path = tmp_path / "image.exr"
    write_exr(path, image(), chromaticities=None)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ImageFileError, match="damaged"):
        read_exr(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ImageFileError, match="not there"):
        read_exr(tmp_path / "missing.exr")
