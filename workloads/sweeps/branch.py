"""A training run that goes on from where another stands, under settings of its own."""

from __future__ import annotations

import json
from pathlib import Path

from upath import UPath

from library.errors import CheckpointError
from library.files.atomic import whole_file, whole_folder
from library.training.checkpoint import STATE_FILE, checkpoints
from library.training.recorder import METRICS_FILE, read_metrics


def branch(source: UPath, step: int, target: UPath) -> None:
    """Make `target` a run whose past is that of `source`: its metrics, bundle, and the checkpoint of that step, from
    which it will go on; `origin.json` says so. One that has a checkpoint already is left as it is.

    raises  CheckpointError when the source has no checkpoint of that step
    """
    if checkpoints(target):
        return
    found = next((c for c in checkpoints(source) if c.name == f"step-{step:08d}"), None)
    if found is None:
        raise CheckpointError(source, f"has no checkpoint of step {step} to go on from")
    kept = [json.dumps(line) + "\n" for line in read_metrics(source) if line["step"] <= step]
    with whole_file(target / METRICS_FILE) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    # Weights that were better than all that come later are the bundle; they are the source's as long as that holds.
    if (source / "bundle" / "manifest.json").exists():
        with whole_folder(target / "bundle", last="manifest.json") as temporary:
            _copy(source / "bundle", temporary)
    with whole_file(target / "origin.json") as temporary:
        temporary.write_text(json.dumps({"run": source.name, "step": step}), encoding="utf-8")
    with whole_folder(target / "checkpoints" / found.name, last=STATE_FILE) as temporary:
        _copy(found, temporary)


def _copy(source: UPath, target: Path) -> None:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
