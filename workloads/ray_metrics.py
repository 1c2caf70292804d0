"""Trainings and archives in numbers for Prometheus, through Ray's own exporter: `ray_stillgrain_...` there.

Ray's dashboard agent on each node serves them, and `session_latest/metrics/prometheus/prometheus.yml` on the head says
where. Outside of a Ray nothing is counted. The queue's own are in cluster/metrics.py.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import cache
from typing import Any, TypeVar

import ray
from ray.util.metrics import Counter, Gauge

T = TypeVar("T")

GAUGES = {
    "stillgrain_training_step": ("Optimizer updates that a run has recorded.", ("run",)),
    "stillgrain_training_loss": ("The last training loss that a run has recorded.", ("run",)),
    "stillgrain_training_metric": ("The last value of each metric of validation.", ("run", "metric")),
    "stillgrain_archive_files_left": ("Files of an archive that have no outcome yet.", ("archive",)),
}
COUNTERS = {
    "stillgrain_archive_files_total": ("Files of an archive by what became of them.", ("archive", "status")),
    "stillgrain_archive_busy_seconds_total": ("Seconds that actors were busy with files.", ("archive",)),
}
"""What is exported: the meaning and the labels of each."""


def note_training(run: str, latest: Mapping[str, Mapping[str, Any]]) -> None:
    """Let Ray's exporter see where a run stands.

    latest  the last line of each of its metrics, by `split/name`
    """
    if not ray.is_initialized():
        return
    for name, line in latest.items():
        split, _, metric = name.partition("/")
        if name == "train/loss":
            _gauge("stillgrain_training_step").set(line["step"], {"run": run})
            _gauge("stillgrain_training_loss").set(line["value"], {"run": run})
        elif split == "val" and line["value"] is not None:
            _gauge("stillgrain_training_metric").set(line["value"], {"run": run, "metric": metric})


def counted(outcomes: Generator[T, None, None], archive: str, total: int) -> Generator[T, None, None]:
    """The outcomes of a pool as they come, counted. Closing this closes them."""
    try:
        for ended, outcome in enumerate(outcomes, start=1):
            what: Any = outcome
            _counter("stillgrain_archive_files_total").inc(1, {"archive": archive, "status": what.status})
            _counter("stillgrain_archive_busy_seconds_total").inc(max(what.seconds, 1e-9), {"archive": archive})
            _gauge("stillgrain_archive_files_left").set(max(0, total - ended), {"archive": archive})
            yield outcome
    finally:
        outcomes.close()


@cache
def _gauge(name: str) -> Gauge:
    meaning, labels = GAUGES[name]
    return Gauge(name, meaning, labels)


@cache
def _counter(name: str) -> Counter:
    meaning, labels = COUNTERS[name]
    return Counter(name, meaning, labels)
