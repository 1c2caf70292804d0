"""The population's scheduler with real trials of Tune, whose training is a loop that only reports."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from workloads.sweep import Population
from workloads.sweeps.space import Axis

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore:Consider boosting PBT"),
]
LAST = 4


def climb(settings: dict[str, Any]) -> None:
    """Reports a `step` and its rate at every step, from its checkpoint on; may wait before, or break off."""
    trial = settings["trial"]
    step, checkpoint = 0, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            step = json.loads(Path(folder, "state.json").read_text())
    while step < LAST:
        step += 1
        if step == trial.get("ends_before"):
            return
        time.sleep(trial.get("waits", 0))
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "state.json").write_text(json.dumps(step))
            report = {"step": step, "score": trial["overrides"]["rate"]}
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


class SlowDriver(tune.Callback):
    """While it is held up by one report, where all are compared, the others come in."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result["step"] == 2:
            time.sleep(1)


def grown(folder: Path, trials: list[dict[str, Any]], *callbacks: tune.Callback) -> list[int]:
    """The last steps of a population, in the order of its trials."""
    scheduler = Population(
        "score", "max", interval=2, last=LAST, quantile=0.5, space={"rate": Axis(uniform=(0.0, 1.0))}
    )
    tuner = tune.Tuner(
        climb,
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), callbacks=list(callbacks), verbose=0),
    )
    return [result.metrics["step"] if result.metrics else 0 for result in tuner.fit()]


@pytest.mark.timeout(60)
def test_who_is_replaced_while_still_being_saved_goes_on_to_the_end(tmp_path: Path) -> None:
    """The worse trial reports first, and the better one's report lies there before the worse one's state is saved."""
    assert grown(
        tmp_path, [{"overrides": {"rate": 0.1}}, {"overrides": {"rate": 0.9}, "waits": 0.5}], SlowDriver()
    ) == [LAST, LAST]


@pytest.mark.timeout(60)
def test_nobody_waits_for_a_trial_that_has_ended(tmp_path: Path) -> None:
    assert grown(
        tmp_path, [{"overrides": {"rate": 0.5}}, {"overrides": {"rate": 0.9}, "waits": 1, "ends_before": 2}]
    ) == [LAST, 1]
