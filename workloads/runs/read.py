"""A run as its folder describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from upath import UPath

from library.config import load
from library.errors import ConfigError, DataError
from library.files.places import place, read_text
from workloads.runs.best import Best, best_of, directions, own_metric
from workloads.runs.folder import CONFIG, METRICS, STATE, checkpoint_folders, modified, num_bytes

Status = Literal["finished", "stopped early", "unfinished", "empty", "broken"]
Series = dict[str, list[tuple[int, float]]]
"""Values by `split/name`, with their steps, as they were recorded."""


@dataclass(frozen=True)
class Run:
    """A run as its folder describes it."""

    name: str
    folder: UPath
    status: Status
    """`unfinished` may be running, or dead: `changed` is what tells."""
    reason: str | None
    """Why it stopped early, or what is broken."""
    config: Mapping[str, Any]
    """Resolved; empty for a broken run."""
    step: int
    """Updates done, by the last recorded value."""
    steps: int | None
    """Updates that the config asks for; None where it asks for none."""
    series: Series = field(repr=False)
    progress: Mapping[str, Any] = field(repr=False)
    """Of the newest checkpoint's state; empty without one."""
    tags: tuple[str, ...]
    notes: str
    changed: datetime | None
    """When the last value was recorded, or else when the run was made; None where its store does not tell."""
    checkpoint_bytes: int

    @property
    def best(self) -> Best | None:
        """Of the metric that decides which weights are published."""
        metric, mode = own_metric(self.config)
        return best_of(self.series.get(metric, []), mode)

    @cached_property
    def bests(self) -> dict[str, Best]:
        """Of every validation metric that has a better direction."""
        modes = directions(self.series, [self.config])
        found = {name: best_of(self.series[name], mode) for name, mode in modes.items()}
        return {name: best for name, best in found.items() if best is not None}

    def to_json(self) -> dict[str, Any]:
        metric, _ = own_metric(self.config)
        return {
            "name": self.name,
            "folder": str(self.folder),
            "status": self.status,
            "reason": self.reason,
            "step": self.step,
            "steps": self.steps,
            "best": {"metric": metric, **vars(self.best)} if self.best else None,
            "tags": list(self.tags),
            "notes": self.notes,
            "changed": self.changed.isoformat(timespec="seconds") if self.changed else None,
            "checkpoint_bytes": self.checkpoint_bytes,
        }


def read_run(folder: str | Path | UPath) -> Run:
    """What a run's folder says of it. Never raises for what lies in it: a run that cannot be read is `broken`."""
    folder = place(folder)
    config: Mapping[str, Any] = {}
    series: Series = {}
    reason = None
    try:
        config = load(folder / CONFIG)
        series = _series(folder)
    except (ConfigError, DataError) as error:
        reason = str(error)
    progress = _progress(folder)
    steps = _steps(config)
    step = max((points[-1][0] for points in series.values()), default=progress.get("step", 0))
    status: Status = "unfinished"
    if reason is not None:
        status = "broken"
    elif progress.get("stopped"):
        status, reason = "stopped early", str(progress["stopped"])
    elif steps is not None and progress.get("step", _last_validation(series)) >= steps:
        status = "finished"
    elif not series and not progress:
        status = "empty"
    tags = config.get("tags")
    return Run(
        name=folder.name,
        folder=folder,
        status=status,
        reason=reason,
        config=config,
        step=step,
        steps=steps,
        series=series,
        progress=progress,
        tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
        notes=str(config.get("notes") or ""),
        changed=next((modified(file) for file in (folder / METRICS, folder / CONFIG) if file.exists()), None),
        checkpoint_bytes=num_bytes(folder / "checkpoints"),
    )


def _series(folder: UPath) -> Series:
    # Not by library.training.recorder, which brings torch: a list of runs is there at once.
    file = folder / METRICS
    series: Series = {}
    if not file.exists():
        return series
    try:
        for text in read_text(file).splitlines(keepends=True):
            if text.endswith("\n"):  # a last line may be cut short by a kill
                line = json.loads(text)
                series.setdefault(f"{line['split']}/{line['name']}", []).append((line["step"], float(line["value"])))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: holds a line that is no recorded value ({error})") from None
    return series


def _progress(folder: UPath) -> dict[str, Any]:
    """Of the newest checkpoint whose state can be read."""
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            progress = json.loads(read_text(checkpoint / STATE))["progress"]
            return {"step": int(progress["step"])} | progress
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _steps(config: Mapping[str, Any]) -> int | None:
    try:
        return int(config["steps"]) + sum(int(stage["steps"]) for stage in config.get("then") or ())
    except (KeyError, TypeError, ValueError):
        return None


def _last_validation(series: Series) -> int:
    """Every training ends with one, so this says how far a run came whose checkpoints are gone."""
    return max((points[-1][0] for name, points in series.items() if name.startswith("val/")), default=-1)
