from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rawpy
import tifffile

from library.files.dng import write_cfa_dng, write_linear_dng
from library.files.metadata import ImageMetadata
from library.files.raw import BAYER_PHASES, read_raw

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
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1  # no preview that would still show the noise


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
