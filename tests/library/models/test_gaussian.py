from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from library.entropy.tables import TOTAL, gaussian_tables
from library.models.blocks.gaussian import CERTAIN, NUM_SCALES, gaussian_bits, scale_ladder, scale_of_index

some_scales = pytest.mark.parametrize("scale", [0.11, 0.3, 1.0, 4.0, 64.0])


def exact_bits(residual: np.ndarray, scale: float) -> np.ndarray:
    """-log2 of the probability of the unit interval, on the side where nothing cancels."""
    distance = np.abs(residual)
    law = scipy.stats.norm(scale=scale)
    return -np.log2(law.sf(distance - 0.5) - law.sf(distance + 0.5))


@some_scales
def test_bits_are_those_of_the_unit_interval_under_the_gaussian(scale: float):
    residual = torch.linspace(-1, 1, 401) * (0.5 + 5.5 * scale)
    expected = np.minimum(exact_bits(residual.double().numpy(), scale), 22)
    bits = gaussian_bits(residual, torch.tensor(scale))
    np.testing.assert_allclose(bits.numpy(), expected, rtol=2e-4, atol=2e-5)


@some_scales
def test_the_whole_numbers_probabilities_sum_to_one(scale: float):
    values = torch.arange(-600.0, 601)
    assert torch.exp2(-gaussian_bits(values, torch.tensor(scale))).double().sum() == pytest.approx(1, abs=4e-4)


@some_scales
def test_with_noise_in_place_of_rounding_they_are_those_of_a_density(scale: float):
    x = torch.linspace(-600, 600, 240_001, dtype=torch.float64).float()
    assert torch.exp2(-gaussian_bits(x, torch.tensor(scale))).double().sum() * 0.005 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0, 30.0])
def test_on_average_noise_costs_what_rounding_costs(scale: float):
    generator = torch.Generator().manual_seed(0)
    y = scale * torch.randn(200_000, generator=generator)
    noise = torch.rand(y.shape, generator=generator) - 0.5
    spread = torch.tensor(scale)
    noisy, rounded = gaussian_bits(y + noise, spread).mean(), gaussian_bits((y + 0.5).floor(), spread).mean()
    assert noisy.item() == pytest.approx(rounded.item(), rel=0.03)


@some_scales
def test_gradients_are_finite_and_pull_back_however_far_a_latent_has_strayed(scale: float):
    distances = [0.0, 0.3, 1.0, 5.0, 30.0, 100.0, 1e3, 1e4]
    residual = torch.tensor([-d for d in distances[1:]] + distances, requires_grad=True)
    spread = torch.full((len(residual),), scale, requires_grad=True)
    bits = gaussian_bits(residual, spread)
    bits.sum().backward()
    assert bits.isfinite().all()
    assert residual.grad is not None
    assert spread.grad is not None
    assert residual.grad.isfinite().all()
    assert spread.grad.isfinite().all()
    far = residual.detach().abs() > 6 * scale + 1
    assert far.any()
    assert (residual.grad.sign() == residual.detach().sign())[far].all()
    assert (spread.grad[far] < 0).all()  # a wider one would cost less


@some_scales
def test_farther_from_the_mean_never_costs_less(scale: float):
    bits = gaussian_bits(torch.linspace(0, 40 * scale + 5, 2000), torch.tensor(scale))
    assert (bits.diff() > -1e-4).all()
    assert (gaussian_bits(torch.tensor([0.4, -0.4]), torch.tensor(scale)).diff() == 0).all()


@some_scales
def test_nothing_costs_more_than_22_bits_which_is_what_an_escape_takes(scale: float):
    bits = gaussian_bits(torch.tensor([100.0, 1e3, 1e4, 1e6]) * scale, torch.tensor(scale))
    assert bits.tolist() == pytest.approx([22] * 4)


def test_the_ladder_has_64_rungs_from_0_11_to_64_at_a_constant_ratio():
    ladder = scale_ladder()
    assert len(ladder) == NUM_SCALES == 64
    assert (ladder[0], ladder[-1]) == pytest.approx((0.11, 64.0))
    ratios = np.divide(ladder[1:], ladder[:-1])
    np.testing.assert_allclose(ratios, ratios[0])


def test_an_index_has_the_scale_of_its_rung_and_between_rungs_one_between():
    ladder = scale_ladder()
    torch.testing.assert_close(scale_of_index(torch.arange(64.0)), torch.tensor(ladder))
    assert scale_of_index(torch.tensor(7.5)).item() == pytest.approx(math.sqrt(ladder[7] * ladder[8]))


def test_the_nearest_rung_costs_next_to_nothing_over_the_scale_itself():
    """At worst half a rung away: d in the logarithm of the scale costs d^2 / ln 2 bits."""
    ladder = scale_ladder()
    for rung in (20, 40, 60):
        between = math.sqrt(ladder[rung] * ladder[rung + 1])
        values = torch.arange(-700.0, 701)
        own = gaussian_bits(values, torch.tensor(between))
        probability = torch.exp2(-own).double()
        excess = (probability * (gaussian_bits(values, torch.tensor(ladder[rung])) - own)).sum()
        half_a_rung = math.log(between / ladder[rung])
        assert excess.item() == pytest.approx(half_a_rung**2 / math.log(2), rel=0.25)
        assert excess < 0.002 * (probability * own).sum()


def test_the_certain_index_is_the_narrowest_and_differs_from_its_mean_once_in_180000():
    ladder = scale_ladder()
    assert ladder[CERTAIN] == min(ladder)
    assert 1 / (2 * scipy.stats.norm(scale=ladder[CERTAIN]).sf(0.5)) == pytest.approx(180_000, rel=0.05)


def test_tables_of_the_ladder_charge_what_the_bits_say():
    tables = gaussian_tables(np.array(scale_ladder()))
    for row in (10, 30, 50, 63):
        values = torch.arange(-(int(tables.sizes[row]) // 2) + 1.0, int(tables.sizes[row]) // 2)
        likely = torch.exp2(-gaussian_bits(values, scale_of_index(torch.tensor(float(row))))).double().numpy()
        first = int(values[0]) - int(tables.smallest[row])
        charged = -np.log2(tables.frequencies[row, first : first + len(values)] / TOTAL)
        assert abs((likely * (charged + np.log2(likely))).sum()) < 1e-3 * (-likely * np.log2(likely)).sum()
