from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from library.ops.transfer import (
    gamma22_decode,
    gamma22_encode,
    log_decode,
    log_encode,
    pq_decode,
    pq_encode,
    root_decode,
    root_encode,
    srgb_decode,
    srgb_encode,
)

with warnings.catch_warnings():  # of its imports from scipy and matplotlib
    warnings.simplefilter("ignore")
    colour = pytest.importorskip("colour")

Transfer = Callable[[Tensor], Tensor]
PAIRS = [
    (srgb_encode, srgb_decode),
    (gamma22_encode, gamma22_decode),
    (pq_encode, pq_decode),
    (root_encode, root_decode),
]
FUNCTIONS = [function for pair in PAIRS for function in pair]
pairs = pytest.mark.parametrize(("encode", "decode"), PAIRS)
functions = pytest.mark.parametrize("function", FUNCTIONS)

LINEAR = torch.cat([torch.logspace(-9, 0, 400, dtype=torch.float64), torch.tensor([0.0, 0.0031308, 0.018, 1e-6, 4.0])])
LINEAR = torch.cat([-LINEAR, LINEAR])


@pairs
def test_decoding_undoes_encoding_below_zero_and_above_one_too(encode: Transfer, decode: Transfer):
    torch.testing.assert_close(decode(encode(LINEAR)), LINEAR, rtol=1e-5, atol=1e-12)
    single = LINEAR.float()
    torch.testing.assert_close(decode(encode(single)), single, rtol=2e-4, atol=1e-9)


@functions
def test_zero_stays_zero_and_one_stays_one(function: Transfer):
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(function(values), values, rtol=2e-6, atol=0)


@pairs
def test_more_light_is_a_greater_code_and_a_greater_code_never_less_light(encode: Transfer, decode: Transfer):
    """The standards' pieces do not quite meet, so an inverse may stand still between them."""
    values = torch.linspace(-1.2, 1.2, 200_001, dtype=torch.float64)
    assert (encode(values).diff() > 0).all()
    assert (decode(values).diff() >= 0).all()


@pytest.mark.parametrize("function", [srgb_encode, srgb_decode, pq_encode, pq_decode])
def test_negative_values_mirror_positive_ones(function: Transfer):
    values = torch.linspace(0, 1.5, 1001)
    assert torch.equal(function(-values), -function(values))


@pytest.mark.parametrize("function", [gamma22_encode, gamma22_decode])
def test_gamma_leaves_negative_values_alone(function: Transfer):
    values = torch.linspace(-2, 0, 101)
    assert torch.equal(function(values), values)


@functions
def test_gradients_are_finite_at_zero_below_it_and_everywhere(function: Transfer):
    small = torch.finfo(torch.float32).smallest_normal
    special = [0.0, -0.0, small, -small, 1e-45, -1e-45, 1e-30, 1e-6, 6.06704668e-5, 0.0031308, 0.04045, 1.0, -1.0]
    values = torch.cat([torch.tensor(special), torch.linspace(-1.5, 1.5, 3001)]).requires_grad_()
    function(values).sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert (values.grad >= 0).all()
    assert (values.grad[:2] > 0).all()  # at 0 itself something is still learned


