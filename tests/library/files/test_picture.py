from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from library.errors import ImageFileError
from library.files.exr import CHROMATICITIES, exr_rgb_to_lin_rec2020, write_exr
from library.files.icc import Curve, Space, icc_profile
from library.files.metadata import ImageMetadata
from library.files.picture import read_image, srgb_profile, write_png, write_rgb_tiff, write_tiff16
from library.ops.color import convert_space

METADATA = ImageMetadata(
    make="Canon", model="EOS 7D", iso=100, exposure_time=1 / 60, exif={"LensModel": "50mm", "Copyright": "(c) Nobody"}
)


def samples(dtype: type, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def test_a_png_comes_back_exactly_and_says_what_it_is(tmp_path: Path):
    path, srgb = tmp_path / "image.png", samples(np.uint8, 9, 7, 3)
    write_png(path, srgb, METADATA)
    read = read_image(path)
    assert np.array_equal(read.rgb, srgb / np.float32(255))
    assert (read.rgb.dtype, read.encoding, read.color_space) == (np.float32, "srgb", "srgb")
    with Image.open(path) as image:
        assert image.info["icc_profile"] == srgb_profile()
        exif = image.getexif()
        assert (exif[271], exif[272], exif[33432]) == ("Canon", "EOS 7D", "(c) Nobody")
        assert exif.get_ifd(34665)[33434] == pytest.approx(1 / 60)
        assert exif.get_ifd(34665)[42036] == "50mm"


def test_a_16_bit_tiff_comes_back_exactly_and_says_what_it_is(tmp_path: Path):
    path, srgb = tmp_path / "image.tif", samples(np.uint16, 300, 7, 3)
    write_tiff16(path, srgb, METADATA)
    read = read_image(path)
    assert np.array_equal(read.rgb, srgb / np.float32(65535))
    assert (read.encoding, read.color_space) == ("srgb", "srgb")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert np.array_equal(page.asarray(), srgb)
        assert page.tags.valueof(34675) == srgb_profile()
        assert page.tags.valueof(34665)["LensModel"] == "50mm"


def test_pictures_need_no_metadata_and_equal_pictures_are_equal_bytes(tmp_path: Path):
    for name in ("one", "two"):
        write_png(tmp_path / f"{name}.png", samples(np.uint8, 9, 7, 3))
        write_tiff16(tmp_path / f"{name}.tif", samples(np.uint16, 9, 7, 3))
    for suffix in ("png", "tif"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_the_profile_is_srgb_for_a_colour_management_system(tmp_path: Path):
    path = tmp_path / "profile.icc"
    path.write_bytes(srgb_profile())
    image = Image.fromarray(samples(np.uint8, 64, 64, 3))
    converted = ImageCms.profileToProfile(image, str(path), ImageCms.createProfile("sRGB"))
    assert converted is not None
    assert np.array_equal(np.asarray(converted), np.asarray(image))


@pytest.mark.parametrize("space", ["srgb", "rec2020", "display_p3", "aces_ap1"])
@pytest.mark.parametrize("curve", ["srgb", "linear"])
def test_a_profile_means_to_littlecms_what_our_own_matrices_mean(tmp_path: Path, space: Space, curve: Curve):
    path = tmp_path / "profile.icc"
    path.write_bytes(icc_profile(space, curve))
    profile = ImageCms.getOpenProfile(str(path))
    assert ImageCms.getProfileDescription(profile).startswith({"srgb": "sRGB", "rec2020": "Rec. 2020"}.get(space, ""))
    assert profile.profile.version == pytest.approx(4.4)
    inside = np.random.default_rng(0).uniform(0.3, 0.7, (8, 8, 3))  # of both gamuts
    linear = np.where(inside <= 0.04045, inside / 12.92, ((inside + 0.055) / 1.055) ** 2.4)
    values = inside if curve == "srgb" else linear
    read = imagecodecs.cms_transform(
        (values * 65535).round().astype(np.uint16),
        icc_profile(space, curve),
        icc_profile("srgb", "linear"),
        colorspace="rgb",
        outcolorspace="rgb",
    )
    expected = exr_rgb_to_lin_rec2020(linear, CHROMATICITIES[space]).astype(np.float64)
    back = exr_rgb_to_lin_rec2020(np.eye(3)[None], CHROMATICITIES["srgb"])[0].astype(np.float64)
    expected = expected @ np.linalg.inv(back)
    known = (expected > 0).all(axis=-1) & (expected < 1).all(axis=-1)
    assert known.mean() > 0.2
    np.testing.assert_allclose(read[known] / 65535, expected[known], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32])
@pytest.mark.parametrize(("space", "curve"), [("rec2020", "linear"), ("display_p3", "srgb")])
def test_a_tiff_of_any_kind_comes_back_and_carries_its_profile(tmp_path: Path, dtype: type, space: Space, curve: Curve):
    path = tmp_path / "image.tif"
    rgb = samples(np.uint16, 300, 7, 3) if dtype is np.uint16 else np.random.default_rng(0).normal(0, 3, (300, 7, 3))
    write_rgb_tiff(path, rgb.astype(dtype), space=space, curve=curve, metadata=METADATA)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert page.dtype == dtype
        assert np.array_equal(page.asarray(), rgb.astype(dtype))
        assert page.tags.valueof(34675) == icc_profile(space, curve)
        assert page.tags.valueof(34665)["LensModel"] == "50mm"
    if dtype is not np.uint16 and space == "rec2020":
        read = read_image(path)
        assert (read.encoding, read.color_space) == ("linear", "rec2020")
        assert np.array_equal(read.rgb, rgb.astype(dtype).astype(np.float32))


def test_what_is_not_finite_is_not_written(tmp_path: Path):
    with pytest.raises(ImageFileError, match="NaN or infinity"):
        write_rgb_tiff(tmp_path / "x.tif", np.full((2, 2, 3), np.inf, np.float32), space="srgb", curve="linear")
    assert list(tmp_path.iterdir()) == []


def test_an_exr_in_another_space_is_read_as_rec2020(tmp_path: Path):
    rgb = np.random.default_rng(0).uniform(0, 2, (4, 4, 3)).astype(np.float32)
    write_exr(tmp_path / "image.exr", rgb, chromaticities="aces_ap0", pixel_type="float")
    read = read_image(tmp_path / "image.exr")
    assert (read.encoding, read.color_space) == ("linear", "rec2020")
    ours = convert_space(torch.from_numpy(rgb).permute(2, 0, 1), "aces_ap0", "lin_rec2020")
    np.testing.assert_allclose(read.rgb, ours.permute(1, 2, 0), atol=1e-5)


def test_grey_becomes_three_equal_channels_and_alpha_is_dropped(tmp_path: Path):
    for shape, mode in (((6, 5), "L"), ((6, 5, 2), "LA"), ((6, 5, 3), "RGB"), ((6, 5, 4), "RGBA")):
        pixels = samples(np.uint8, *shape)
        path = tmp_path / f"{mode}.png"
        Image.fromarray(pixels).save(path)
        colour = pixels[..., :3] if len(shape) == 3 and shape[2] >= 3 else pixels.reshape(6, 5, -1)[..., :1]
        assert np.array_equal(read_image(path).rgb, np.broadcast_to(colour, (6, 5, 3)) / np.float32(255))


def test_sixteen_bits_of_a_png_are_all_read(tmp_path: Path):
    """Pillow cuts them to eight."""
    path, srgb = tmp_path / "image.png", samples(np.uint16, 6, 5, 3)
    path.write_bytes(imagecodecs.png_encode(srgb))
    assert np.array_equal(read_image(path).rgb, srgb / np.float32(65535))


def test_tiffs_of_other_programs_are_read_in_every_layout(tmp_path: Path):
    path, srgb = tmp_path / "image.tif", samples(np.uint16, 6, 5, 3)
    layouts: list[dict[str, Any]] = [{"compression": "zlib", "predictor": True}, {"byteorder": ">"}, {"tile": (16, 16)}]
    for layout in layouts:
        tifffile.imwrite(path, srgb, photometric="rgb", **layout)
        assert np.array_equal(read_image(path).rgb, srgb / np.float32(65535))
    tifffile.imwrite(path, np.moveaxis(srgb, -1, 0), photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(path).rgb, srgb / np.float32(65535))
    tifffile.imwrite(path, np.full((6, 5, 3), -2.5, np.float16), photometric="rgb")
    read = read_image(path)
    assert (read.encoding, read.color_space, read.rgb.min()) == ("linear", "unknown", -2.5)


def test_a_jpeg_xl_and_a_jpeg_are_read(tmp_path: Path):
    srgb = samples(np.uint16, 16, 24, 3)
    (tmp_path / "image.jxl").write_bytes(imagecodecs.jpegxl_encode(srgb, lossless=True))
    read = read_image(tmp_path / "image.jxl")
    assert np.array_equal(read.rgb, srgb / np.float32(65535))
    assert (read.encoding, read.color_space) == ("srgb", "unknown")
    Image.new("RGB", (24, 16), (200, 100, 50)).save(tmp_path / "image.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "image.jpg").rgb[8, 8] * 255, [200, 100, 50], atol=2)


def test_a_radiance_panorama_is_linear(shared_data: Path):
    read = read_image(shared_data / "hdr/kiara_1_dawn_1k.hdr")
    assert (read.rgb.shape, read.encoding) == ((512, 1024, 3), "linear")
    assert read.rgb.max() == 102.5  # the sun


def test_an_exr_is_linear_in_its_own_space(tmp_path: Path):
    rgb = np.full((4, 4, 3), 2.0, np.float32)
    write_exr(tmp_path / "image.exr", rgb, chromaticities="rec2020")
    read = read_image(tmp_path / "image.exr")
    assert np.array_equal(read.rgb, rgb)
    assert (read.encoding, read.color_space) == ("linear", "rec2020")


def test_a_wide_gamut_picture_is_converted_as_pillow_converts_it(shared_data: Path):
    path = shared_data / "rgb/wide_gamut/P3-sRGB-color-ring.png"
    with Image.open(path) as image:
        source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        converted = ImageCms.profileToProfile(
            image.convert("RGB"), source, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        stored = np.asarray(image.convert("RGB"))
    assert converted is not None
    read = np.round(read_image(path).rgb * 255)
    # Pillow's in-memory profile is not rounded to a file's fixed-point numbers.
    assert np.abs(read - np.asarray(converted)).max() <= 1
    assert (read != np.asarray(converted)).mean() < 1e-3
    assert np.abs(read - stored).max() > 50


def test_a_linear_16_bit_profile_is_applied_in_16_bits(shared_data: Path):
    path = shared_data / "rgb16/raw_pixls/HUAWEI-EVA-L09-16bit_709_g1_dt.png"
    linear = imagecodecs.png_decode(path.read_bytes()) / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    np.testing.assert_allclose(read_image(path).rgb, srgb, atol=2 / 65535)


def test_a_picture_that_carries_an_srgb_profile_is_left_as_it_is(shared_data: Path):
    path = shared_data / "rgb/wesaturate/tmshre_riaphotographs_srgb8.png"
    with Image.open(path) as image:
        assert np.array_equal(np.round(read_image(path).rgb * 255), np.asarray(image))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rgb16/hdr_room.png", "HLG"),
        ("synthetic/kiara_canon_eos-7d_iso00100.dng", "CFA"),
        ("raw/canon_powershot_g2_crw_0304.crw", "no picture"),
        ("rgb", "cannot be read"),
        ("missing.png", "cannot be read"),
    ],
)
def test_what_is_no_srgb_picture_is_refused_in_words(shared_data: Path, name: str, reason: str):
    with pytest.raises(ImageFileError, match=reason):
        read_image(shared_data / name)


def test_a_cmyk_picture_is_refused(tmp_path: Path):
    Image.new("CMYK", (8, 8)).save(tmp_path / "print.jpg")
    with pytest.raises(ImageFileError, match="CMYK"):
        read_image(tmp_path / "print.jpg")


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_cut_picture_is_refused(tmp_path: Path, part: float):
    rgb8, rgb16 = samples(np.uint8, 64, 64, 3), samples(np.uint16, 64, 64, 3)
    write_png(tmp_path / "8.png", rgb8)
    (tmp_path / "16.png").write_bytes(imagecodecs.png_encode(rgb16))
    Image.fromarray(rgb8).save(tmp_path / "a.jpg")
    write_tiff16(tmp_path / "a.tif", rgb16)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(rgb16))
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
        with pytest.raises(ImageFileError, match="damaged"):
            read_image(path)


def test_a_tiff_that_lies_about_its_size_is_refused_before_anything_is_allocated(tmp_path: Path):
    path = tmp_path / "image.tif"
    write_tiff16(path, samples(np.uint16, 6, 5, 3))
    data = bytearray(path.read_bytes())
    for number in (256, 257):  # ImageWidth, ImageLength
        at = data.index(np.array([number, 4], "<u2").tobytes())
        data[at + 8 : at + 12] = np.array([60_000], "<u4").tobytes()
    path.write_bytes(data)
    with pytest.raises(ImageFileError, match="claims 60000 x 60000"):
        read_image(path)
