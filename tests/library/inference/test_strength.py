from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from library.bundle import Bundle, load_bundle, write_bundle
from library.files.raw import RawImage, read_raw
from library.inference.denoise import denoise_file, denoise_raw
from library.inference.engine import Engine
from library.inference.strength import FULL, MARGIN, Strength, blend, luminance_matrix, noisy_picture
from library.models import demosaic
from library.ops.cfa import BAYER_PHASES, sample_cfa
from library.ops.color import apply_matrix
from library.ops.demosaic import demosaic_malvar
from library.ops.develop import camera_rgb_to_balanced_lin_rec2020
from library.ops.levels import normalize_levels

NOTHING = Strength(0.0, 0.0)
BALANCE = np.array([2.1, 1.0, 1.4])
XYZ_TO_CAMERA = np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])
CAMERAS = [(BALANCE, XYZ_TO_CAMERA), (BALANCE, None), (None, XYZ_TO_CAMERA), (None, None)]


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    """Whose random network changes everything."""
    return load_bundle(small_bundle)


@pytest.fixture(scope="module")
def raw(raw_dng: Path) -> RawImage:
    return read_raw(raw_dng)


def linear(raw: RawImage) -> Tensor:
    return normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))


def random_picture(seed: int) -> Tensor:
    return torch.rand(3, 12, 14, generator=torch.Generator().manual_seed(seed))


def in_grey(noise: Tensor, balance: np.ndarray | None) -> Tensor:
    """(3, H, W) camera RGB of a scene without colour."""
    gains = torch.ones(3) if balance is None else torch.from_numpy(balance).float()
    return noise[:1] / gains[:, None, None]


# --- laws of the blend ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("balance", "matrix"), CAMERAS)
def test_full_strength_is_the_clean_picture_and_none_the_noisy_one(
    balance: np.ndarray | None, matrix: np.ndarray | None
) -> None:
    noisy, clean = random_picture(0), random_picture(1)
    split = luminance_matrix(balance, matrix)
    assert torch.equal(blend(noisy, clean, NOTHING, split), noisy)
    torch.testing.assert_close(blend(noisy, clean, FULL, split), clean)
    # Both parts together are the whole.
    parts = [blend(noisy, clean, Strength(*s), split) - noisy for s in ((1.0, 0.0), (0.0, 1.0))]
    torch.testing.assert_close(parts[0] + parts[1], clean - noisy, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("balance", "matrix"), CAMERAS)
def test_luminance_follows_luma_alone_and_colour_chroma_alone(
    balance: np.ndarray | None, matrix: np.ndarray | None
) -> None:
    noisy, clean = random_picture(0), random_picture(1)
    split = luminance_matrix(balance, matrix)

    def luminance(picture: Tensor) -> Tensor:
        return apply_matrix(picture, split)

    for chroma in (0.0, 0.3, 1.0):
        mixed = blend(noisy, clean, Strength(0.6, chroma), split)
        expected = 0.4 * luminance(noisy) + 0.6 * luminance(clean)
        torch.testing.assert_close(luminance(mixed), expected, rtol=0, atol=1e-5)
    for luma in (0.0, 0.3, 1.0):
        mixed = blend(noisy, clean, Strength(luma, 0.6), split)
        expected = 0.4 * (noisy - luminance(noisy)) + 0.6 * (clean - luminance(clean))
        torch.testing.assert_close(mixed - luminance(mixed), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("balance", "matrix"), CAMERAS)
@pytest.mark.parametrize("strength", [Strength(1.0, 0.0), Strength(0.0, 1.0), Strength(0.3, 0.8)])
def test_grey_stays_grey(balance: np.ndarray | None, matrix: np.ndarray | None, strength: Strength) -> None:
    noisy, clean = in_grey(random_picture(0), balance), in_grey(random_picture(1), balance)
    mixed = blend(noisy, clean, strength, luminance_matrix(balance, matrix))
    torch.testing.assert_close(mixed, in_grey(mixed * (1 if balance is None else balance[0]), balance))
    # Colour noise has no part in it.
    expected = noisy + strength.luma * (clean - noisy)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)


def test_the_mean_is_kept() -> None:
    """Noise without a mean has none in any share of it."""
    clean, noise = random_picture(0), random_picture(1)
    noise -= noise.mean(dim=(1, 2), keepdim=True)
    mixed = blend(clean + noise, clean, Strength(0.7, 0.2), luminance_matrix(BALANCE, XYZ_TO_CAMERA))
    torch.testing.assert_close(mixed.mean(dim=(1, 2)), clean.mean(dim=(1, 2)))


def test_luminance_is_that_of_the_scene_as_shot() -> None:
    """ITU-R BT.2020 of what an EXR holds."""
    picture, weights = random_picture(0), torch.tensor([0.2627, 0.6780, 0.0593])
    split = luminance_matrix(BALANCE, XYZ_TO_CAMERA)
    grey = apply_matrix(picture, split)
    scene, of_grey = (
        camera_rgb_to_balanced_lin_rec2020(p, as_shot_white_balance=BALANCE, xyz_to_camera=XYZ_TO_CAMERA)
        for p in (picture, grey)
    )
    expected = (weights[:, None, None] * scene).sum(0)
    torch.testing.assert_close(of_grey, expected.expand(3, -1, -1), rtol=0, atol=2e-4)
    torch.testing.assert_close(split @ split, split)


