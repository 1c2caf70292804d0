from __future__ import annotations

import pytest
import torch
from torch import Tensor

from library.models.blocks.gdn import GDN, InverseGDN

PEDESTAL = 2.0**-36


def with_values(layer: GDN, beta: Tensor, gamma: Tensor) -> GDN:
    """A layer whose beta and gamma are these, whatever it keeps of them."""
    with torch.no_grad():
        layer.beta.copy_((beta + PEDESTAL).sqrt())
        layer.gamma.copy_((gamma + PEDESTAL).sqrt())
    return layer


def some_values(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(channels, generator=generator) + 0.1, torch.rand(channels, channels, generator=generator)


def some_input(channels: int) -> Tensor:
    return torch.randn(2, channels, 3, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("layer", "power"), [(GDN(4), -0.5), (InverseGDN(4), 0.5)])
def test_each_channel_is_divided_or_multiplied_by_the_root_of_beta_and_gamma_times_all_squares(
    layer: GDN, power: float
):
    beta, gamma = some_values(4)
    x = some_input(4)
    expected = torch.empty_like(x)
    for i in range(4):
        energy = beta[i] + sum(gamma[i, j] * x[:, j] ** 2 for j in range(4))
        expected[:, i] = x[:, i] * energy**power
    torch.testing.assert_close(with_values(layer, beta, gamma)(x), expected)


def test_without_coupling_the_inverse_undoes_it_exactly():
    beta, gamma = some_values(6)[0], torch.zeros(6, 6)
    x = some_input(6)
    y = with_values(GDN(6), beta, gamma)(x)
    assert not torch.allclose(y, x)
    torch.testing.assert_close(with_values(InverseGDN(6), beta, gamma)(y), x)


def test_a_fresh_layer_divides_by_the_root_of_one_and_a_tenth_of_its_own_square():
    x = some_input(3)
    torch.testing.assert_close(GDN(3)(x), x / (1 + 0.1 * x**2).sqrt())


def test_what_has_fallen_below_its_bound_acts_as_the_bound():
    layer = GDN(2)
    with torch.no_grad():
        layer.beta.fill_(-3.0)
        layer.gamma.fill_(-3.0)
    x = some_input(2)
    torch.testing.assert_close(layer(x), x / 1e-3, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["beta", "gamma"])
def test_at_its_bound_a_parameter_gets_only_the_gradients_that_would_raise_it(name: str):
    """Or whatever once fell below would stay there."""
    for layer, raises in ((GDN(2), 1.0), (InverseGDN(2), -1.0)):
        parameter = getattr(layer, name)
        with torch.no_grad():
            parameter.fill_(0.0)
        # A larger beta or gamma makes the output of GDN smaller, that of its inverse larger.
        for sign in (raises, -raises):
            layer.zero_grad()
            (sign * layer(some_input(2).abs())).sum().backward()
            assert parameter.grad.isfinite().all()
            assert (parameter.grad < 0).all() == (sign == raises)
            assert (parameter.grad == 0).all() == (sign != raises)


def test_it_computes_in_float32_where_the_network_does_not():
    layer, x = GDN(8), some_input(8)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert layer(x.bfloat16()).dtype == torch.float32
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
