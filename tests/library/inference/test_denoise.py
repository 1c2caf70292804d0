from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rawpy
import tifffile
import torch
from PIL import Image

from library.bundle import load_bundle, write_bundle
from library.errors import ImageFileError
from library.files.exr import read_exr
from library.files.raw import RawImage, read_raw
from library.inference.denoise import denoise_file, denoise_raw
from library.inference.develop import develop_file, develop_raw
from library.inference.engine import Engine
from library.inference.outputs import ENCODERS, Format, RawSource, Written, upright
from library.models import unet
from library.ops.cfa import sample_cfa
from library.ops.develop import camera_rgb_to_balanced_lin_rec2020

LEVELS = 65535 - 1024


@pytest.fixture(scope="module")
def engine(small_bundle: Path) -> Engine:
    return Engine(load_bundle(small_bundle))


@pytest.fixture(scope="module")
def raw(raw_dng: Path) -> RawImage:
    return read_raw(raw_dng)


@pytest.fixture(scope="module")
def picture(raw: RawImage, engine: Engine) -> np.ndarray:
    """(H, W, 3) camera RGB: what every output is made of."""
    return denoise_raw(raw, engine)


@pytest.fixture(scope="module")
def written(raw_dng: Path, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Mapping[Format, Written]:
    folder = tmp_path_factory.mktemp("written")
    outputs = {name: folder / name / f"photo{encoder.suffix}" for name, encoder in ENCODERS.items()}
    return {w.format: w for w in denoise_file(raw_dng, outputs, engine)}


def test_one_pass_writes_what_a_pass_for_each_format_would(
    raw_dng: Path, engine: Engine, written: Mapping[Format, Written], tmp_path: Path
) -> None:
    for name, encoder in ENCODERS.items():
        [alone] = denoise_file(raw_dng, {name: tmp_path / f"x{encoder.suffix}"}, engine)
        assert alone.sha256 == written[name].sha256


def test_a_linear_dng_holds_the_picture_below_black_too(
    raw: RawImage, picture: np.ndarray, written: Mapping[Format, Written]
) -> None:
    with rawpy.imread(written["dng"].path) as dng:
        codes = dng.raw_image[..., :3].astype(np.float64)
        assert dng.raw_image.shape[:2] == (raw.height, raw.width)
    inside = (picture > -1024 / LEVELS) & (picture < 1)
    np.testing.assert_allclose(((codes - 1024) / LEVELS)[inside], picture[inside], atol=0.51 / LEVELS)


def test_a_cfa_dng_holds_the_picture_sampled_by_the_cameras_own_cfa(
    raw: RawImage, picture: np.ndarray, written: Mapping[Format, Written]
) -> None:
    dng = read_raw(written["cfa-dng"].path)
    assert (dng.cfa, dng.mosaic.shape) == (raw.cfa, raw.mosaic.shape)
    expected = sample_cfa(torch.from_numpy(picture).permute(2, 0, 1), raw.cfa).numpy()
    assert (dng.black_level == raw.black_level).all()
    assert dng.white_level == raw.white_level
    steps = raw.white_level - raw.black_level[0, 0]
    inside = (expected > -raw.black_level[0, 0] / steps) & (expected < 1)
    values = (dng.mosaic - raw.black_level[0, 0]) / steps
    np.testing.assert_allclose(values[inside], expected[inside], atol=1 / steps)  # dithered
    assert abs((values - expected)[inside].mean()) < 0.02 / steps


def test_a_dng_keeps_what_the_camera_said_and_says_who_denoised_it(
    raw: RawImage, engine: Engine, written: Mapping[Format, Written]
) -> None:
    dng = read_raw(written["cfa-dng"].path)
    assert (dng.make, dng.model, dng.iso, dng.orientation) == (raw.make, raw.model, raw.iso, 6)
    np.testing.assert_allclose(dng.as_shot_white_balance, raw.as_shot_white_balance, rtol=1e-4)  # pyright: ignore
    np.testing.assert_allclose(dng.xyz_to_camera, raw.xyz_to_camera, atol=1e-4)  # pyright: ignore
    for name in ("dng", "cfa-dng"):
        with tifffile.TiffFile(written[name].path) as file:
            assert engine.bundle.digest.encode() in file.pages[0].tags[700].value  # pyright: ignore


def test_an_exr_is_the_scene_as_shot_upright_and_unclipped(
    raw: RawImage, picture: np.ndarray, written: Mapping[Format, Written]
) -> None:
    exr = read_exr(written["exr"].path)
    assert exr.color_space == "rec2020"
    expected = camera_rgb_to_balanced_lin_rec2020(
        torch.from_numpy(picture).permute(2, 0, 1),
        as_shot_white_balance=raw.as_shot_white_balance,
        xyz_to_camera=raw.xyz_to_camera,
    )
    turned = np.rot90(expected.permute(1, 2, 0).numpy(), -1)  # orientation 6: the camera was turned a quarter
    np.testing.assert_allclose(exr.rgb, turned, rtol=1e-3, atol=1e-6)
    assert exr.rgb.min() < 0


def test_pictures_are_upright_and_alike(raw: RawImage, written: Mapping[Format, Written]) -> None:
    with Image.open(written["png"].path) as image:
        png = np.asarray(image)
    tiff = tifffile.imread(written["tiff"].path)
    assert png.shape == tiff.shape == (raw.width, raw.height, 3)
    np.testing.assert_allclose(png / 255, tiff / 65535, atol=0.6 / 255)


def test_orientation_turns_a_picture_as_exif_says() -> None:
    """Exif 2.32, 4.6.4: where row 0 and column 0 of the stored picture lie when it is shown."""
    stored = np.array([[1, 2, 3], [4, 5, 6]])
    shown = {
        1: [[1, 2, 3], [4, 5, 6]],
        2: [[3, 2, 1], [6, 5, 4]],
        3: [[6, 5, 4], [3, 2, 1]],
        4: [[4, 5, 6], [1, 2, 3]],
        5: [[1, 4], [2, 5], [3, 6]],
        6: [[4, 1], [5, 2], [6, 3]],
        7: [[6, 3], [5, 2], [4, 1]],
        8: [[3, 6], [2, 5], [1, 4]],
    }
    for orientation, expected in shown.items():
        np.testing.assert_array_equal(upright(stored, orientation), expected)


def test_developing_is_deterministic_and_follows_exposure(raw: RawImage, raw_dng: Path, tmp_path: Path) -> None:
    assert torch.equal(develop_raw(raw), develop_raw(raw))
    dark, bright = develop_raw(raw, exposure_ev=-2), develop_raw(raw, exposure_ev=0)
    assert (bright >= dark).all()
    assert bright.mean() > dark.mean()
    with Image.open(develop_file(raw_dng, tmp_path / "x.png")) as image:
        assert image.size == (raw.height, raw.width)


def test_a_camera_without_colour_matrix_and_white_balance_still_gives_files(
    raw: RawImage, engine: Engine, tmp_path: Path
) -> None:
    unknown = replace(raw, xyz_to_camera=None, as_shot_white_balance=None)
    for name, cls in ENCODERS.items():
        encoder = cls(RawSource(unknown), unknown.metadata())
        samples = encoder.encode(torch.full((3, 4, 6), 0.5), 0, 0)
        encoder.write(tmp_path / f"{name}{cls.suffix}", samples)
        assert (tmp_path / f"{name}{cls.suffix}").stat().st_size > 100


def test_a_file_is_the_same_whatever_arbitrary_gain_its_network_has(raw_dng: Path, tmp_path: Path) -> None:
    digests = {}
    for factor in (1.0, 8.0):
        torch.manual_seed(0)
        model = unet.Config(funit=4).build()
        with torch.no_grad():
            for parameter in model.head.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(0.3)  # bright enough on the whole
                parameter.mul_(factor)
        folder = tmp_path / f"bundle{factor}"
        write_bundle(folder, model, name="b", training={}, data_digest="d", metrics={}, step=1, gain="arbitrary")
        # The file names the bundle that made it, so its pixels are what can be the same.
        outputs: dict[Format, Path] = {"dng": tmp_path / f"{factor}.dng", "png": tmp_path / f"{factor}.png"}
        denoise_file(raw_dng, outputs, Engine(load_bundle(folder)))
        with rawpy.imread(str(outputs["dng"])) as dng, Image.open(outputs["png"]) as png:
            digests[factor] = (dng.raw_image.tobytes(), np.asarray(png).tobytes())
    assert digests[1.0] == digests[8.0]


def test_a_real_raw_goes_to_dng_and_exr(shared_data: Path, engine: Engine, tmp_path: Path) -> None:
    source = shared_data / "raw" / "canon_powershot_s40_crw_0118.crw"
    denoise_file(source, {"dng": tmp_path / "s40.dng", "exr": tmp_path / "s40.exr"}, engine)
    with rawpy.imread(str(tmp_path / "s40.dng")) as dng:
        assert dng.raw_image.shape[:2] == (1720, 2312)
    assert read_exr(tmp_path / "s40.exr").rgb.shape == (1720, 2312, 3)


def test_the_raw_itself_is_never_overwritten(raw_dng: Path, engine: Engine, tmp_path: Path) -> None:
    """`denoise photo.dng -o .` would write photo.dng."""
    raw = tmp_path / "photo.dng"
    raw.write_bytes(raw_dng.read_bytes())
    (tmp_path / "link.dng").symlink_to(raw)
    for output in (raw, tmp_path / "link.dng"):
        with pytest.raises(ImageFileError, match="is the raw file itself, which would be lost: give another folder"):
            denoise_file(raw, {"png": tmp_path / "x.png", "dng": output}, engine)
    assert raw.read_bytes() == raw_dng.read_bytes()
    assert not (tmp_path / "x.png").exists()
