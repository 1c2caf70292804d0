from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from library.config import config_class, kinds
from library.datasets.batch import Batch
from library.losses import LossConfig, l1, mse
from library.metrics import masked_mean_per_image, only_valid
from library.ops.cfa import XTRANS_PHASES, pack_cfa, sample_cfa, unpack_cfa
from library.ops.cfa_planes import pack_cfa_planes
from library.ops.color import camera_rgb_to_lin_rec2020, lin_rec2020_to_lin_srgb, xyz_to_lin_srgb
from library.ops.transfer import gamma22_encode, pq_encode, root_encode, srgb_encode
from library.training.objective import LARGEST_GAIN, Gain, Objective, Transfer, match_input, match_mean, matching_gain

SONY = torch.tensor([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])
CANON = torch.tensor([[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]])
NOISE = torch.tensor([[2e-3, 1e-5], [4e-3, 2e-5]])
every_transfer = pytest.mark.parametrize("transfer", get_args(Transfer))
every_gain = pytest.mark.parametrize("gain", get_args(Gain))


def case(side: int = 16) -> tuple[Tensor, Batch]:
    """An output near its truth, of two cameras; a fifth of the pixels does not count."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, side, side, generator=generator) * 0.9
    mask = (torch.rand(2, 1, side, side, generator=generator) > 0.2).float()
    output = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    return output, Batch(pack_cfa(sample_cfa(clean)), clean, mask, torch.stack([SONY, CANON]), NOISE)


@pytest.mark.parametrize(
    ("transfer", "curve"),
    [
        ("none", lambda x: x),
        ("root", root_encode),
        ("srgb", srgb_encode),
        ("gamma22", gamma22_encode),
        ("pq", pq_encode),
        ("developed", lambda x: srgb_encode(lin_rec2020_to_lin_srgb(x))),
    ],
)
def test_first_the_camera_matrix_then_the_curve_then_the_loss(transfer: Transfer, curve):
    output, batch = case()
    lin_rec2020 = [camera_rgb_to_lin_rec2020(x, xyz_to_camera=batch.xyz_to_camera) for x in (output, batch.clean)]
    expected = l1.Config().build()(*(curve(x) for x in lin_rec2020), batch.mask)
    found = Objective({"l1": l1.Config()}, transfer)(output, batch)
    assert found["l1"] == expected
    assert found["loss"] == expected


def test_every_image_goes_through_its_own_cameras_matrix():
    output, batch = case()
    exchanged = replace(batch, xyz_to_camera=batch.xyz_to_camera.flip(0))
    objective = Objective({"mse": mse.Config()}, "none")
    assert not torch.isclose(objective(output, batch)["loss"], objective(output, exchanged)["loss"], rtol=1e-3)


def test_the_loss_is_the_weighted_sum_of_its_parts_which_are_not_weighted():
    output, batch = case(176)
    weights = {kind: 0.5 + i for i, kind in enumerate(kinds("library.losses"))}
    configs: dict[str, LossConfig] = {}
    for kind, weight in weights.items():
        config = config_class("library.losses", kind).model_validate({"kind": kind, "weight": weight})
        assert isinstance(config, LossConfig)
        configs[kind] = config
    found = Objective(configs, "srgb")(output, batch)
    assert found.keys() == {"loss", *weights}
    expected = sum(weight * found[kind] for kind, weight in weights.items())
    torch.testing.assert_close(found["loss"], expected)
    for kind, config in configs.items():
        alone = Objective({kind: config}, "srgb")(output, batch)
        assert alone[kind] == found[kind]


@every_transfer
def test_gradients_are_finite_at_black_below_it_and_above_white(transfer: Transfer):
    _, batch = case()
    for level in (0.0, 1e-12, -1e-12, 1e-5, -0.05, 1.0, 2.5):
        output = torch.full_like(batch.clean, level).requires_grad_()
        black = replace(batch, clean=torch.zeros_like(batch.clean))
        found = Objective({"l1": l1.Config(), "mse": mse.Config()}, transfer)(output, black)
        found["loss"].backward()
        assert found["loss"].isfinite()
        assert output.grad is not None
        assert output.grad.isfinite().all()


@every_transfer
def test_the_truth_has_no_loss_and_anything_else_has(transfer: Transfer):
    output, batch = case()
    objective = Objective({"l1": l1.Config()}, transfer)
    assert objective(batch.clean, batch)["loss"] == 0
    assert objective(output, batch)["loss"] > 0


def test_what_saturates_gets_no_gradient():
    output, batch = case()
    output.requires_grad_()
    Objective({"l1": l1.Config(), "mse": mse.Config()}, "srgb")(output, batch)["loss"].backward()
    assert output.grad is not None
    valid = batch.mask.bool().expand_as(output)
    assert not output.grad[~valid].any()
    assert output.grad[valid].all()


def test_a_curve_weighs_shadows_more():
    _, batch = case()
    gradients = {}
    for transfer in get_args(Transfer):
        shares = []
        for level in (0.02, 0.5):
            clean = torch.full_like(batch.clean, level)
            output = (clean + 1e-3).requires_grad_()
            one = replace(batch, clean=clean)
            Objective({"l1": l1.Config()}, transfer)(output, one)["loss"].backward()
            assert output.grad is not None
            shares.append(output.grad.norm())
        gradients[transfer] = float(shares[0] / shares[1])
    assert gradients.pop("none") == pytest.approx(1, rel=0.2)
    assert all(ratio > 2 for ratio in gradients.values())


def test_under_autocast_everything_is_still_computed_in_float32():
    output, batch = case(176)
    configs: dict[str, LossConfig] = {}
    for kind in kinds("library.losses"):
        config = config_class("library.losses", kind).model_validate({})
        assert isinstance(config, LossConfig)
        configs[kind] = config
    objective = Objective(configs, "srgb", "match_target")
    expected = objective(output, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(output, batch)
    assert {name: float(value) for name, value in found.items()} == {
        name: float(value) for name, value in expected.items()
    }
    assert all((value.dtype, value.shape) == (torch.float32, ()) for value in found.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = objective(output.bfloat16(), batch)
    assert rounded["loss"].dtype == torch.float32


# --- gain -------------------------------------------------------------------------------------------------------------


def means(picture: Tensor, batch: Batch) -> Tensor:
    return masked_mean_per_image(picture, batch.mask)


def test_a_matched_picture_has_its_targets_mean_over_valid_pixels():
    output, batch = case()
    factors = torch.tensor([0.05, 7.0])[:, None, None, None]
    matched = match_mean(factors * output, batch.clean, batch.mask)
    torch.testing.assert_close(means(matched, batch), means(batch.clean, batch))
    torch.testing.assert_close(matched, match_mean(output, batch.clean, batch.mask))
    torch.testing.assert_close(match_mean(batch.clean, batch.clean, batch.mask), batch.clean)


def test_pixels_that_do_not_count_have_no_say_in_the_gain():
    output, batch = case()
    gain = matching_gain(output, batch.clean, batch.mask)
    for value in (5.0, torch.inf, torch.nan):
        spoilt, clean = (torch.where(batch.mask > 0, x, value) for x in (output, batch.clean))
        assert torch.equal(matching_gain(spoilt, clean, batch.mask), gain)


def test_one_gain_is_for_all_channels():
    """A gain for each channel would be a white balance, which the network has to get right."""
    output, batch = case()
    tinted = output * torch.tensor([2.0, 1.0, 0.5])[:, None, None]
    ratio = match_mean(tinted, batch.clean, batch.mask) / tinted
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio))


@pytest.mark.parametrize("mean", [0.0, 1e-12, -1e-12, -0.3])
def test_a_picture_without_a_positive_mean_gets_the_largest_gain_and_is_pulled_up(mean: float):
    _, batch = case()
    picture = torch.full_like(batch.clean, mean).requires_grad_()
    assert (matching_gain(picture, batch.clean, batch.mask) == LARGEST_GAIN).all()
    loss = (only_valid(match_mean(picture, batch.clean, batch.mask) - batch.clean, batch.mask) ** 2).mean()
    loss.backward()
    assert picture.grad is not None
    assert picture.grad.isfinite().all()
    # A step down the gradient raises the mean of each image.
    assert (means(-picture.grad, batch) > 0).all()


@pytest.mark.parametrize("truth", [0.0, -0.01, 1e-9])
def test_a_black_truth_gives_a_gain_above_zero_so_that_black_can_still_be_learnt(truth: float):
    output, batch = case()
    gain = matching_gain(output, torch.full_like(batch.clean, truth), batch.mask)
    torch.testing.assert_close(gain, torch.full_like(gain, 1 / LARGEST_GAIN))


def test_the_gradient_goes_through_the_gain():
    """Brightening a picture whose mean is matched changes nothing, so that its gradient has no component that way."""
    output, batch = case()
    picture = output.clone().requires_grad_()
    error = match_mean(picture, batch.clean, batch.mask) - batch.clean
    (only_valid(error, batch.mask) ** 2).sum().backward()
    assert picture.grad is not None
    along = float((picture.grad * output * batch.mask).sum())
    assert abs(along) < 1e-4 * float((picture.grad * output * batch.mask).abs().sum())


def test_a_gain_matched_output_is_matched_in_camera_rgb_and_again_behind_the_matrix():
    output, batch = case()
    found, target = Objective({"l1": l1.Config()}, "none", "match_target").compared(3 * output, batch)
    linear = [camera_rgb_to_lin_rec2020(x, xyz_to_camera=batch.xyz_to_camera) for x in (output, batch.clean)]
    torch.testing.assert_close(target, only_valid(linear[1], batch.mask))
    torch.testing.assert_close(found, only_valid(match_mean(linear[0], linear[1], batch.mask), batch.mask))
    torch.testing.assert_close(means(found, batch), means(target, batch))
    # The first match alone would not do: the two cameras' matrices mix the channels' errors.
    first = only_valid(match_mean(3 * output, batch.clean, batch.mask), batch.mask)
    once = camera_rgb_to_lin_rec2020(first, xyz_to_camera=batch.xyz_to_camera)
    assert not torch.isclose(means(once, batch), means(target, batch), rtol=1e-4).all()


@every_transfer
def test_the_brightness_of_an_output_counts_unless_it_is_matched_to_the_target(transfer: Transfer):
    output, batch = case()
    for gain in get_args(Gain):
        objective = Objective({"mse": mse.Config()}, transfer, gain)
        same = torch.isclose(objective(output, batch)["loss"], objective(8 * output, batch)["loss"], rtol=1e-3)
        assert bool(same) == (gain == "match_target")


def test_a_gain_matched_input_has_the_mean_of_the_truths_mosaic_not_of_its_picture():
    _, batch = case()
    dark = replace(batch, noisy=batch.noisy / torch.tensor([4.0, 0.5])[:, None, None, None])
    matched = match_input(dark)
    mosaics = [x[:, None] for x in (unpack_cfa(matched.noisy), sample_cfa(batch.clean))]
    torch.testing.assert_close(means(mosaics[0], batch), means(mosaics[1], batch))
    # Here the noisy mosaic is the truth's own, and so comes back; a picture weighs green once, and has another mean.
    torch.testing.assert_close(matched.noisy, batch.noisy)
    assert not torch.isclose(means(mosaics[1], batch), means(batch.clean, batch), rtol=1e-4).any()
    for name in ("clean", "mask", "xyz_to_camera"):
        assert getattr(matched, name) is getattr(dark, name)
    torch.testing.assert_close(match_input(matched).noisy, matched.noisy)


def test_only_the_input_policy_changes_what_a_network_sees_and_only_the_target_policy_what_is_judged():
    output, batch = case()
    dark = replace(batch, noisy=batch.noisy / 4)
    for gain in get_args(Gain):
        objective = Objective({"l1": l1.Config()}, "none", gain)
        seen, judged = objective.network_input(dark), objective.settle_gain(4 * output, dark)
        assert (seen is dark.noisy) == (gain != "match_input")
        assert objective.output_gain == ("arbitrary" if gain == "match_target" else "absolute")
        if gain == "match_target":
            torch.testing.assert_close(means(judged, batch), means(batch.clean, batch))
        else:
            assert torch.equal(judged, 4 * output)


# --- developed --------------------------------------------------------------------------------------------------------


def test_the_developed_transfer_compares_what_a_display_would_be_sent_unclipped():
    output, batch = case()
    found, _ = Objective({"l1": l1.Config()}, "developed").compared(3 * output, batch)
    xyz = torch.linalg.solve(batch.xyz_to_camera.double(), only_valid(3 * output, batch.mask).double().flatten(2))
    lin_srgb = xyz_to_lin_srgb(xyz.unflatten(2, output.shape[2:]))
    torch.testing.assert_close(found, srgb_encode(lin_srgb), atol=1e-4, rtol=1e-4)
    assert found.max() > 1
    assert found.min() < 0


# --- what must never leak ---------------------------------------------------------------------------------------------


@every_gain
@every_transfer
def test_an_output_that_is_no_number_where_it_does_not_count_has_no_influence(transfer: Transfer, gain: Gain):
    """The losses' own masks come too late for this: the gradient of a curve at infinity is NaN times zero."""
    output, batch = case()
    objective = Objective({"l1": l1.Config(), "mse": mse.Config()}, transfer, gain)
    values, gradients = [], []
    for poison in (0.3, math.inf, -math.inf, math.nan):
        picture = torch.where(batch.mask > 0, output, poison).requires_grad_()
        loss = objective(picture, batch)["loss"]
        loss.backward()
        values.append(loss.item())
        gradients.append(picture.grad)
    assert math.isfinite(values[0])
    assert len(set(values)) == 1
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert gradients[0].isfinite().all()
    assert gradients[0].any()


