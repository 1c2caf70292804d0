from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rawpy
import tifffile
from PIL import Image

from library.files.dng import Compression, write_cfa_dng, write_linear_dng
from library.files.dng_tags import Opcode, opcodes_for_planes, pack_opcodes, parse_opcodes
from library.files.metadata import ImageMetadata
from library.files.raw import read_raw
from library.files.tiff import Tag, TagType, uncompressed_strips, write_images, write_tiff
from library.ops.cfa import BAYER_PHASES, XTRANS_PHASES, shift_cfa

BLACK_LEVEL = np.array([[500, 510], [520, 530]], np.float32)

METADATA = ImageMetadata(
    make="Nobody",
    model="Camera 1",  # unknown to LibRaw, which has its own matrices for those it knows
    iso=3200,
    exposure_time=1 / 160,
    f_number=2.8,
    focal_length=35.5,
    timestamp="2024-02-03T04:05:06",
    orientation=6,
    pixel_aspect=1.25,
    xyz_to_camera=np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]]),
    as_shot_white_balance=np.array([2.125, 1.0, 1.625]),
    noise_profile=((1.25e-4, 3e-7), (1.5e-4, 2e-7), (1.75e-4, 1e-7)),
    exif={"LensModel": "Prime 35.5", "LensSpecification": [35.5, 35.5, 1.4, 0.0], "Copyright": "© Nobody"},
    original_name="IMG_0001.CR2",
)


def mosaic(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (height, width)).astype(np.uint16)


def tags(path: Path) -> dict[int, object]:
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages.first.tags}


@pytest.mark.parametrize("cfa", BAYER_PHASES)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (22, 23)])
def test_a_mosaic_comes_back_exactly_with_its_phase_and_levels(tmp_path: Path, cfa: str, height: int, width: int):
    path = tmp_path / "image.dng"
    samples = mosaic(height, width)
    write_cfa_dng(path, samples, cfa=cfa, black_level=BLACK_LEVEL, white_level=16000, metadata=METADATA)
    image = read_raw(path)
    assert np.array_equal(image.mosaic, samples)
    assert (image.cfa, image.white_level) == (cfa, 16000)
    assert np.array_equal(image.black_level, BLACK_LEVEL)
    assert np.array_equal(tifffile.imread(path), samples)


def test_what_is_known_about_the_photograph_comes_back(tmp_path: Path):
    path = tmp_path / "image.dng"
    write_cfa_dng(path, mosaic(32, 32), cfa="GBRG", black_level=BLACK_LEVEL, white_level=16000, metadata=METADATA)
    image = read_raw(path)
    for name in ("make", "model", "iso", "exposure_time", "f_number", "focal_length", "timestamp", "orientation"):
        assert getattr(image, name) == getattr(METADATA, name), name
    assert image.pixel_aspect == METADATA.pixel_aspect
    assert image.noise_profile == METADATA.noise_profile
    for name in ("xyz_to_camera", "as_shot_white_balance"):
        np.testing.assert_allclose(getattr(image, name), getattr(METADATA, name), rtol=1e-6)
    assert image.exif == {**METADATA.exif, "DateTimeOriginal": "2024:02:03 04:05:06"}
    assert image.metadata().original_name == "image.dng"


