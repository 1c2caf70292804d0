"""Sweeps on Ray Tune: a trial is a run as any other, what ended stays, what was killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray.util.state import list_actors
from safetensors.torch import load_file
from upath import UPath

from library.config import validate
from library.errors import ConfigError
from library.training.checkpoint import checkpoints, read_progress
from library.training.recorder import read_metrics
from workloads import denoise, sweep
from workloads.sweep import SweepResult
from workloads.sweeps.trials import Ledger

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROOT = Path(__file__).parents[2]


def base_of(scenes: Path, folder: Path, **changes: Any) -> str:
    """A tiny training, as a file."""
    data = {
        "workload": "denoise",
        "name": "base",
        "model": {"kind": "nafnet", "width": 4},
        "dataset": {"kind": "synthetic", "scenes": str(scenes), "held_out": 0.34, "crop": 32, "validation_crop": 168},
        "losses": {"l1": {"weight": 1.0}, "mse": {"weight": 1.0}},
        "batch_size": 2,
        "steps": 6,
        "log_every": 2,
        "validate_every": 2,
        "checkpoint_every": 2,
        "num_pictures": 0,
        "scaling": {"workers": 1},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return str(folder / "base.yaml")


def settings(scenes: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "workload": "sweep",
        "name": "sweep",
        "storage": str(folder / "sweeps"),
        "base": changes.get("base") or base_of(scenes, folder),
        "space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}, "losses.l1.weight": {"choice": [0.5, 2.0]}},
        "num_trials": 2,
        "metrics": {"val/psnr": "max", "val/ms_ssim": "max"},
        "concurrency": 2,
        **changes,
    }


def search(data: dict[str, Any]) -> SweepResult:
    return sweep.run(validate(sweep.Config, data, "test"))


def table(result: SweepResult) -> list[dict[str, Any]]:
    """What a sweep came to; how long it took is no part of it."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result.results.rows()]


def weights(folder: UPath) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return search(settings(scenes, tmp_path_factory.mktemp("undisturbed")))


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_trial_gives_the_bits_of_a_lone_run_with_its_settings(
    undisturbed: SweepResult, scenes: Path, tmp_path: Path
) -> None:
    trial = undisturbed.results.trials[1]
    data = yaml.safe_load((trial.run.folder / "run.yaml").read_text(encoding="utf-8"))
    assert data["optim"]["lr"] == trial.overrides["optim.lr"]
    lone = denoise.run(validate(denoise.Config, data | {"storage": str(tmp_path), "scaling": {"workers": 0}}, "test"))
    assert same(weights(trial.run.folder), weights(lone.folder))
    assert read_metrics(trial.run.folder) == read_metrics(lone.folder)


