from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.datasets.order import layer_seed, scene_at, slots_of, training_random, validation_random, weighted_at

seeds = st.integers(0, 2**62)
steps = st.integers(0, 2**40)


@given(st.integers(1, 40), st.data())
def test_workers_share_the_slots_of_a_batch_each_slot_once_in_order_and_as_equally_as_can_be(
    batch_size: int, data: st.DataObject
):
    world_size = data.draw(st.integers(1, batch_size))
    shares = [slots_of(rank, world_size, batch_size) for rank in range(world_size)]
    assert [slot for share in shares for slot in share] == list(range(batch_size))
    sizes = {len(share) for share in shares}
    assert sizes == {batch_size // world_size, -(-batch_size // world_size)}


@given(seeds, steps, st.integers(1, 40))
def test_a_global_batch_holds_the_same_samples_for_any_number_of_workers(seed: int, step: int, num_scenes: int):
    def samples(world_size: int) -> list[tuple[int, float]]:
        return [
            (
                scene_at(seed, step, slot, batch_size=8, num_scenes=num_scenes),
                training_random(seed, step, slot).random(),
            )
            for rank in range(world_size)
            for slot in slots_of(rank, world_size, 8)
        ]

    assert samples(1) == samples(2) == samples(3) == samples(5) == samples(8)


@given(seeds, st.integers(1, 30), st.integers(1, 9))
def test_every_scene_comes_once_before_any_comes_again(seed: int, num_scenes: int, batch_size: int):
    draws = [
        scene_at(seed, step, slot, batch_size=batch_size, num_scenes=num_scenes)
        for step in range(3 * num_scenes)
        for slot in range(batch_size)
    ]
    for start in range(0, len(draws) - num_scenes + 1, num_scenes):
        assert sorted(draws[start : start + num_scenes]) == list(range(num_scenes))


def test_every_round_has_another_order_and_every_seed_others():
    def rounds(seed: int) -> list[list[int]]:
        return [[scene_at(seed, epoch, slot, batch_size=20, num_scenes=20) for slot in range(20)] for epoch in range(5)]

    orders = rounds(0) + rounds(1)
    assert len({tuple(order) for order in orders}) == len(orders)


@given(st.lists(st.tuples(steps, st.integers(0, 63)), min_size=2, max_size=6, unique=True), st.randoms())
def test_what_is_drawn_at_a_place_does_not_depend_on_what_was_drawn_before(places: list[tuple[int, int]], shuffle):
    there = {place: training_random(5, *place).random(4).tolist() for place in places}
    scenes = {place: scene_at(5, *place, batch_size=64, num_scenes=11) for place in places}
    shuffle.shuffle(places)
    for place in places:
        assert training_random(5, *place).random(4).tolist() == there[place]
        assert scene_at(5, *place, batch_size=64, num_scenes=11) == scenes[place]
    assert len({tuple(draw) for draw in there.values()}) == len(places)


def test_neighbouring_places_and_purposes_never_share_random_numbers():
    """Also not shifted by a few draws, as counters that lie too close to each other would."""
    streams = [training_random(0, step, slot) for step in range(6) for slot in range(6)]
    streams += [validation_random(0, index) for index in range(6)] + [training_random(1, 0, 0)]
    drawn = np.concatenate([stream.integers(2**63, size=300) for stream in streams])
    assert len(np.unique(drawn)) == len(drawn)


def test_a_validation_item_is_the_same_in_every_run_of_a_seed():
    assert validation_random(3, 5).random() == validation_random(3, 5).random()
    assert validation_random(3, 5).random() != validation_random(4, 5).random()


def test_layers_draw_differently_at_every_step_and_worker():
    drawn = {layer_seed(0, step, rank) for step in range(20) for rank in range(4)}
    assert len(drawn) == 80
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_more_workers_than_images_are_our_own_fault():
    """The config refuses them; a worker without an image would have no loss."""
    assert [len(slots_of(rank, 4, 4)) for rank in range(4)] == [1, 1, 1, 1]
    with pytest.raises(AssertionError, match="batch of 3 cannot be shared by 4 workers"):
        slots_of(0, 4, 3)


def test_the_order_is_the_one_that_was_published():
    """A changed generator would silently change every run that is resumed."""
    assert [scene_at(0, 0, slot, batch_size=6, num_scenes=6) for slot in range(6)] == [0, 5, 1, 2, 4, 3]
    assert training_random(0, 1, 2).integers(1000, size=3).tolist() == [12, 168, 123]


# --- by weight --------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 30), st.integers(1, 9))
def test_of_equal_weights_each_comes_once_in_a_round(seed: int, number: int, batch_size: int):
    weights = np.full(number, 0.3)
    drawn = [
        weighted_at(seed, *divmod(i, batch_size), batch_size=batch_size, weights=weights) for i in range(3 * number)
    ]
    for start in (0, number, 2 * number):
        assert sorted(drawn[start : start + number]) == list(range(number))


@given(seeds, st.lists(st.floats(0, 5), min_size=1, max_size=12).filter(lambda w: sum(w) > 0.1))
def test_in_a_round_each_comes_as_often_as_its_weight_says_rounded_up_or_down(seed: int, weights: list[float]):
    number = len(weights)
    drawn = [weighted_at(seed, 0, slot, batch_size=number, weights=np.array(weights)) for slot in range(number)]
    for index, weight in enumerate(weights):
        expected = weight / sum(weights) * number
        assert np.floor(expected - 1e-6) <= drawn.count(index) <= np.ceil(expected + 1e-6)
        assert weight > 0 or index not in drawn


def test_weighted_draws_never_end_and_depend_on_nothing_but_their_place():
    weights = np.array([1.0, 2.0, 0.5])
    late = [weighted_at(3, 10**9, slot, batch_size=8, weights=weights) for slot in range(8)]
    assert late == [weighted_at(3, 10**9, slot, batch_size=8, weights=weights) for slot in range(8)]
    assert set(late) <= {0, 1, 2}
