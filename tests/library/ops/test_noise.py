from __future__ import annotations

import pytest
import torch
from torch import Tensor

from library.ops.noise import add_poisson_gaussian, estimate_noise_variance

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
