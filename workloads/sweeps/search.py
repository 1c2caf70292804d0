"""Searchers: which point of its space a sweep tries next. Each is a function of the seed, the trial's number and what
the trials before it came to; none has a state that could be lost."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import Field

from library.config import Frozen
from workloads.sweeps.space import Overrides, Space, drawn, grid_points, is_active

Mode = Literal["min", "max"]


class Tried(NamedTuple):
    """A trial that was begun, as a searcher needs to know it."""

    overrides: Overrides
    values: Sequence[float] | None
    """Of the metrics, in their order; None while it runs, and when it failed."""
    has_ended: bool
    memory: Mapping[str, Any]
    """What the searcher noted when it asked for this trial."""


class Asked(NamedTuple):
    """A point to try."""

    overrides: Overrides
    after: int | None = None
    """Number of the trial whose weights it starts from; it must have ended."""
    memory: Mapping[str, Any] = {}


class Problem(NamedTuple):
    """What is searched."""

    space: Space
    base: Mapping[str, Any]
    """The base config's values by dotted key."""
    modes: tuple[Mode, ...]
    """Of each metric."""
    seed: int


class _Points(Frozen):
    """A searcher that knows all its points beforehand."""

    def num_trials(self, problem: Problem, draws: int) -> int:
        return draws * len(grid_points(problem.space, problem.base))

    def ask(self, problem: Problem, index: int, tried: Sequence[Tried]) -> Asked:
        points = grid_points(problem.space, problem.base)
        draw, number = divmod(index, len(points))
        point = points[number]
        # One draw for the whole grid: then its points differ in nothing but the grid.
        random = np.random.default_rng([problem.seed, draw])
        overrides = drawn(problem.space, problem.base, point.values, random)
        return Asked(overrides, None if point.after is None else draw * len(points) + point.after)


class Grid(_Points):
    """Every combination of the listed values."""

    kind: Literal["grid"] = "grid"


class Random(_Points):
    """Independent draws; where the space has grids, each draw at every one of their points."""

    kind: Literal["random"] = "random"


class _Optuna(Frozen):
    """A searcher of Optuna, which learns from the trials that have ended."""

    def num_trials(self, problem: Problem, draws: int) -> int:
        return draws

    def sampler(self, problem: Problem, index: int) -> optuna.samplers.BaseSampler:
        raise NotImplementedError

    def ask(self, problem: Problem, index: int, tried: Sequence[Tried]) -> Asked:
        study = study_of(problem, tried, self.sampler(problem, index))
        asked = study.ask()
        overrides: Overrides = {}
        for key, axis in problem.space.items():
            if is_active(axis, overrides, problem.base):
                overrides[key] = axis.ask(asked, key)
        return Asked(overrides, memory=study.get_trials(deepcopy=False)[-1].system_attrs)


def study_of(
    problem: Problem, tried: Sequence[Tried], sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """The trials so far, as Optuna knows them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce each study
    directions = [StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE for mode in problem.modes]
    study = optuna.create_study(directions=directions, sampler=sampler)
    for trial in tried:
        study.add_trial(_frozen(trial, problem))
    return study


def _frozen(trial: Tried, problem: Problem) -> optuna.trial.FrozenTrial:
    told = {key: problem.space[key].told(value) for key, value in trial.overrides.items()}
    state = TrialState.RUNNING
    if trial.has_ended:
        state = TrialState.FAIL if trial.values is None else TrialState.COMPLETE
    start = datetime.datetime(2000, 1, 1)
    return optuna.trial.FrozenTrial(
        number=-1,  # the study counts
        trial_id=-1,
        state=state,
        value=None,
        values=None if trial.values is None else list(trial.values),
        datetime_start=start,
        datetime_complete=start if trial.has_ended else None,
        params={key: value for key, (value, _) in told.items()},
        distributions={key: distribution for key, (_, distribution) in told.items()},
        user_attrs={},
        system_attrs=dict(trial.memory),
        intermediate_values={},
    )


class Tpe(_Optuna):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), of one metric or several (Ozaki et al. 2022)."""

    kind: Literal["tpe"] = "tpe"
    num_random: int = Field(default=10, ge=1)
    """Trials that are drawn before any is learned from."""

    def sampler(self, problem: Problem, index: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(
            seed=_seed(problem, index), n_startup_trials=self.num_random, constant_liar=True
        )


class Nsga2(_Optuna):
    """NSGA-II (Deb et al. 2002): generations that move towards the front of several metrics."""

    kind: Literal["nsga2"] = "nsga2"
    population: int = Field(default=16, ge=2)
    """Trials of a generation."""

    def sampler(self, problem: Problem, index: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=_seed(problem, index), population_size=self.population)


def _seed(problem: Problem, index: int) -> int:
    return int(np.random.SeedSequence([problem.seed, index]).generate_state(1)[0])


Searcher = Annotated[Grid | Random | Tpe | Nsga2, Field(discriminator="kind")]
