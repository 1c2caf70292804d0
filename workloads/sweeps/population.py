"""A population's scheduler: Tune's own, without two of its defects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from workloads.sweeps.search import Mode
from workloads.sweeps.space import Axis


class Population(PopulationBasedTraining):
    """Trials that wait for each other after every interval; there the worst take over the weights of the best, and
    settings near to theirs (Jaderberg et al. 2017).

    metric    by which they are compared, in reports that have a `step` too
    interval  optimizer updates between two comparisons
    last      the update after which trials end: nobody takes over what is finished
    quantile  share of the trials that is replaced, and of those that replace it
    space     what may differ; stands below `trial`, `overrides` in a trial's config
    """

    def __init__(
        self, metric: str, mode: Mode, *, interval: int, last: int, quantile: float, space: Mapping[str, Axis]
    ) -> None:
        super().__init__(
            time_attr="step",
            metric=metric,
            mode=mode,
            perturbation_interval=interval,
            quantile_fraction=quantile,
            hyperparam_mutations={"trial": {"overrides": {key: _drawn(axis) for key, axis in space.items()}}},
            require_attrs=False,
            synch=True,
            log_config=False,
        )
        self._last = last

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("step") == self._last:
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        for other in tune_controller.get_trials():
            if other.status == Trial.PAUSED:
                # A trial that is replaced while its state is still being saved would be stopped for good at its next
                # report: Tune notes a stop for it, to be done when that is saved. To pause it once more drops the note.
                tune_controller.pause_trial(other, should_checkpoint=False)
        return decision

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        chosen = super().choose_trial_to_run(tune_controller)
        alive = list(tune_controller.get_live_trials())
        if chosen is None and alive and all(trial.status == Trial.PAUSED for trial in alive):
            # They wait for one that has ended meanwhile, of which Tune does not take notice: compare those there are.
            self.on_trial_result(tune_controller, alive[0], alive[0].last_result)
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen


def _drawn(axis: Axis) -> Any:
    """As Tune has it, which draws anew, and goes a step up or down."""
    if axis.choice is not None:
        return list(axis.choice)
    if axis.integer is not None:
        return tune.randint(axis.integer[0], axis.integer[1] + 1)
    if axis.loguniform is not None:
        return tune.loguniform(*axis.loguniform)
    assert axis.uniform is not None
    return tune.uniform(*axis.uniform)
