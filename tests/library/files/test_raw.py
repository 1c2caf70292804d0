from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import rawpy
import tifffile

from library.errors import RawFileError
from library.files.exr import read_exr
from library.files.raw import RawImage, read_raw
from library.files.tiff import Tag, TagType, write_tiff
from library.ops.cfa import BAYER_PHASES, XTRANS_PHASES
from library.ops.levels import WhiteLevel

XTRANS = "GBGGRGRGRBGBGBGGRGGRGGBGBGBRGRGRGGBG"
# From the data's manifest: cfa, black, white, height, width, make, ISO.
EXPECTED = {
    "raw/canon_eos_550d_magiclantern_colorchart.dng": ("RGGB", 2056, 15000, 1156, 1734, "Canon", None),
    "raw/canon_powershot_g2_crw_0304.crw": ("RGGB", 32, 1023, 1720, 2312, "Canon", 50),
    "raw/canon_powershot_s40_crw_0101.crw": ("RGGB", 32, 1023, 1720, 2312, "Canon", 50),
    "raw/canon_powershot_s40_crw_0118.crw": ("RGGB", 32, 1023, 1720, 2312, "Canon", 50),
    "raw/kodak_dc120_p003908.kdc": ("GRBG", 0, 255, 976, 848, "Eastman Kodak Company", 160),
    "raw/kodak_dc120_p003911.kdc": ("GRBG", 0, 510, 976, 848, "Eastman Kodak Company", 160),
    "raw/kodak_dc50_dc0009l.kdc": ("GRBG", 0, 16383, 512, 768, "Eastman Kodak Company", 84),
    "raw/kodak_dc50_dc0010s.kdc": ("GRBG", 0, 16383, 512, 768, "Eastman Kodak Company", 84),
    "synthetic/alps_fujifilm_x-e2_iso00200.dng": (XTRANS, 1024, 16383, 576, 768, "Fujifilm", 200),
    "synthetic/alps_fujifilm_x-e2_iso06400.dng": (XTRANS, 1024, 16383, 576, 768, "Fujifilm", 6400),
    "synthetic/kiara_canon_eos-7d_iso00100.dng": ("GBRG", 2049, 15400, 512, 768, "Canon", 100),
    "synthetic/kiara_canon_eos-7d_iso06400.dng": ("GBRG", 2049, 15400, 512, 768, "Canon", 6400),
    "synthetic/lebombo_samsung_nx1_iso00100.dng": ("GRBG", 1024, 16100, 512, 768, "Samsung", 100),
    "synthetic/lebombo_samsung_nx1_iso12800.dng": ("GRBG", 1024, 16100, 512, 768, "Samsung", 12800),
    "synthetic/shop_pentax_k-5_iso00080.dng": ("BGGR", 512, 16383, 576, 768, "Pentax", 80),
    "synthetic/shop_pentax_k-5_iso12800.dng": ("BGGR", 512, 16383, 576, 768, "Pentax", 12800),
}

REFUSED = {
    "edge/canon_eos_6d_linear_iso1000.dng": "already demosaiced",
    "edge/gopro_hero7_gopr8513.gpr": "VC-5",
    "edge/truncated_s40_600k.crw": "is truncated or damaged",
    "raw/headless_nikon_dsc1339_768x512_gbrg_u16le.raw": r"u16le\.raw\.json",
    "rgb/kodak/kodim01.png": "begins like no raw format",
}

SIDECAR = {"width": 768, "height": 512, "cfa": "GBRG", "black_level": 600, "white_level": 16383}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_mosaic_gives_the_values_of_the_manifest(shared_data: Path, name: str):
    cfa, black, white, height, width, make, iso = EXPECTED[name]
    image = read_raw(shared_data / name)
    assert (image.cfa, image.white_level, image.height, image.width) == (cfa, white, height, width)
    period = 2 if len(cfa) == 4 else 6
    assert np.array_equal(image.black_level, np.full((period, period), black))
    assert (image.make, image.iso) == (make, iso)
    assert (image.mosaic.shape, image.mosaic.dtype) == ((height, width), np.uint16)
    assert image.mosaic.max() <= white


def test_the_table_covers_every_raw_file_of_the_folders(shared_data: Path):
    found = {
        f"{folder}/{path.name}"
        for folder in ("raw", "synthetic")
        for path in (shared_data / folder).iterdir()
        if path.suffix in (".dng", ".crw", ".kdc")
    }
    assert found == set(EXPECTED)


