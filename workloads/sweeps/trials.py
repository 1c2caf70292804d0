"""The trials of a sweep, kept in its folder: what was asked of each, and what became of it.

<sweep>/trials.json   this list, written anew at every change
<sweep>/trials/007/   a training run as any other, with its metrics, checkpoints and bundle

What a trial measured is in its run alone. So a sweep that was killed knows where every trial stands, and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from upath import UPath

from library.errors import DataError
from library.files.atomic import whole_file
from library.files.places import read_text
from library.files.writer import Writer
from workloads.runs.read import Run, read_run
from workloads.sweeps.space import Overrides

_FILE = "trials.json"
Status = Literal["running", "done", "stopped", "failed"]
COSTS = ("macs_per_pixel", "num_parameters")
"""Metrics of a network that no validation has to measure: its bundle's manifest knows them."""


@dataclass
class Trial:
    """One of a sweep's trials."""

    index: int
    overrides: Overrides
    after: int | None = None
    """Of the trial whose weights it starts from."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """What the searcher noted."""
    status: Status = "running"
    """stopped: the scheduler saw no promise in it. running: or to be gone on with."""
    error: str | None = None
    run: str = ""
    """Name of its run below `trials`."""
    seconds: float = 0.0
    """In which it had its resources, of all sessions."""
    compared: int = 0
    """In a population: the update at which it was last compared with the others."""

    def __post_init__(self) -> None:
        self.run = self.run or f"{self.index:03d}"


class Ledger:
    """The list of a sweep's trials. One process writes it: that which claimed it last."""

    def __init__(self, folder: UPath) -> None:
        """raises  DataError for a list that cannot be read"""
        self.folder = folder
        self._writer = Writer(folder, "sweep")
        self.trials = self._read()

    def _read(self) -> list[Trial]:
        file = self.folder / _FILE
        if not file.exists():
            return []
        try:
            return [Trial(**line) for line in json.loads(read_text(file))]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{file}: is no list of trials ({error})") from None

    def claim(self) -> None:
        """Be the one that writes the list, as it stands now."""
        self._writer.claim()
        self.trials = self._read()

    @property
    def runs_folder(self) -> UPath:
        return self.folder / "trials"

    def __getitem__(self, index: int) -> Trial:
        return next(trial for trial in self.trials if trial.index == index)

    def status(self, index: int) -> Status | None:
        """None of a trial that was not begun."""
        return next((trial.status for trial in self.trials if trial.index == index), None)

    def add(self, trial: Trial) -> None:
        self.trials = sorted([*self.trials, trial], key=lambda trial: trial.index)
        self.save()

    def check(self) -> None:
        """raises  StillgrainError when another process has claimed the list since"""
        self._writer.check()

    def save(self) -> None:
        """raises  StillgrainError as `check`"""
        self.check()
        with whole_file(self.folder / _FILE) as temporary:
            temporary.write_text(json.dumps([asdict(trial) for trial in self.trials], indent=1), encoding="utf-8")

    def read_run(self, trial: Trial) -> Run:
        """What the folder of its run says."""
        return read_run(self.runs_folder / trial.run)


def metrics_of(run: Run) -> dict[str, float]:
    """Validation metrics of the weights that the run has published, those of its best step, and what they cost to run
    (`COSTS`). None without such."""
    best = run.best
    if best is None:
        return {}
    measured = {
        name: value
        for name, points in run.series.items()
        if name.startswith("val/")
        for step, value in points
        if step == best.step
    }
    return measured | _costs(run)


def _costs(run: Run) -> dict[str, float]:
    try:
        manifest = json.loads(read_text(run.folder / "bundle" / "manifest.json"))
    except (OSError, ValueError):
        return {}
    # A codec's are by its parts.
    totals = {name: manifest[name] for name in COSTS if name in manifest}
    return {name: float(sum(cost.values()) if isinstance(cost, dict) else cost) for name, cost in totals.items()}


def reports_of(run: Run) -> list[dict[str, float]]:
    """What a run has reported so far: a `step` and its validation metrics each."""
    reports: dict[int, dict[str, float]] = {}
    for name, points in run.series.items():
        if name.startswith("val/"):
            for step, value in points:
                reports.setdefault(step, {"step": step})[name] = value
    return [reports[step] for step in sorted(reports)]


def last_report(run: Run) -> dict[str, float]:
    """The last of them from whose step the run can go on: its checkpoint is there. Empty where there is none."""
    step = run.progress.get("step", 0)
    return next((report for report in reversed(reports_of(run)) if report["step"] <= step), {})


def values_of(run: Run, metrics: Sequence[str]) -> list[float] | None:
    """Of some metrics, in their order; None where one is missing."""
    found = metrics_of(run)
    return [found[name] for name in metrics] if all(name in found for name in metrics) else None
