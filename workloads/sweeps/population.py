"""Trials that are compared after every interval, where the worst go on from the weights of the best.

Everything that is chosen is a function of the seed, the update and the trial's number. The trials stand still while
they are compared, and a comparison is one change of the ledger: what is killed on the way is done again, and comes out
the same. Tune's own population does not go on so, nor past a trial that has died.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from library.config import Frozen
from library.errors import ConfigError
from workloads.sweeps.branch import branch
from workloads.sweeps.space import Overrides, Space, is_active
from workloads.sweeps.trials import Trial, last_report

if TYPE_CHECKING:
    from workloads.sweeps.plan import Plan

_ANEW = 0.25
"""How often a value is drawn anew, and not taken from near the donor's."""


class Pbt(Frozen):
    """Let the worst trials go on from the weights of the best, with settings near to theirs (Jaderberg et al. 2017)."""

    kind: Literal["pbt"] = "pbt"
    interval_steps: int = Field(gt=0)
    """Optimizer updates after which all trials are compared, at the first validation that comes then."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the trials that is replaced, and of those that replace it."""


class Population:
    """When the trials of a plan are compared, and what comes of it."""

    def __init__(self, plan: Plan, config: Pbt) -> None:
        self._plan, self._config = plan, config
        self._arrived: set[tuple[int, int]] = set()

    @property
    def until(self) -> int | None:
        """The update at which all that run are compared next; None when there is no further comparison."""
        step = max((trial.compared for trial in self._running), default=0) + self._config.interval_steps
        return step if step < self._plan.base.total_steps else None

    def has_arrived(self, trial: Trial) -> bool:
        """Whether a trial, which must not be under way, waits for the others to be compared."""
        until = self.until
        if until is None:
            return False
        if (trial.index, until) not in self._arrived and self._report(trial).get("step", 0) >= until:
            self._arrived.add((trial.index, until))
        return (trial.index, until) in self._arrived

    def compare(self) -> None:
        """Let the worst of those that run take the places of the best. All of them must have arrived."""
        metric, mode = next(iter(self._plan.config.metrics.items()))
        sign = 1 if mode == "max" else -1
        reports = {trial.index: self._report(trial) for trial in self._running}
        ranked = sorted(self._running, key=lambda trial: (sign * reports[trial.index][metric], trial.index))
        count = min(math.ceil(len(ranked) * self._config.quantile), len(ranked) // 2)
        step = int(max(report["step"] for report in reports.values()))
        for trial in ranked[:count]:
            random = np.random.default_rng([self._plan.config.seed, step, trial.index])
            donor = ranked[len(ranked) - count + int(random.integers(count))]
            name = f"{trial.index:03d}.{step}"
            runs = self._plan.ledger.runs_folder
            branch(runs / donor.run, int(reports[donor.index]["step"]), runs / name)
            trial.run = name
            trial.overrides = explored(self._plan.config.space, self._plan.problem.base, donor.overrides, random)
            try:
                self._plan.config_of(trial)
            except ConfigError:  # values that are each allowed need not go together
                trial.overrides = dict(donor.overrides)
        for trial in ranked:
            trial.compared = step
        self._plan.ledger.save()

    @property
    def _running(self) -> list[Trial]:
        return [trial for trial in self._plan.ledger.trials if trial.status == "running"]

    def _report(self, trial: Trial) -> dict[str, float]:
        return last_report(self._plan.ledger.read_run(trial))


def explored(space: Space, base: Mapping[str, Any], point: Overrides, random: np.random.Generator) -> Overrides:
    """A point near to another: numbers a fifth higher or lower and choices one place up or down, never beyond their
    ends; one in four is drawn anew. Every axis takes its numbers from the generator, active or not.

    base  the base config's values by dotted key
    """
    near: Overrides = {}
    for key, axis in space.items():
        anew, up, value = random.random() < _ANEW, bool(random.integers(2)), axis.draw(random)
        if is_active(axis, near, base):
            near[key] = axis.beside(point[key], up=up) if key in point and not anew else value
    return near
