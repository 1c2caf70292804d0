from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.sweeps.population import explored
from workloads.sweeps.space import Axis, drawn

SPACE = {
    "losses.kind": Axis(choice=("mse", "l1", "charbonnier")),
    "optim.lr": Axis(loguniform=(1e-4, 1e-2)),
    "decay": Axis(uniform=(0.9, 0.999)),
    "depth": Axis(integer=(2, 5)),
    "losses.epsilon": Axis(uniform=(0.0, 1.0), when={"losses.kind": "charbonnier"}),
}


def is_within(axis: Axis, value: Any) -> bool:
    if axis.choice is not None:
        return value in axis.choice
    low, high = axis.integer or axis.uniform or axis.loguniform or (0, 0)
    return low <= value <= high and isinstance(value, int if axis.integer else float)


@given(st.integers(0, 2**32))
def test_however_often_one_moves_on_one_stays_in_the_space(seed: int) -> None:
    random = np.random.default_rng(seed)
    point = drawn(SPACE, {}, {}, random)
    for _ in range(20):
        point = explored(SPACE, {}, point, random)
        assert all(is_within(SPACE[key], value) for key, value in point.items())
        assert ("losses.epsilon" in point) == (point["losses.kind"] == "charbonnier")


def test_a_number_moves_by_a_fifth_or_is_drawn_anew() -> None:
    space = {"optim.lr": Axis(loguniform=(1e-6, 1.0))}
    moved = [
        explored(space, {}, {"optim.lr": 1e-3}, np.random.default_rng(seed))["optim.lr"] / 1e-3 for seed in range(4000)
    ]
    up, down = np.isclose(moved, 1.2).mean(), np.isclose(moved, 0.8).mean()
    assert 0.73 < up + down < 0.77
    assert abs(up - down) < 0.03


@pytest.mark.parametrize(
    ("axis", "value", "above", "below"),
    [
        (Axis(integer=(2, 50)), 3, 4, 2),
        (Axis(integer=(2, 50)), 20, 24, 16),
        (Axis(integer=(2, 5)), 5, 5, 4),
        (Axis(uniform=(0.5, 1.0)), 0.9, 1.0, pytest.approx(0.72)),
        (Axis(choice=("a", "b", "c")), "b", "c", "a"),
        (Axis(choice=("a", "b", "c")), "c", "c", "b"),
    ],
)
def test_the_value_beside_another(axis: Axis, value: Any, above: Any, below: Any) -> None:
    assert axis.beside(value, up=True) == above
    assert axis.beside(value, up=False) == below
