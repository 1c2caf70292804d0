"""Runs side by side: how their configs differ, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from library.config import dotted
from library.errors import ConfigError
from workloads.runs.best import Best, Mode, best_of, directions
from workloads.runs.find import find_each
from workloads.runs.read import Run
from workloads.runs.show import NOTHING, new_table, value_at_step

_OF_THE_FOLDER = {"name", "storage", "tags", "notes"}
"""Keys that say which run it is, not what it does."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: list[Run]
    labels: list[str]
    """Of the runs: their names, or their folders where names are the same."""
    settings: dict[str, list[str]]
    """Dotted keys in which the configs differ, with each run's value."""
    rows: list[tuple[str, list[tuple[str, bool]]]]
    """Values of each run at its best and at its last step, and whether it is the best of them all."""


def compare(storage: str | Path, names: Sequence[str]) -> Comparison:
    """How runs differ: in their configs, and in what came of it.

    raises  ConfigError for fewer than two runs, an unknown or a broken one
    """
    runs = find_each(storage, names)
    if len(runs) < 2:
        raise ConfigError("there is nothing to compare: name two runs or more")
    for run in runs:
        if run.status == "broken":
            raise ConfigError(f"run '{run.name}' cannot be compared: {run.reason}")
    labels = [run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [str(run.folder) for run in runs]
    return Comparison(runs, labels, _differences(runs), _metric_rows(runs))


def comparison_tables(comparison: Comparison) -> RenderableType:
    """The comparison on a screen, the best values bold."""
    settings = new_table("setting", *comparison.labels)
    for key, values in comparison.settings.items():
        settings.add_row(Text(key), *(Text(value) for value in values))
    metrics = new_table("metric", *comparison.labels)
    for label, cells in comparison.rows:
        metrics.add_row(Text(label), *(Text(text, "bold" if best else "") for text, best in cells))
    return Group(settings if comparison.settings else "The configs are the same.", metrics)


def _differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    flat = [{k: v for k, v in dotted(run.config).items() if k not in _OF_THE_FOLDER} for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    shown = {key: [_setting(settings, key) for settings in flat] for key in keys}
    return {key: values for key, values in shown.items() if len(set(values)) > 1}


def _setting(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return NOTHING
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _metric_rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, bool]]]]:
    rows = []
    names = list(dict.fromkeys(name for run in runs for name in run.series))
    modes = directions(names, [run.config for run in runs])
    for name in names:
        lasts = [run.series.get(name, [])[-1:] for run in runs]
        if (mode := modes.get(name)) is None:
            rows.append((f"{name}, last", [(value_at_step(best_of(last, "max")), False) for last in lasts]))
        else:
            bests = [best_of(run.series.get(name, []), mode) for run in runs]
            rows.append((f"{name}, best ({mode})", _judged(bests, mode)))
            rows.append((f"{name}, last", _judged([best_of(last, mode) for last in lasts], mode)))
    return rows


def _judged(found: Sequence[Best | None], mode: Mode) -> list[tuple[str, bool]]:
    values = [best.value for best in found if best is not None]
    top = (max if mode == "max" else min)(values, default=None)
    return [(value_at_step(best), best is not None and best.value == top) for best in found]
