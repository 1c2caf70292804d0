from __future__ import annotations

import pytest
import torch

from library.models.blocks.bounds import bounded, round_straight_through


def test_rounding_gives_the_nearest_whole_number_and_of_two_the_upper():
    x = torch.tensor([-2.5, -1.5, -0.5, -0.4, 0.0, 0.4, 0.5, 1.5, 2.5, 7.49])
    assert round_straight_through(x).tolist() == [-2, -1, 0, 0, 0, 0, 1, 2, 3, 7]


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e12])
def test_what_is_rounded_is_whole_at_any_size_and_at_most_a_half_away(size: float):
    x = size * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    rounded = round_straight_through(x)
    assert torch.equal(rounded, rounded.floor())
    assert (rounded.double() - x.double()).abs().max() <= 0.5


def test_through_rounding_the_gradient_is_that_of_the_identity():
    x = torch.tensor([-0.7, 0.2, 3.5], requires_grad=True)
    gradient = torch.tensor([2.0, -3.0, 0.5])
    round_straight_through(x).backward(gradient)
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)


def test_what_is_inside_stays_and_what_is_outside_becomes_the_bound():
    x = torch.tensor([-9.0, -2.0, 0.3, 5.0, 6.0])
    assert torch.equal(bounded(x, -2, 5), torch.tensor([-2.0, -2.0, 0.3, 5.0, 5.0]))


@pytest.mark.parametrize(
    ("x", "gradient", "passes"),
    [
        (0.0, 1.0, True),
        (0.0, -1.0, True),
        (-1.0, 1.0, True),  # on the bound it still may leave
        (1.0, -1.0, True),
        (-1.5, -1.0, True),  # a descent goes up, back inside
        (-1.5, 1.0, False),
        (1.5, 1.0, True),
        (1.5, -1.0, False),
    ],
)
def test_a_gradient_passes_inside_and_where_it_leads_back(x: float, gradient: float, passes: bool):
    strayed = torch.tensor(x, requires_grad=True)
    bounded(strayed, -1, 1).backward(torch.tensor(gradient))
    assert strayed.grad is not None
    assert strayed.grad.item() == (gradient if passes else 0)


def test_what_has_strayed_comes_back_under_descent():
    x = torch.tensor([-40.0, 40.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        (bounded(x, -3, 3) - 0.5).square().sum().mul(0.25).backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.full((2,), 0.5), atol=1e-3, rtol=0)
