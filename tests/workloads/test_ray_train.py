"""Training through the real TorchTrainer: several workers, and every way of dying that one machine offers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray.util.state import list_actors
from safetensors.torch import load_file

from library.bundle import load_bundle
from library.config import validate
from library.errors import ConfigError, DataError
from library.training.recorder import read_metrics
from workloads import denoise
from workloads.run import run

ROOT = Path(__file__).resolve().parents[2]


def tiny(scenes: Path, storage: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "workload": "denoise",
        "name": name,
        "storage": str(storage),
        "model": {"kind": "nafnet", "width": 4},
        "dataset": {"kind": "synthetic", "scenes": str(scenes), "held_out": 0.34, "crop": 32, "validation_crop": 168},
        "losses": {"l1": {"weight": 1.0}},
        "batch_size": 4,
        "optim": {"lr": 5e-3},
        "steps": 24,
        "log_every": 2,
        "validate_every": 12,
        "checkpoint_every": 4,
        "scaling": {"workers": 1},
        **changes,
    }


def train(settings: dict[str, Any]) -> Path:
    return run(validate(denoise.Config, settings, "test")).folder


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "checkpoint-00000024" / "tensors.safetensors")


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    """Weights, optimizer and every reported number, bit for bit."""
    ours, theirs = weights(folder), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert (folder / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(folder)):
        assert time.monotonic() < deadline, f"the run did not reach step {step}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(scenes, tmp_path_factory.mktemp("undisturbed"), "run"))


@pytest.mark.slow
def test_a_run_leaves_a_bundle_pictures_numbers_and_its_config(undisturbed: Path) -> None:
    bundle = load_bundle(undisturbed / "bundle")
    assert bundle.manifest["training"]["name"] == "run"
    assert {p.suffix for p in (undisturbed / "images").iterdir()} == {".exr", ".png"}
    names = {(line["split"], line["name"]) for line in read_metrics(undisturbed)}
    assert names >= {("train", "loss"), ("train", "lr"), ("val", "psnr"), ("val", "psnr.linear"), ("val", "ms_ssim")}
    assert yaml.safe_load((undisturbed / "run.yaml").read_text())["losses"]["l1"]["weight"] == 1.0
    assert (undisturbed / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_run_in_this_process_gives_the_bits_of_one_on_a_ray_worker(
    undisturbed: Path, scenes: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of one CPU: sums over threads round differently
    try:
        folder = train(tiny(scenes, tmp_path, "run", scaling={"workers": 0}))
    finally:
        torch.set_num_threads(threads)
    local = load_file(folder / "checkpoints" / "step-00000024" / "tensors.safetensors")
    assert all((local[name] == tensor).all() for name, tensor in weights(undisturbed).items())


@pytest.mark.slow
def test_two_workers_learn_what_one_learns(undisturbed: Path, scenes: Path, tmp_path: Path) -> None:
    """The same global batches; only the order of the sums differs, so the first losses agree to float rounding."""
    folder = train(tiny(scenes, tmp_path, "run", scaling={"workers": 2}))
    for ours, theirs in zip(read_metrics(folder)[:8], read_metrics(undisturbed)[:8], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)


@pytest.mark.slow
def test_a_killed_worker_changes_no_bit(ray_cluster: str, undisturbed: Path, scenes: Path, tmp_path: Path) -> None:
    settings = tiny(scenes, tmp_path, "run")
    result: list[Path] = []
    thread = threading.Thread(target=lambda: result.append(train(settings)))
    thread.start()
    wait_for_step(tmp_path / "run", 6)
    workers = [
        a for a in list_actors(address=ray_cluster, filters=[("state", "=", "ALIVE")]) if "TrainWorker" in a.class_name
    ]
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    thread.join()
    assert_same_run(result[0], undisturbed)


@pytest.mark.slow
def test_a_killed_driver_goes_on_to_the_same_bits(
    ray_cluster: str, undisturbed: Path, scenes: Path, tmp_path: Path
) -> None:
    settings = tiny(scenes, tmp_path, "run")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    driver = subprocess.Popen(
        [sys.executable, "-m", "stillgrain", "run", str(config)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray_cluster},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_step(tmp_path / "run", 6)
    driver.kill()
    driver.wait()
    assert_same_run(train(settings), undisturbed)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(undisturbed: Path, scenes: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (undisturbed / "bundle").iterdir()}
    train(tiny(scenes, undisturbed.parent, "run"))
    assert {p: p.stat().st_mtime_ns for p in (undisturbed / "bundle").iterdir()} == before


@pytest.mark.slow
def test_the_same_name_with_another_config_is_refused_with_the_difference(undisturbed: Path, scenes: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)another config.*-steps: 24.*\+steps: 30"):
        train(tiny(scenes, undisturbed.parent, "run", steps=30))


def test_more_workers_than_the_cluster_has_are_refused(ray_cluster: str, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 workers .*the cluster has 4.*scaling\.workers"):
        train(tiny(scenes, tmp_path, "run", batch_size=8, scaling={"workers": 8}))


@pytest.mark.slow
def test_a_users_error_on_a_worker_comes_back_as_itself(ray_cluster: str, scenes: Path, tmp_path: Path) -> None:
    settings = tiny(scenes, tmp_path, "run")
    settings["dataset"]["held_out"] = ["scene0", "nowhere"]
    with pytest.raises(DataError, match="nowhere"):
        train(settings)


def test_metrics_are_one_json_object_a_line(undisturbed: Path) -> None:
    for line in (undisturbed / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).keys() == {"step", "split", "name", "value"}