def test_what_is_unknown_is_not_written(tmp_path: Path):
    path = tmp_path / "image.dng"
    write_cfa_dng(
        path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=ImageMetadata()
    )
    image = read_raw(path)
    assert image.xyz_to_camera is image.as_shot_white_balance is image.noise_profile is image.iso is None
    assert image.exposure_time is image.f_number is image.focal_length is image.timestamp is None
    assert (image.make, image.model, image.orientation, image.pixel_aspect) == ("", "", 1, 1.0)
    assert tags(path).keys().isdisjoint({271, 272, 700, 50721, 50728, 50778, 50827, 51041})
    assert tags(path)[50708] == "Unknown"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_back(tmp_path: Path, orientation: int):
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, orientation=orientation)
    write_cfa_dng(path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    assert read_raw(path).orientation == orientation


@pytest.mark.parametrize("iso", [50, 65534, 65536, 204800])
def test_an_iso_beyond_the_16_bits_of_its_tag_comes_back(tmp_path: Path, iso: float):
    """RawNIND's darkest shots are labelled ISO 65535, which is only where the tag ends."""
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, iso=iso)
    write_cfa_dng(path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    assert read_raw(path).iso == iso


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.5345911949685533])
def test_pixels_that_are_not_square_keep_their_shape_and_are_never_shrunk(tmp_path: Path, aspect: float):
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, pixel_aspect=aspect)
    write_cfa_dng(path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    assert read_raw(path).pixel_aspect == pytest.approx(aspect, rel=1e-6)
    with tifffile.TiffFile(path) as file:
        horizontal, per, vertical, under = file.pages.first.tags.valueof(50718)
    assert min(horizontal / per, vertical / under) == 1


def test_the_tags_say_what_strict_readers_ask_for(tmp_path: Path):
    path = tmp_path / "image.dng"
    write_cfa_dng(path, mosaic(33, 40), cfa="GRBG", black_level=BLACK_LEVEL, white_level=16000, metadata=METADATA)
    read = tags(path)
    assert read[50706] == bytes([1, 4, 0, 0])
    assert read[50708] == "Nobody Camera 1"
    assert read[50778] == 21  # without CalibrationIlluminant1 = D65 darktable drops the matrix
    assert read[50829] == (0, 0, 33, 40)
    assert read[33422] == bytes([1, 0, 2, 1])
    assert read[50714] == (500, 510, 520, 530)
    assert read[50827] == "IMG_0001.CR2"
    assert read[259] == 1
    assert 322 not in read  # tile tags beside strips keep a DNG from opening


@pytest.mark.parametrize(
    ("white_balance", "neutral"), [([2.125, 1, 1.625], (8, 17, 1, 1, 8, 13)), ([0.8, 1, 1.6], (1, 1, 4, 5, 1, 2))]
)
def test_neutral_is_the_inverse_of_the_white_balance_and_at_most_one(
    tmp_path: Path, white_balance: list[float], neutral: tuple[int, ...]
):
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, as_shot_white_balance=np.array(white_balance))
    write_cfa_dng(path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    assert tags(path)[50728] == neutral
    read = read_raw(path).as_shot_white_balance
    assert read is not None
    np.testing.assert_allclose(read, white_balance, rtol=1e-6)


def test_a_denoised_file_says_so_and_by_what(tmp_path: Path):
    """darktable denoises a DNG a second time unless it carries its marker."""
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, denoised_by='nafnet "7" & <co>')
    write_cfa_dng(path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    packet = tags(path)[700]
    assert isinstance(packet, bytes)
    assert 'darktable:neural_restore="raw-denoise"' in packet.decode()
    description = ElementTree.fromstring(packet.decode())[0][0]
    assert description.get("{urn:stillgrain:1.0:}denoised_by") == 'nafnet "7" & <co>'


def test_fractional_black_levels_are_kept_in_the_file(tmp_path: Path):
    path = tmp_path / "image.dng"
    write_cfa_dng(path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL + 0.5, white_level=16000, metadata=METADATA)
    assert tags(path)[50714] == (1001, 2, 1021, 2, 1041, 2, 1061, 2)


@pytest.mark.parametrize("black_level", [0, 512])
def test_a_linear_image_comes_back_exactly(tmp_path: Path, black_level: int):
    path = tmp_path / "image.dng"
    camera_rgb = np.random.default_rng(0).integers(0, 65536, (31, 45, 3)).astype(np.uint16)
    write_linear_dng(path, camera_rgb, black_level=black_level, white_level=65535, metadata=METADATA)
    assert np.array_equal(tifffile.imread(path), camera_rgb)
    with rawpy.imread(str(path)) as raw:
        assert raw.raw_type is rawpy.RawType.Stack
        assert np.array_equal(raw.raw_image[..., :3], camera_rgb)
        assert raw.black_level_per_channel[:3] == [black_level] * 3
        assert raw.white_level == 65535
        np.testing.assert_allclose(raw.camera_whitebalance[:3], [2.125, 1, 1.625], rtol=1e-6)
    assert tags(path)[262] == 34892


@pytest.mark.parametrize(
    "name",
    [
        "raw/canon_eos_550d_magiclantern_colorchart.dng",
        "raw/kodak_dc120_p003911.kdc",
        "raw/canon_powershot_s40_crw_0101.crw",
    ],
)
def test_a_camera_file_survives_the_way_through_dng(shared_data: Path, tmp_path: Path, name: str):
    first = read_raw(shared_data / name)
    path = tmp_path / "copy.dng"
    write_cfa_dng(
        path,
        first.mosaic,
        cfa=first.cfa,
        black_level=first.black_level,
        white_level=first.white_level,
        metadata=first.metadata(),
    )
    again = read_raw(path)
    assert np.array_equal(again.mosaic, first.mosaic)
    assert (again.cfa, again.white_level, again.make, again.model) == (
        first.cfa,
        first.white_level,
        first.make,
        first.model,
    )
    assert np.array_equal(again.black_level, first.black_level)
    assert (again.iso, again.timestamp) == (first.iso, first.timestamp)
    assert again.pixel_aspect == pytest.approx(first.pixel_aspect, rel=1e-6)
    for matrix in ("xyz_to_camera", "as_shot_white_balance"):
        if getattr(first, matrix) is None:
            assert getattr(again, matrix) is None
        else:
            np.testing.assert_allclose(getattr(again, matrix), getattr(first, matrix), rtol=1e-6)


def test_equal_images_are_equal_bytes(tmp_path: Path):
    for name in ("one.dng", "two.dng"):
        write_cfa_dng(
            tmp_path / name, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=METADATA
        )
    assert (tmp_path / "one.dng").read_bytes() == (tmp_path / "two.dng").read_bytes()


# --- lossless JPEG ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width"), [(300, 531), (64, 600), (512, 512), (257, 255), (33, 40), (40, 32), (22, 23), (700, 256)]
)
def test_lossless_jpeg_gives_every_sample_back(tmp_path: Path, height: int, width: int):
    """LibRaw misreads a tile wider than the image, and one of two components that is half as wide as it."""
    path, samples = tmp_path / "image.dng", mosaic(height, width)
    levels = {"black_level": BLACK_LEVEL, "white_level": 65535, "metadata": METADATA}
    write_cfa_dng(path, samples, cfa="GRBG", compression="lossless-jpeg", **levels)
    assert np.array_equal(tifffile.imread(path), samples)
    assert np.array_equal(read_raw(path).mosaic, samples)
    assert tags(path)[259] == 7
    assert 273 not in tags(path)  # no strips beside the tiles
    rgb = np.random.default_rng(1).integers(0, 65536, (height, width, 3)).astype(np.uint16)
    write_linear_dng(path, rgb, black_level=1024, white_level=65535, metadata=METADATA, compression="lossless-jpeg")
    assert np.array_equal(tifffile.imread(path), rgb)
    with rawpy.imread(str(path)) as raw:
        assert np.array_equal(raw.raw_image[..., :3], rgb)


