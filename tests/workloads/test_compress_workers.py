"""Training codecs on two workers: what one learns, and the same bits whatever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from upath import UPath

from library.codec_bundle import load_codec
from library.training.recorder import read_metrics
from tests.codec_training import FINISH, MANYPRIORS, one_rate, paint_big_scenes, settings, train
from tests.kills import Driver, differences, workers_of
from workloads.launch import RunResult

LONGER = {"steps": 40, "then": [{**FINISH, "steps": 15}], "validate_every": 20, "checkpoint_every": 5}
TWO = {"scaling": {"workers": 2, "max_failures": 10}}


@pytest.fixture(scope="module")
def big_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_big_scenes(tmp_path_factory.mktemp("scenes") / "big")


@pytest.fixture(scope="module")
def neighbour(big_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The legacy family on one worker."""
    return train(one_rate(big_scenes, tmp_path_factory.mktemp("neighbour")))


def assert_numbers_agree(folder: UPath, other: UPath) -> None:
    """Every reported number to float rounding; what real bytes give, to a few of them."""
    ours, theirs = read_metrics(folder), read_metrics(other)
    assert [(x["step"], x["name"]) for x in ours] == [(x["step"], x["name"]) for x in theirs]
    for x, y in zip(ours, theirs, strict=True):
        if x["name"] == "rate_gap":
            assert x["value"] == pytest.approx(y["value"], abs=5e-3)
        else:
            assert x["value"] == pytest.approx(y["value"], rel=1e-3), (x, y)


@pytest.fixture(scope="module")
def on_two(ray_cluster: str, big_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The longer run on two workers, left alone."""
    return train(settings(big_scenes, tmp_path_factory.mktemp("two"), **LONGER, **TWO))


@pytest.mark.slow
def test_two_workers_learn_what_one_learns(on_two: RunResult, big_scenes: Path, tmp_path: Path) -> None:
    """Batches, qualities, strengths and noise are the global batch's, whoever computes them."""
    assert_numbers_agree(on_two.folder, train(settings(big_scenes, tmp_path, **LONGER)).folder)


@pytest.mark.slow
def test_two_workers_count_and_revive_the_priors_that_one_does(
    ray_cluster: str, neighbour: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    result = train(one_rate(big_scenes, tmp_path, **TWO))
    assert_numbers_agree(result.folder, neighbour.folder)
    ours, theirs = (load_codec(run.bundle).model.state_dict() for run in (result, neighbour))
    assert (theirs["priors.unused_for"] > MANYPRIORS["revive_unused_for"]).any()
    assert torch.equal(ours["priors.unused_for"], theirs["priors.unused_for"])
    torch.testing.assert_close(ours["priors.usage"], theirs["priors.usage"], rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_end_with_the_same_bits_when_one_is_killed(
    ray_cluster: str, on_two: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    """Codecs have states of their own. All else that can be killed, test_kills kills."""
    gone = workers_of(ray_cluster)
    with Driver(settings(big_scenes, tmp_path, **LONGER, **TWO), ray_cluster) as driver:
        assert driver.wait_for_step(1)
        workers = sorted(workers_of(ray_cluster) - gone)
        assert driver.wait_for_step(12)  # between two checkpoints
        os.kill(workers[0], signal.SIGKILL)
        assert differences(driver.finish(), on_two.folder) == []
