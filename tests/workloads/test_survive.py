"""Trainings and archives when something around them gives way: the disk, the object store, the network."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from upath import UPath

from library.config import validate
from library.errors import StillgrainError
from library.training.checkpoint import checkpoints, read_progress
from tests.kills import differences, run_config
from tests.partition import partition_story, why_not
from workloads import denoise
from workloads.run import run


def train(settings: dict[str, Any]) -> UPath:
    return run(validate(denoise.Config, settings, "test")).folder


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory of so many MB; skips where it cannot be had."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"needs a small disk, and may not mount one: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> UPath:
    return train(run_config(scenes, tmp_path_factory.mktemp("undisturbed"), workers=0))


def test_a_run_whose_disk_is_full_says_so_and_goes_on_to_the_same_bits_when_there_is_room(
    undisturbed: UPath, scenes: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        settings = run_config(scenes, disk, workers=0, stores=str(tmp_path / "stores"))
        filler = disk / "filler"
        for free in (20, 150, 400):  # KB: full at once, at the first checkpoint, later
            fill(filler, disk, free * 1024)
            why = rf"storage: {disk / 'run'} cannot be written \(no space left\): make room"
            with pytest.raises(StillgrainError, match=why):
                train(settings)
            left = [file.name for file in disk.rglob(".*") if file.name.endswith(".tmp")]
            assert left == [], "something half-written was left"
            for checkpoint in checkpoints(UPath(disk / "run")):
                assert read_progress(checkpoint).step > 0
        filler.unlink()
        start = time.monotonic()
        folder = train(settings)
        print(f"disk full, three times: ended {time.monotonic() - start:.1f} s after there was room")
        assert set(differences(folder, undisturbed)) <= {"the bundle's sha256"}


@pytest.mark.slow
def test_a_pool_whose_network_splits_loses_no_item() -> None:
    """Ray finds out after seconds that a node does not answer; until then the other goes on."""
    if reason := why_not():
        pytest.skip(f"needs a network namespace: {reason}")
    for what, seconds in partition_story().items():
        print(f"{what}: {seconds:.1f} s after the cut")


@pytest.mark.slow
def test_a_training_goes_on_to_the_same_bits_while_the_object_store_is_nearly_full(
    ray_cluster: str, undisturbed: UPath, scenes: Path, tmp_path: Path
) -> None:
    """Nothing big of ours goes through it, and what little does must find its place."""
    held = []
    while ray.available_resources().get("object_store_memory", 0) > 4 * 2**20 and len(held) < 60:
        held.append(ray.put(np.zeros(2 * 2**20, np.uint8)))
    start = time.monotonic()
    folder = train(run_config(scenes, tmp_path, workers=1))
    print(f"object store nearly full: {len(held) * 2} MiB held, trained in {time.monotonic() - start:.1f} s")
    assert len(held) > 20
    assert set(differences(folder, undisturbed)) <= {"the bundle's sha256"}


def fill(filler: Path, disk: Path, free: int) -> None:
    """Leave so many bytes of a disk free."""
    filler.unlink(missing_ok=True)
    there = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, there.f_bavail * there.f_frsize - free)))
