"""The best value of a metric, by what a run's config says of it or else by what the metric is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from library.errors import ConfigError

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Best:
    """The best that a metric has been; of equal values the first."""

    mode: Mode
    step: int
    value: float


def best_of(points: Iterable[tuple[int, float]], mode: Mode) -> Best | None:
    """Of values with their steps; None where none of them is finite."""
    choose = max if mode == "max" else min
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        return None
    step, value = choose(finite, key=lambda point: point[1])
    return Best(mode, step, value)


def own_metric(config: Mapping[str, Any]) -> tuple[str, Mode]:
    """The metric that decides which weights are published, and its better direction."""
    best = config.get("best")
    best = best if isinstance(best, dict) else {}
    return str(best.get("metric", "val/psnr")), "min" if best.get("mode") == "min" else "max"


def direction(metric: str, configs: Iterable[Mapping[str, Any]]) -> Mode:
    """By the configs that name the metric as theirs; else by what the metric is.

    raises  ConfigError for a metric of which nobody knows whether more is better
    """
    for config in configs:
        name, mode = own_metric(config)
        if name == metric:
            return mode
    from library.metrics import direction as by_what_it_is  # brings torch, which most of the lists can do without

    return by_what_it_is(metric)


def directions(names: Iterable[str], configs: Sequence[Mapping[str, Any]]) -> dict[str, Mode]:
    """Of those validation metrics that have one. Training values are left out: what is lost depends on the config."""
    found: dict[str, Mode] = {}
    for name in names:
        if not name.startswith("val/"):
            continue
        try:
            found[name] = direction(name, configs)
        except ConfigError:
            continue
    return found