# --- the noisy picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_the_noisy_picture_has_the_measured_samples_to_the_bit(cfa: str) -> None:
    mosaic, clean = random_picture(0)[0], random_picture(1)
    noisy = noisy_picture(mosaic, clean, cfa=cfa, as_shot_white_balance=BALANCE)
    assert torch.equal(sample_cfa(noisy, cfa), mosaic)


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_a_guide_without_detail_leaves_the_filters_and_a_perfect_one_nothing_to_do(cfa: str) -> None:
    mosaic, clean = random_picture(0)[0], random_picture(1)
    black = noisy_picture(mosaic, torch.zeros_like(clean), cfa=cfa, as_shot_white_balance=None)
    torch.testing.assert_close(black, demosaic_malvar(mosaic, cfa=cfa))
    same = noisy_picture(sample_cfa(clean, cfa), clean, cfa=cfa, as_shot_white_balance=BALANCE)
    torch.testing.assert_close(same, clean)


@pytest.mark.parametrize("top", [2, 3])
@pytest.mark.parametrize("left", [4, 5])
def test_a_rectangle_with_its_margin_has_what_the_whole_picture_has_there(top: int, left: int) -> None:
    mosaic, clean = torch.rand(20, 22, generator=torch.Generator().manual_seed(0)), torch.rand(3, 20, 22)
    whole = noisy_picture(mosaic, clean, cfa="GRBG", as_shot_white_balance=BALANCE)
    cfa = "".join(np.roll(np.array(list("GRBG")).reshape(2, 2), (-top, -left), (0, 1)).flat)
    part = noisy_picture(mosaic[top:, left:17], clean[:, top:, left:17], cfa=cfa, as_shot_white_balance=BALANCE)
    assert torch.equal(part[:, MARGIN:, MARGIN:-MARGIN], whole[:, top + MARGIN :, left + MARGIN : 17 - MARGIN])


# --- in the engine ----------------------------------------------------------------------------------------------------


def test_full_strength_is_what_no_option_gives_to_the_bit(bundle: Bundle, raw: RawImage) -> None:
    plain = denoise_raw(raw, Engine(bundle))
    np.testing.assert_array_equal(denoise_raw(raw, Engine(bundle, strength=Strength(1.0, 1.0))), plain)
    almost = denoise_raw(raw, Engine(bundle, strength=Strength(1.0, 1.0 - 1e-7)))
    np.testing.assert_allclose(almost, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_at_no_strength_every_photosite_is_the_raws(bundle: Bundle, raw: RawImage, cfa: str) -> None:
    black_level = np.array([[500.0, 510.0], [520.0, 530.0]], np.float32)
    image = replace(raw, cfa=cfa, black_level=black_level)
    picture = torch.from_numpy(denoise_raw(image, Engine(bundle, tile=96, strength=NOTHING))).permute(2, 0, 1)
    assert torch.equal(sample_cfa(picture, cfa), linear(image))


def test_at_no_strength_a_mosaic_written_is_the_mosaic_read(bundle: Bundle, raw_dng: Path, tmp_path: Path) -> None:
    denoise_file(raw_dng, {"cfa-dng": tmp_path / "x.dng"}, Engine(bundle, strength=NOTHING))
    before, after = read_raw(raw_dng), read_raw(tmp_path / "x.dng")
    np.testing.assert_allclose(linear(after), linear(before), rtol=0, atol=0.51 / (65535 - 1024))


def test_a_network_that_only_demosaics_has_the_same_picture_at_any_strength(raw: RawImage, tmp_path: Path) -> None:
    write_bundle(
        tmp_path / "b",
        demosaic.Config(method="malvar").build(),
        name="malvar",
        training={},
        data_digest="none",
        metrics={},
        step=0,
    )
    malvar = load_bundle(tmp_path / "b")
    plain = denoise_raw(raw, Engine(malvar))
    for strength in (NOTHING, Strength(0.5, 0.25)):
        np.testing.assert_allclose(denoise_raw(raw, Engine(malvar, strength=strength)), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gain", ["absolute", "arbitrary"])
def test_tiles_change_no_bit_of_a_blend(bundle: Bundle, raw: RawImage, gain: str) -> None:
    # More than one tile of 96 packed pixels each way.
    image = replace(raw, mosaic=np.tile(raw.mosaic, (2, 2))[:211, :243])
    same = replace(bundle, manifest=bundle.manifest | {"output": bundle.manifest["output"] | {"gain": gain}})
    strength = Strength(0.7, 0.2)
    whole = denoise_raw(image, Engine(same, tile=512, strength=strength))
    np.testing.assert_array_equal(denoise_raw(image, Engine(same, tile=96, strength=strength)), whole)
