from __future__ import annotations

import numpy as np
import pytest

from library.pairs.masks import Anomalies, anomaly_mask, overexposure_mask, pack_mask, unpack_mask, valid_fraction


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 30])
def test_any_crop_of_a_packed_mask_is_the_crop_of_the_mask(width: int, rng: np.random.Generator) -> None:
    mask = rng.random((6, width)) < 0.5
    packed = pack_mask(mask)
    for left in range(width):
        for right in range(left + 1, width + 1):
            assert np.array_equal(unpack_mask(packed, 2, left, 3, right - left), mask[2:5, left:right])


def test_a_clipped_photosite_spoils_the_pixels_it_is_interpolated_for_and_no_others() -> None:
    mosaic = np.full((20, 20), 0.5, np.float32)
    mosaic[8, 11] = 0.9
    for reach in range(4):
        spoilt = ~overexposure_mask(mosaic, 0.9, reach=reach)
        expected = np.zeros((20, 20), bool)
        expected[8 - reach : 9 + reach, 11 - reach : 12 + reach] = True
        assert np.array_equal(spoilt, expected)


def test_the_clipping_level_itself_counts_as_clipped_and_what_is_below_does_not() -> None:
    mosaic = np.array([[0.0, -0.1], [0.8999, 0.9]], np.float32)
    assert overexposure_mask(mosaic, np.float32(0.9), reach=0).tolist() == [[True, True], [True, False]]


def test_equal_images_are_valid_to_the_last_corner(rng: np.random.Generator) -> None:
    rgb = rng.random((3, 40, 50), dtype=np.float32)
    assert anomaly_mask(rgb, rgb, Anomalies()).all()


def test_a_thing_that_moved_is_left_out_where_it_was_and_where_it_is(rng: np.random.Generator) -> None:
    gt = np.full((3, 120, 160), 0.1, np.float32)
    f = gt.copy()
    gt[:, 20:60, 30:70] = 0.5
    f[:, 50:90, 90:130] = 0.5
    f += 0.03 * rng.standard_normal(f.shape).astype(np.float32)
    valid = anomaly_mask(gt, f, Anomalies())
    assert not valid[20:60, 30:70].any()
    assert not valid[50:90, 90:130].any()
    assert valid[:, :20].all()
    assert valid[100:].all()


def test_noise_alone_leaves_nothing_out_though_it_passes_the_threshold_pixel_by_pixel(rng: np.random.Generator) -> None:
    """RawNIND's own rule drops pixels for their noise, and what it keeps is darker or brighter than the truth."""
    gt = np.full((3, 200, 200), 0.02, np.float32)
    f = gt + 0.03 * rng.standard_normal(gt.shape).astype(np.float32)
    assert anomaly_mask(gt, f, Anomalies(), noise=(0.0, 0.03**2)).all()
    legacy = anomaly_mask(gt, f, Anomalies(threshold=0.4, window=1, outliers=1e-4))
    assert valid_fraction(legacy) < 0.9


def test_outliers_are_left_out_even_of_images_that_hardly_differ(rng: np.random.Generator) -> None:
    gt = 0.5 + 0.01 * rng.random((3, 100, 100), dtype=np.float32)
    f = gt.copy()
    f[:, 40, 40] += 0.02
    assert anomaly_mask(gt, f, Anomalies(window=1)).all()
    left_out = ~anomaly_mask(gt, f, Anomalies(window=1, outliers=1e-4))
    assert left_out[40, 40]
    assert valid_fraction(left_out) < 0.001


def test_black_and_what_is_below_has_no_anomalies() -> None:
    dark = np.full((3, 30, 30), -0.001, np.float32)
    assert anomaly_mask(dark, np.zeros_like(dark), Anomalies()).all()


@pytest.mark.parametrize("shape", [(10, 20), (1, 10, 20), (3, 10, 20)])
def test_a_valid_fraction_is_of_pixels_however_many_channels_there_are(shape: tuple[int, ...]) -> None:
    """The research code summed three channels and divided by the pixels: a bar of one half let one sixth pass."""
    mask = np.zeros(shape, np.float32)
    mask[..., :5] = 1
    assert valid_fraction(mask) == 0.25
