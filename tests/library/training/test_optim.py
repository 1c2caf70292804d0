from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.config import validate
from library.errors import ConfigError
from library.models import nafnet
from library.models.blocks.image_model import ImageModel
from library.training.checkpoint import Progress
from library.training.optim import Constant, Cosine, OptimConfig, Plateau, set_lr

configs = st.builds(
    OptimConfig,
    lr=st.floats(1e-6, 1),
    warmup_steps=st.integers(0, 20),
    schedule=st.one_of(
        st.builds(Cosine, floor=st.floats(0, 1)), st.just(Constant()), st.builds(Plateau, patience=st.integers(1, 9))
    ),
)


def small_model() -> ImageModel:
    torch.manual_seed(0)
    return nafnet.Config(width=2).build()


# --- schedules --------------------------------------------------------------------------------------------------------


@given(configs, st.integers(1, 200))
def test_the_rate_is_positive_never_above_its_peak_and_rises_before_it_falls(config: OptimConfig, steps: int):
    rates = [config.lr_at(step, steps) for step in range(steps)]
    assert all(0 < rate <= config.lr for rate in rates)
    top = max(range(steps), key=rates.__getitem__)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@given(configs, st.integers(0, 60), st.floats(1e-3, 1))
def test_what_a_plateau_has_come_to_scales_the_rate_of_every_step(config: OptimConfig, step: int, lr_scale: float):
    assert config.lr_at(step, 60, lr_scale) == pytest.approx(lr_scale * config.lr_at(step, 60))


def test_warm_up_is_a_straight_line_from_near_zero_to_the_peak():
    config = OptimConfig(lr=1.0, warmup_steps=4, schedule=Constant())
    assert [config.lr_at(step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_the_cosine_passes_half_its_height_halfway_and_ends_near_zero():
    config = OptimConfig(lr=1.0, warmup_steps=10)
    assert config.lr_at(10, 110) == 1.0
    assert config.lr_at(60, 110) == pytest.approx(0.5)
    assert config.lr_at(109, 110) < 1e-3
    assert config.lr_at(110, 110) == pytest.approx(0, abs=1e-12)


def test_the_cosine_ends_on_its_floor_and_passes_the_middle_between_that_and_the_peak():
    config = OptimConfig(lr=2.0, schedule=Cosine(floor=0.1))
    assert config.lr_at(0, 100) == 2.0
    assert config.lr_at(50, 100) == pytest.approx(2.0 * (1 + 0.1) / 2)
    assert config.lr_at(100, 100) == pytest.approx(0.2)
    assert config.lr_at(170, 100) == pytest.approx(0.2)


def test_the_rate_of_a_step_does_not_depend_on_the_steps_before():
    config = OptimConfig(warmup_steps=5)
    backwards = [config.lr_at(step, 50) for step in reversed(range(50))]
    assert backwards[::-1] == [config.lr_at(step, 50) for step in range(50)]


@given(
    st.integers(1, 12),
    st.lists(st.booleans(), max_size=40),
    st.integers(1, 5),
    st.integers(0, 40),
)
def test_a_plateau_lowers_the_rate_once_for_each_patience_without_a_new_best(
    patience: int, validations: list[bool], validate_every: int, resumed_at: int
):
    """Its memory is in the progress alone: a run resumed anywhere decays where an undisturbed one does. RawNIND's
    allowance began anew at an absolute step, so that a resumed run decayed on its first non-improvement."""
    schedule = Plateau(patience=patience, factor_per_decay=0.5)
    progress, last_change, num_decays = Progress(), 0, 0
    for number, improved in enumerate(validations, 1):
        progress.step = number * validate_every
        if number == resumed_at:
            schedule = Plateau(patience=patience, factor_per_decay=0.5)
        schedule.after_validation(progress, improved=improved)
        if improved:
            last_change = progress.step
        elif progress.step - last_change >= patience:
            last_change, num_decays = progress.step, num_decays + 1
        assert progress.lr_scale == 0.5**num_decays
    assert (progress.best, progress.skipped_steps, progress.stopped) == ({}, 0, None)


def test_a_schedule_is_chosen_by_its_kind_and_has_its_own_settings():
    for schedule in ({"kind": "cosine", "floor": 0.1}, {"kind": "constant"}, {"kind": "plateau", "patience": 5}):
        config = validate(OptimConfig, {"schedule": schedule}, "x")
        assert config.schedule.model_dump(include=set(schedule)) == schedule
    with pytest.raises(ConfigError, match=r"floor: unknown key"):
        validate(OptimConfig, {"schedule": {"kind": "constant", "floor": 0.1}}, "x")
    with pytest.raises(ConfigError, match=r"patience: is required"):
        validate(OptimConfig, {"schedule": {"kind": "plateau"}}, "x")


# --- the optimizer ----------------------------------------------------------------------------------------------------


def test_only_weights_decay_and_every_parameter_is_trained():
    model = small_model()
    optimizer = OptimConfig(weight_decay=0.3).build(model)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == len({id(p) for p in trained})
    assert {id(p) for p in trained} == {id(p) for p in model.parameters()}
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
        assert group["betas"] == OptimConfig().betas


def test_without_a_gradient_weights_shrink_by_the_decay_and_biases_stay():
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = OptimConfig(weight_decay=0.5).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_lr(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_without_decay_it_is_adam():
    ours, theirs = small_model(), small_model()
    optimizers = [
        OptimConfig(lr=1e-2, weight_decay=0).build(ours),
        torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=OptimConfig().betas),
    ]
    for seed in range(3):
        x = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (model(x) - 0.3).square().mean().backward()
            optimizer.step()
    for p, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, expected)


def test_each_part_of_the_model_learns_at_its_own_multiple_of_the_rate():
    model = small_model()
    optimizer = OptimConfig(lr_multipliers={"head": 10, "middle": 0.5}).build(model)
    set_lr(optimizer, 2.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for part in model.parameter_groups():
        expected = {"head": 20.0, "middle": 1.0}.get(part.name, 2.0 * part.lr_multiplier)
        assert {rate[id(p)] for p in part.parameters} == {expected}


@given(st.lists(st.booleans(), max_size=30))
def test_the_rates_of_the_parts_keep_their_ratio_through_any_number_of_decays(validations: list[bool]):
    """RawNIND multiplied the first group's rate twice at each decay, so that encoder and decoder drifted apart."""
    config = OptimConfig(lr=1.0, lr_multipliers={"encoder": 3.0, "head": 0.1}, schedule=Plateau(patience=1))
    optimizer, progress = config.build(small_model()), Progress()
    assert isinstance(config.schedule, Plateau)
    for progress.step, improved in enumerate(validations, 1):
        config.schedule.after_validation(progress, improved=improved)
        set_lr(optimizer, config.lr_at(progress.step, 100, progress.lr_scale))
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(
                0.85 ** validations[: progress.step].count(False) * group["lr_multiplier"]
            )
    assert {group["lr_multiplier"] for group in optimizer.param_groups} == {3.0, 1.0, 0.1}


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": 0},
        {"lr": -1},
        {"weight_decay": -1},
        {"clip_grad_norm": 0},
        {"warmup_steps": -1},
        {"lr_multipliers": {"head": 0}},
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, float]):
    with pytest.raises(ConfigError, match=r"greater than"):
        validate(OptimConfig, setting, "x")
