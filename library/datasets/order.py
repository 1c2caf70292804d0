"""Which sample at which step: pure functions of (seed, step, slot), so that resuming is setting the step.

A global batch has `batch_size` slots. Slot s of step t holds the same scene, crop, flip and noise however many workers
share the batch, in whatever order they compute it, and whether or not the run was ever interrupted. The random numbers
come from Philox, a counter-based generator (Salmon et al. 2011): the counter is the place in the run, and nothing is
carried from one step to the next.
"""

from __future__ import annotations

import functools

import numpy as np

_SHUFFLE, _TRAINING, _VALIDATION, _LAYERS, _CODING, _WEIGHTS = range(6)


def slots_of(rank: int, world_size: int, batch_size: int) -> range:
    """The slots of a global batch that worker `rank` of `world_size` computes: shares differ by one slot at most, and
    no worker has none (`world_size` is not more than `batch_size`)."""
    assert world_size <= batch_size, f"a batch of {batch_size} cannot be shared by {world_size} workers"
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def scene_at(seed: int, step: int, slot: int, *, batch_size: int, num_scenes: int) -> int:
    """Index of the scene: every scene once before any comes again, in an order drawn anew for each round."""
    epoch, position = divmod(step * batch_size + slot, num_scenes)
    return int(_permutation(seed, epoch, num_scenes)[position])


def weighted_at(seed: int, step: int, slot: int, *, batch_size: int, weights: np.ndarray) -> int:
    """Index of what has a weight: in a round of as many draws as there are weights, each comes as often as its share of
    them says, rounded up or down; the order is drawn anew for each round. It never ends.

    weights  (n,) from 0 up, not all 0; a weight of 0 never comes
    """
    round_, position = divmod(step * batch_size + slot, len(weights))
    # Systematic sampling: evenly spaced points over the weights laid end to end, from a random one on.
    ends = np.cumsum(weights, dtype=np.float64)
    offset = _generator(seed, _WEIGHTS, round_, 0).random()
    point = (_permutation(seed, round_, len(weights))[position] + offset) / len(weights) * ends[-1]
    return int(np.searchsorted(ends, min(point, np.nextafter(ends[-1], 0)), side="right"))


def training_random(seed: int, step: int, slot: int) -> np.random.Generator:
    """The random numbers of one training sample: its crop, flips, exposure, sensor and noise."""
    return _generator(seed, _TRAINING, step, slot)


def coding_random(seed: int, step: int, slot: int) -> np.random.Generator:
    """The random numbers of how one training sample is coded: its quality, strength and rounding noise."""
    return _generator(seed, _CODING, step, slot)


def validation_random(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one validation item: the same at every validation of every run with this seed."""
    return _generator(seed, _VALIDATION, 0, index)


def layer_seed(seed: int, step: int, rank: int) -> int:
    """Seed of whatever layers draw during a step: dropout, added noise. Differs between workers, whose samples differ
    too."""
    return int(_generator(seed, _LAYERS, step, rank).integers(2**63))


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, num_scenes: int) -> np.ndarray:
    return _generator(seed, _SHUFFLE, epoch, 0).permutation(num_scenes)


def _generator(seed: int, purpose: int, step: int, slot: int) -> np.random.Generator:
    # Drawing advances the lowest word of the counter, which starts at 0; the words above it say where in the run we
    # are.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, slot, step, 0]))
