from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from library.config import config_class, kinds
from library.datasets.batch import Batch
from library.losses import LossConfig, l1, mse
from library.ops.cfa import pack_cfa, sample_cfa
from library.ops.color import camera_rgb_to_lin_rec2020
from library.ops.transfer import gamma22_encode, pq_encode, srgb_encode
from library.training.objective import Objective, Transfer

SONY = torch.tensor([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])
CANON = torch.tensor([[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]])
every_transfer = pytest.mark.parametrize("transfer", get_args(Transfer))


def case(side: int = 16) -> tuple[Tensor, Batch]:
    """An output near its truth, of two cameras; a fifth of the pixels does not count."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, side, side, generator=generator) * 0.9
    mask = (torch.rand(2, 1, side, side, generator=generator) > 0.2).float()
    output = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    return output, Batch(pack_cfa(sample_cfa(clean)), clean, mask, torch.stack([SONY, CANON]))


@pytest.mark.parametrize(
    ("transfer", "curve"),
    [("none", lambda x: x), ("srgb", srgb_encode), ("gamma22", gamma22_encode), ("pq", pq_encode)],
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
    exchanged = Batch(batch.noisy, batch.clean, batch.mask, batch.xyz_to_camera.flip(0))
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
        black = Batch(batch.noisy, torch.zeros_like(batch.clean), batch.mask, batch.xyz_to_camera)
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
            one = Batch(batch.noisy, clean, batch.mask, batch.xyz_to_camera)
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
    objective = Objective(configs, "srgb")
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
