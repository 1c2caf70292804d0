from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from library.ops import noise
from library.ops.noise import add_poisson_gaussian, estimate_noise_variance, sample_poisson

NUM = 200_000
A, B = 2e-3, 1e-5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_level(level: float, a: float = A, b: float = B) -> Tensor:
    return add_poisson_gaussian(torch.full((NUM,), level), a, b, generator=seeded()).double()


@pytest.mark.parametrize("level", [-0.01, 0.0, 1e-4, 0.003, 0.1, 1.0, 3.0])
def test_the_mean_is_the_clean_level_and_the_variance_is_a_x_plus_b(level: float):
    noisy = noisy_level(level)
    variance = estimate_noise_variance(torch.tensor(level), A, B).item()
    assert variance == pytest.approx(A * max(level, 0) + B)
    assert noisy.mean().item() == pytest.approx(level, abs=4 * (variance / NUM) ** 0.5)
    assert noisy.var().item() == pytest.approx(variance, rel=0.03)


def test_without_read_noise_every_value_counts_whole_electrons():
    electrons = noisy_level(0.01, b=0.0) / A
    torch.testing.assert_close(electrons, electrons.round(), atol=1e-4, rtol=0)
    assert electrons.min() == 0
    assert (electrons == 0).double().mean().item() == pytest.approx(2.718281828**-5, rel=0.1)  # five expected


def test_dim_light_is_skewed_as_a_poisson_count():
    """The third central moment of a * Poisson(x / a) is a * a * x; a Gaussian's would be 0."""
    noisy = noisy_level(0.01)
    assert (noisy - noisy.mean()).pow(3).mean().item() == pytest.approx(A * A * 0.01, rel=0.15)


def test_where_there_is_no_light_there_is_only_read_noise():
    noisy = noisy_level(-0.02)
    assert noisy.var().item() == pytest.approx(B, rel=0.03)
    assert torch.equal(noisy_level(-0.02, b=0.0), torch.full((NUM,), -0.02).double())


def test_noise_around_black_is_not_clipped():
    assert (noisy_level(0.0) < 0).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_without_photon_noise_only_read_noise_is_left():
    noisy = noisy_level(0.5, a=0.0)
    assert noisy.var().item() == pytest.approx(B, rel=0.03)
    clean = torch.rand(4, 6, 6, generator=seeded())
    assert torch.equal(add_poisson_gaussian(clean, 0.0, 0.0, generator=seeded()), clean)


def test_the_same_seed_gives_the_same_noise_and_another_seed_another():
    clean = torch.rand(4, 6, 6, generator=seeded())
    first = add_poisson_gaussian(clean, A, B, generator=seeded(1))
    assert torch.equal(first, add_poisson_gaussian(clean, A, B, generator=seeded(1)))
    assert not torch.equal(first, add_poisson_gaussian(clean, A, B, generator=seeded(2)))


