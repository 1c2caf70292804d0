"""Spaces and searchers: every point is a function of the seed, the trial's number and what was tried before."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.config import validate
from library.errors import ConfigError
from workloads.sweeps.search import Asked, Grid, Nsga2, Problem, Random, Searcher, Tpe, Tried
from workloads.sweeps.space import Axis, drawn, grid_points, samples_of_each_axis

BASE = {"optim.schedule.kind": "cosine"}


def space(**axes: dict[str, Any]) -> dict[str, Axis]:
    return {key.replace("__", "."): Axis.model_validate(axis) for key, axis in axes.items()}


def problem(*modes: Any, seed: int = 0, **axes: dict[str, Any]) -> Problem:
    return Problem(space(**axes), BASE, modes or ("max",), seed)


DRAWN = {
    "optim__lr": {"loguniform": [1e-4, 1e-2]},
    "width": {"integer": [2, 5]},
    "loss": {"choice": ["l1", "mse"]},
    "share": {"uniform": [0.0, 1.0]},
}


def every_value(key: str, axis: Axis, value: Any) -> bool:
    if axis.choice is not None or axis.listed is not None:
        return value in axis.extremes
    low, high = axis.extremes
    return low <= value <= high and (axis.integer is None or isinstance(value, int))


# --- grids ------------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_once() -> None:
    points = [
        tuple(p.values.values()) for p in grid_points(space(a={"grid": [1, 2]}, b={"grid": ["x", "y", "z"]}), BASE)
    ]
    assert sorted(points) == sorted(itertools.product([1, 2], ["x", "y", "z"]))


def test_a_key_that_does_not_count_multiplies_nothing() -> None:
    axes = space(kind={"grid": ["cosine", "plateau"]}, patience={"grid": [1, 2, 3], "when": {"kind": "plateau"}})
    points = [p.values for p in grid_points(axes, BASE)]
    assert points == [{"kind": "cosine"}, *({"kind": "plateau", "patience": n} for n in (1, 2, 3))]


def test_a_condition_may_name_a_key_of_the_base_and_several_values() -> None:
    axis = {"grid": [1, 2], "when": {"optim.schedule.kind": ["cosine", "constant"]}}
    assert len(grid_points(space(a=axis), BASE)) == 2
    assert len(grid_points(space(a=axis), {"optim.schedule.kind": "plateau"})) == 1


def test_the_rungs_of_a_ladder_follow_each_other_at_every_point_of_the_grid() -> None:
    axes = space(lmbda={"ladder": [3.0, 2.0, 1.0]}, width={"grid": [8, 16]})
    points = grid_points(axes, BASE)
    for number, point in enumerate(points):
        if point.after is None:
            assert point.values["lmbda"] == 3.0
        else:
            before = points[point.after].values
            assert point.after == number - 1
            assert before["width"] == point.values["width"]
            assert before["lmbda"] == point.values["lmbda"] + 1


# --- draws ------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1))
def test_draws_stay_within_their_axes(seed: int) -> None:
    axes = space(**DRAWN)
    point = drawn(axes, BASE, {}, np.random.default_rng(seed))
    assert point.keys() == axes.keys()
    assert all(every_value(key, axes[key], value) for key, value in point.items())


def test_a_loguniform_draw_is_uniform_in_the_logarithm() -> None:
    axes, random = space(a={"loguniform": [1e-4, 1.0]}), np.random.default_rng(0)
    logs = [math.log10(drawn(axes, BASE, {}, random)["a"]) for _ in range(4000)]
    assert np.histogram(logs, bins=4, range=(-4, 0))[0] == pytest.approx(1000, rel=0.12)


def test_a_condition_shifts_no_other_draw() -> None:
    conditional = {"integer": [1, 4], "when": {"loss": "mse"}}
    with_it, without = (
        space(loss=DRAWN["loss"], n=n, lr=DRAWN["optim__lr"]) for n in (conditional, {"integer": [1, 4]})
    )
    for seed in range(20):
        ours, theirs = (drawn(axes, BASE, {}, np.random.default_rng(seed)) for axes in (with_it, without))
        assert ours["lr"] == theirs["lr"]
        assert ("n" in ours) == (ours["loss"] == "mse")


@pytest.mark.parametrize("searcher", [Random(), Tpe(num_random=2), Nsga2(population=3)], ids=lambda s: s.kind)
def test_what_a_searcher_asks_for_is_a_function_of_what_it_is_told(searcher: Searcher) -> None:
    """So a sweep that was killed is asked the same again."""
    asked = [_history(searcher, problem("max", "min", **DRAWN), 8) for _ in range(2)]
    assert asked[0] == asked[1]
    assert len({str(a.overrides) for a in asked[0]}) > 6
    other = _history(searcher, problem("max", "min", seed=1, **DRAWN), 8)
    assert other[0].overrides != asked[0][0].overrides


def _history(searcher: Searcher, of: Problem, length: int) -> list[Asked]:
    tried: list[Tried] = []
    asked: list[Asked] = []
    for index in range(length):
        asked.append(searcher.ask(of, index, tried))
        value = -abs(math.log10(asked[-1].overrides["optim.lr"]) + 3)
        values = None if index == 3 else (value, float(asked[-1].overrides["width"]))
        tried.append(Tried(asked[-1].overrides, values, True, asked[-1].memory))
    return asked


def test_later_random_draws_do_not_depend_on_earlier_ones() -> None:
    of = problem(**DRAWN)
    assert Random().ask(of, 5, []) == Random().ask(of, 5, [Tried({}, None, True, {})])


def test_tpe_comes_nearer_to_the_best_than_chance() -> None:
    """Of rates over six decades, the middle is best."""
    of = problem("max", lr={"loguniform": [1e-6, 1.0]})

    def miss(overrides: dict[str, Any]) -> float:
        return abs(math.log10(overrides["lr"]) + 3)

    tried: list[Tried] = []
    for index in range(30):
        asked = Tpe(num_random=8).ask(of, index, tried)
        tried.append(Tried(asked.overrides, [-miss(asked.overrides)], True, asked.memory))
    late = [miss(t.overrides) for t in tried[15:]]
    assert np.median(late) < 0.9  # uniform draws would miss by 1.5


def test_nsga2_remembers_its_generations() -> None:
    asked = _history(Nsga2(population=3), problem("max", "min", **DRAWN), 9)
    assert [a.memory["NSGAIISampler:generation"] for a in asked] == sorted(
        a.memory["NSGAIISampler:generation"] for a in asked
    )
    assert asked[-1].memory["NSGAIISampler:generation"] >= 1


def test_running_trials_are_no_obstacle() -> None:
    of = problem("max", **DRAWN)
    running = [Tried(Random().ask(of, index, []).overrides, None, False, {}) for index in range(3)]
    assert Tpe(num_random=1).ask(of, 3, running).overrides.keys() == of.space.keys()


def test_a_grid_tries_each_draw_at_all_its_points() -> None:
    of = problem(lr={"loguniform": [1e-4, 1e-2]}, width={"grid": [8, 16, 32]})
    assert Random().num_trials(of, 2) == 6
    points = [Random().ask(of, index, []).overrides for index in range(6)]
    assert [p["width"] for p in points] == [8, 16, 32] * 2
    assert len({p["lr"] for p in points[:3]}) == 1
    assert len({p["lr"] for p in points}) == 2
    assert Grid().num_trials(problem(width={"grid": [8, 16]}), 1) == 2


# --- checks -----------------------------------------------------------------------------------------------------------


def test_an_axis_is_checked_with_both_ends_and_every_choice_under_its_condition() -> None:
    axes = space(kind={"choice": ["a", "b"]}, n={"integer": [1, 9], "when": {"kind": "b"}})
    seen = [(key, point) for key, point in samples_of_each_axis(axes, BASE)]
    assert [point["kind"] for key, point in seen if key == "kind"] == ["a", "b"]
    assert [point for key, point in seen if key == "n"] == [{"kind": "b", "n": 1}, {"kind": "b", "n": 9}]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({}, "give one of choice, uniform"),
        ({"uniform": [0, 1], "choice": [1]}, "not choice and uniform"),
        ({"uniform": [1, 0]}, r"uniform is \[1\.0, 0\.0\]: give \[lowest, highest\]"),
        ({"loguniform": [0, 1]}, "both must be above 0"),
        ({"between": [0, 1]}, "unknown key"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(axis: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Axis, axis, "space.yaml")