def test_a_picture_of_a_camera_is_smaller_in_lossless_jpeg_and_the_same(shared_data: Path, tmp_path: Path):
    raw = read_raw(shared_data / "synthetic/kiara_canon_eos-7d_iso00100.dng")
    sizes = []
    kinds: tuple[Compression, ...] = ("none", "lossless-jpeg")
    for compression in kinds:
        path = tmp_path / f"{compression}.dng"
        write_cfa_dng(
            path,
            raw.mosaic,
            cfa=raw.cfa,
            black_level=raw.black_level,
            white_level=raw.white_level,
            metadata=raw.metadata(),
            compression=compression,
        )
        assert np.array_equal(read_raw(path).mosaic, raw.mosaic)
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_an_image_narrower_than_a_tile_is_left_uncompressed(tmp_path: Path):
    path, samples = tmp_path / "image.dng", mosaic(40, 12)
    levels = {"black_level": BLACK_LEVEL, "white_level": 65535, "metadata": METADATA}
    write_cfa_dng(path, samples, cfa="RGGB", compression="lossless-jpeg", **levels)
    assert np.array_equal(tifffile.imread(path), samples)
    assert tags(path)[259] == 1


# --- the preview ------------------------------------------------------------------------------------------------------


def halves(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint16: red at the left, blue at the right, both with some noise."""
    rgb = np.random.default_rng(0).integers(2500, 3500, (height, width, 3)).astype(np.uint16)
    rgb[..., 1] += 6000
    rgb[:, : width // 2, 0] += 9000
    rgb[:, width // 2 :, 2] += 9000
    return rgb


def preview_of(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        [page] = file.pages.first.pages
        assert (page.subfiletype, page.compression) == (1, 7)
        assert page.tags.valueof(50970) == 2  # PreviewColorSpace: sRGB
        return page.asarray()


@pytest.mark.parametrize("side", [64, 2000])
@pytest.mark.parametrize("cfa", ["GBRG", XTRANS_PHASES[5], "linear"])
def test_the_preview_shows_the_samples_that_are_there(tmp_path: Path, cfa: str, side: int):
    """Editors and file managers show the preview: an old one says that nothing was done."""
    rgb, path = halves(side, side + 100), tmp_path / "image.dng"
    facts = ImageMetadata(cfa="")
    if cfa == "linear":
        write_linear_dng(path, rgb, black_level=1024, white_level=65535, metadata=facts)
    else:
        period = round(len(cfa) ** 0.5)
        tile = np.array(["RGB".index(letter) for letter in cfa]).reshape(period, period)
        colors = np.tile(tile, (side // period + 1, side // period + 60))[:side, : side + 100]
        samples = np.take_along_axis(rgb, colors[..., None], axis=2)[..., 0]
        black = np.full((2, 2), 1024.0)
        write_cfa_dng(path, samples, cfa=cfa, black_level=black, white_level=65535, metadata=facts)
    preview = preview_of(path)
    height, width, _ = preview.shape
    assert max(height, width) <= 1600
    left, right = preview[height // 2, width // 4], preview[height // 2, -width // 4]
    assert left[0] > left[2] + 100.0
    assert right[2] > right[0] + 100.0


def test_a_mosaic_smaller_than_a_tile_has_no_preview(tmp_path: Path):
    path = tmp_path / "image.dng"
    write_cfa_dng(path, mosaic(1, 9), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=METADATA)
    assert 330 not in tags(path)
    assert np.array_equal(tifffile.imread(path).reshape(1, 9), mosaic(1, 9))


def test_facts_that_make_no_sense_do_not_keep_a_file_from_being_written(tmp_path: Path):
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, xyz_to_camera=np.ones((3, 3)))
    write_cfa_dng(path, mosaic(32, 32), cfa="RGGB", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    assert preview_of(path).shape == (16, 16, 3)


# --- X-Trans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfa", XTRANS_PHASES[::4])
def test_an_x_trans_mosaic_comes_back_with_its_phase_and_levels(tmp_path: Path, cfa: str):
    path, samples = tmp_path / "image.dng", mosaic(64, 97)
    black = np.arange(36.0).reshape(6, 6) + 100
    write_cfa_dng(path, samples, cfa=cfa, black_level=black, white_level=16000, metadata=METADATA)
    image = read_raw(path)
    assert np.array_equal(image.mosaic, samples)
    assert image.cfa == cfa
    assert np.array_equal(image.black_level, black)


# --- what remains of the noise ----------------------------------------------------------------------------------------


def noisy(variance: float) -> np.ndarray:
    """A grey ramp from black to white with noise, at 16 bits and a black of 1024."""
    clean = np.linspace(0.02, 0.9, 512) * np.ones((512, 1))
    values = clean + np.random.default_rng(0).normal(0, variance**0.5, clean.shape)
    return np.clip(values * 64511 + 1024, 0, 65535).astype(np.uint16)


def profile_of(path: Path) -> tuple[float, ...] | None:
    return tags(path).get(51041)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("variance", [1e-5, 1e-3])
def test_a_denoised_file_says_what_noise_it_has_left(tmp_path: Path, variance: float):
    path = tmp_path / "image.dng"
    levels = {"black_level": np.full((2, 2), 1024.0), "white_level": 65535}
    metadata = ImageMetadata(denoised_by="nafnet")
    write_cfa_dng(path, noisy(variance), cfa="RGGB", metadata=metadata, **levels)
    profile = profile_of(path)
    assert profile is not None
    a, b = profile
    assert 0.5 < (a * 0.45 + b) / variance < 2
    rgb = np.repeat(noisy(variance)[..., None], 3, axis=2)
    write_linear_dng(path, rgb, black_level=1024, white_level=65535, metadata=metadata)
    assert profile_of(path) is not None


def test_it_never_claims_more_noise_than_the_raw_had_and_a_raw_keeps_its_profile(tmp_path: Path):
    path = tmp_path / "image.dng"
    levels = {"black_level": np.full((2, 2), 1024.0), "white_level": 65535}
    had = ImageMetadata(noise_profile=((1e-7, 1e-8), (2e-7, 1e-8), (1e-7, 1e-8)))
    write_cfa_dng(path, noisy(1e-3), cfa="RGGB", metadata=replace(had, denoised_by="nafnet"), **levels)
    assert profile_of(path) == (1e-7, 1e-8, 2e-7, 1e-8, 1e-7, 1e-8)
    write_cfa_dng(path, noisy(1e-3), cfa="RGGB", metadata=had, **levels)
    assert profile_of(path) == (1e-7, 1e-8, 2e-7, 1e-8, 1e-7, 1e-8)
    write_cfa_dng(path, mosaic(8, 8), cfa="RGGB", metadata=replace(had, denoised_by="nafnet"), **levels)
    assert profile_of(path) is None  # too small to be measured


# --- a DNG made of a DNG ----------------------------------------------------------------------------------------------


def gain_map(top: int, left: int, pitch: int, gain: float) -> Opcode:
    """An opcode that brightens every `pitch`th photosite of every `pitch`th row."""
    area = struct.pack(">8I", top, left, 65, 97, 0, 1, pitch, pitch)
    grid = struct.pack(">2I4dI", 1, 1, 1.0, 1.0, 0.0, 0.0, 1) + struct.pack(">f", gain)
    return Opcode(9, 0x01030000, 1, area + grid)


WARP = Opcode(1, 0x01030000, 1, struct.pack(">I8d", 1, 1, 0.01, 0, 0, 0, 0, 0.5, 0.5))
PHONE_GAINS = [gain_map(y, x, 2, 1 + y + x / 10) for y in range(2) for x in range(2)]
FROM_A_PHONE = {
    "UniqueCameraModel": "Nobody Phone",
    "ColorMatrix1": [0.9, -0.1, 0.05, -0.4, 1.2, 0.2, -0.1, 0.2, 0.6],
    "ColorMatrix2": [0.8, -0.2, 0.0, -0.3, 1.1, 0.2, -0.1, 0.3, 0.5],
    "CalibrationIlluminant1": [17],
    "CalibrationIlluminant2": [21],
    "BaselineExposure": [0.5],
    "LensInfo": [4.25, 4.25, 1.75, 1.75],
    "ProfileToneCurve": [0.0, 0.0, 0.5, 0.625, 1.0, 1.0],
    "DefaultCropOrigin": [4.0, 2.0],
    "DefaultCropSize": [80.0, 60.0],
    "OpcodeList2": pack_opcodes(PHONE_GAINS),
    "OpcodeList3": pack_opcodes([WARP]),
}


def test_colour_lens_and_framing_of_a_dng_come_back_from_a_dng_made_of_it(tmp_path: Path):
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, dng=FROM_A_PHONE)
    write_cfa_dng(path, mosaic(65, 97), cfa="GRBG", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    again = read_raw(path)
    assert again.mosaic.shape == (65, 97)  # a default crop frames the picture, and takes no photosite away
    assert set(again.dng) == set(FROM_A_PHONE)
    for name, value in FROM_A_PHONE.items():
        if isinstance(value, list):
            np.testing.assert_allclose(again.dng[name], value, atol=1e-6, err_msg=name)  # pyright: ignore
        else:
            assert again.dng[name] == value, name
    assert tags(path)[50707] == bytes([1, 3, 0, 0])  # opcodes need a reader of DNG 1.3


def test_a_phones_gains_for_photosites_become_those_of_planes_in_a_linear_image(tmp_path: Path):
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, dng=FROM_A_PHONE, cfa="GRBG")
    write_linear_dng(path, np.zeros((65, 97, 3), np.uint16), black_level=9, white_level=99, metadata=metadata)
    steps = parse_opcodes(tags(path)[51009])  # pyright: ignore[reportArgumentType]
    assert steps is not None
    areas = [struct.unpack_from(">8I", step.data) for step in steps]
    gains = [struct.unpack(">f", step.data[-4:])[0] for step in steps]
    assert areas == [(0, 0, 65, 97, plane, 1, 1, 1) for plane in (1, 0, 2)]  # the first green, red, blue
    assert gains == pytest.approx([1.0, 1.1, 2.0])
    assert tags(path)[51022] == pack_opcodes([WARP])


def test_a_step_for_all_photosites_becomes_one_for_all_planes_and_what_planes_have_not_is_left_out():
    for_all, of_rows = gain_map(0, 0, 1, 2.0), gain_map(0, 0, 3, 2.0)
    [step] = parse_opcodes(opcodes_for_planes(pack_opcodes([for_all, of_rows]), "RGGB")) or []
    assert struct.unpack_from(">8I", step.data) == (0, 0, 65, 97, 0, 3, 1, 1)
    assert opcodes_for_planes(pack_opcodes([of_rows]), "RGGB") == b""
    assert parse_opcodes(pack_opcodes(PHONE_GAINS)[:-1]) is None


def test_a_crop_that_does_not_fit_the_samples_is_not_carried(tmp_path: Path):
    path = tmp_path / "image.dng"
    metadata = replace(METADATA, dng=FROM_A_PHONE)
    write_cfa_dng(path, mosaic(32, 32), cfa="GRBG", black_level=BLACK_LEVEL, white_level=16000, metadata=metadata)
    assert tags(path)[50720] == (32, 32)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (1, 0), (0, 3), (5, 7)])
def test_cfa_and_black_levels_count_from_the_active_area_wherever_it_begins(tmp_path: Path, top: int, left: int):
    """A raw whose borders are odd turned magenta where they were counted from the sensor's corner."""
    path, copy, samples = tmp_path / "sensor.dng", tmp_path / "copy.dng", mosaic(64, 96)
    layout = [
        Tag(254, TagType.LONG, 0),
        Tag(262, TagType.SHORT, 32803),
        Tag(33421, TagType.SHORT, [2, 2]),
        Tag(33422, TagType.BYTE, bytes([1, 0, 2, 1])),  # GRBG
        Tag(50706, TagType.BYTE, bytes([1, 4, 0, 0])),
        Tag(50708, TagType.ASCII, "Nobody"),
        Tag(50713, TagType.SHORT, [2, 2]),
        Tag(50714, TagType.LONG, [500, 510, 520, 530]),
        Tag(50717, TagType.LONG, 60000),
        Tag(50829, TagType.LONG, [top, left, 60, 90]),
    ]
    write_tiff(path, [samples], height=64, width=96, channels=1, tags=layout)
    image = read_raw(path)
    assert image.cfa == "GRBG"
    assert np.array_equal(image.mosaic, samples[top:60, left:90])
    assert np.array_equal(image.black_level, BLACK_LEVEL)
    levels = {"black_level": image.black_level, "white_level": image.white_level}
    write_cfa_dng(copy, image.mosaic[1:, 1:], cfa=shift_cfa(image.cfa, 1, 1), metadata=image.metadata(), **levels)
    assert read_raw(copy).cfa == "GRBG"[::-1]


def test_what_lies_below_the_first_directory_is_found_there(tmp_path: Path):
    """Adobe's converter puts a preview into the first directory, and the mosaic with its levels below it."""
    path, samples = tmp_path / "adobe.dng", mosaic(64, 96)
    stored = uncompressed_strips([samples], height=64, width=96, channels=1)
    of_mosaic = [
        Tag(254, TagType.LONG, 0),
        Tag(262, TagType.SHORT, 32803),
        Tag(33421, TagType.SHORT, [2, 2]),
        Tag(33422, TagType.BYTE, bytes([1, 2, 0, 1])),  # GBRG
        Tag(50714, TagType.LONG, 512),
        Tag(50717, TagType.LONG, 60000),
        Tag(50719, TagType.RATIONAL, [4, 2]),
        Tag(50720, TagType.RATIONAL, [80, 60]),
        Tag(51022, TagType.UNDEFINED, pack_opcodes([WARP])),
    ]
    of_file = [
        Tag(254, TagType.LONG, 1),
        Tag(262, TagType.SHORT, 2),
        Tag(271, TagType.ASCII, "Nobody"),
        Tag(50706, TagType.BYTE, bytes([1, 4, 0, 0])),
        Tag(50708, TagType.ASCII, "Nobody's Camera"),
        Tag(50730, TagType.SRATIONAL, -0.25),
    ]
    thumbnail = [np.zeros((16, 24, 3), np.uint16)]
    small = uncompressed_strips(thumbnail, height=16, width=24, channels=3)
    write_images(path, small, tags=of_file, previews=[(stored, of_mosaic)])
    image = read_raw(path)
    assert np.array_equal(image.mosaic, samples)
    assert (image.cfa, image.make) == ("GBRG", "Nobody")
    assert image.dng == {
        "UniqueCameraModel": "Nobody's Camera",
        "BaselineExposure": [-0.25],
        "DefaultCropOrigin": [4.0, 2.0],
        "DefaultCropSize": [80.0, 60.0],
        "OpcodeList3": pack_opcodes([WARP]),
    }


# --- other programs ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["cfa", "cfa lossless-jpeg", "linear", "linear lossless-jpeg"])
def dng(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A DNG that holds two colours side by side, 640 x 480, with everything that can be carried."""
    path, rgb = tmp_path / "image.dng", halves(480, 640)
    metadata = replace(METADATA, orientation=1, pixel_aspect=1.0, denoised_by="nafnet", dng={"OpcodeList3": b"\0" * 4})
    kind, _, packed = request.param.partition(" ")
    compression: Compression = "lossless-jpeg" if packed else "none"
    if kind == "linear":
        write_linear_dng(path, rgb, black_level=1024, white_level=65535, metadata=metadata, compression=compression)
    else:
        samples = rgb[..., 1].copy()
        samples[::2, ::2], samples[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
        black = np.full((2, 2), 1024.0)
        write_cfa_dng(
            path,
            samples,
            cfa="RGGB",
            black_level=black,
            white_level=65535,
            metadata=metadata,
            compression=compression,
        )
    return path


def program(name: str) -> str:
    if (found := shutil.which(name)) is None:
        pytest.skip(f"needs {name}, which is not installed here")
    return found


def test_exiftool_finds_nothing_wrong(dng: Path):
    command = [program("exiftool"), "-validate", "-warning", "-error", "-a", "-j", "-n", "-G1", str(dng)]
    [facts] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert not [value for name, value in facts.items() if name.endswith((":Error", ":Warning"))]
    all_tags = [program("exiftool"), "-j", "-n", str(dng)]
    [facts] = json.loads(subprocess.run(all_tags, capture_output=True, check=True, text=True).stdout)
    assert (facts["Make"], facts["ISO"], facts["LensModel"]) == ("Nobody", 3200, "Prime 35.5")
    assert facts["DateTimeOriginal"] == "2024:02:03 04:05:06"


def test_darktable_develops_it(dng: Path, tmp_path: Path):
    out = tmp_path / "out.png"
    command = [program("darktable-cli"), str(dng), str(out), "--core", "--configdir", str(tmp_path / "config")]
    subprocess.run(command, capture_output=True, check=True, timeout=200)
    assert_left_is_red(np.asarray(Image.open(out).convert("RGB")))


def test_rawtherapee_develops_it(dng: Path, tmp_path: Path):
    out = tmp_path / "out.png"
    command = [program("rawtherapee-cli"), "-o", str(out), "-n", "-b8", "-Y", "-c", str(dng)]
    subprocess.run(command, capture_output=True, check=True, timeout=200, env={**os.environ, "HOME": str(tmp_path)})
    assert_left_is_red(np.asarray(Image.open(out).convert("RGB")))


def test_libraw_develops_it(dng: Path):
    with rawpy.imread(str(dng)) as raw:
        thumb = raw.extract_thumb()
        assert thumb.format is rawpy.ThumbFormat.JPEG
        assert_left_is_red(np.asarray(Image.open(io.BytesIO(thumb.data))))
        assert_left_is_red(raw.postprocess(use_camera_wb=True, half_size=True))


def assert_left_is_red(rgb: np.ndarray) -> None:
    left, right = rgb[:, : rgb.shape[1] // 3].mean((0, 1)), rgb[:, -rgb.shape[1] // 3 :].mean((0, 1))
    assert left[0] > left[2] + 50
    assert right[2] > right[0] + 50
