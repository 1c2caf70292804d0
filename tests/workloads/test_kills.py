"""Kill anything at any time: the final weights, optimizer, progress and every reported number are the same bits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from upath import UPath

from tests.kills import Driver, Nodes, cluster_of, differences, kill_at_random, run_config


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes of one CPU each, apart from the cluster that the other tests share, since they lose nodes."""
    with cluster_of(2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, UPath]:
    """The same run left alone, on one worker and on two."""
    storages = {workers: tmp_path_factory.mktemp(f"undisturbed-{workers}") for workers in (1, 2)}
    return {
        workers: Driver(run_config(scenes, storage, workers), nodes.address).finish()
        for workers, storage in storages.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (2, 1)])
def test_whatever_is_killed_the_run_ends_with_the_same_bits(
    workers: int, seed: int, nodes: Nodes, undisturbed: dict[int, UPath], scenes: Path, tmp_path: Path
) -> None:
    driver = Driver(run_config(scenes, tmp_path, workers), nodes.address)
    killed = kill_at_random(driver, nodes, random.Random(seed), num_kills=4)
    assert len(killed) == 4, f"only {killed} were killed before the run ended"
    assert differences(driver.finish(), undisturbed[workers]) == [], f"after {killed}"
