"""The space of a sweep: dotted keys of a training config, and the values that each may take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import optuna
from pydantic import Field, JsonValue, model_validator

from library.config import Frozen

Overrides = dict[str, Any]
"""A point of the space: values by dotted key, as command-line words would lay them over a config."""

Range = tuple[float, float]
Values = tuple[JsonValue, ...]


class Axis(Frozen):
    """What one key may be: one of the first six, and when.

    {choice: [mse, l1]}  {uniform: [0, 1]}  {loguniform: [1e-4, 1e-2]}  {integer: [2, 5]}  drawn for each trial
    {grid: [16, 32]}     every value, crossed with those of other grids
    {ladder: [0.01, 0.1]} as a grid, one trial after the other: each starts from the weights of the one before
    """

    choice: Values | None = Field(default=None, min_length=1)
    uniform: Range | None = None
    loguniform: Range | None = None
    integer: tuple[int, int] | None = None
    """Both ends are possible."""
    grid: Values | None = Field(default=None, min_length=1)
    ladder: Values | None = Field(default=None, min_length=2)
    when: dict[str, JsonValue] = Field(default_factory=dict)
    """Only where other keys have these values, or one of a list of them; elsewhere the key is left as the base has it.
    Names keys that stand earlier in the space, or in the base."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Axis:
        given = [name for name in _DRAWN + _LISTED if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(_DRAWN + _LISTED)}, "
                + (f"not {' and '.join(given)}" if given else "for example {loguniform: [1e-4, 1e-2]}")
            )
        for name in ("uniform", "loguniform", "integer"):
            ends = getattr(self, name)
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{name} is {list(ends)}: give [lowest, highest]")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform is {list(self.loguniform)}: both must be above 0")
        return self

    @property
    def listed(self) -> Values | None:
        """The values of a grid or a ladder, all of which are tried; None for what is drawn."""
        return self.grid if self.grid is not None else self.ladder

    @property
    def extremes(self) -> Values:
        """Values that stand for all of them when the axis is checked."""
        values = self.listed or self.choice or self.uniform or self.loguniform or self.integer
        assert values is not None
        return tuple(values)

    def draw(self, random: np.random.Generator) -> JsonValue:
        """One value, if the axis is drawn."""
        if self.choice is not None:
            return self.choice[random.integers(len(self.choice))]
        if self.integer is not None:
            return int(random.integers(self.integer[0], self.integer[1], endpoint=True))
        if self.loguniform is not None:
            low, high = self.loguniform
            return float(math.exp(random.uniform(math.log(low), math.log(high))))
        assert self.uniform is not None, "a grid is not drawn"
        return float(random.uniform(*self.uniform))

    def beside(self, value: Any, *, up: bool) -> JsonValue:
        """The choice next to one, or a number by a fifth higher or lower, at least by 1 of integers; the end stays the
        end."""
        if self.choice is not None:
            place = self.choice.index(value) + (1 if up else -1)
            return self.choice[min(max(place, 0), len(self.choice) - 1)]
        low, high = self.integer or self.uniform or self.loguniform or (0, 1)
        moved = value * (1.2 if up else 0.8)
        if self.integer is not None:
            moved = max(round(moved), value + 1) if up else min(round(moved), value - 1)
        return min(max(moved, low), high)

    def ask(self, trial: optuna.Trial, key: str) -> JsonValue:
        """A value that Optuna chooses."""
        if self.integer is not None:
            return trial.suggest_int(key, *self.integer)
        if self.uniform is not None or self.loguniform is not None:
            low, high = self.uniform or self.loguniform or (0, 1)
            return trial.suggest_float(key, low, high, log=self.loguniform is not None)
        return self.extremes[trial.suggest_categorical(key, range(len(self.extremes)))]

    def told(self, value: JsonValue) -> tuple[Any, optuna.distributions.BaseDistribution]:
        """A value as Optuna has it, and what it came from. Choices are named by their places: Optuna has no lists."""
        if self.integer is not None:
            return value, optuna.distributions.IntDistribution(*self.integer)
        if self.uniform is not None or self.loguniform is not None:
            low, high = self.uniform or self.loguniform or (0, 1)
            return value, optuna.distributions.FloatDistribution(low, high, log=self.loguniform is not None)
        return self.extremes.index(value), optuna.distributions.CategoricalDistribution(range(len(self.extremes)))


_DRAWN = ("choice", "uniform", "loguniform", "integer")
_LISTED = ("grid", "ladder")

Space = Mapping[str, Axis]


class GridPoint(NamedTuple):
    """Values of the listed axes, and which point of the grid they come after on the ladder."""

    values: Overrides
    after: int | None
    """Number of the point whose weights this one starts from."""


def is_active(axis: Axis, overrides: Overrides, base: Mapping[str, Any]) -> bool:
    """Whether an axis counts at a point.

    overrides  of the axes before it
    base       the base config's values by dotted key
    """

    def holds(key: str, wanted: JsonValue) -> bool:
        value = overrides[key] if key in overrides else base.get(key)
        return value in wanted if isinstance(wanted, list) else value == wanted

    return all(holds(key, wanted) for key, wanted in axis.when.items())


def grid_points(space: Space, base: Mapping[str, Any]) -> list[GridPoint]:
    """Every combination of the listed axes' values, the ladder's running fastest. One empty point if there are none."""
    ladder = next((key for key, axis in space.items() if axis.ladder is not None), None)
    listed = [key for key, axis in space.items() if axis.listed is not None and key != ladder]
    if ladder is not None:
        listed.append(ladder)
    points: list[GridPoint] = []
    seen: list[Overrides] = []
    for values in itertools.product(*(space[key].listed or () for key in listed)):
        chosen = dict(zip(listed, values, strict=True))
        point: Overrides = {}
        for key, axis in space.items():
            if key in chosen and is_active(axis, point, base):
                point[key] = chosen[key]
        if point in seen:
            continue  # it differs only in keys that do not count here
        seen.append(point)
        first = ladder is None or ladder not in point or point[ladder] == space[ladder].extremes[0]
        points.append(GridPoint(point, None if first else len(points) - 1))
    return points


def drawn(space: Space, base: Mapping[str, Any], listed: Overrides, random: np.random.Generator) -> Overrides:
    """A point: the listed values as given, the others drawn. Every axis takes its number from the generator, active or
    not, so that conditions do not shift what others draw."""
    point: Overrides = {}
    for key, axis in space.items():
        if axis.listed is None:
            value = axis.draw(random)
            if is_active(axis, point, base):
                point[key] = value
        elif key in listed:
            point[key] = listed[key]
    return point


def samples_of_each_axis(space: Space, base: Mapping[str, Any]) -> Iterator[tuple[str, Overrides]]:
    """Points that together show every key, with every choice and both ends of every range: (key, point)."""

    def with_value(wanted: str, value: JsonValue) -> Overrides:
        # Conditions are met on purpose: a key that counts only with another value must be seen with it.
        point: Overrides = {}
        needed = {key: (v[0] if isinstance(v, list) else v) for key, v in space[wanted].when.items()}
        for key, axis in space.items():
            if key == wanted:
                point[key] = value
            elif key in needed:
                point[key] = needed[key]
            elif is_active(axis, point, base):
                point[key] = axis.extremes[0]
        return point

    for key, axis in space.items():
        for value in axis.extremes:
            yield key, with_value(key, value)