def test_every_trial_is_in_the_table_with_the_metrics_of_its_published_weights(undisturbed: SweepResult) -> None:
    results = undisturbed.results
    assert [row["status"] for row in results.rows()] == ["done", "done"]
    for trial in results.trials:
        manifest = json.loads((trial.run.folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
        assert {name: trial.metrics[name] for name in results.metrics} == pytest.approx(
            {name: manifest["metrics"][name] for name in results.metrics}
        )
    assert (results.folder / "results.csv").read_text(encoding="utf-8").count("\n") == 3
    assert undisturbed.exit_code == 0


def test_a_finished_sweep_does_nothing_and_more_trials_are_added_to_it(undisturbed: SweepResult, scenes: Path) -> None:
    folder = undisturbed.results.folder
    before = (folder / "trials.json").read_bytes()
    data = settings(scenes, Path(folder).parents[1])
    assert table(search(data)) == table(undisturbed)
    assert (folder / "trials.json").read_bytes() == before
    more = search(data | {"num_trials": 3})
    assert table(more)[:2] == [
        row | {"on_front": more.results.rows()[i]["on_front"]} for i, row in enumerate(table(undisturbed))
    ]
    assert len(more.results.trials) == 3


def test_the_folder_of_another_sweep_is_refused_with_what_differs(undisturbed: SweepResult, scenes: Path) -> None:
    data = settings(scenes, Path(undisturbed.results.folder).parents[1], seed=7)
    with pytest.raises(ConfigError, match=r"(?s)has another sweep\.yaml:.*seed: 7"):
        search(data)


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_sweep_whose_driver_is_killed_goes_on_to_the_same_table(
    undisturbed: SweepResult, ray_cluster: str, scenes: Path, tmp_path: Path
) -> None:
    data = settings(scenes, tmp_path, concurrency=1)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "stillgrain", "run", str(tmp_path / "sweep.yaml")]
    with open(tmp_path / "log", "wb") as log:
        driver = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": ray_cluster}, stdout=log, stderr=subprocess.STDOUT
        )
    second = tmp_path / "sweeps" / "sweep" / "trials" / "001"
    wait_until(lambda: bool(checkpoints(second)) or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    first = (tmp_path / "sweeps" / "sweep" / "trials" / "000" / "metrics.jsonl").stat().st_mtime_ns
    result = search(data)
    assert (tmp_path / "sweeps" / "sweep" / "trials" / "000" / "metrics.jsonl").stat().st_mtime_ns == first
    assert [row | {"on_front": None} for row in table(result)] == [
        row | {"on_front": None} for row in table(undisturbed)[:2]
    ]
    for ours, theirs in zip(result.results.trials, undisturbed.results.trials, strict=False):
        assert same(weights(ours.run.folder), weights(theirs.run.folder))


def test_a_trial_that_is_killed_goes_on_to_the_same_bits_and_the_scheduler_stops_the_bad_ones(
    ray_cluster: str, scenes: Path, tmp_path: Path
) -> None:
    """One trial after the other: the first sets the mark, the second, whose rate is far too high, is stopped."""
    data = settings(
        scenes,
        tmp_path,
        base=base_of(scenes, tmp_path, steps=12),
        space={"optim.lr": {"grid": [2e-4, 0.5]}},
        searcher={"kind": "grid"},
        num_trials=1,
        scheduler={"kind": "asha", "grace_steps": 4, "reduction": 2},
        concurrency=1,
    )
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "stillgrain", "run", str(tmp_path / "sweep.yaml")]
    first = tmp_path / "sweeps" / "sweep" / "trials" / "000"
    with open(tmp_path / "log", "wb") as log:
        driver = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": ray_cluster}, stdout=log, stderr=subprocess.STDOUT
        )
        wait_until(lambda: bool(checkpoints(first)) or driver.poll() is not None)
        alive = [("state", "=", "ALIVE"), ("class_name", "=", "ImplicitFunc")]
        for actor in list_actors(address=ray_cluster, filters=alive):
            os.kill(actor.pid, signal.SIGKILL)
        assert driver.wait(240) == 0, (tmp_path / "log").read_text()
    rows = search(data).results.rows()
    assert [row["status"] for row in rows] == ["done", "stopped"]
    assert read_progress(checkpoints(tmp_path / "sweeps" / "sweep" / "trials" / "001")[-1]).step == 4
    alone = yaml.safe_load((first / "run.yaml").read_text()) | {"storage": str(tmp_path), "scaling": {"workers": 0}}
    assert same(weights(UPath(first)), weights(denoise.run(validate(denoise.Config, alone, "test")).folder))


# --- kinds of sweeps --------------------------------------------------------------------------------------------------


def test_each_rung_of_a_ladder_starts_from_the_weights_of_the_one_before(scenes: Path, tmp_path: Path) -> None:
    ladder = {"losses.l1.weight": {"ladder": [1.0, 2.0]}}
    result = search(
        settings(
            scenes,
            tmp_path,
            space=ladder,
            searcher={"kind": "grid"},
            num_trials=1,
            changes={"optim.lr": 1e-12, "steps": 2},
        )
    )
    first, second = (trial.run for trial in result.results.trials)
    assert second.config["start_from"] == str(first.folder)
    ours, theirs = weights(second.folder), weights(first.folder)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-8) for name in theirs)


