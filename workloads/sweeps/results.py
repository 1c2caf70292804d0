"""What a sweep came to, read from its folder: a line a trial, the best of them, the front, and what mattered."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from rich.console import Console
from rich.table import Table
from upath import UPath

from library.config import dotted, load
from library.errors import DataError
from library.files.atomic import whole_file
from library.files.places import place
from workloads.runs.read import Run
from workloads.sweeps.search import Mode, Problem, Tried, study_of
from workloads.sweeps.space import Axis, Overrides
from workloads.sweeps.trials import Ledger, Status, metrics_of

_FEWEST_FOR_IMPORTANCE = 4
_TOP = 0.25
"""Share of the trials that count as good ones where importance is asked for."""


@dataclass(frozen=True)
class TrialResult:
    """One trial, and what its run measured."""

    index: int
    overrides: Overrides
    status: Status
    error: str | None
    seconds: float
    run: Run
    metrics: Mapping[str, float]
    """Validation metrics of the weights it has published, all of one step."""

    @property
    def step(self) -> int | None:
        """Of those weights."""
        return self.run.best.step if self.run.best else None


class Results:
    """The trials of a sweep and what they say."""

    def __init__(self, folder: str | UPath) -> None:
        """raises  DataError where there is no sweep"""
        self.folder = place(folder)
        if not is_sweep(self.folder):
            raise DataError(f"{self.folder}: holds no sweep; make one with `workload: sweep`")
        self.config: dict[str, Any] = load(self.folder / "sweep.yaml")
        self.base: dict[str, Any] = load(self.folder / "base.yaml")
        self.metrics: dict[str, Mode] = self.config["metrics"]
        self.space = {key: Axis.model_validate(axis) for key, axis in self.config["space"].items()}
        ledger = Ledger(self.folder)
        self.trials = [
            TrialResult(t.index, t.overrides, t.status, t.error, t.seconds, run := ledger.read_run(t), metrics_of(run))
            for t in ledger.trials
        ]

    @property
    def measured(self) -> list[TrialResult]:
        """Trials that have every metric the sweep is after."""
        return [t for t in self.trials if t.status != "failed" and all(name in t.metrics for name in self.metrics)]

    def mode(self, metric: str) -> Mode:
        """raises  DataError for a metric that the sweep is not after"""
        if metric not in self.metrics:
            raise DataError(f"{self.folder}: its metrics are {', '.join(self.metrics)}, and {metric} is none of them")
        return self.metrics[metric]

    def best(self, metric: str) -> TrialResult:
        """raises  DataError when no trial has that metric"""
        sign = 1 if self.mode(metric) == "max" else -1
        if not self.measured:
            raise DataError(f"{self.folder}: no trial has come to {metric} yet")
        return max(self.measured, key=lambda trial: sign * trial.metrics[metric])

    @cached_property
    def front(self) -> list[TrialResult]:
        """The trials that none beats in all metrics (Pareto), by the first metric."""
        points = {t.index: [t.metrics[name] for name in self.metrics] for t in self.measured}
        front = front_of(points, tuple(self.metrics.values()))
        found = [trial for trial in self.measured if trial.index in front]
        return sorted(found, key=lambda trial: trial.metrics[next(iter(self.metrics))])

    def importance(self, metric: str) -> dict[str, float]:
        """Share of what separates the best quarter of the trials from the others that each key has (PED-ANOVA, Watanabe
        et al. 2023), the largest first. Empty where trials are too few, or differ in one key only."""
        position = list(self.metrics).index(metric)
        whole = {key for key, axis in self.space.items() if not axis.when}
        told = [t for t in self.measured if whole <= t.overrides.keys()]
        varying = [key for key in whole if len({str(t.overrides[key]) for t in told}) > 1]
        if len(told) < _FEWEST_FOR_IMPORTANCE or len(varying) < 2:
            return {}
        values = {t.index: [t.metrics[name] for name in self.metrics] for t in told}
        study = study_of(
            Problem(self.space, dotted(self.base), tuple(self.metrics.values()), 0),
            [Tried(t.overrides, values[t.index], True, {}) for t in told],
        )
        # It takes the lowest values for the good ones.
        sign = 1 if self.mode(metric) == "min" else -1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "PedAnova.* computes the importances", UserWarning)  # it says just that
            found = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_TOP),
                params=sorted(varying),
                target=lambda trial: sign * trial.values[position],
            )
        return {key: float(share) for key, share in found.items() if math.isfinite(share)}

    # --- tables -------------------------------------------------------------------------------------------------------

    @property
    def keys(self) -> list[str]:
        return list(self.space)

    def rows(self) -> list[dict[str, Any]]:
        """A mapping a trial, of all columns that any trial has."""
        names = list(self.metrics) + sorted({name for t in self.trials for name in t.metrics} - set(self.metrics))
        on_front = {trial.index for trial in self.front} if len(self.metrics) > 1 else set()
        return [
            {
                "trial": t.index,
                "status": t.status,
                **{key: t.overrides.get(key) for key in self.keys},
                **{name: t.metrics.get(name) for name in names},
                "step": t.step,
                "on_front": t.index in on_front if len(self.metrics) > 1 else None,
                "seconds": round(t.seconds, 1),
                "run": t.run.name,
                "error": t.error,
            }
            for t in self.trials
        ]

    def write(self) -> None:
        """`results.csv` and `results.parquet`, each whole or not at all."""
        rows = [{key: _plain(value) for key, value in row.items()} for row in self.rows()]
        names = list(rows[0]) if rows else []
        table = pyarrow.table({name: _column([row[name] for row in rows]) for name in names})
        with whole_file(self.folder / "results.parquet") as temporary:
            pyarrow.parquet.write_table(table, temporary)
        with whole_file(self.folder / "results.csv") as temporary:
            pyarrow.csv.write_csv(table, temporary)

    def table(self) -> str:
        """The trials as text, the best by the first metric on top."""
        first, mode = next(iter(self.metrics.items()))
        table = Table(title=f"{self.config['name']}: {len(self.trials)} trials", caption=self.verdict())
        table.add_column("trial", justify="right")
        for key in self.keys:
            table.add_column(key, justify="right")
        for name, its_mode in self.metrics.items():
            table.add_column(f"{name} ({its_mode})", justify="right")
        table.add_column("step", justify="right")
        table.add_column("")
        on_front = {trial.index for trial in self.front} if len(self.metrics) > 1 else set()
        worst = -math.inf if mode == "max" else math.inf
        ordered = sorted(self.trials, key=lambda t: t.metrics.get(first, worst), reverse=mode == "max")
        for trial in ordered:
            mark = {"done": "", "stopped": "stopped early", "running": "unfinished"}.get(
                trial.status, trial.error or ""
            )
            mark = "on the front" if not mark and trial.index in on_front else mark
            table.add_row(
                str(trial.index),
                *(shown(trial.overrides[key]) if key in trial.overrides else "" for key in self.keys),
                *(shown(trial.metrics.get(name)) for name in self.metrics),
                "" if trial.step is None else str(trial.step),
                mark,
            )
        console = Console(
            file=io.StringIO(), width=max(100, 16 * (len(self.keys) + len(self.metrics)) + 50), color_system=None
        )
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())

    def verdict(self) -> str:
        """Which trial is best by each metric."""
        if not self.measured:
            return "no trial has been measured"
        return "; ".join(
            f"best {name}: {shown(best.metrics[name])} by trial {best.index}"
            for name in self.metrics
            for best in [self.best(name)]
        )


def front_of(points: Mapping[int, Sequence[float]], modes: Sequence[Mode]) -> set[int]:
    """The points that no other beats: that is as good in everything, and in something better.

    points  values by number, in the order of the modes
    """
    signs = [1 if mode == "max" else -1 for mode in modes]
    signed = {number: [s * value for s, value in zip(signs, point, strict=True)] for number, point in points.items()}

    def is_beaten(mine: Sequence[float]) -> bool:
        return any(
            other != mine and all(theirs >= own for theirs, own in zip(other, mine, strict=True))
            for other in signed.values()
        )

    return {number for number, point in signed.items() if not is_beaten(point)}


def is_sweep(folder: UPath) -> bool:
    """A folder is a sweep if it holds a sweep.yaml."""
    return (folder / "sweep.yaml").exists()


def shown(value: Any) -> str:
    """A value of a key or a metric as people read it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict)) else value


def _column(values: Sequence[Any]) -> pyarrow.Array:
    """Numbers where all are; mixed kinds of values are kept as their texts."""
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.array([None if value is None else str(value) for value in values])