def test_noise_is_independent_of_the_global_generator():
    clean = torch.rand(4, 6, 6, generator=seeded())
    before = torch.random.get_rng_state()
    add_poisson_gaussian(clean, A, B, generator=seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_image_of_a_batch_may_have_a_generator_of_its_own_and_is_then_the_image_alone():
    """To the bit, whatever lies beside it: how many images a worker makes at once must not change them."""
    clean = torch.rand(5, 4, 18, 18, generator=seeded()) * torch.logspace(-2, 0, 5)[:, None, None, None]
    a, b = torch.logspace(-5, -2, 5)[:, None, None, None], torch.logspace(-3, -6, 5)[:, None, None, None]
    batch = add_poisson_gaussian(clean, a, b, generator=[seeded(n) for n in range(5)])
    for n in range(5):
        assert torch.equal(batch[n], add_poisson_gaussian(clean[n], a[n], b[n], generator=seeded(n)))
    some = [3, 1]
    assert torch.equal(
        batch[some], add_poisson_gaussian(clean[some], a[some], b[some], generator=[seeded(n) for n in some])
    )


def test_coefficients_may_differ_by_image_and_by_plane():
    clean = torch.full((2, 4, 100, 100), 0.2)
    a = torch.tensor([1e-3, 0.0])[:, None, None, None]
    b = torch.tensor([0.0, 1e-5, 1e-4, 1e-3])[:, None, None]
    measured = add_poisson_gaussian(clean, a, b, generator=seeded()).double().var((-2, -1))
    expected = estimate_noise_variance(clean, a, b)[..., 0, 0].double()
    torch.testing.assert_close(measured, expected, rtol=0.06, atol=1e-9)


def test_noise_is_float32_and_leaves_the_clean_image_as_it_was():
    clean = torch.full((8, 8), 0.25, dtype=torch.float64)
    assert add_poisson_gaussian(clean, A, B, generator=seeded()).dtype == torch.float32
    assert (clean == 0.25).all()


@pytest.mark.parametrize(("a", "b", "name"), [(-1e-9, 0.0, "a"), (0.0, -1e-9, "b"), (float("nan"), 0.0, "a")])
def test_a_negative_variance_is_refused(a: float, b: float, name: str):
    """Camera tables hold fits with b < 0: 13.7 % of darktable's rows."""
    with pytest.raises(ValueError, match=f"noise coefficient {name} is"):
        add_poisson_gaussian(torch.zeros(2), a, b, generator=seeded())
    with pytest.raises(ValueError, match=f"noise coefficient {name} is"):
        estimate_noise_variance(torch.zeros(2), torch.tensor([1.0, a]), torch.tensor([1.0, b]))


# --- Poisson counts ---------------------------------------------------------------------------------------------------


def assert_poisson(counts: Tensor, mean: float, *, distance: float, tolerance: float):
    """In total variation; the tolerance is of mean and variance, or of 1 where they are less."""
    law = scipy.stats.poisson.pmf(np.arange(int(counts.max()) + 1), mean)
    measured = torch.bincount(counts.long()).numpy() / len(counts)
    assert (np.abs(measured - law).sum() + 1 - law.sum()) / 2 <= distance
    assert counts.double().mean().item() == pytest.approx(mean, abs=tolerance * max(mean, 1))
    assert counts.double().var().item() == pytest.approx(mean, abs=tolerance * max(mean, 1))


def lattice(num: int) -> tuple[Tensor, Tensor]:
    """Points that fill the unit square evenly: integrals over them are exact to about 1 / num."""
    n = torch.arange(num, dtype=torch.float64)
    return (n + 0.5) / num, (n * 0.5 * (5**0.5 - 1)).frac()


@pytest.mark.parametrize("mean", [0.0, 1 / 512, 1 / 128, 0.02, 0.1, 0.3, 1.003, 2.0, 5.508, 9.99, 15.992, 16 - 1e-6])
def test_few_counts_have_poissons_law(mean: float):
    uniform, dither = (x.float() for x in lattice(2**21))
    counts = noise._few(torch.full((2**21,), mean), uniform, dither)
    assert_poisson(counts, mean, distance=1e-4, tolerance=1e-4)


@pytest.mark.parametrize(("mean", "distance"), [(16.0, 3e-4), (17.3, 3e-4), (24.5, 2e-4), (32.0, 1e-4), (100.0, 5e-5)])
def test_many_counts_have_poissons_law(mean: float, distance: float):
    normal = torch.special.ndtri(lattice(2**20)[0]).float()
    assert_poisson(noise._many(torch.full((2**20,), mean), normal), mean, distance=distance, tolerance=1e-4)


def test_bright_and_dark_side_by_side_are_each_poisson_and_independent():
    means = torch.tensor([0.0, 0.05, 0.7, 15.9, 3.0, 16.0, 40.0, 1e-3])
    counts = sample_poisson(means.repeat(NUM, 1), generator=seeded()).T
    for mean, column in zip(means.tolist(), counts, strict=True):
        # What 200,000 draws of the true law stay within: their distance is 1.2e-2 at mean 40.
        assert_poisson(column, mean, distance=1.5e-2, tolerance=4 * (3 / NUM) ** 0.5)
        zero = np.exp(-mean)
        assert (column == 0).double().mean().item() == pytest.approx(zero, abs=4 * (zero * (1 - zero) / NUM) ** 0.5)
    correlations = torch.corrcoef(torch.cat([counts[1:], counts[1:].roll(1, dims=1)]))
    assert (correlations - torch.eye(14)).abs().max() < 5 / NUM**0.5


def test_counts_of_very_bright_light_stay_whole_finite_and_near_it():
    means = torch.logspace(0, 12, 1000)
    counts = sample_poisson(means, generator=seeded())
    assert torch.equal(counts, counts.round())
    assert ((counts - means).abs() <= 5 * means.sqrt() + 1e-6 * means).all()


def test_no_count_is_below_zero_however_far_out_the_normal_variable_lies():
    normal = torch.linspace(-9, 9, 1000)
    assert noise._many(torch.full((1000,), 16.0), normal).min() == 0