def population(scenes: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Two trials of rates so far apart that it is clear who is best."""
    data = settings(scenes, folder, base=base_of(scenes, folder, steps=8))
    data["space"] = {"optim.lr": {"loguniform": [1e-12, 1e-2]}}
    data["scheduler"] = {"kind": "pbt", "interval_steps": 3, "quantile": 0.5}
    return data | {"metrics": {"val/psnr": "max"}} | changes


def test_the_worst_of_a_population_go_on_from_the_best_and_a_driver_that_is_killed_changes_nothing(
    ray_cluster: str, scenes: Path, tmp_path: Path
) -> None:
    """Compared after step 4, the first validation of three steps or more. Nor does it matter how many run at once."""
    result = search(population(scenes, tmp_path / "undisturbed"))
    assert [row["status"] for row in result.results.rows()] == ["done"] * 2
    [taken] = [trial.run for trial in result.results.trials if "." in trial.run.name]
    origin = json.loads((taken.folder / "origin.json").read_text(encoding="utf-8"))
    assert origin["step"] == 4
    parent = UPath(taken.folder.parent / origin["run"])
    assert taken.config["optim"]["lr"] != yaml.safe_load((parent / "run.yaml").read_text())["optim"]["lr"]
    shared = [line for line in read_metrics(parent) if line["step"] <= 4]
    assert read_metrics(taken.folder)[: len(shared)] == shared
    assert taken.step == 8

    data = population(scenes, tmp_path / "killed", concurrency=1)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "stillgrain", "run", str(tmp_path / "sweep.yaml")]
    with open(tmp_path / "log", "wb") as log:
        driver = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": ray_cluster}, stdout=log, stderr=subprocess.STDOUT
        )
    last = tmp_path / "killed" / "sweeps" / "sweep" / "trials" / "001"
    wait_until(lambda: bool(checkpoints(last)) or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    again = search(data)
    assert table(again) == table(result)
    for ours, theirs in zip(again.results.trials, result.results.trials, strict=True):
        assert same(weights(ours.run.folder), weights(theirs.run.folder))


def test_a_population_goes_on_without_a_trial_that_dies(scenes: Path, tmp_path: Path) -> None:
    space = {"optim.lr": {"choice": [1e-6, 1e-5, 1e30]}}
    result = search(population(scenes, tmp_path, space=space, seed=23, num_trials=3, concurrency=3))
    rows = result.results.rows()
    assert sorted(row["status"] for row in rows) == ["done", "done", "failed"]
    assert all((row["status"] == "failed") == (row["optim.lr"] == 1e30) for row in rows)


def test_trials_of_several_workers_run_by_ray_train_inside_tune(scenes: Path, tmp_path: Path) -> None:
    base = base_of(scenes, tmp_path, scaling={"workers": 2}, steps=2)
    result = search(settings(scenes, tmp_path, base=base, num_trials=1, space={"optim.lr": {"choice": [1e-3]}}))
    assert [row["status"] for row in table(result)] == ["done"]
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def test_a_searcher_learns_from_the_trials_that_ended(scenes: Path, tmp_path: Path) -> None:
    searcher = {"kind": "tpe", "num_random": 1}
    result = search(settings(scenes, tmp_path, searcher=searcher, changes={"steps": 2}, concurrency=1))
    assert len({row["optim.lr"] for row in result.results.rows()}) == 2


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_trial_whose_values_do_not_go_together_fails_alone(scenes: Path, tmp_path: Path) -> None:
    space = {"losses.ms_ssim.weight": {"grid": [0.1, 0.2]}, "dataset.crop": {"grid": [32, 168]}}
    data = settings(scenes, tmp_path, space=space, searcher={"kind": "grid"}, num_trials=1, changes={"steps": 2})
    with pytest.raises(ConfigError, match=r"space\.losses\.ms_ssim\.weight: .*needs crops of at least"):
        search(data)  # it is known before anything is started
    when = {"losses.ms_ssim.weight": {"grid": [0.1], "when": {"dataset.crop": 168}}}
    space = {"dataset.crop": {"grid": [32, 168]}} | when
    result = search(data | {"space": space})
    assert [row["losses.ms_ssim.weight"] for row in result.results.rows()] == [None, 0.1]
    assert [row["status"] for row in result.results.rows()] == ["done", "done"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"optim.rate": {"choice": [1]}}}, r"space\.optim\.rate: .*optim\.rate"),
        ({"space": {"optim.lr": {"choice": [-1]}}}, r"space\.optim\.lr: .*greater than 0"),
        ({"changes": {"optim.rate": 1}}, r"base with changes: optim\.rate"),
        (
            {"changes": {"scaling.workers": 9, "batch_size": 9}},
            r"a trial needs 9 workers x 1 CPU, and the cluster has 4 CPU: lower",
        ),
        (
            {"space": {"model.width": {"integer": [4, 8]}}, "scheduler": {"kind": "pbt", "interval_steps": 2}},
            r"pbt, where trials take over each other's weights, but model\.width makes other networks",
        ),
        (
            {"changes": {"scaling.workers": 2}, "scheduler": {"kind": "pbt", "interval_steps": 2}},
            r"pbt, whose trials are of one worker each, but scaling\.workers is 2",
        ),
        (
            {"changes": {"scaling.workers": 2}, "concurrency": 3, "num_trials": 3},
            r"(?s)do not fit.*set concurrency to 2",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_trial(
    changes: dict[str, Any], message: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        search(settings(scenes, tmp_path) | changes)
    assert not (tmp_path / "sweeps" / "sweep" / "trials").exists()


def test_a_metric_that_validation_does_not_give_ends_the_sweep_with_those_it_gives(
    scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"metrics: val/beauty is none of what validation gives: .*val/psnr"):
        search(settings(scenes, tmp_path, metrics={"val/beauty": "max"}, num_trials=1))
    assert [trial.status for trial in Ledger(UPath(tmp_path / "sweeps" / "sweep")).trials] == ["running"]


def test_a_trial_that_fails_is_reported_with_its_error_and_tried_again_when_asked(scenes: Path, tmp_path: Path) -> None:
    """Its starting bundle is missing, which only a user can mend: no second attempt until then."""
    missing = tmp_path / "missing"
    data = settings(scenes, tmp_path, changes={"start_from": str(missing), "steps": 2}, num_trials=1)
    result = search(data)
    assert result.exit_code == 1
    assert "missing" in result.results.rows()[0]["error"]
    lone = yaml.safe_load((tmp_path / "base.yaml").read_text()) | {
        "storage": str(tmp_path),
        "scaling": {"workers": 0},
        "steps": 2,
    }
    done = denoise.run(validate(denoise.Config, lone, "test"))
    done.bundle.rename(missing)
    assert [row["status"] for row in search(data).results.rows()] == ["failed"]
    assert [row["status"] for row in search(data | {"retry_failed": True}).results.rows()] == ["done"]
