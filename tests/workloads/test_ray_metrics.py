"""What Ray's exporter says of trainings and archives, on the node where they are driven."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Generator

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from workloads import ray_metrics
from workloads.pool import Outcome
from workloads.ray_metrics import counted, note_training


def outcomes() -> Generator[Outcome[str], None, None]:
    yield Outcome("a.dng", "done", None, None, 1, 2.0)
    yield Outcome("b.dng", "failed", None, "no", 1, 1.0)
    yield Outcome("c.dng", "done", None, None, 1, 0.5)


def exported(deadline: float) -> dict[tuple[str, ...], float]:
    """Values by name and by the labels that are ours, once all of them are there."""
    port = ray.nodes()[0]["MetricsExportPort"]
    values: dict[tuple[str, ...], float] = {}
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                ours = [
                    sample.labels[label] for label in ("run", "archive", "status", "metric") if label in sample.labels
                ]
                if sample.name.startswith("ray_stillgrain"):
                    values[(sample.name, *ours)] = sample.value
        if {name for name, *_ in values} >= {f"ray_{name}" for name in (*ray_metrics.GAUGES, *ray_metrics.COUNTERS)}:
            break
        time.sleep(0.5)
    return values


@pytest.mark.slow
def test_rays_exporter_has_every_number_under_the_name_that_the_dashboard_asks_for(ray_cluster: str) -> None:
    note_training(
        "run",
        {
            "train/loss": {"step": 40, "value": 0.25},
            "val/psnr": {"step": 40, "value": 30.5},
            "val/ms_ssim": {"step": 40, "value": None},
        },
    )
    assert [outcome.item for outcome in counted(outcomes(), "photos", 3)] == ["a.dng", "b.dng", "c.dng"]
    values = exported(time.monotonic() + 45)
    assert values[("ray_stillgrain_training_step", "run")] == 40
    assert values[("ray_stillgrain_training_loss", "run")] == 0.25
    assert values[("ray_stillgrain_training_metric", "run", "psnr")] == 30.5
    assert values[("ray_stillgrain_archive_files_total", "photos", "done")] == 2
    assert values[("ray_stillgrain_archive_files_total", "photos", "failed")] == 1
    assert values[("ray_stillgrain_archive_busy_seconds_total", "photos")] == 3.5
    assert values[("ray_stillgrain_archive_files_left", "photos")] == 0


def test_closing_what_is_counted_closes_the_pool(ray_cluster: str) -> None:
    pool = outcomes()
    through = counted(pool, "photos", 3)
    next(through)
    through.close()
    assert next(pool, None) is None
