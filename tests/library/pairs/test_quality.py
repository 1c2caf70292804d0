from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from library.pairs.align import Mosaic
from library.pairs.quality import flags, mosaic_gains, picture_gain, similarity
from library.pairs.shift import overlap

BLACK, WHITE = (500.0, 520.0, 510.0, 512.0), 16000.0
LEVELS = np.array(BLACK, np.float32).reshape(2, 2)


def mosaic_of(linear: np.ndarray) -> Mosaic:
    black = np.tile(LEVELS, (linear.shape[0] // 2, linear.shape[1] // 2))
    counts = np.clip(np.round(linear * (WHITE - black) + black), 0, WHITE).astype(np.uint16)
    return Mosaic(counts, BLACK, WHITE)


def colored(height: int, width: int) -> np.ndarray:
    """(H, W) RGGB of a coloured ramp, from 0.05 to 0.45."""
    ramp = np.linspace(0.1, 0.45, height * width, dtype=np.float32).reshape(height, width)
    return ramp * np.tile(np.array([[0.5, 1.0], [1.0, 0.7]], np.float32), (height // 2, width // 2))


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-3, 2), (5, -5)])
def test_a_gain_is_found_whatever_the_shift_and_with_it_the_phase_of_the_clean_image(shift: tuple[int, int]) -> None:
    linear = colored(200, 240)
    linear[:] = linear.mean() * np.tile(np.array([[0.5, 1.0], [1.0, 0.7]], np.float32), (100, 120))
    gt, f = mosaic_of(linear), mosaic_of(linear / 2.5)
    shared = overlap(shift, gt.size, f.size)
    assert mosaic_gains(gt, f, shared) == pytest.approx((2.5, 2.5), rel=1e-3)


def test_the_two_gains_weigh_colours_differently() -> None:
    """Of photosites half are green, of camera RGB a third."""
    linear = np.full((40, 40), 0.2, np.float32)
    f = linear.copy()
    f[::2, ::2] = 0.1
    shared = overlap((0, 0), f.shape, f.shape)
    raw_gain, rgb_gain = mosaic_gains(mosaic_of(linear), mosaic_of(f), shared)
    assert raw_gain == pytest.approx(0.8 / 0.7, rel=1e-3)
    assert rgb_gain == pytest.approx(0.6 / 0.5, rel=1e-3)


def test_neither_clipped_nor_masked_pixels_count() -> None:
    linear = colored(80, 80)
    gt, f = linear.copy(), linear / 2
    gt[:20], f[:20] = 1.2, 0.9  # the clean image clips
    gt[20:40], f[20:40] = 0.3, 0.9  # something else is there
    mask = np.ones((80, 80), bool)
    mask[20:40] = False
    shared = overlap((0, 0), gt.shape, f.shape)
    assert mosaic_gains(mosaic_of(gt), mosaic_of(f), shared, mask) == pytest.approx((2, 2), rel=1e-3)
    assert mosaic_gains(mosaic_of(gt), mosaic_of(f), shared)[0] != pytest.approx(2, rel=0.05)


def test_where_the_noisy_image_clips_is_known_from_the_clean_one_and_the_gain() -> None:
    linear = colored(120, 120)
    gt, f = mosaic_of(linear), mosaic_of(linear * 4)  # whatever is above a quarter clips
    shared = overlap((0, 0), gt.size, f.size)
    assert mosaic_gains(gt, f, shared)[0] > 0.26
    assert mosaic_gains(gt, f, shared, expected=0.25) == pytest.approx((0.25, 0.25), rel=1e-3)


def test_noise_does_not_shift_a_gain() -> None:
    rng = np.random.default_rng(0)
    linear = colored(400, 400)
    noisy = linear / 2 + 0.1 * rng.standard_normal(linear.shape).astype(np.float32)
    f = mosaic_of(noisy)
    # Levels far from 0, or counts could not go below black as the noise does.
    f = replace(f, counts=np.clip(noisy * 10000 + 6000, 0, 65535).astype(np.uint16), black_level=(6000.0,) * 4)
    f = replace(f, white_level=16000.0)
    shared = overlap((0, 0), f.size, f.size)
    assert mosaic_gains(mosaic_of(linear), f, shared, expected=2.0)[0] == pytest.approx(2, rel=0.01)


def test_black_images_have_a_gain_of_one() -> None:
    black = mosaic_of(np.zeros((20, 20), np.float32))
    shared = overlap((0, 0), black.size, black.size)
    assert mosaic_gains(black, black, shared) == (1, 1)
    zeros = np.zeros((20, 20, 3), np.float16)
    assert picture_gain(zeros, zeros, np.ones((20, 20), bool)) == 1


def test_a_picture_gain_is_over_valid_pixels() -> None:
    gt = np.full((20, 20, 3), 0.5, np.float16)
    f = np.full((20, 20, 3), 0.25, np.float16)
    f[:5] = 0.9
    mask = np.ones((20, 20), bool)
    mask[:5] = False
    assert picture_gain(gt, f, mask) == pytest.approx(2)


def test_similarity_is_one_for_equal_images_less_with_noise_and_blind_to_what_is_invalid() -> None:
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(3, 180, 200, generator=generator).cumsum(1).cumsum(2)
    gt = gt / gt.max()
    mask = torch.ones(180, 200, dtype=torch.bool)
    mask[40:90, 40:90] = False
    matrix = (0.7374, -0.2389, -0.0551, -0.5435, 1.3162, 0.2519, -0.1006, 0.1795, 0.6552)
    assert similarity(gt, gt, mask, matrix) == pytest.approx(1, abs=1e-5)
    noisy = [gt + sigma * torch.randn(gt.shape, generator=generator) for sigma in (0.01, 0.1)]
    scores = [similarity(gt, f, mask, matrix) for f in noisy]
    assert scores[0] is not None
    assert scores[1] is not None
    assert 1 > scores[0] > scores[1]
    elsewhere = torch.where(mask, noisy[0], 7.0)
    assert similarity(gt, elsewhere, mask, matrix) == scores[0]
    assert similarity(gt[:, :160], gt[:, :160], mask[:160], matrix) is None


def test_flags_name_what_is_odd_and_nothing_else() -> None:
    usual = {"alignment_ok": True, "mask_mean": 0.95, "rgb_gain": 1.2, "same_camera": True, "same_size": True}
    assert flags(**usual) == []  # pyright: ignore[reportArgumentType]
    for change, flag in (
        ({"alignment_ok": False}, "alignment uncertain"),
        ({"mask_mean": 0.79}, "little valid"),
        ({"rgb_gain": 9.0}, "brightness differs"),
        ({"rgb_gain": 0.1}, "brightness differs"),
        ({"same_camera": False}, "cameras differ"),
        ({"same_size": False}, "sizes differ"),
    ):
        assert flags(**{**usual, **change}) == [flag]  # pyright: ignore[reportArgumentType]
