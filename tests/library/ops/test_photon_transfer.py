from __future__ import annotations

import numpy as np
import pytest

from library.ops.photon_transfer import Blocks, fit_photon_transfer


def noisy(clean: np.ndarray, a: float, b: float, seed: int = 0) -> np.ndarray:
    """Poisson and Gaussian noise of variance a * clean + b."""
    rng = np.random.default_rng(seed)
    return rng.poisson(clean / a) * a + rng.normal(0, np.sqrt(b), clean.shape)


def ramp(height: int = 256, width: int = 320) -> np.ndarray:
    """(4, height, width) from black to white."""
    return np.broadcast_to(np.linspace(0.01, 0.9, width), (4, height, width))


def texture(share: float, seed: int = 1) -> np.ndarray:
    """(4, 256, 320): as `ramp`, with strong texture over a share of it."""
    rng = np.random.default_rng(seed)
    picture = ramp().copy()
    rows = int(256 * share)
    picture[:, :rows] *= np.exp(rng.normal(0, 0.3, (1, rows, 320)))
    return np.clip(picture, 0, 0.9)


@pytest.mark.parametrize(("a", "b"), [(2e-5, 1e-7), (2e-3, 4e-5), (1e-4, 0.0)])
def test_noise_on_a_ramp_is_found_again(a: float, b: float):
    found = fit_photon_transfer(Blocks.of(noisy(ramp(), a, b)))
    assert found.doubt is None
    assert found.a == pytest.approx(a, rel=0.03)
    assert found.b == pytest.approx(b, rel=0.25, abs=6e-3 * a)
    assert found.flat_share > 0.95
    assert found.a_error < 0.05


def test_texture_over_half_of_a_picture_does_not_move_the_answer():
    found = fit_photon_transfer(Blocks.of(noisy(texture(0.5), 1e-4, 1e-6)))
    assert found.doubt is None
    assert found.a == pytest.approx(1e-4, rel=0.05)
    assert 0.4 < found.flat_share < 0.6


def test_texture_everywhere_is_said_to_be_so():
    doubt = fit_photon_transfer(Blocks.of(noisy(texture(1.0), 1e-5, 1e-8))).doubt
    assert doubt is not None
    assert "flat" in doubt


def test_fine_texture_that_looks_like_noise_is_betrayed_by_the_second_filter():
    rng = np.random.default_rng(2)
    grain = rng.normal(0, 1, (4, 257, 321))
    grain = (grain[:, 1:, 1:] + grain[:, :-1, 1:] + grain[:, 1:, :-1] + grain[:, :-1, :-1]) / 2
    doubt = fit_photon_transfer(Blocks.of(noisy(ramp() + 0.02 * np.sqrt(ramp()) * grain, 1e-5, 1e-8))).doubt
    assert doubt is not None
    assert "texture is taken for noise" in doubt


def test_one_brightness_cannot_tell_photon_from_read_noise():
    doubt = fit_photon_transfer(Blocks.of(noisy(np.full((4, 256, 320), 0.3), 1e-4, 1e-6))).doubt
    assert doubt is not None
    assert "spans 0.3" in doubt


def test_two_flat_pictures_of_different_brightness_tell_it_together():
    parts = [
        Blocks.of(noisy(np.full((4, 256, 320), level), 1e-4, 1e-6, seed)) for seed, level in enumerate((0.02, 0.6))
    ]
    found = fit_photon_transfer(Blocks.join(parts))
    assert found.doubt is None
    assert found.a == pytest.approx(1e-4, rel=0.03)
    assert found.b == pytest.approx(1e-6, rel=0.2)


def test_what_is_near_white_is_left_out():
    bright = noisy(np.broadcast_to(np.linspace(0.01, 1.6, 320), (4, 256, 320)), 1e-3, 1e-5).clip(max=1)
    found = fit_photon_transfer(Blocks.of(bright))
    assert found.doubt is None
    assert found.a == pytest.approx(1e-3, rel=0.04)
    assert found.span[1] < 0.95


def test_brightness_scales_the_answer_as_it_must():
    # Twice the full scale: variance a quarter, signal half, so a is half and b a quarter.
    picture = noisy(0.7 * ramp(), 1e-3, 1e-5)
    one, half = (fit_photon_transfer(Blocks.of(x)) for x in (picture, picture / 2))
    assert half.a == pytest.approx(one.a / 2, rel=1e-6)
    assert half.b == pytest.approx(one.b / 4, rel=1e-4)


def test_too_small_a_picture_is_a_doubt_and_no_error():
    doubt = fit_photon_transfer(Blocks.of(np.zeros((4, 8, 8)))).doubt
    assert doubt is not None
    assert "0 of 0 blocks" in doubt
