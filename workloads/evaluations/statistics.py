"""Means over images, and how sure they are: bootstrap over scenes, since images of one scene are not independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

FEWEST_SCENES = 6
"""Of which a difference can be said to be sure."""
_CONFIDENCE = 0.95
_RESAMPLES = 2000


class Mean(NamedTuple):
    """A mean over images with the 95 % interval of it that resampled scenes give.

    low, high  None where there are fewer than two scenes, of which nothing can be said, or the mean is infinite
    """

    value: float
    low: float | None
    high: float | None


def is_sure(difference: Mean, num_scenes: int) -> bool:
    """Whether a mean difference is one, as far as the scenes tell: its interval does not hold 0, and there are
    `FEWEST_SCENES`. All of n scenes differ the same way by chance once in 2^(n - 1) times: of five still once in 16."""
    if difference.low is None or difference.high is None or num_scenes < FEWEST_SCENES:
        return False
    return difference.low > 0 or difference.high < 0


def means_over_scenes(values: np.ndarray, scenes: Sequence[str]) -> list[Mean]:
    """The mean of each row, every image weighing the same; intervals from whole scenes drawn with replacement (Efron
    and Tibshirani 1993, percentile method). The same numbers give the same intervals.

    With few scenes they are too narrow: of two scenes they can only say that the mean lies between both.

    values   (rows, images); infinite is legal, NaN is not
    scenes   of each image
    """
    assert values.shape[1] == len(scenes) > 0
    assert not np.isnan(values).any()
    means = [float(row.mean()) for row in values]
    _, index = np.unique(np.array(scenes), return_inverse=True)
    num_scenes = int(index.max()) + 1
    finite = np.isfinite(values).all(axis=1)
    if num_scenes < 2 or not finite.any():
        return [Mean(mean, None, None) for mean in means]
    members = np.eye(num_scenes)[index]  # (images, scenes)
    sums = values[finite] @ members
    counts = np.broadcast_to(members.sum(axis=0), sums.shape)
    interval = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        axis=-1,
        method="percentile",
        confidence_level=_CONFIDENCE,
        n_resamples=_RESAMPLES,
        batch=200,
        rng=np.random.default_rng(0),
    ).confidence_interval
    spans = iter(zip(interval.low.tolist(), interval.high.tolist(), strict=True))
    return [Mean(mean, *next(spans)) if math.isfinite(mean) else Mean(mean, None, None) for mean in means]
