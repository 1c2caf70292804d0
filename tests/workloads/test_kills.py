"""Kill anything at any time: the final weights, optimizer, progress and every reported number are the same bits."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from upath import UPath

from library.config import validate
from library.training.recorder import read_metrics
from tests.kills import TARGETS, Driver, Nodes, cluster_of, differences, kill_at_random, run_config
from workloads import denoise
from workloads.run import run
from workloads.sweeps.trials import Ledger


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes of one CPU each, apart from the cluster that the other tests share, since they lose nodes."""
    with cluster_of(2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, UPath]:
    """The same run left alone: in this process, which gives the bits of one worker, and on two workers."""
    alone = run(validate(denoise.Config, run_config(scenes, tmp_path_factory.mktemp("alone"), workers=0), "test"))
    with Driver(run_config(scenes, tmp_path_factory.mktemp("two"), workers=2), nodes.address) as driver:
        return {1: alone.folder, 2: driver.finish()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_elastic_run_goes_on_with_the_workers_that_are_left(
    nodes: Nodes, undisturbed: dict[int, UPath], scenes: Path, tmp_path: Path
) -> None:
    """The same global batches whoever computes them: every reported number agrees to float rounding."""
    scaling = {"workers": 2, "min_workers": 1, "max_failures": 100}
    with Driver(run_config(scenes, tmp_path, 2, scaling=scaling), nodes.address) as driver:
        assert driver.wait_for_step(20)
        nodes.kill(nodes.workers()[0].node_id)
        try:
            assert driver.wait_for_step(40)
            assert nodes.wait_for_workers(1)
            ours, theirs = (read_metrics(folder) for folder in (driver.finish(), undisturbed[2]))
        finally:
            nodes.add()
    assert [(x["step"], x["name"]) for x in ours] == [(x["step"], x["name"]) for x in theirs]
    for x, y in zip(ours, theirs, strict=True):
        assert x["value"] == pytest.approx(y["value"], rel=1e-3), (x, y)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_is_killed_the_run_ends_with_the_same_bits(
    nodes: Nodes, undisturbed: dict[int, UPath], scenes: Path, tmp_path: Path
) -> None:
    """A worker, all workers, a node and the driver, each at a step that chance has chosen."""
    with Driver(run_config(scenes, tmp_path, workers=2), nodes.address) as driver:
        killed = kill_at_random(driver, nodes, random.Random(1))
        assert len(killed) == len(TARGETS), f"only {killed} were killed before the run ended"
        assert differences(driver.finish(), undisturbed[2]) == [], f"after {killed}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_that_loses_a_node_ends_with_the_same_trials(
    nodes: Nodes, undisturbed: dict[int, UPath], scenes: Path, tmp_path: Path
) -> None:
    """A trial on each node; the one whose node is gone goes on where there is room, the other is not disturbed."""
    base = run_config(scenes, tmp_path, workers=1)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {
        "workload": "sweep",
        "name": "sweep",
        "storage": str(tmp_path),
        "base": str(tmp_path / "base.yaml"),
        "space": {"losses.l1.weight": {"grid": [1.0, 0.9]}},
        "searcher": {"kind": "grid"},
        "metrics": {"val/psnr": "max"},
    }
    trials = UPath(tmp_path / "sweep" / "trials")
    with Driver(sweep, nodes.address) as driver:
        while min(_last_step(trials / name) for name in ("000", "001")) < 20:
            assert driver.is_running, driver.log.read_text()[-3000:]
            time.sleep(0.05)
        nodes.kill(nodes.actors("ImplicitFunc")[0].node_id)
        try:
            driver.finish()
        finally:
            nodes.add()
    assert [trial.status for trial in Ledger(trials.parent).trials] == ["done", "done"]
    # Its bundle bears another name, which is on the card too.
    assert set(differences(trials / "000", undisturbed[1])) <= {"the bundle's sha256"}


def _last_step(folder: UPath) -> int:
    return max((line["step"] for line in read_metrics(folder)), default=0)
