"""A search for settings: many trainings of one config with some of its keys changed, run by Ray Tune.

    stillgrain run workloads/configs/sweep_loss_weights.yaml

<storage>/<name>/sweep.yaml, base.yaml   what was asked for, resolved
<storage>/<name>/trials/<number>/        each trial is a run as any other
<storage>/<name>/trials.json             the list of them
<storage>/<name>/results.csv, .parquet   a line a trial
<storage>/<name>/report.html             tables, fronts and curves on one page

Killed on the way? The same command goes on: trials that have ended stay, those under way resume exactly.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ray
import torch
from pydantic import Field, JsonValue, model_validator
from ray import tune
from ray.tune import schedulers
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher as TuneSearcher
from upath import UPath

from library.config import Frozen, Location, validate
from library.errors import ConfigError, StillgrainError
from library.files.places import place
from library.memory import keep_freed_memory
from library.training.world import World
from workloads.launch import Host, LaunchConfig
from workloads.progress import TrialBar
from workloads.ray_session import ray_session, wait_for_room
from workloads.runs.read import read_run
from workloads.sweeps.page import write_sweep_page
from workloads.sweeps.plan import Plan
from workloads.sweeps.population import Pbt
from workloads.sweeps.results import Results
from workloads.sweeps.search import Mode, Random, Searcher
from workloads.sweeps.space import Axis
from workloads.sweeps.trials import COSTS, Ledger, Status, Trial, last_report, reports_of

_OF_THE_SWEEP = ("name", "storage", "stores", "start_from", "workload")
"""Keys of a training that a sweep sets itself, or that cannot vary within it."""
_DRIVER_BYTES = 2**28


class Asha(Frozen):
    """Stop early what is behind (Li et al. 2020, asynchronous successive halving)."""

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(gt=0)
    """Optimizer updates that every trial is given; a validation should fall there."""
    reduction: float = Field(default=3, gt=1)
    """Of the trials at each rung the best of so many go on; the next rung is as many times as far."""


class Config(Frozen):
    workload: Literal["sweep"] = "sweep"
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The sweep's folder below storage. The same name goes on with the same sweep."""
    storage: Location = "runs"
    """Folder that holds the sweeps, which every node sees at the same path; or a URI."""
    base: Location
    """YAML of the training that every trial is: `workload: denoise` or `workload: compress`."""
    changes: dict[str, JsonValue] = Field(default_factory=dict)
    """Dotted keys that all trials have otherwise than the base: {steps: 300}."""
    space: dict[str, Axis] = Field(min_length=1)
    """Dotted keys and what each may be: {optim.lr: {loguniform: [1e-4, 1e-2]}}."""
    num_trials: int = Field(default=1, gt=0)
    """How many points are drawn. Where the space has grids, each draw is tried at every one of their points."""
    searcher: Searcher = Random()
    scheduler: Annotated[Asha | Pbt, Field(discriminator="kind")] | None = None
    metrics: dict[str, Mode] = Field(min_length=1)
    """What is wanted, and which way: {val/psnr: max}, also {macs_per_pixel: min} or {num_parameters: min}. By the first
    the scheduler decides; of several the Pareto front is the result."""
    seed: int = Field(default=0, ge=0)
    """Of the points that are drawn. The trials' own is the base's."""
    concurrency: int | None = Field(default=None, gt=0)
    """Trials at a time; left out, as many as the cluster has room for."""
    max_failures: int = Field(default=2, ge=0)
    """How many times a trial is started anew when its process dies. What only a user can mend is not tried again."""
    retry_failed: bool = False
    """Start trials that have failed once more."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        drawn = [key for key, axis in self.space.items() if axis.listed is None]
        listed = [key for key, axis in self.space.items() if axis.listed is not None]
        ladders = [key for key, axis in self.space.items() if axis.ladder is not None]
        if self.searcher.kind == "grid" and drawn:
            raise ValueError(f"searcher is grid, but {', '.join(drawn)} is drawn: give its values as {{grid: [...]}}")
        if self.searcher.kind == "grid" and self.num_trials != 1:
            raise ValueError("num_trials: a grid has as many trials as points; leave it out")
        if self.searcher.kind in ("tpe", "nsga2") and listed:
            raise ValueError(
                f"searcher is {self.searcher.kind}, which chooses values itself: make {', '.join(listed)} a choice, "
                "or take searcher.kind=random"
            )
        if len(ladders) > 1:
            raise ValueError(f"space: {' and '.join(ladders)} are ladders; there can be one")
        if self.searcher.kind == "nsga2" and len(self.metrics) == 1:
            raise ValueError("searcher is nsga2, which is for several metrics: name another, or take searcher.kind=tpe")
        if isinstance(self.scheduler, Pbt) and (listed or self.searcher.kind != "random"):
            raise ValueError(
                "scheduler is pbt, which needs searcher.kind=random and no grids: it changes what is drawn"
            )
        if isinstance(self.scheduler, Pbt) and (models := [key for key in self.space if key.startswith("model.")]):
            raise ValueError(
                f"scheduler is pbt, where trials take over each other's weights, but {' and '.join(models)} makes "
                "other networks: leave it out of the space, or leave out scheduler"
            )
        if self.scheduler is not None and (first := next(iter(self.metrics))) in COSTS:
            raise ValueError(
                f"metrics: {first} comes first, by which no scheduler can decide: name one of val/ before it"
            )
        if ladders and self.scheduler is not None:
            raise ValueError(f"space.{ladders[0]} is a ladder, whose trials all must end: leave out scheduler")
        for key in self.space:
            if key in _OF_THE_SWEEP or key.split(".")[0] in ("scaling", "loggers", "tags", "notes"):
                raise ValueError(f"space.{key}: changes nothing of what is trained, or is the sweep's own")
            if key in self.changes:
                raise ValueError(f"changes.{key}: stands in the space too; leave it out of one of them")
        return self

    @property
    def folder(self) -> UPath:
        return place(self.storage) / self.name


@dataclass(frozen=True)
class SweepResult:
    """What `run` came to."""

    results: Results
    page: UPath

    @property
    def exit_code(self) -> int:
        return 1 if any(trial.status == "failed" for trial in self.results.trials) else 0

    def __str__(self) -> str:
        return f"{self.results.table()}\n{self.page}"


def check(config: Config) -> None:
    """Whether the base trains something and takes what the space gives it; starts nothing.

    raises  ConfigError where it does not
    """
    Plan(config)


def run(config: Config) -> SweepResult:
    """Run the trials that have not ended, and write the results.

    raises  ConfigError for a space that the base does not have, a cluster that is too small, and a folder of another
            sweep: before the first trial
    """
    plan = Plan(config)
    plan.claim()
    if plan.waiting():
        with ray_session():
            _run_trials(config, plan)
    results = Results(config.folder)
    results.write()
    return SweepResult(results, write_sweep_page(results))


def _run_trials(config: Config, plan: Plan) -> None:
    """Let Tune run what has not ended."""
    for trial in plan.waiting():
        if trial.status == "failed":
            trial.status, trial.error = "running", None
    scaling = plan.base.scaling
    each = {"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}
    wait_for_room(scaling.most_workers, each, plan.base.start_within_s)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = plan.at_once(nodes)
    print(plan.reckoning(nodes), file=sys.stderr, flush=True)
    watcher = _Watcher(config, plan)
    # Loggers of Tune's own would write down what our runs record already; nor shall it print above our own line.
    # A report of an error has no metrics, which is no error of its own.
    for setting in ("DISABLE_AUTO_CALLBACK_LOGGERS", "DISABLE_STRICT_METRIC_CHECKING"):
        os.environ[f"TUNE_{setting}"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    with tempfile.TemporaryDirectory(prefix="stillgrain-tune-", ignore_cleanup_errors=True) as folder:
        tuner = tune.Tuner(
            tune.with_resources(_train_trial, _resources(plan)),
            tune_config=tune.TuneConfig(
                search_alg=_Suggestions(plan),
                num_samples=-1,  # until there is nothing more to suggest
                max_concurrent_trials=at_once,
                scheduler=_scheduler(config, plan),
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[watcher],
                stop=_StopAtError(watcher),
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except Exception:
            plan.ledger.check()  # which would be hard to find in Tune's own words
            raise
        finally:
            watcher.close()
    if watcher.error is not None:
        raise watcher.error


def _resources(plan: Plan) -> tune.PlacementGroupFactory:
    scaling = plan.base.scaling
    if scaling.most_workers == 1:
        return tune.PlacementGroupFactory([{"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}])
    # The trial's own process only waits for its workers. A share of a CPU would be one that no worker can have.
    own = "tune_driver" if "tune_driver" in ray.cluster_resources() else "memory"
    return tune.PlacementGroupFactory([{own: 1 if own == "tune_driver" else _DRIVER_BYTES}])


def _scheduler(config: Config, plan: Plan) -> schedulers.TrialScheduler | None:
    scheduler, (metric, mode) = config.scheduler, next(iter(config.metrics.items()))
    if isinstance(scheduler, Asha):
        asha = schedulers.ASHAScheduler(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=max(plan.base.total_steps, scheduler.grace_steps),
            grace_period=scheduler.grace_steps,
            reduction_factor=scheduler.reduction,
            stop_last_trials=False,
        )
        _remind(asha, plan.ledger)
        return asha
    return None


def _remind(scheduler: schedulers.TrialScheduler, ledger: Ledger) -> None:
    """Tell a new scheduler what trials reported that ended in an earlier session: it judges others by them."""
    for trial in ledger.trials:
        if trial.status not in ("done", "stopped"):
            continue
        ended = TuneTrial("stillgrain", stub=True)
        scheduler.on_trial_add(None, ended)  # pyright: ignore[reportArgumentType]
        for report in reports_of(ledger.read_run(trial)):
            scheduler.on_trial_result(None, ended, report)  # pyright: ignore[reportArgumentType]


class _OfThisDriver:
    """What Tune writes down to restore it is left empty: a sweep goes on from its own folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_OfThisDriver, TuneSearcher):
    """Which trial Tune starts next."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._busy: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        trial = self._plan.next_trial(self._busy.values())
        if trial is None:
            return TuneSearcher.FINISHED
        if trial == "wait":
            return None
        self._busy[trial_id] = trial.index
        return {"trial": self._plan.job(trial)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """What became of it `_Watcher` is told, afterwards."""
        self._busy.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """What counts is in the ledger."""
        Path(checkpoint_path).touch()


class _Watcher(_OfThisDriver, tune.Callback):
    """Keeps the ledger while Tune runs the trials, and shows where they stand."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self._metrics, self._plan, self._ledger = config.metrics, plan, plan.ledger
        self._since: dict[int, float] = {}
        self.error: StillgrainError | None = None
        """Why no trial can give what the sweep is after."""
        self._bar = TrialBar(plan.num_trials)
        self._best: tuple[float, str] | None = None
        self._show()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._since.setdefault(_index(trial), time.monotonic())  # it may be a further attempt

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        own = self._ledger[_index(trial)]
        if "error" in result:
            own.error = result["error"]
            return
        given = [name for name in result if name.startswith("val/")]
        if given and (unknown := [name for name in self._metrics if name not in result and name not in COSTS]):
            self.error = ConfigError(
                f"metrics: {', '.join(unknown)} is none of what validation gives: {', '.join(given)}"
            )
        first, mode = next(iter(self._metrics.items()))
        if first in result:
            score = result[first] if mode == "max" else -result[first]
            self._best = max(
                self._best or (score, ""), (score, f"best {first} {result[first]:.4g} of trial {own.index}")
            )
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        own = self._ledger[_index(trial)]
        if self.error is not None:
            return  # it was broken off, and may go on
        population = self._plan.population
        if own.error:
            self._end(own, "failed")
        elif self._ledger.read_run(own).status in ("finished", "stopped early"):
            self._end(own, "done")
        elif population is not None and population.has_arrived(own):
            self._end(own, "running")
        else:
            self._end(own, "stopped")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        own = self._ledger[_index(trial)]
        own.error = _reason(trial.get_error()) if own.error is None else own.error
        self._end(own, "failed")

    def _end(self, trial: Trial, status: Status) -> None:
        trial.status = status
        trial.seconds += time.monotonic() - self._since.pop(trial.index, time.monotonic())
        try:
            self._ledger.save()
        except StillgrainError as error:
            self.error = error  # another driver has this sweep; Tune would take it for the trial's failure
        self._show()

    def _show(self) -> None:
        trials = self._ledger.trials
        running = sum(trial.index in self._since for trial in trials)
        text = f"{running} running" + (f", {self._best[1]}" if self._best else "")
        self._bar.show(sum(trial.status != "running" for trial in trials), text)

    def close(self) -> None:
        self._bar.close()


