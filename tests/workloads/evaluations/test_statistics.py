from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.evaluations.statistics import is_sure, means_over_scenes


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_interval_of_a_mean_holds_it(images: list[tuple[float, int]]):
    values, scenes = np.array([[value for value, _ in images]]), [str(scene) for _, scene in images]
    (mean,) = means_over_scenes(values, scenes)
    assert mean.value == pytest.approx(values.mean(), abs=1e-9)
    if len(set(scenes)) > 1:
        assert mean.low is not None
        assert mean.high is not None
        assert mean.low <= mean.value + 1e-9
        assert mean.high >= mean.value - 1e-9
    else:
        assert mean.low is mean.high is None


def test_equal_values_have_an_interval_without_width():
    (mean,) = means_over_scenes(np.full((1, 7), 0.1), ["a", "a", "b", "c", "c", "c", "d"])
    assert mean == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


def test_no_difference_is_exactly_none():
    (mean,) = means_over_scenes(np.zeros((1, 5)), ["a", "a", "b", "c", "d"])
    assert mean == (0, 0, 0)


def test_more_images_of_the_same_scenes_make_nothing_surer():
    """That is what an interval over images would get wrong."""
    values = np.random.default_rng(0).normal(30, 2, 8)
    once = means_over_scenes(values[None], [str(scene) for scene in range(8)])
    often = means_over_scenes(np.repeat(values, 10)[None], [str(scene) for scene in np.repeat(range(8), 10)])
    assert often[0].low == pytest.approx(once[0].low)
    assert often[0].high == pytest.approx(once[0].high)


def test_the_interval_of_many_scenes_is_that_of_the_normal_law():
    values = np.random.default_rng(1).normal(30, 2, 400)
    (mean,) = means_over_scenes(values[None], [str(scene) for scene in range(400)])
    assert mean.low is not None
    assert mean.high is not None
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.08)


def test_an_infinite_value_makes_its_own_mean_infinite_and_no_other():
    values = np.array([[1.0, 2.0, 3.0], [1.0, math.inf, 3.0], [4.0, 5.0, 7.0]])
    first, infinite, last = means_over_scenes(values, ["a", "b", "c"])
    assert (infinite.value, infinite.low, infinite.high) == (math.inf, None, None)
    assert first.low == 1.0
    assert last.high == 7.0


def test_a_difference_is_sure_where_its_interval_does_not_hold_zero_and_scenes_are_many():
    values = np.array([[1.0, 2.0, 1.5, 0.5, 1.2, 1.1], [-1.0, 1.0, 0.1, -0.3, 0.8, -0.9]])
    surely, hardly = means_over_scenes(values, list("abcdef"))
    assert is_sure(surely, 6)
    assert is_sure(means_over_scenes(-values[:1], list("abcdef"))[0], 6)
    assert not is_sure(hardly, 6)
    (of_few,) = means_over_scenes(values[:1, :5], list("abcde"))
    assert of_few.low is not None
    assert of_few.low > 0
    assert not is_sure(of_few, 5)