@every_gain
def test_an_output_that_is_no_number_where_it_counts_is_never_silent(gain: Gain):
    output, batch = case()
    output[1, 0][batch.mask[1, 0] > 0] = torch.nan
    assert Objective({"l1": l1.Config()}, "srgb", gain)(output, batch)["loss"].isnan()


# --- inputs other than packed mosaics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 5])
def test_a_matched_input_has_the_brightness_of_the_truth_whatever_kind_of_input_it_is(channels: int):
    _, batch = case()
    clean = batch.clean
    if channels == 5:
        cfas = ("GBRG", XTRANS_PHASES[1]) * len(clean)
        mosaics = [0.25 * sample_cfa(picture, cfa) for picture, cfa in zip(clean, cfas, strict=False)]
        noisy = torch.stack([pack_cfa_planes(m, c, a=1e-3, b=1e-5) for m, c in zip(mosaics, cfas, strict=False)])
    else:
        noisy = 0.25 * clean
    found = Objective({"l1": l1.Config()}, "none", "match_input").network_input(replace(batch, noisy=noisy))
    if channels == 3:
        torch.testing.assert_close(found, clean)
    else:
        expected = torch.stack([sample_cfa(picture, cfa) for picture, cfa in zip(clean, cfas, strict=False)])
        torch.testing.assert_close(found[:, 0], expected)
        assert torch.equal(found[:, 1:4], noisy[:, 1:4])
        torch.testing.assert_close(found[:, 4], 4 * noisy[:, 4])  # noise grows with the signal