@functions
def test_gradients_are_those_of_finite_differences(function: Transfer):
    values = torch.tensor([-0.7, -2e-3, -2e-7, 2e-7, 1e-3, 0.2, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, values, eps=1e-9, atol=1e-4, rtol=1e-4)


def test_the_slope_of_pq_is_bounded_so_that_dark_noise_does_not_rule_a_loss():
    values = torch.linspace(-1e-4, 1e-4, 10_001, dtype=torch.float64, requires_grad=True)
    pq_encode(values).sum().backward()
    assert values.grad is not None
    assert values.grad.max() < 520


def test_srgb_is_that_of_colour_science():
    values = np.linspace(0, 1, 10_001)
    np.testing.assert_allclose(
        srgb_encode(torch.from_numpy(values)), colour.models.eotf_inverse_sRGB(values), atol=1e-12
    )
    np.testing.assert_allclose(srgb_decode(torch.from_numpy(values)), colour.models.eotf_sRGB(values), atol=1e-12)


def test_pq_is_that_of_colour_science():
    values = np.concatenate([np.geomspace(1e-6, 1, 10_001), np.linspace(0.01, 1, 1001)])
    expected = colour.models.oetf_BT2100_PQ(values)
    np.testing.assert_allclose(pq_encode(torch.from_numpy(values)), expected, rtol=1e-7)
    np.testing.assert_allclose(pq_encode(torch.from_numpy(values).float()), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        pq_decode(torch.from_numpy(expected)), colour.models.oetf_inverse_BT2100_PQ(expected), rtol=1e-6
    )


def test_the_log_curve_is_acescct_of_colour_science_and_comes_back():
    values = np.concatenate([np.linspace(-0.01, 0.01, 401), np.geomspace(0.011, 200, 1001)])
    with np.errstate(divide="ignore", invalid="ignore"):  # of the branch that is not taken
        expected = colour.models.log_encoding_ACEScct(values)
    codes = log_encode(torch.from_numpy(values))
    np.testing.assert_allclose(codes, expected, atol=1e-12)
    np.testing.assert_allclose(log_decode(codes), values, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(log_decode(codes.float()), values, rtol=1e-4, atol=1e-7)
    assert (codes.diff() > 0).all()


def test_the_log_curve_has_finite_gradients_on_both_sides_of_its_break():
    values = torch.tensor([-1.0, 0.0, 2.0**-7, 0.18, 100.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_encode, (values.detach()[[0, 1, 3, 4]].requires_grad_(),))
    log_decode(log_encode(values)).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.ones_like(values))


def test_pq_codes_100_cd_per_m2_as_the_standard_does():
    """BT.1886 shows the video signal 1 at 100 cd/m2; PQ (SMPTE ST 2084) gives that the code 0.5081."""
    scene = torch.tensor([1 / 59.5208], dtype=torch.float64)
    assert pq_encode(scene).item() == pytest.approx(0.50808, abs=1e-5)


def test_the_toe_of_pq_joins_its_curve_and_stays_close_to_it():
    around = torch.tensor([0.999999e-6, 1.000001e-6], dtype=torch.float64)
    below, above = pq_encode(around).tolist()
    assert above == pytest.approx(below, rel=1e-5)
    toe = np.geomspace(1e-12, 1e-6, 1001)
    missed = np.abs(pq_encode(torch.from_numpy(toe)).numpy() - colour.models.oetf_BT2100_PQ(toe))
    assert missed.max() < 3e-5


levels = st.floats(-4, 64, width=32)


@given(levels, st.sampled_from([1e-4, 0.02, 1.0]))
def test_stabilising_and_back_gives_every_level_also_those_below_black(x: float, offset: float):
    level = torch.tensor(x, dtype=torch.float32)
    torch.testing.assert_close(root_decode(root_encode(level, offset), offset), level, rtol=3e-6, atol=1e-6)


@given(levels, levels)
def test_stabilising_keeps_the_order_of_levels(x: float, y: float):
    low, high = sorted((x, y))
    assert root_encode(torch.tensor(low)) <= root_encode(torch.tensor(high)) + 1e-7
    if high - low > 1e-4 * max(1, abs(high)):
        assert root_encode(torch.tensor(low)) < root_encode(torch.tensor(high))


def test_the_root_is_smooth_at_black():
    slopes = []
    for x in (-1e-6, 0.0, 1e-6):
        level = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(root_encode(level), level)
        slopes.append(float(slope))
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-4)


def test_stabilising_makes_poisson_noise_about_the_same_at_every_level():
    generator = torch.Generator().manual_seed(0)
    a, b = 1e-3, 2e-5  # read noise that fits the offset: b / a = 0.02
    spreads = []
    for level in (0.02, 0.1, 0.5, 0.9):
        noisy = level + (a * level + b) ** 0.5 * torch.randn(100_000, generator=generator)
        spreads.append(float(root_encode(noisy, b / a).std()))
    assert max(spreads) / min(spreads) < 1.05
    scale = 1 / ((1 + b / a) ** 0.5 - (b / a) ** 0.5)
    assert spreads[0] == pytest.approx(scale * a**0.5 / 2, rel=0.05)


# --- the network ------------------------------------------------------------------------------------------------------
