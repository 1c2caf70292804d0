"""Training through the real TorchTrainer: several workers, fewer or more of them later on, object stores, errors."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load

from library.bundle import load_bundle
from library.config import validate
from library.errors import ConfigError, DataError
from library.training.checkpoint import checkpoints
from library.training.recorder import read_metrics
from tests.kills import Driver, workers_of
from tests.workers import fail_as_a_user_can_mend, fail_as_code_does, train_and_weigh
from workloads import denoise, ray_train
from workloads.run import run


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


def train(settings: dict[str, Any]) -> Any:
    return run(validate(denoise.Config, settings, "test")).folder


def tensors(folder: Any) -> dict[str, torch.Tensor]:
    """Weights and optimizer of a finished run."""
    return load((checkpoints(folder)[-1] / "tensors.safetensors").read_bytes())


def assert_same_run(folder: Any, undisturbed: Any) -> None:
    """Weights, optimizer and every reported number, bit for bit."""
    ours, theirs = tensors(folder), tensors(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (folder / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()


def assert_losses_agree(folder: Any, undisturbed: Any) -> None:
    """Every reported number to float rounding, which training makes a little more of at each step."""
    ours, theirs = read_metrics(folder), read_metrics(undisturbed)
    assert [(x["step"], x["name"]) for x in ours] == [(x["step"], x["name"]) for x in theirs]
    for x, y in zip(ours, theirs, strict=True):
        assert x["value"] == pytest.approx(y["value"], rel=1e-3), (x, y)


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
    assert_same_run(train(tiny(scenes, tmp_path, "run", scaling={"workers": 0})), undisturbed)


@pytest.mark.slow
def test_three_workers_learn_what_one_learns(undisturbed: Path, scenes: Path, tmp_path: Path) -> None:
    """The same global batches, of four which they share unevenly; only the order of the sums differs."""
    assert_losses_agree(train(tiny(scenes, tmp_path, "run", scaling={"workers": 3})), undisturbed)


@pytest.fixture(scope="module")
def of_two(ray_cluster: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two workers that was killed on the way."""
    storage = tmp_path_factory.mktemp("of_two")
    with Driver(tiny(scenes, storage, "run", scaling={"workers": 2}), ray_cluster) as driver:
        assert driver.wait_for_step(10)
        assert workers_of(ray_cluster)
    while workers_of(ray_cluster):
        time.sleep(0.1)  # they end with their driver, a moment later
    return storage / "run"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_a_run_of_two_workers_goes_on_with_another_number(
    workers: int, of_two: Path, undisturbed: Path, scenes: Path, tmp_path: Path
) -> None:
    shutil.copytree(of_two, tmp_path / "run")
    begun = read_metrics(of_two)
    folder = train(tiny(scenes, tmp_path, "run", scaling={"workers": workers}))
    assert read_metrics(folder)[:8] == begun[:8]
    assert_losses_agree(folder, undisturbed)


@pytest.mark.slow
def test_an_object_store_holds_a_run_that_was_killed_as_a_folder_does(
    ray_cluster: str, s3: str, undisturbed: Path, scenes: Path, tmp_path: Path
) -> None:
    settings = {**tiny(scenes, tmp_path, "run"), "storage": f"{s3}/runs"}
    with Driver(settings, ray_cluster, folder=tmp_path) as driver:
        assert driver.wait_for_step(6)
    folder = train(settings)
    assert str(folder) == f"{s3}/runs/run"
    assert_same_run(folder, undisturbed)
    assert load_bundle(folder / "bundle").digest
    assert {p.name.rpartition(".")[2] for p in (folder / "images").iterdir()} == {"exr", "png"}
    assert len((folder / "report.html").read_bytes()) > 1000
    assert not Path("s3:").exists()


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
def test_a_users_error_ends_the_run_at_once(ray_cluster: str, tmp_path: Path) -> None:
    """Ray would start the workers anew max_failures times, each time for the same error."""
    job, scaling = {"attempts": str(tmp_path / "attempts")}, ray_train.Scaling(workers=1, max_failures=3)
    with pytest.raises(ConfigError, match=r"optim\.lr is too high: lower it"):
        ray_train.run_workers(fail_as_a_user_can_mend, job, scaling)
    assert (tmp_path / "attempts").read_text() == "0\n"


@pytest.mark.slow
def test_any_other_error_is_tried_again_as_often_as_asked(ray_cluster: str, tmp_path: Path) -> None:
    job, scaling = {"attempts": str(tmp_path / "attempts")}, ray_train.Scaling(workers=1, max_failures=1)
    with pytest.raises(Exception, match="out of luck"):
        ray_train.run_workers(fail_as_code_does, job, scaling)
    assert (tmp_path / "attempts").read_text() == "0\n0\n"


@pytest.mark.slow
def test_a_users_error_on_a_worker_comes_back_as_itself(ray_cluster: str, scenes: Path, tmp_path: Path) -> None:
    settings = tiny(scenes, tmp_path, "run")
    settings["dataset"]["held_out"] = ["scene0", "nowhere"]
    with pytest.raises(DataError, match="nowhere"):
        train(settings)


def test_metrics_are_one_json_object_a_line(undisturbed: Path) -> None:
    for line in (undisturbed / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).keys() == {"step", "split", "name", "value"}


@pytest.mark.slow
def test_a_workers_memory_is_flat_over_two_thousand_steps(ray_cluster: str, scenes: Path, tmp_path: Path) -> None:
    """Nothing of a step stays: no graph, no batch, no list of values. Checkpoints and validations are part of it."""
    long = {"steps": 2000, "log_every": 50, "validate_every": 500, "checkpoint_every": 250, "batch_size": 1}
    small = {"model": {"kind": "nafnet", "width": 2, "encoder_blocks": [1], "decoder_blocks": [1], "middle_blocks": 0}}
    config = validate(denoise.Config, {**tiny(scenes, tmp_path, "run"), **long, **small}, "test")
    prepared = str(config.dataset.prepare(tmp_path / "stores"))
    job = {"config": config.model_dump(mode="json"), "prepared": prepared}
    ray_train.run_workers(train_and_weigh, job, config.scaling)
    megabytes = json.loads((tmp_path / "run" / "megabytes.json").read_text())
    assert len(megabytes) == 40
    assert max(megabytes[20:]) - max(megabytes[10:20]) < 12, f"resident MiB every 50 steps: {megabytes}"
