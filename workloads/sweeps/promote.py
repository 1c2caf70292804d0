"""The winner of a sweep, taken out of it: its bundle and its config in a folder of their own."""

from __future__ import annotations

from dataclasses import dataclass

from upath import UPath

from library.errors import DataError
from library.files.atomic import whole_folder
from library.files.places import place
from workloads.sweeps.results import Results, TrialResult, shown

_VOUCHES = "run.yaml"


@dataclass(frozen=True)
class Promoted:
    """What was copied, and where to."""

    folder: UPath
    trial: TrialResult

    def __str__(self) -> str:
        changed = ", ".join(f"{key} {shown(value)}" for key, value in self.trial.overrides.items())
        metrics = ", ".join(f"{name} {shown(value)}" for name, value in self.trial.metrics.items())
        return f"{self.folder}: trial {self.trial.index} with {changed}; {metrics}"


def promote(sweep: str, output: str | None = None, *, best: str | None = None, trial: int | None = None) -> Promoted:
    """Copy a trial's bundle and config; other runs may `start_from` the folder, which is replaced if it is there.

    sweep   folder of a sweep, or its URI
    output  left out, `promoted` in the sweep's folder
    best    metric by which the trial is chosen; left out, the sweep's first
    trial   its number, instead: one of the front, say
    raises  DataError where there is no sweep, metric, trial, or bundle
    """
    results = Results(sweep)
    if trial is not None:
        chosen = next((t for t in results.trials if t.index == trial), None)
        if chosen is None:
            raise DataError(f"{sweep}: has no trial {trial}, but those from 0 to {len(results.trials) - 1}")
    else:
        chosen = results.best(best or next(iter(results.metrics)))
    bundle = chosen.run.folder / "bundle"
    if not (bundle / "manifest.json").exists():
        raise DataError(f"{sweep}: trial {chosen.index} has published no bundle ({chosen.error or chosen.status})")
    folder = place(output) if output is not None else results.folder / "promoted"
    with whole_folder(folder, last=_VOUCHES) as temporary:
        (temporary / "bundle").mkdir()
        for file in bundle.iterdir():
            (temporary / "bundle" / file.name).write_bytes(file.read_bytes())
        (temporary / _VOUCHES).write_bytes((chosen.run.folder / _VOUCHES).read_bytes())
    return Promoted(folder, chosen)