class _StopAtError(_OfThisDriver, tune.Stopper):
    def __init__(self, watcher: _Watcher) -> None:
        self._watcher = watcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watcher.error is not None


def _name_of(trial: TuneTrial) -> str:
    job = trial.config["trial"]
    return f"{job['index']:03d}.{job['turn']}"


def _index(trial: TuneTrial) -> int:
    return trial.config["trial"]["index"]


def _reason(error: Exception | None) -> str:
    """Of Ray's texts, which hold the whole traceback of another process, the line that names the error."""
    lines = [line.strip() for line in str(error or "its process died").strip().splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1]


# --- in a trial's process --------------------------------------------------------------------------------------------


def _train_trial(settings: dict[str, Any]) -> None:
    """One trial, from its last checkpoint if it has one. What a user must mend is reported, not raised: Tune would try
    it again."""
    keep_freed_memory()
    job = settings["trial"]
    workload = importlib.import_module(f"workloads.{job['config']['workload']}")
    try:
        config: LaunchConfig = validate(workload.Config, job["config"], "trial")
        run = read_run(config.run_folder)
        for report in reports_of(run):
            tune.report(report)  # or a scheduler that starts anew would miss them
        _stand_still(job["until"], last_report(run).get("step", 0))
        workload.run(config, _host(config, job["until"]))
    except StillgrainError as error:
        tune.report({"error": str(error)})
    except _Arrived:
        return


class _Arrived(Exception):
    """A trial has come to where its population is compared."""


def _stand_still(until: int | None, step: float) -> None:
    if until is not None and step >= until:
        raise _Arrived


def _host(config: LaunchConfig, until: int | None) -> Host:
    scaling = config.scaling
    if scaling.most_workers > 1:
        return Host(callbacks=(TuneReportCallback(),))
    torch.set_num_threads(scaling.cpus_per_worker)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        tune.report({"step": step, **{name: float(value) for name, value in metrics.items()}})
        if step < config.total_steps:
            _stand_still(until, step)

    return Host(world=World(device=torch.device("cuda" if scaling.gpus_per_worker else "cpu"), report=report))
