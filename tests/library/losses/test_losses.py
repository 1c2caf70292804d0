"""What the losses add to the laws that every component is held to."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor

from library.config import config_class, kinds
from library.losses import LossConfig, charbonnier, l1, ms_ssim, mse
from library.metrics import ms_ssim as ms_ssim_metric

every_loss = pytest.mark.parametrize("kind", kinds("library.losses"))


def case(side: int = 176) -> tuple[Tensor, Tensor, Tensor]:
    """Two unlike pictures; a corner and scattered pixels do not count."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, side, side, generator=generator)
    output = target + 0.1 * torch.randn(target.shape, generator=generator)
    mask = (torch.rand(2, 1, side, side, generator=generator) > 0.05).float()
    mask[..., : side // 4, : side // 3] = 0
    return output, target, mask


@every_loss
def test_infinity_and_nan_at_masked_pixels_reach_neither_the_loss_nor_its_gradient(kind: str):
    """Once, the error was multiplied by the mask, and NaN times 0 is NaN."""
    loss = cast(LossConfig, config_class("library.losses", kind).model_validate({})).build()
    output, target, mask = case()
    values, gradients = [], []
    for poison in (0.5, math.inf, -math.inf, math.nan, 3e38):
        for spoils_target in (False, True):
            picture = torch.where(mask > 0, output, poison).requires_grad_()
            value = loss(picture, torch.where(mask > 0, target, poison) if spoils_target else target, mask)
            value.backward()
            values.append(value.item())
            gradients.append(picture.grad)
    assert math.isfinite(values[0])
    assert len(set(values)) == 1
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert gradients[0].isfinite().all()
    assert not gradients[0][mask.expand_as(output) == 0].any()


@every_loss
def test_nan_at_a_pixel_that_counts_is_never_silent(kind: str):
    loss = cast(LossConfig, config_class("library.losses", kind).model_validate({})).build()
    output, target, mask = case()
    output[1, 1][mask[1, 0] > 0] = torch.nan
    assert loss(output, target, mask).isnan()


def test_the_ms_ssim_loss_is_one_minus_the_metric():
    output, target, mask = case()
    expected = (1 - ms_ssim_metric(output, target, mask)).mean()
    assert ms_ssim.Config().build()(output, target, mask) == expected


@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
def test_charbonnier_is_its_formula_less_epsilon(epsilon: float):
    output, target, mask = case(16)
    difference = (output.double() - target.double())[mask.expand_as(output).bool()]
    every = torch.sqrt(difference**2 + epsilon**2) - epsilon
    found = charbonnier.Config(epsilon=epsilon).build()(output[:1], target[:1], mask[:1])
    first = mask[0].expand_as(output[0]).sum().int()
    assert float(found) == pytest.approx(float(every[:first].mean()), rel=1e-5)


def test_charbonnier_is_squared_for_small_differences_and_absolute_for_large_ones():
    _, target, mask = case(16)
    loss = charbonnier.Config(epsilon=1e-2).build()
    for difference in (1e-8, 1e-6, 1e-4):
        small = loss(torch.full_like(target, difference), torch.zeros_like(target), mask)
        assert float(small) == pytest.approx(difference**2 / 2e-2, rel=1e-3)
    for difference in (3.0, 100.0):
        large = loss(torch.full_like(target, difference), torch.zeros_like(target), mask)
        assert float(large) == pytest.approx(difference - 1e-2, rel=1e-3)


def test_charbonnier_lies_between_nothing_and_l1():
    output, target, mask = case(16)
    losses = [charbonnier.Config(epsilon=epsilon).build()(output, target, mask) for epsilon in (1, 0.1, 1e-2, 1e-6)]
    assert losses == sorted(losses)
    assert losses[0] > 0
    torch.testing.assert_close(losses[-1], l1.Config().build()(output, target, mask), rtol=1e-4, atol=0)


def test_wide_charbonnier_is_mse_over_twice_its_epsilon():
    output, target, mask = case(16)
    loss = charbonnier.Config(epsilon=100).build()(output, target, mask)
    torch.testing.assert_close(loss * 200, mse.Config().build()(output, target, mask), rtol=1e-4, atol=0)


def test_an_epsilon_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        charbonnier.Config(epsilon=0)