def test_the_active_area_and_its_phase_are_what_libraw_calls_visible(shared_data: Path):
    """The 550D has 152 x 26 photosites of optical black at its left and top, which must not be denoised."""
    path = shared_data / "raw/canon_eos_550d_magiclantern_colorchart.dng"
    image = read_raw(path)
    with rawpy.imread(str(path)) as raw:
        assert raw.raw_image.shape == (1182, 1888)
        assert np.array_equal(image.mosaic, raw.raw_image[26:, 152:1886])
        assert image.cfa == "".join("RGBG"[index] for index in raw.raw_colors_visible[:2, :2].flat)


def test_a_camera_unknown_to_libraw_has_the_matrix_that_its_dng_gives(shared_data: Path):
    """LibRaw gives zeros for the 550D under its Japanese name, Kiss X4, as Magic Lantern writes it."""
    image = read_raw(shared_data / "raw/canon_eos_550d_magiclantern_colorchart.dng")
    assert image.xyz_to_camera is not None
    np.testing.assert_allclose(image.xyz_to_camera[0], [0.6461, -0.1164, -0.0857])


@pytest.mark.parametrize(
    ("illuminants", "chosen"), [((17, 21), 2), ((21, 17), 1), ((17, 20), 2), ((None, None), 2), ((21, None), 1)]
)
def test_of_two_matrices_the_one_for_daylight_counts(
    tmp_path: Path, illuminants: tuple[int | None, int | None], chosen: int
):
    path = tmp_path / "image.dng"
    tags = [
        Tag(262, TagType.SHORT, 32803),
        Tag(33421, TagType.SHORT, [2, 2]),
        Tag(33422, TagType.BYTE, bytes([0, 1, 1, 2])),
        Tag(50706, TagType.BYTE, bytes([1, 4, 0, 0])),
        Tag(50708, TagType.ASCII, "Nobody"),
        Tag(50717, TagType.LONG, 1000),
        *(Tag(50720 + number, TagType.SRATIONAL, [number, 0, 0, 0, 1, 0, 0, 0, 1]) for number in (1, 2)),
        *(Tag(50778 + index, TagType.SHORT, code) for index, code in enumerate(illuminants) if code is not None),
    ]
    write_tiff(path, [np.zeros((32, 32), np.uint16)], height=32, width=32, channels=1, tags=tags)
    matrix = read_raw(path).xyz_to_camera
    assert matrix is not None
    assert np.array_equal(matrix, np.diag([chosen, 1, 1]))


def test_zeros_in_the_file_mean_unknown(shared_data: Path):
    """Magic Lantern writes zeros for what it does not know; LibRaw makes 1 s and f/1 of them."""
    image = read_raw(shared_data / "raw/canon_eos_550d_magiclantern_colorchart.dng")
    assert image.exposure_time is image.f_number is image.focal_length is image.iso is image.timestamp is None
    assert read_raw(shared_data / "raw/kodak_dc120_p003908.kdc").as_shot_white_balance is None
    assert read_raw(shared_data / "raw/kodak_dc120_p003908.kdc").xyz_to_camera is None


def test_white_balance_is_relative_to_green(shared_data: Path):
    image = read_raw(shared_data / "raw/canon_powershot_g2_crw_0304.crw")
    assert image.as_shot_white_balance is not None
    np.testing.assert_allclose(image.as_shot_white_balance, [1687 / 1036, 1, 1655 / 1036])


