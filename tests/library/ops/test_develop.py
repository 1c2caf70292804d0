from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from library.ops.color import D65_WHITE_XYZ, lin_srgb_to_camera_rgb, lin_srgb_to_lin_rec2020
from library.ops.develop import auto_exposure_ev, camera_rgb_to_balanced_lin_rec2020, develop_camera_rgb
from library.ops.transfer import srgb_decode, srgb_encode

XYZ_TO_SONY = np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])
DAYLIGHT = 1 / (torch.from_numpy(XYZ_TO_SONY) @ D65_WHITE_XYZ)
SONY: dict[str, Any] = {"as_shot_white_balance": DAYLIGHT, "xyz_to_camera": XYZ_TO_SONY}
UNKNOWN: dict[str, Any] = {"as_shot_white_balance": None, "xyz_to_camera": None}
# Gains are scaled so that the smallest is 1: by so many stops is a picture brighter than in XYZ.
SCALE_EV = -math.log2(DAYLIGHT.min().item())


def random_rgb(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_developing_what_a_camera_saw_of_a_picture_gives_the_picture_back():
    lin_srgb = random_rgb(2, 3, 16, 16) * 0.5
    camera_rgb = lin_srgb_to_camera_rgb(lin_srgb, xyz_to_camera=XYZ_TO_SONY)
    picture = develop_camera_rgb(camera_rgb, **SONY, exposure_ev=-SCALE_EV)
    torch.testing.assert_close(picture, srgb_encode(lin_srgb), atol=1e-5, rtol=1e-4)


def test_the_scene_as_shot_is_the_picture_in_rec2020_before_clipping():
    lin_srgb = random_rgb(3, 16, 16) * 5 - 0.5
    camera_rgb = lin_srgb_to_camera_rgb(lin_srgb, xyz_to_camera=XYZ_TO_SONY)
    scene = camera_rgb_to_balanced_lin_rec2020(camera_rgb, **SONY)
    torch.testing.assert_close(scene, lin_srgb_to_lin_rec2020(lin_srgb) * 2**SCALE_EV, atol=1e-4, rtol=1e-4)


def test_grey_is_neutral_under_the_white_balance_that_was_shot():
    gains = torch.tensor([2.3, 1.0, 1.4])
    grey = (0.2 / gains)[:, None, None].expand(3, 4, 4)
    picture = develop_camera_rgb(grey, as_shot_white_balance=gains, xyz_to_camera=XYZ_TO_SONY)
    torch.testing.assert_close(picture, srgb_encode(torch.full((3, 4, 4), 0.2)), atol=1e-5, rtol=1e-4)
    scene = camera_rgb_to_balanced_lin_rec2020(grey, as_shot_white_balance=gains, xyz_to_camera=XYZ_TO_SONY)
    torch.testing.assert_close(scene, torch.full((3, 4, 4), 0.2))


@pytest.mark.parametrize("gains", [[2.3, 1.0, 1.4], [0.8, 1.0, 2.5], [1.5, 1.2, 0.9]])
@pytest.mark.parametrize("exposure_ev", [-1.0, 0.0, 2.0])
def test_what_the_sensor_clipped_is_neutral_and_the_brightest(gains: list[float], exposure_ev: float):
    camera_rgb = random_rgb(3, 8, 8)
    camera_rgb[:, :2] = 1.0
    camera_rgb[:, 2:4] = 1.2  # a demosaic may overshoot
    picture = develop_camera_rgb(
        camera_rgb,
        as_shot_white_balance=torch.tensor(gains),
        xyz_to_camera=XYZ_TO_SONY,
        exposure_ev=exposure_ev,
    )
    white = srgb_encode(torch.tensor(min(1.0, 2.0**exposure_ev)))
    torch.testing.assert_close(picture[:, :4], white.expand(3, 4, 8), atol=1e-5, rtol=0)


def test_the_scale_of_the_gains_does_not_matter():
    camera_rgb = random_rgb(3, 8, 8)
    scaled = {**SONY, "as_shot_white_balance": 1024 * DAYLIGHT}
    torch.testing.assert_close(develop_camera_rgb(camera_rgb, **scaled), develop_camera_rgb(camera_rgb, **SONY))


def test_a_stop_of_exposure_doubles_the_light():
    camera_rgb = random_rgb(3, 8, 8) * 0.1
    once, twice = (srgb_decode(develop_camera_rgb(camera_rgb, **UNKNOWN, exposure_ev=ev)) for ev in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once, atol=1e-6, rtol=1e-5)


def test_a_picture_lies_between_zero_and_one_whatever_the_sensor_gave():
    camera_rgb = random_rgb(3, 8, 8) * 8 - 4
    for ev in (-4.0, 0.0, 8.0):
        picture = develop_camera_rgb(camera_rgb, **SONY, exposure_ev=ev)
        assert picture.min() >= 0
        assert picture.max() <= 1


def test_without_metadata_camera_rgb_is_taken_as_linear_srgb():
    camera_rgb = random_rgb(3, 8, 8)
    torch.testing.assert_close(develop_camera_rgb(camera_rgb, **UNKNOWN), srgb_encode(camera_rgb))
    torch.testing.assert_close(
        camera_rgb_to_balanced_lin_rec2020(camera_rgb, **UNKNOWN), lin_srgb_to_lin_rec2020(camera_rgb)
    )


def test_metadata_may_be_arrays_and_either_may_be_unknown():
    camera_rgb = random_rgb(3, 8, 8)
    assert torch.equal(
        develop_camera_rgb(
            camera_rgb, as_shot_white_balance=DAYLIGHT.numpy(), xyz_to_camera=torch.from_numpy(XYZ_TO_SONY)
        ),
        develop_camera_rgb(camera_rgb, **SONY),
    )
    unit = np.ones(3)
    assert torch.equal(
        develop_camera_rgb(camera_rgb, as_shot_white_balance=None, xyz_to_camera=XYZ_TO_SONY),
        develop_camera_rgb(camera_rgb, as_shot_white_balance=unit, xyz_to_camera=XYZ_TO_SONY),
    )
    assert torch.equal(
        develop_camera_rgb(camera_rgb, as_shot_white_balance=unit, xyz_to_camera=None),
        develop_camera_rgb(camera_rgb, **UNKNOWN),
    )


def test_unusable_gains_are_refused_as_the_file_gave_them():
    gains = torch.tensor([2.0, 0.0, 1.5])
    with pytest.raises(ValueError, match=r"\[2.0, 0.0, 1.5\], all must be positive and finite"):
        develop_camera_rgb(random_rgb(3, 2, 2), as_shot_white_balance=gains, xyz_to_camera=None)


@pytest.mark.parametrize("metadata", [SONY, UNKNOWN])
@pytest.mark.parametrize("stops", [-2, -5])
def test_automatic_exposure_brings_bright_parts_close_to_white(metadata: dict[str, Any], stops: int):
    camera_rgb = random_rgb(3, 40, 50) * 2.0**stops
    ev = auto_exposure_ev(camera_rgb, **metadata)
    lin_srgb = srgb_decode(
        develop_camera_rgb(camera_rgb, **metadata, exposure_ev=ev - 2)
    )  # two stops down, nothing clips
    luminance = torch.einsum("c,chw->hw", torch.tensor([0.2126, 0.7152, 0.0722]), lin_srgb)
    assert 4 * luminance.flatten().quantile(0.99).item() == pytest.approx(0.9, rel=0.02)


def test_a_darker_exposure_is_lifted_by_as_many_stops():
    camera_rgb = random_rgb(3, 40, 50) * 0.25
    ev = auto_exposure_ev(camera_rgb, **SONY)
    assert auto_exposure_ev(camera_rgb / 4, **SONY) == pytest.approx(ev + 2, abs=1e-4)


def test_automatic_exposure_has_limits_and_black_takes_the_upper():
    assert auto_exposure_ev(torch.zeros(3, 8, 8), **SONY) == 8.0
    assert auto_exposure_ev(torch.full((3, 8, 8), -1.0), **UNKNOWN) == 8.0
    assert auto_exposure_ev(torch.full((3, 8, 8), 1e-6), **UNKNOWN) == 8.0
    clipped_sky = auto_exposure_ev(torch.full((3, 8, 8), 100.0), **SONY)
    assert clipped_sky == pytest.approx(math.log2(0.9), abs=1e-4)


def test_a_large_picture_is_exposed_like_a_small_one_and_always_the_same():
    small = random_rgb(3, 64, 64) * 0.1
    large = small.repeat(1, 20, 20)
    ev = auto_exposure_ev(large, **SONY)
    assert ev == pytest.approx(auto_exposure_ev(small, **SONY), abs=0.05)
    assert ev == auto_exposure_ev(large, **SONY)
