from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from library.errors import ImageFileError
from library.files.exr import CHROMATICITIES, Compression, exr_rgb_to_lin_rec2020, read_exr, write_exr
from library.files.icc import Space
from library.files.luminance_chroma import luminance_chroma_to_rgb
from library.files.metadata import ImageMetadata

# height, width, or the reason of the refusal
CONFORMANCE = {
    "Chromaticities_Rec709.exr": (406, 610),
    "Chromaticities_XYZ_YC.exr": (406, 610),
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


@pytest.mark.parametrize("color_space", ["rec2020", "srgb", "display_p3", "aces_ap0", "aces_ap1", None])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_half_values_come_back_exactly(tmp_path: Path, color_space: str | None, dtype: type):
    path = tmp_path / "image.exr"
    write_exr(path, image().astype(dtype), chromaticities=color_space)  # pyright: ignore[reportArgumentType]
    read = read_exr(path)
    assert read.rgb.dtype == np.float32
    assert np.array_equal(read.rgb, image().astype(np.float32))
    assert read.color_space == (color_space if color_space in ("rec2020", "srgb") else "unknown")
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
    read = read_exr(shared_data / "exr/DisplayWindow_t08.exr")
    assert (read.data_window, read.display_window) == ((30, 40, 429, 339), (0, 0, 500, 400))


def test_nan_and_infinity_are_read_as_they_are(shared_data: Path):
    rgb = read_exr(shared_data / "exr/TestImages_AllHalfValues.exr").rgb
    every_half = np.arange(65536, dtype=np.uint16).view(np.float16)
    assert np.isnan(rgb).any()
    assert np.isinf(rgb).any()
    finite = rgb[np.isfinite(rgb)]
    assert set(finite.tolist()) <= set(every_half[np.isfinite(every_half)].astype(float).tolist())
    assert finite.max() == 65504


def test_every_half_there_is_comes_back_bit_for_bit(shared_data: Path):
    rgb = read_exr(shared_data / "exr/TestImages_AllHalfValues.exr").rgb[..., 1]
    every_half = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    read, wanted = np.sort(rgb.ravel()), np.sort(every_half)
    assert np.array_equal(read, wanted, equal_nan=True)


def test_rings_of_nan_and_infinity_are_where_they_are(shared_data: Path):
    rgb = read_exr(shared_data / "exr/TestImages_BrightRingsNanInf.exr").rgb
    assert np.isnan(rgb).any()
    assert np.isposinf(rgb).any()
    assert np.isfinite(rgb).mean() > 0.9


def test_a_mip_map_gives_its_largest_level(shared_data: Path):
    """It is mostly black and white, and the others have a colour each."""
    rgb = read_exr(shared_data / "exr/MultiResolution_ColorCodedLevels.exr").rgb
    assert rgb.shape == (512, 512, 3)
    grey = (rgb[..., 0] == rgb[..., 1]) & (rgb[..., 0] == rgb[..., 2])
    assert grey.mean() > 0.9


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
    with pytest.raises(ImageFileError, match=r"2 parts.*left, right"):
        read_exr(path)
    assert np.array_equal(read_exr(path, part="right").rgb, image())
    with pytest.raises(ImageFileError, match="left, right"):
        read_exr(path, part="middle")


def test_of_several_parts_the_only_picture_is_read(tmp_path: Path):
    path = tmp_path / "layers.exr"
    shared = {"chromaticities": CHROMATICITIES["rec2020"], "type": OpenEXR.scanlineimage}
    depth = OpenEXR.Part({"name": "depth", **shared}, {"Z": np.ones(image().shape[:2], np.float32)})
    beauty = OpenEXR.Part({"name": "beauty", **shared}, {"RGB": image()})
    with OpenEXR.File([depth, beauty]) as file:
        file.write(str(path))
    read = read_exr(path)
    assert np.array_equal(read.rgb, image())
    assert read.color_space == "rec2020"


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


# --- luminance and chroma ---------------------------------------------------------------------------------------------


def test_two_files_of_one_picture_are_one_picture_whatever_primaries_and_channels_they_have(shared_data: Path):
    """One has Rec.709 R, G and B, the other XYZ as luminance and chroma at half the resolution."""
    one = read_exr(shared_data / "exr/Chromaticities_Rec709.exr")
    other = read_exr(shared_data / "exr/Chromaticities_XYZ_YC.exr")
    assert other.chromaticities is not None
    pictures = [
        exr_rgb_to_lin_rec2020(read.rgb, read.chromaticities or CHROMATICITIES["srgb"]).astype(np.float64)
        for read in (one, other)
    ]
    luminance = [picture @ [0.2627, 0.6780, 0.0593] for picture in pictures]
    assert np.quantile(np.abs(luminance[0] - luminance[1]), 0.99) < 0.005
    error = np.mean((np.clip(pictures[0], 0, 1) - np.clip(pictures[1], 0, 1)) ** 2)
    assert -10 * np.log10(error) > 36  # chroma lost half its lines


@pytest.mark.parametrize(("top", "left"), [(0, 0), (1, 0), (4, 3), (-3, -7)])
def test_smooth_chroma_is_restored_wherever_the_data_window_begins(top: int, left: int):
    rows, columns = np.mgrid[top : top + 41, left : left + 60]
    rgb = np.stack([1 + 0.3 * np.sin(rows / 11), 1 + 0.2 * np.cos(columns / 13), 1 + 0 * rows], axis=-1)
    weights = np.array([0.2126, 0.7152, 0.0722])
    y = rgb @ weights
    ry, by = ((rgb[..., c] - y) / y for c in (0, 2))
    even = (slice(top % 2, None, 2), slice(left % 2, None, 2))
    restored = luminance_chroma_to_rgb(y, ry[even], by[even], top=top, left=left, luminance_weights=weights)
    np.testing.assert_allclose(restored[14:-14, 14:-14], rgb[14:-14, 14:-14], atol=1e-3)
    np.testing.assert_allclose(restored @ weights, y, rtol=1e-6)  # luminance is not touched, at the borders neither


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["zips", "zip", "piz", "none"])
def test_single_floats_come_back_exactly_under_every_lossless_compression(tmp_path: Path, compression: Compression):
    path = tmp_path / "image.exr"
    rgb = np.random.default_rng(0).normal(0, 1e6, (37, 45, 3)).astype(np.float32)
    write_exr(path, rgb, chromaticities="aces_ap1", pixel_type="float", compression=compression)
    assert np.array_equal(read_exr(path).rgb, rgb)
    with OpenEXR.File(str(path), separate_channels=True) as file:
        assert file.header()["compression"].name.lower().startswith("no_" if compression == "none" else compression)
        assert file.channels()["R"].pixels.dtype == np.float32