@pytest.fixture(params=["Asia/Tokyo", "America/New_York"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_a_crw_says_its_camera_and_when_it_was_taken_in_any_time_zone(shared_data: Path, time_zone: str):
    """CIFF counts seconds on the camera's own clock; taken for UTC they would move with the reader's time zone."""
    image = read_raw(shared_data / "raw/canon_powershot_g2_crw_0304.crw")
    assert (image.make, image.model) == ("Canon", "Canon PowerShot G2")
    assert image.timestamp == "2022-01-20T08:13:24"
    assert read_raw(shared_data / "raw/kodak_dc50_dc0010s.kdc").timestamp == "1994-01-01T14:39:22"
    assert read_raw(shared_data / "synthetic/kiara_canon_eos-7d_iso06400.dng").timestamp is None, time_zone


def test_exposure_is_what_exif_says(shared_data: Path):
    image = read_raw(shared_data / "synthetic/kiara_canon_eos-7d_iso06400.dng")
    assert (image.exposure_time, image.f_number, image.focal_length) == (39 / 250000, 8.0, None)
    assert image.timestamp is None  # 1970 in LibRaw
    assert read_raw(shared_data / "raw/kodak_dc120_p003908.kdc").pixel_aspect == pytest.approx(1.5346, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("synthetic")])
def test_a_synthetic_mosaic_is_its_truth_plus_the_stated_noise(shared_data: Path, name: str):
    image = read_raw(shared_data / name)
    scene = Path(name).name.split("_")[0]
    truth = read_exr(shared_data / f"synthetic/{scene}_gt_camera_linear.exr").rgb
    clean = np.empty(image.mosaic.shape)
    period = len(image.black_level)
    for site, letter in enumerate(image.cfa):
        y, x = divmod(site, period)
        clean[y::period, x::period] = truth[y::period, x::period, "RGB".index(letter)]
    black = np.tile(image.black_level, (image.height // period, image.width // period))
    noisy = (image.mosaic - black) / (image.white_level - black)
    assert image.noise_profile is not None
    a, b = image.noise_profile[0]
    quantisation = 1 / 12 / float(image.white_level - black[0, 0]) ** 2
    score = (noisy - clean) / np.sqrt(a * clean + b + quantisation)
    unclipped = clean < 0.8
    assert abs(score[unclipped].mean()) < 0.01
    assert score[unclipped].var() == pytest.approx(1, abs=0.03)
    wrong_phase = (noisy - np.roll(clean, 1, axis=1)) / np.sqrt(a * clean + b + quantisation)
    assert wrong_phase[unclipped].var() > 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_usable_mosaic_is_refused_with_its_own_reason(shared_data: Path, name: str):
    with pytest.raises(RawFileError, match=REFUSED[name]) as caught:
        read_raw(shared_data / name)
    assert str(shared_data / name) in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_missing_empty_and_folder_are_told_apart(tmp_path: Path):
    (tmp_path / "empty.cr2").touch()
    for name, reason in (("missing.cr2", "does not exist"), ("empty.cr2", "0 bytes"), (".", "folder")):
        with pytest.raises(RawFileError, match=reason):
            read_raw(tmp_path / name)


@pytest.mark.parametrize(
    "head", [b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II\x1a\0\0\0HEAPCCDR", b"FUJIFILM", b"\0\0\0\x18ftypcrx "]
)
def test_random_bytes_are_refused_whatever_they_begin_with(tmp_path: Path, head: bytes):
    path = tmp_path / "random.cr2"
    path.write_bytes(head + np.random.default_rng(1).bytes(200_000))
    with pytest.raises(RawFileError):
        read_raw(path)


def test_a_file_cut_anywhere_is_refused(shared_data: Path, tmp_path: Path):
    for name in ("raw/kodak_dc50_dc0010s.kdc", "raw/kodak_dc120_p003908.kdc", "synthetic/shop_pentax_k-5_iso00080.dng"):
        data = (shared_data / name).read_bytes()
        path = tmp_path / Path(name).name
        for part in (0.001, 0.2, 0.9, 0.999):
            path.write_bytes(data[: int(part * len(data))])
            with pytest.raises(RawFileError, match="truncated"):
                read_raw(path)


def test_the_digest_is_of_the_file(shared_data: Path):
    image = read_raw(shared_data / "raw/kodak_dc50_dc0010s.kdc")
    assert image.sha256 == "7303c55b36cd13aa606ee6c5fbf68845743a4f352e7c051d2cdfcea3148f581c"
    assert image.decoder.startswith("LibRaw 0.")


def test_json_has_every_field_but_the_samples(shared_data: Path):
    image = read_raw(shared_data / "synthetic/kiara_canon_eos-7d_iso00100.dng")
    values = image.to_json()
    assert set(values) == {field.name for field in fields(RawImage)} - {"mosaic"} | {"height", "width"}
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["black_level"] == [[2049.0, 2049.0], [2049.0, 2049.0]]
    assert len(values["noise_profile"]) == 3


def headless(shared_data: Path, folder: Path, phase: str, **changes: Any) -> Path:
    path = folder / f"crop_{phase}.raw"
    shutil.copy(shared_data / f"raw/headless_nikon_dsc1339_768x512_{phase}_u16le.raw", path)
    sidecar = {key: value for key, value in (SIDECAR | changes).items() if value is not None}
    path.with_name(f"{path.name}.json").write_text(json.dumps(sidecar))
    return path


def test_two_headless_phases_are_one_scene_tile_by_tile(shared_data: Path, tmp_path: Path):
    """Each 2x2 tile of the two files holds the same four samples, at the places that its phase gives them."""
    gbrg = read_raw(headless(shared_data, tmp_path, "gbrg"))
    rggb = read_raw(headless(shared_data, tmp_path, "rggb", cfa="RGGB"))
    assert (gbrg.cfa, rggb.cfa) == ("GBRG", "RGGB")

    def planes(image: RawImage, letter: str) -> list[np.ndarray]:
        sites = [divmod(site, 2) for site, other in enumerate(image.cfa) if other == letter]
        return [image.mosaic[y::2, x::2] for y, x in sites]

    for letter in "RGB":
        for one, other in zip(planes(gbrg, letter), planes(rggb, letter), strict=True):
            assert np.array_equal(one, other)
    assert not np.array_equal(gbrg.mosaic, rggb.mosaic)


def test_a_sidecar_gives_everything_it_may(shared_data: Path, tmp_path: Path):
    path = headless(
        shared_data,
        tmp_path,
        "gbrg",
        black_level=[[600, 601], [602, 603.5]],
        make="Nikon",
        model="D7000",
        iso=200,
        as_shot_white_balance=[4.0, 2.0, 3.0],
        xyz_to_camera=[[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        orientation=6,
        bits=16,
    )
    image = read_raw(path)
    assert image.black_level.tolist() == [[600, 601], [602, 603.5]]
    assert (image.make, image.model, image.iso, image.orientation) == ("Nikon", "D7000", 200, 6)
    assert image.as_shot_white_balance is not None
    assert image.as_shot_white_balance.tolist() == [2.0, 1.0, 1.5]
    assert image.xyz_to_camera is not None
    assert np.array_equal(image.xyz_to_camera, np.eye(3))
    assert json.dumps(image.to_json())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"whitelevel": 16383}, "whitelevel"),
        ({"white_level": None}, "white_level: Field required"),
        ({"cfa": "RGBG"}, "RGGB"),
        ({"width": 767}, "786432 bytes"),
        ({"black_level": -1}, "black_level"),
        ({"black_level": [600, 600]}, "black_level"),
        ({"black_level": 16383}, "not above its black level"),
        ({"bits": 12}, "bits"),
        ({"width": "768"}, "width"),
        ({"as_shot_white_balance": [0, 1, 0]}, "as_shot_white_balance"),
    ],
)
def test_a_wrong_sidecar_is_refused_with_the_key_named(
    shared_data: Path, tmp_path: Path, changes: dict[str, Any], reason: str
):
    with pytest.raises(RawFileError, match=reason):
        read_raw(headless(shared_data, tmp_path, "gbrg", **changes))


def test_a_sidecar_that_is_not_json_is_refused(shared_data: Path, tmp_path: Path):
    path = headless(shared_data, tmp_path, "gbrg")
    path.with_name(f"{path.name}.json").write_text("width: 768")
    with pytest.raises(RawFileError, match="JSON"):
        read_raw(path)


def test_a_file_that_names_its_camera_needs_no_sidecar_and_heeds_none(shared_data: Path, tmp_path: Path):
    path = tmp_path / "image.kdc"
    shutil.copy(shared_data / "raw/kodak_dc50_dc0010s.kdc", path)
    (tmp_path / "image.kdc.json").write_text("{}")
    assert read_raw(path).white_level == 16383


# --- X-Trans, levels and odd active areas -----------------------------------------------------------------------------


def dng(path: Path, mosaic: np.ndarray, cfa: str, *, area: list[int], black_level: np.ndarray) -> Path:
    """With borders around an active area, as cameras write it."""
    period = 2 if len(cfa) == 4 else 6
    tags = [
        Tag(262, TagType.SHORT, 32803),
        Tag(33421, TagType.SHORT, [period, period]),
        Tag(33422, TagType.BYTE, bytes("RGB".index(letter) for letter in cfa)),
        Tag(50706, TagType.BYTE, bytes([1, 4, 0, 0])),
        Tag(50708, TagType.ASCII, "Nobody"),
        Tag(50713, TagType.SHORT, [period, period]),
        Tag(50714, TagType.LONG, black_level.astype(int).flatten().tolist()),
        Tag(50717, TagType.LONG, 4000),
        Tag(50829, TagType.LONG, area),
    ]
    height, width = mosaic.shape
    write_tiff(path, [mosaic], height=height, width=width, channels=1, tags=tags)
    return path


AREAS = [[0, 0, 40, 50], [4, 6, 36, 44], [3, 4, 36, 45], [4, 3, 35, 46], [5, 1, 39, 50]]


@pytest.mark.parametrize("cfa", [*BAYER_PHASES, XTRANS_PHASES[0], XTRANS_PHASES[7]])
def test_an_active_area_at_any_origin_keeps_its_photosites_its_phase_and_its_levels(tmp_path: Path, cfa: str):
    """LibRaw drops the first line of a Bayer area that begins at an odd one, and then mistakes the levels of colours,
    and of X-Trans it knows only the lowest level."""
    mosaic = np.random.default_rng(0).integers(0, 4000, (40, 50)).astype(np.uint16)
    period = 2 if len(cfa) == 4 else 6
    black_level = np.arange(period * period, dtype=np.float32).reshape(period, period) + 100
    for area in AREAS:
        image = read_raw(dng(tmp_path / "image.dng", mosaic, cfa, area=area, black_level=black_level))
        top, left, bottom, right = area
        assert np.array_equal(image.mosaic, mosaic[top:bottom, left:right]), area
        assert image.cfa == cfa, area
        assert np.array_equal(image.black_level, black_level), area


def test_levels_are_found_in_the_ifd_that_holds_the_mosaic(tmp_path: Path):
    """Behind a preview, as Adobe's converter writes them."""
    mosaic = np.random.default_rng(0).integers(200, 4000, (36, 48)).astype(np.uint16)
    black_level = np.arange(36).reshape(6, 6) + 100
    with tifffile.TiffWriter(tmp_path / "image.dng") as file:
        identity = [(50706, 1, 4, bytes([1, 4, 0, 0]), True), (50708, 2, 7, "Nobody", True)]
        preview = np.zeros((16, 16, 3), np.uint8)
        file.write(preview, photometric="rgb", subfiletype=1, subifds=1, extratags=identity)  # pyright: ignore
        pattern = bytes("RGB".index(letter) for letter in XTRANS_PHASES[3])
        levels = [
            (33421, 3, 2, (6, 6), True),
            (33422, 1, 36, pattern, True),
            (50713, 3, 2, (6, 6), True),
            (50714, 5, 36, tuple(number for level in black_level.flat for number in (4 * int(level), 4)), True),
            (50717, 4, 1, 4000, True),
        ]
        file.write(mosaic, photometric=32803, subfiletype=0, extratags=levels)  # pyright: ignore
    image = read_raw(tmp_path / "image.dng")
    assert image.cfa == XTRANS_PHASES[3]
    assert np.array_equal(image.mosaic, mosaic)
    assert np.array_equal(image.black_level, black_level)


def test_an_x_trans_sidecar_gives_thirty_six_letters_and_levels(tmp_path: Path):
    path = tmp_path / "crop.raw"
    mosaic = np.random.default_rng(0).integers(0, 4000, (18, 20)).astype("<u2")
    path.write_bytes(mosaic.tobytes())
    levels = (np.arange(36).reshape(6, 6) + 60.0).tolist()
    sidecar: dict[str, Any] = {"width": 20, "height": 18, "cfa": XTRANS_PHASES[5], "white_level": 4000}
    for black_level, expected in ((64.0, np.full((6, 6), 64.0)), (levels, np.array(levels))):
        path.with_name("crop.raw.json").write_text(json.dumps(sidecar | {"black_level": black_level}))
        image = read_raw(path)
        assert image.cfa == XTRANS_PHASES[5]
        assert np.array_equal(image.mosaic, mosaic)
        assert np.array_equal(image.black_level, expected)
    path.with_name("crop.raw.json").write_text(json.dumps(sidecar | {"black_level": [[1.0, 2.0], [3.0, 4.0]]}))
    with pytest.raises(RawFileError, match="6 rows of 6"):
        read_raw(path)


def test_the_white_level_is_the_decoders_the_cameras_or_the_lower_one(shared_data: Path):
    image = read_raw(shared_data / "raw/kodak_dc50_dc0010s.kdc")
    assert image.camera_white_level is None
    assert {policy: image.white_level_by(policy) for policy in get_args(WhiteLevel)} == dict.fromkeys(
        get_args(WhiteLevel), 16383
    )
    for camera, expected in (([[15000, 15200], [15100, 14900]], 14900), ([[17000, 16900], [16800, 17100]], 16800)):
        other = replace(image, camera_white_level=np.array(camera, np.float32))
        assert other.white_level_by("decoder") == 16383
        assert other.white_level_by("camera") == expected
        assert other.white_level_by("minimum") == min(expected, 16383)
        assert other.at_white_level("minimum").white_level == min(expected, 16383)
        assert np.array_equal(other.clipping_level, np.minimum(camera, 16383))
