"""The runs in a storage, one by its name, and those of a tag or by how good they are."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from library.errors import ConfigError
from library.files.places import place
from workloads.runs.best import best_of, direction
from workloads.runs.folder import is_run
from workloads.runs.read import Run, read_run

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def find_runs(storage: str | Path) -> list[Run]:
    """The runs in a storage, the newest change first. A folder is a run if it holds a run.yaml.

    raises  ConfigError when there is no such folder
    """
    folder = place(storage)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {storage}: give the one that holds the runs with --storage")
    runs = [read_run(child) for child in folder.iterdir() if is_run(child)]
    return sorted(runs, key=lambda run: (run.changed or _LONG_AGO, run.name), reverse=True)


def find_run(storage: str | Path, run: str) -> Run:
    """One run, by its name in the storage or by the path of its folder.

    raises  ConfigError, with the names that are similar, when it is neither
    """
    at = place(storage)
    # A path is never joined to a URI, which would take /runs/demo for a folder of its bucket.
    for folder in (place(run),) if "/" in run else (at / run, place(run)):
        if is_run(folder):
            return read_run(folder)
    known = sorted(child.name for child in at.iterdir() if is_run(child)) if at.is_dir() else []
    close = difflib.get_close_matches(run, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ConfigError(
        f"'{run}' is neither a run in {storage} nor the folder of one; {hint}known there: {', '.join(known) or 'none'}"
    )


def find_each(storage: str | Path, names: Sequence[str]) -> list[Run]:
    """`find_run` of each name; each run once, however often it is named."""
    return list({str(run.folder): run for run in (find_run(storage, name) for name in names)}.values())


def select(runs: Iterable[Run], *, tags: Sequence[str] = (), sort: str | None = None) -> list[Run]:
    """The runs that have all these tags; sorted, the best of a metric first and those without it last.

    raises  ConfigError for a metric of which nobody knows whether more is better
    """
    chosen = [run for run in runs if set(tags) <= set(run.tags)]
    if sort is None:
        return chosen
    mode = direction(sort, (run.config for run in chosen))

    def rank(run: Run) -> float:
        best = best_of(run.series.get(sort, []), mode)
        return math.inf if best is None else -best.value if mode == "max" else best.value

    return sorted(chosen, key=rank)