def test_dwaa_is_small_and_near(tmp_path: Path):
    rows, columns = np.mgrid[:128, :128]
    rgb = np.repeat((0.5 + 0.4 * np.sin(rows / 9) * np.cos(columns / 7))[..., None], 3, axis=2).astype(np.float32)
    rgb += np.random.default_rng(0).normal(0, 0.01, rgb.shape).astype(np.float32)
    for compression in ("zips", "dwaa"):
        write_exr(tmp_path / f"{compression}.exr", rgb, chromaticities="rec2020", compression=compression)
    assert (tmp_path / "dwaa.exr").stat().st_size < 0.5 * (tmp_path / "zips.exr").stat().st_size
    np.testing.assert_allclose(read_exr(tmp_path / "dwaa.exr").rgb, rgb, atol=0.1)


@pytest.mark.parametrize("space", ["srgb", "display_p3", "aces_ap0", "aces_ap1"])
def test_white_stays_white_in_rec2020_whatever_the_space(space: Space):
    white = np.ones((2, 2, 3), np.float32)
    np.testing.assert_allclose(exr_rgb_to_lin_rec2020(white, CHROMATICITIES[space]), white, atol=1e-5)


def test_what_is_no_light_is_refused(tmp_path: Path):
    path = tmp_path / "ids.exr"
    with OpenEXR.File({}, {"RGB": np.ones((4, 4, 3), np.uint32)}) as file:
        file.write(str(path))
    with pytest.raises(ImageFileError, match="whole numbers"):
        read_exr(path)
    with OpenEXR.File(
        {"chromaticities": (0.0,) * 8}, {name: np.ones((4, 4), np.float16) for name in ("Y", "RY", "BY")}
    ) as file:
        file.write(str(path))
    with pytest.raises(ImageFileError, match="no luminance"):
        read_exr(path)


def test_a_size_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path):
    path = tmp_path / "image.exr"
    write_exr(path, image(), chromaticities=None)
    data = bytearray(path.read_bytes())
    at = data.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    data[at + 8 : at + 16] = np.array([60_000, 60_000], "<i4").tobytes()
    path.write_bytes(data)
    with pytest.raises(ImageFileError, match="claims 60001 x 60001"):
        read_exr(path)
