"""Freeing the space that nobody needs: remains of killed writers, checkpoints of runs that have ended, whole runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.filesize import decimal
from upath import UPath

from library.errors import ConfigError, DataError
from library.files.places import remove_folder
from workloads.runs.find import find_each, find_runs
from workloads.runs.folder import STATE, TENSORS, checkpoint_folders, files_below, modified, num_bytes
from workloads.runs.read import Run
from workloads.runs.show import when

_ABANDONED = timedelta(hours=1)
"""After which a temporary file is no longer being written: a running process renames its own within moments."""


@dataclass(frozen=True)
class Removal:
    """Something that can go."""

    path: UPath
    num_bytes: int
    why: str


@dataclass(frozen=True)
class Cleaning:
    """What was removed, or would be."""

    removals: list[Removal]
    done: bool

    def __str__(self) -> str:
        if not self.removals:
            return "nothing to remove"
        lines = [f"{decimal(r.num_bytes):>10}  {r.path}  ({r.why})" for r in self.removals]
        total = decimal(sum(r.num_bytes for r in self.removals))
        last = f"removed: {total}" if self.done else f"would be removed: {total}; nothing is yet, say --yes to do it"
        return "\n".join([*lines, last])


def clean(
    storage: str | Path, names: Sequence[str] = (), *, keep_last: int = 0, whole: bool = False, confirmed: bool = False
) -> Cleaning:
    """Free the space that nobody needs: remains of killed writers, and checkpoints of runs that have ended.

    names      runs to look at; all of the storage if none is named
    keep_last  newest checkpoints that stay whole. Of the last one `state.json` stays in any case: it is the record that
               the run has ended, without which the same `stillgrain run` would begin anew
    whole      remove the named runs altogether, whatever their status
    confirmed  do it; otherwise only tell what would be done
    raises     ConfigError for an unknown run, or `whole` without names; DataError for what cannot be removed
    """
    if keep_last < 0:
        raise ConfigError(f"--keep-last is {keep_last}, but counts checkpoints: give 0 or more")
    if whole and not names:
        raise ConfigError("--all removes whole runs: name them")
    runs = find_each(storage, names) if names else find_runs(storage)
    if whole:
        removals = [
            Removal(run.folder, num_bytes(run.folder), f"whole run, {run.status}, changed {when(run.changed)}")
            for run in runs
        ]
    else:
        removals = [removal for run in runs for removal in (*_remains(run.folder), *_old_checkpoints(run, keep_last))]
    if confirmed:
        for removal in removals:
            _remove(removal.path)
    return Cleaning(removals, confirmed)


def _remains(folder: UPath) -> Iterator[Removal]:
    """Temporary files and folders that no process can still be writing."""
    for child in sorted(folder.iterdir(), key=lambda c: c.name):
        if child.is_symlink():
            continue
        if child.name.startswith(".") and child.name.endswith(".tmp"):
            if _is_abandoned(child):
                yield Removal(child, num_bytes(child), "remains of a writer that was killed")
        elif child.is_dir():
            yield from _remains(child)


def _is_abandoned(temporary: UPath) -> bool:
    """Not so where a store does not tell when anything changed."""
    # An empty folder may be one into which a file is just about to be written.
    files = ([*files_below(temporary)] if temporary.is_dir() else []) or [temporary]
    before = datetime.now(UTC) - _ABANDONED
    return all((changed := modified(file)) is not None and changed < before for file in files)


def _old_checkpoints(run: Run, keep_last: int) -> Iterator[Removal]:
    if run.status not in ("finished", "stopped early"):
        return
    why = f"checkpoint of a run that has {'finished' if run.status == 'finished' else 'stopped'}"
    checkpoints = [c for c in checkpoint_folders(run.folder) if (c / STATE).exists()]
    for checkpoint in checkpoints[: len(checkpoints) - max(keep_last, 1)]:
        yield Removal(checkpoint, num_bytes(checkpoint), why)
    if keep_last == 0 and checkpoints and (tensors := checkpoints[-1] / TENSORS).exists():
        yield Removal(tensors, num_bytes(tensors), why)


def _remove(path: UPath) -> None:
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        raise DataError(f"{path}: cannot be removed; look at its permissions")
