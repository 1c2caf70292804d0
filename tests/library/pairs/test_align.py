from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from library.datasets.samples import dead_leaves
from library.files.raw import read_raw
from library.pairs.align import Mosaic, align

HEIGHT, WIDTH, MARGIN = 384, 512, 110
BLACK, WHITE = 512.0, 15872.0
TINTS = np.array([[0.5, 1.0], [1.0, 0.6]], np.float32)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """(H, W, 3) float32 with edges at all scales."""
    return dead_leaves(740, np.random.default_rng(1), smallest_radius=6)


def light(scene: np.ndarray, top: int, left: int) -> np.ndarray:
    """(HEIGHT, WIDTH) RGGB: what a camera sees of the scene from there."""
    seen = scene[MARGIN + top : MARGIN + top + HEIGHT, MARGIN + left : MARGIN + left + WIDTH]
    mosaic = seen[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = seen[::2, ::2, 0], seen[1::2, 1::2, 2]
    return mosaic * np.tile(TINTS, (HEIGHT // 2, WIDTH // 2))


def mosaic_of(linear: np.ndarray, *, a: float = 0.0, b: float = 0.0, seed: int = 0) -> Mosaic:
    noise = np.sqrt(a * np.maximum(linear, 0) + b) * np.random.default_rng(seed).standard_normal(linear.shape)
    counts = np.clip(np.round((linear + noise) * (WHITE - BLACK) + BLACK), 0, WHITE).astype(np.uint16)
    return Mosaic(counts, (BLACK,) * 4, WHITE)


NOISES = {"base ISO": (1e-4, 1e-7), "high ISO": (1e-2, 1e-4), "highest ISO": (0.1, 1e-2)}


@pytest.mark.parametrize("noise", NOISES)
def test_shifts_of_every_sign_parity_and_size_are_found(noise: str, scene: np.ndarray) -> None:
    gt = mosaic_of(light(scene, 0, 0), a=1e-4, b=1e-7, seed=99)
    a, b = NOISES[noise]
    shifts = [(0, 0), (1, 0), (0, -1), (-1, 1), (2, -3), (-5, -4), (13, 12), (-31, 26), (55, -70), (-96, -99)]
    for seed, shift in enumerate(shifts):
        found = align(gt, mosaic_of(light(scene, *shift) * 0.7, a=a, b=b, seed=seed))
        assert found.shift == shift
        assert found.ok
        assert max(abs(f - s) for f, s in zip(found.offset, shift, strict=True)) < 0.5


def test_exchanging_the_images_turns_the_shift_round(scene: np.ndarray) -> None:
    one, other = mosaic_of(light(scene, 0, 0)), mosaic_of(light(scene, 7, -12), a=1e-3)
    forth, back = align(one, other), align(other, one)
    assert forth.shift == (7, -12)
    assert back.shift == (-7, 12)
    assert forth.error == pytest.approx(back.error, abs=0.01)


def test_an_image_has_no_shift_and_no_error_against_itself(scene: np.ndarray) -> None:
    found = align(mosaic_of(light(scene, 0, 0)), mosaic_of(light(scene, 0, 0)))
    assert found.shift == (0, 0)
    assert found.offset == pytest.approx((0, 0), abs=1e-3)
    assert found.error == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("exposure", [1.0, 0.25, 1 / 16])
def test_neither_the_answer_nor_what_is_said_of_it_depends_on_the_brightness(
    exposure: float, scene: np.ndarray
) -> None:
    """RawNIND's bound on the mean difference rejects whole scenes for their light."""
    gt, f = light(scene, 0, 0), light(scene, -9, 14)
    reference = align(mosaic_of(gt), mosaic_of(f, a=1e-3, seed=1))
    # The same photons under another scale: noise goes with the light.
    found = align(mosaic_of(gt * exposure), mosaic_of(f * exposure, a=1e-3 * exposure, seed=1))
    assert found.shift == reference.shift == (-9, 14)
    assert found.error == pytest.approx(reference.error, abs=0.01)
    assert found.sigma == pytest.approx(reference.sigma, abs=0.01)
    assert found.ok


def test_what_stands_still_on_the_sensor_does_not_draw_the_shift_to_nothing(scene: np.ndarray) -> None:
    """Hot photosites and lines are where they were, whatever the scene did."""
    rng = np.random.default_rng(3)
    hot = np.where(rng.random((HEIGHT, WIDTH)) < 0.002, 0.9, 0.0).astype(np.float32)
    lines = 0.03 * rng.standard_normal((HEIGHT, 1)) + 0.03 * rng.standard_normal((1, WIDTH))
    pattern = (hot + lines).astype(np.float32)
    for shift in ((5, -3), (-24, 17)):
        gt, f = (light(scene, *s) * 0.3 + pattern for s in ((0, 0), shift))
        assert align(mosaic_of(gt), mosaic_of(f, a=1e-2, b=1e-4)).shift == shift


def test_what_moves_in_the_scene_does_not_take_the_shift_along(scene: np.ndarray) -> None:
    gt, f = light(scene, 0, 0), light(scene, 6, -11)
    thing = light(scene[::-1, ::-1], 40, 40)[:160, :200] + 0.2
    gt[100:260, 60:260] = thing
    f[120:280, 220:420] = thing
    found = align(mosaic_of(gt), mosaic_of(f, a=1e-2, b=1e-4))
    assert found.shift == (6, -11)
    assert found.ok


def test_what_clips_in_one_image_only_does_not_matter(scene: np.ndarray) -> None:
    gt, f = light(scene, 0, 0), light(scene, 3, 8)
    found = align(mosaic_of(gt * 4), mosaic_of(f * 0.5, a=1e-3))
    assert (mosaic_of(gt * 4).counts == WHITE).mean() > 0.15
    assert found.shift == (3, 8)
    assert found.ok
    assert align(mosaic_of(gt * 0.5), mosaic_of(f * 4, a=1e-3)).shift == (3, 8)


@pytest.mark.parametrize("unlike", ["noise", "flat", "another view", "black"])
def test_images_that_have_nothing_in_common_are_not_aligned(unlike: str, scene: np.ndarray) -> None:
    gt = mosaic_of(light(scene, 0, 0))
    rng = np.random.default_rng(5)
    others = {
        "noise": 0.2 + 0.1 * rng.standard_normal((HEIGHT, WIDTH)),
        "flat": np.full((HEIGHT, WIDTH), 0.2),
        "another view": light(scene, 0, 0)[::-1, ::-1],
        "black": np.zeros((HEIGHT, WIDTH)),
    }
    assert not align(gt, mosaic_of(others[unlike], a=1e-4, b=1e-6)).ok
    if unlike in ("flat", "black"):
        assert not align(mosaic_of(others[unlike]), mosaic_of(others[unlike], a=1e-3, b=1e-4)).ok


def test_the_standard_error_says_how_far_off_an_offset_is(scene: np.ndarray) -> None:
    gt = mosaic_of(light(scene, 0, 0))
    f = light(scene, 4, -7)
    found = [align(gt, mosaic_of(f, a=0.1, b=1e-2, seed=seed)) for seed in range(8)]
    errors = np.array([np.subtract(one.offset, (4, -7)) for one in found])
    actual = float(np.sqrt((errors**2).mean(0).max()))
    stated = float(np.mean([one.sigma for one in found]))
    assert actual / 3 < stated < actual * 3


def test_levels_and_sizes_of_the_two_images_may_differ(scene: np.ndarray) -> None:
    gt, f = mosaic_of(light(scene, 0, 0)), mosaic_of(light(scene, -3, 4), a=1e-3)
    moved = replace(
        f, counts=f.counts[: HEIGHT - 24, : WIDTH - 40] // 4, black_level=(BLACK / 4,) * 4, white_level=WHITE / 4
    )
    assert align(gt, moved).shift == (-3, 4)


@pytest.mark.parametrize("name", ["canon_powershot_s40_crw_0118.crw", "canon_eos_550d_magiclantern_colorchart.dng"])
def test_a_photograph_is_found_again_elsewhere_darker_and_under_noise(name: str, shared_data: Path) -> None:
    raw = read_raw(shared_data / "raw" / name)
    levels = tuple(float(level) for level in raw.black_level.flat)
    span = raw.white_level - levels[0]
    height, width = raw.mosaic.shape[0] // 2 * 2 - 120, raw.mosaic.shape[1] // 2 * 2 - 120
    gt = Mosaic(raw.mosaic[60 : 60 + height, 60 : 60 + width], levels, raw.white_level)
    rng = np.random.default_rng(0)
    for dy, dx in ((0, 0), (2, -4), (-14, 22), (58, -60)):  # whole tiles, or the colours would change places
        seen = raw.mosaic[60 + dy : 60 + dy + height, 60 + dx : 60 + dx + width].astype(np.float32) - levels[0]
        noisy = 0.5 * seen + np.sqrt(2e-3 * span * np.maximum(seen, 0) + (0.01 * span) ** 2) * rng.standard_normal(
            seen.shape
        )
        counts = np.clip(np.round(noisy + 4096), 0, 65535).astype(np.uint16)
        found = align(gt, Mosaic(counts, (4096.0,) * 4, 4096.0 + span))
        assert found.shift == (dy, dx)
        assert found.ok
