"""Runs on a screen, and as JSON: a list of them, and one with its values and their curves."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from upath import UPath

from library.files.places import read_text
from workloads.runs.best import Best, best_of, direction, own_metric
from workloads.runs.folder import checkpoint_folders
from workloads.runs.read import Run

NOTHING = "–"
"""In the place of what is not there."""


def runs_table(runs: Sequence[Run], metric: str | None = None) -> Table:
    """One line a run. The metric is each config's own if none is named."""
    mode = None if metric is None else direction(metric, (run.config for run in runs))
    table = new_table("run", "status", "step", f"best {metric}" if metric else "best", "tags", "changed")
    for run in runs:
        own, _ = own_metric(run.config)
        best = run.best if mode is None else best_of(run.series.get(metric or "", []), mode)
        table.add_row(
            Text(run.name),
            Text(run.status + (f": {run.reason}" if run.reason else ""), "red" if run.status == "broken" else ""),
            steps_done(run),
            value_at_step(best) + (f"  {own}" if best and metric is None else ""),
            Text(" ".join(run.tags)),
            when(run.changed),
        )
    return table


def overview(run: Run) -> RenderableType:
    """A run on a screen: facts, the best and the last of each value, and their curves."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(run).items():
        facts.add_row(Text(name, "dim"), Text(str(value)))
    table = new_table("value", "best", "at step", "last", "curve")
    own, _ = own_metric(run.config)
    for name, points in run.series.items():
        best = run.bests.get(name)
        table.add_row(
            Text(name, "bold" if name == own else ""),
            f"{_number(best.value)} ({best.mode})" if best else "",
            f"{best.step:,}" if best else "",
            _number(points[-1][1]),
            sparkline([value for _, value in points]),
        )
    return Group(facts, "", table) if run.series else facts


def describe(run: Run) -> dict[str, Any]:
    """`overview` as JSON."""
    return {
        **run.to_json(),
        "bests": {name: vars(best) for name, best in run.bests.items()},
        "last": {name: {"step": points[-1][0], "value": points[-1][1]} for name, points in run.series.items()},
        "skipped_steps": run.progress.get("skipped_steps", 0),
        "checkpoints": [checkpoint.name for checkpoint in checkpoint_folders(run.folder)],
        "bundle": _bundle(run.folder),
        "config": dict(run.config),
    }


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve of block characters from its smallest value to its largest; means where there are more values than
    characters. What is not finite is a blank."""
    blocks = "▁▂▃▄▅▆▇█"
    count = min(len(values), width)
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else [0]
    parts = [[v for v in values[a:b] if math.isfinite(v)] for a, b in itertools.pairwise(edges)]
    means = [math.fsum(part) / len(part) if part else math.nan for part in parts]
    low = min((m for m in means if not math.isnan(m)), default=0.0)
    high = max((m for m in means if not math.isnan(m)), default=0.0)
    span = high - low or 1.0
    return "".join(" " if math.isnan(m) else blocks[min(7, int((m - low) / span * 8))] for m in means)


def _facts(run: Run) -> dict[str, Any]:
    bundle = _bundle(run.folder)
    checkpoints = checkpoint_folders(run.folder)
    facts = {
        "run": run.name,
        "folder": run.folder,
        "status": run.status + (f": {run.reason}" if run.reason else ""),
        "step": steps_done(run),
        "changed": when(run.changed),
        "skipped steps": run.progress.get("skipped_steps"),
        "checkpoints": f"{', '.join(c.name for c in checkpoints)} ({decimal(run.checkpoint_bytes)})"
        if checkpoints
        else "none",
        "bundle": f"step {bundle['step']}, sha256:{bundle['digest']}" if bundle else "none",
        "tags": " ".join(run.tags),
        "notes": run.notes,
    }
    return {name: value for name, value in facts.items() if value not in ("", None, 0)}


def _bundle(folder: UPath) -> dict[str, Any] | None:
    """What the manifest says; a bundle is verified where it is used, not here."""
    try:
        manifest = json.loads(read_text(folder / "bundle" / "manifest.json"))
        return {"step": manifest["step"], "digest": manifest["digest"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new_table(*headings: str) -> Table:
    """Without rows; what is too long for a terminal is folded, never cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    return table


def steps_done(run: Run) -> str:
    """`400 / 1,200`"""
    return f"{run.step:,} / {run.steps:,}" if run.steps is not None else f"{run.step:,}"


def value_at_step(best: Best | None) -> str:
    """`31.25 @ 400`"""
    return f"{_number(best.value)} @ {best.step:,}" if best else NOTHING


def _number(value: float) -> str:
    return f"{value:.5g}"


def when(moment: datetime | None) -> str:
    """In this machine's time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else NOTHING
