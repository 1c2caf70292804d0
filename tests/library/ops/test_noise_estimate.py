from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from library.files.raw import read_raw
from library.ops.cfa import pack_cfa, pad_to_rggb, rggb_offset
from library.ops.levels import normalize_levels
from library.ops.noise import add_poisson_gaussian
from library.ops.noise_estimate import estimate_noise

SIDE = 256
PLANES = torch.tensor([0.6, 1.0, 0.98, 0.7])[:, None, None]  # as a white balance of daylight leaves them
grid = pytest.mark.parametrize(("a", "b"), [(a, b) for a in (1e-4, 1e-3, 1e-2) for b in (1e-7, 1e-5, 1e-3)])


def scene(kind: str) -> Tensor:
    """(4, 256, 256) without noise."""
    rows, columns = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    patches = 0.05 + 0.7 * (rows // 64 * 4 + columns // 64) / 15
    match kind:
        case "patches":
            picture = patches
        case "ramp":
            picture = 0.02 + 0.8 * (rows + columns) / (2 * SIDE)
        case "waves":
            picture = 0.4 + 0.3 * torch.sin(rows / 9) * torch.cos(columns / 7)
        case "one brightness":
            picture = torch.full((SIDE, SIDE), 0.3)
        case _:
            texture = 0.3 * torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(5))
            picture = torch.where(columns // 16 % 2 == 0, patches, 0.7 * patches + texture)
    return picture * PLANES


def noisy(kind: str, a: float, b: float, seed: int = 1) -> Tensor:
    return add_poisson_gaussian(scene(kind), a, b, generator=torch.Generator().manual_seed(seed))


def variance_ratios(found: tuple[float, float], a: float, b: float, levels: tuple[float, ...]) -> list[float]:
    """Estimated over true variance at some brightnesses."""
    return [(found[0] * x + found[1]) / (a * x + b) for x in levels]


@grid
@pytest.mark.parametrize(
    ("kind", "factor"),
    [("patches", 1.05), ("ramp", 1.2), ("waves", 1.15), ("one brightness", 1.3), ("half of it texture", 1.5)],
)
def test_the_variance_is_found_over_the_brightnesses_of_the_picture(kind: str, factor: float, a: float, b: float):
    ratios = variance_ratios(estimate_noise(noisy(kind, a, b)), a, b, (0.05, 0.2, 0.7))
    assert max(ratios) < factor
    assert min(ratios) > 1 / factor


@grid
def test_photon_and_read_noise_are_told_apart_where_each_is_a_tenth_of_the_other(a: float, b: float):
    found_a, found_b = estimate_noise(noisy("patches", a, b))
    if 0.75 * a > 0.1 * b:  # in the brightest patch
        assert found_a == pytest.approx(a, rel=0.5)
    if b > 0.1 * 0.03 * a:  # in the darkest patch, of the darkest plane
        assert found_b == pytest.approx(b, abs=0.5 * b + 0.1 * 0.03 * a)


def test_more_noise_is_estimated_as_more():
    found = [estimate_noise(noisy("waves", a, a / 100))[0] for a in np.geomspace(1e-4, 1e-2, 7)]
    assert found == sorted(found)


def test_it_is_a_function_of_the_picture_alone():
    packed = noisy("half of it texture", 1e-3, 1e-5)
    before = packed.clone()
    first = estimate_noise(packed)
    torch.manual_seed(99)
    np.random.default_rng(99).random()
    assert estimate_noise(packed) == first
    assert torch.equal(packed, before)


def test_exposure_scales_photon_noise_by_its_factor_and_read_noise_by_its_square():
    packed = noisy("patches", 1e-3, 1e-4)
    a, b = estimate_noise(packed)
    scaled_a, scaled_b = estimate_noise(packed / 4)
    assert (scaled_a, scaled_b) == pytest.approx((a / 4, b / 16), rel=1e-3)


def test_clipped_highlights_do_not_pass_for_the_quietest_of_their_brightness():
    packed = noisy("patches", 1e-3, 1e-5)
    packed[:, :, SIDE // 2 :] = 1.0
    ratios = variance_ratios(estimate_noise(packed), 1e-3, 1e-5, (0.05, 0.2, 0.5))
    assert max(ratios) < 1.2
    assert min(ratios) > 1 / 1.2


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(4, 16, 16),
        torch.ones(4, 64, 64),
        torch.full((4, 40, 33), -0.01),
        noisy("ramp", 1e-3, 0)[:, :16, :16],
    ],
    ids=["black", "white", "below black", "tiny"],
)
def test_whatever_it_is_given_what_comes_back_can_be_used(packed: Tensor):
    a, b = estimate_noise(packed)
    assert 1e-6 <= a < 1
    assert 1e-9 <= b < 1


@pytest.mark.parametrize(
    "name", ["kiara_canon_eos-7d_iso06400", "lebombo_samsung_nx1_iso12800", "shop_pentax_k-5_iso12800"]
)
def test_at_high_iso_it_agrees_with_the_noise_profile_of_a_file(shared_data: Path, name: str):
    raw = read_raw(shared_data / "synthetic" / f"{name}.dng")
    assert raw.noise_profile
    a, b = np.mean(np.array(raw.noise_profile), axis=0)
    mosaic = pad_to_rggb(torch.from_numpy(raw.mosaic), raw.cfa)
    height, width = (side // 2 * 2 for side in mosaic.shape)
    black_level = torch.from_numpy(np.roll(raw.black_level, rggb_offset(raw.cfa), (0, 1)))
    packed = pack_cfa(normalize_levels(mosaic[:height, :width], black_level, float(raw.white_level)))
    found = estimate_noise(packed)
    levels = tuple(np.quantile(packed.numpy(), [0.1, 0.5, 0.9]).tolist())
    ratios = variance_ratios(found, float(a), float(b), levels)
    assert max(ratios) < 2
    assert min(ratios) > 0.5
    assert found[0] == pytest.approx(a, rel=0.6)
