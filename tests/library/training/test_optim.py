from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.models import nafnet
from library.training.optim import OptimConfig, set_lr

configs = st.builds(
    OptimConfig,
    lr=st.floats(1e-6, 1),
    warmup_steps=st.integers(0, 20),
    schedule=st.sampled_from(["cosine", "constant"]),
)


@given(configs, st.integers(1, 200))
def test_the_rate_is_positive_never_above_its_peak_and_rises_before_it_falls(config: OptimConfig, steps: int):
    rates = [config.lr_at(step, steps) for step in range(steps)]
    assert all(0 < rate <= config.lr for rate in rates)
    top = max(range(steps), key=rates.__getitem__)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_warm_up_is_a_straight_line_from_near_zero_to_the_peak():
    config = OptimConfig(lr=1.0, warmup_steps=4, schedule="constant")
    assert [config.lr_at(step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_the_cosine_passes_half_its_height_halfway_and_ends_near_zero():
    config = OptimConfig(lr=1.0, warmup_steps=10)
    assert config.lr_at(10, 110) == 1.0
    assert config.lr_at(60, 110) == pytest.approx(0.5)
    assert config.lr_at(109, 110) < 1e-3
    assert config.lr_at(110, 110) == pytest.approx(0, abs=1e-12)


def test_the_rate_of_a_step_does_not_depend_on_the_steps_before():
    config = OptimConfig(warmup_steps=5)
    backwards = [config.lr_at(step, 50) for step in reversed(range(50))]
    assert backwards[::-1] == [config.lr_at(step, 50) for step in range(50)]


def test_only_weights_decay_and_every_parameter_is_trained():
    model = nafnet.Config(width=2).build()
    optimizer = OptimConfig(weight_decay=0.3).build(model)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.parameters()}
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
        assert group["betas"] == OptimConfig().betas


def test_a_rate_is_given_to_every_group_times_its_own_multiplier():
    optimizer = OptimConfig().build(nafnet.Config(width=2).build())
    optimizer.param_groups[1]["lr_multiplier"] = 0.1
    set_lr(optimizer, 2.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.0, 0.2])


def test_without_a_gradient_weights_shrink_by_the_decay_and_biases_stay():
    torch.manual_seed(0)
    model = nafnet.Config(width=2).build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = OptimConfig(weight_decay=0.5).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_lr(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@pytest.mark.parametrize(
    "setting", [{"lr": 0}, {"lr": -1}, {"weight_decay": -1}, {"clip_grad_norm": 0}, {"warmup_steps": -1}]
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, float]):
    with pytest.raises(ValueError, match=r"greater than"):
        OptimConfig(**setting)  # pyright: ignore[reportArgumentType]
