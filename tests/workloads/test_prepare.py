"""Preparing a tree of pairs with actors and without, and killing it: the index is the same to the byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util.state import list_actors

from library.config import validate
from library.errors import ConfigError, DataError
from library.pairs.generate import Planted, generate
from library.pairs.index import Failure, read_index
from workloads import prepare
from workloads.run import read_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Two scenes of fourteen good pairs, with a truncated file."""
    return generate(tmp_path_factory.mktemp("planted") / "tree", scenes=2, width=256, height=192, seed=2)


@pytest.fixture(scope="module")
def undisturbed(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The index of a run without Ray that nothing happened to."""
    storage = tmp_path_factory.mktemp("undisturbed")
    summary = run(planted.folder, storage, scaling={"workers": 0})
    assert summary.exit_code == 0
    return index_of(storage)


def settings(tree: Path, storage: Path, **changes: Any) -> dict[str, Any]:
    return {"workload": "prepare", "tree": str(tree), "storage": str(storage), "pairs": {"tile": 256}, **changes}


def run(tree: Path, storage: Path, **changes: Any) -> prepare.Summary:
    return prepare.run(validate(prepare.Config, settings(tree, storage, **changes), "test"))


def index_of(storage: Path) -> bytes:
    return (storage / "prepared" / "index.parquet").read_bytes()


def rows_made(storage: Path) -> int:
    """Pairs that are finished: a row is written last."""
    return len(list((storage / "prepared" / "arrays").glob("*/*-*.json")))


def wait_for(condition: Callable[[], Any], timeout: float = 60) -> Any:
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)
    return result


def test_actors_make_what_one_process_makes_and_a_second_run_nothing(
    planted: Planted, undisturbed: bytes, ray_cluster: str, tmp_path: Path
) -> None:
    summary = run(planted.folder, tmp_path)
    assert index_of(tmp_path) == undisturbed
    assert summary.work.pairs_made == summary.pairs
    assert summary.pairs + len(summary.failures) == len(read_index(tmp_path / "prepared"))

    again = run(planted.folder, tmp_path)
    assert (again.work.files_read, again.work.pairs_made) == (0, 0)
    assert index_of(tmp_path) == undisturbed


def test_a_driver_killed_in_the_middle_loses_nothing(
    planted: Planted, undisturbed: bytes, ray_cluster: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(planted.folder, tmp_path, scaling={"workers": 1})))
    with open(tmp_path / "log", "wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "stillgrain", "run", str(config)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": ray_cluster},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: rows_made(tmp_path) >= 3 or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "log").read_text()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (tmp_path / "prepared" / "index.parquet").exists()
    wait_for(lambda: not our_actors(ray_cluster))  # which end with their driver
    made = rows_made(tmp_path)

    summary = run(planted.folder, tmp_path, scaling={"workers": 1})
    assert index_of(tmp_path) == undisturbed
    assert summary.work.pairs_made == summary.pairs - made


def test_a_worker_killed_in_the_middle_is_replaced_and_its_scene_goes_on(
    planted: Planted, undisturbed: bytes, ray_cluster: str, tmp_path: Path
) -> None:
    killed = []

    def kill_a_worker() -> None:
        # Found while it loads, since asking takes as long as making some pairs.
        (actor,) = wait_for(lambda: our_actors(ray_cluster))
        wait_for(lambda: rows_made(tmp_path) >= 2)
        os.kill(actor.pid, signal.SIGKILL)
        killed.append(actor.pid)

    wait_for(lambda: not our_actors(ray_cluster))  # those of the test before
    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    summary = run(planted.folder, tmp_path, scaling={"workers": 1})
    thread.join()
    assert killed
    assert summary.exit_code == 0
    assert index_of(tmp_path) == undisturbed


def our_actors(address: str) -> list[Any]:
    return list_actors(address, filters=[("class_name", "=", "_Worker"), ("state", "=", "ALIVE")])


def test_a_scene_that_cannot_be_finished_harms_no_other_and_is_gone_on_with(
    planted: Planted, undisturbed: bytes, tmp_path: Path
) -> None:
    name = planted.scenes[1].name
    (tmp_path / "prepared" / "arrays").mkdir(parents=True)
    (tmp_path / "prepared" / "arrays" / name).write_text("in the way")
    summary = run(planted.folder, tmp_path, scaling={"workers": 0})
    assert summary.exit_code == 1
    assert list(summary.unfinished) == [name]
    failures = [row for row in read_index(tmp_path / "prepared") if isinstance(row, Failure) and row.scene == name]
    assert len(failures) == len(planted.scenes[1].gt) * len(planted.scenes[1].files)
    assert "exists" in failures[0].error or "directory" in failures[0].error

    (tmp_path / "prepared" / "arrays" / name).unlink()
    assert run(planted.folder, tmp_path, scaling={"workers": 0}).exit_code == 0
    assert index_of(tmp_path) == undisturbed


def test_what_it_says_names_every_broken_file(planted: Planted, tmp_path: Path) -> None:
    shutil.copytree(planted.folder / "Bayer" / planted.scenes[1].name, tmp_path / "tree" / "s")
    said = str(run(tmp_path / "tree", tmp_path, scaling={"workers": 0}))
    assert "is truncated" in said
    assert said.splitlines()[-1].startswith(f"{tmp_path}/prepared/index.parquet: 10 pairs of 1 scenes, 2 failed")


def test_a_tree_that_is_none_and_a_place_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scene"):
        run(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"storage: s3://.*mount"):
        validate(prepare.Config, {"tree": str(tmp_path), "storage": "s3://bucket/x"}, "test")
    with pytest.raises(ConfigError, match=r"pairs\.demosaic"):
        read_config(ROOT / "workloads/configs/prepare_rawnind.yaml", ["pairs.demosaic=nearest"])
