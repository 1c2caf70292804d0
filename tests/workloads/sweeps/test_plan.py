"""A plan and its ledger, without anything being trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from library.config import validate
from library.errors import ConfigError, StillgrainError
from workloads import sweep
from workloads.sweeps.plan import Plan

BASE = {
    "workload": "denoise",
    "name": "base",
    "model": {"kind": "nafnet", "width": 4},
    "dataset": {"kind": "synthetic"},
    "losses": {"mse": {"weight": 1.0}},
}


def plan(folder: Path, storage: Path, *, steps: int = 6) -> Plan:
    """Of a sweep whose base lies in `folder`, as it is when the command is given there."""
    folder.mkdir(parents=True, exist_ok=True)
    base = BASE | {"steps": steps, "storage": str(folder / "runs")}  # as what is relative becomes
    (folder / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False), encoding="utf-8")
    data = {
        "workload": "sweep",
        "name": "sweep",
        "storage": str(storage),
        "base": str(folder / "base.yaml"),
        "space": {"losses.mse.weight": {"ladder": [1.0, 2.0, 3.0]}},
        "searcher": {"kind": "grid"},
        "metrics": {"val/psnr": "max"},
    }
    return Plan(validate(sweep.Config, data, "test"))


def test_a_sweep_goes_on_from_another_copy_of_its_base(tmp_path: Path) -> None:
    """As that of a job which the queue starts again, in another session's working directory."""
    plan(tmp_path / "one", tmp_path).claim()
    plan(tmp_path / "two", tmp_path).claim()
    with pytest.raises(ConfigError, match=r"(?s)has another base\.yaml:.*steps: 9"):
        plan(tmp_path / "three", tmp_path, steps=9).claim()


def test_a_rung_waits_for_the_one_before_and_fails_with_it_again(tmp_path: Path) -> None:
    ladder = plan(tmp_path, tmp_path)
    ladder.claim()
    first = ladder.next_trial(())
    assert not isinstance(first, str)
    assert first is not None
    assert ladder.next_trial([first.index]) == "wait"
    for _ in range(2):
        first.status, first.error = "failed", "died"
        assert ladder.next_trial(()) is None
        assert [trial.status for trial in ladder.ledger.trials] == ["failed"] * 3
        assert "trial 1, from whose weights it starts, has failed" in str(ladder.ledger[2].error)
        for trial in ladder.ledger.trials:  # to be tried once more
            trial.status, trial.error = "running", None
        assert ladder.next_trial(()) is first


def test_of_two_drivers_of_one_sweep_the_first_stops(tmp_path: Path) -> None:
    """What it would have written is not: the second's list stays as it is."""
    first, second = plan(tmp_path, tmp_path), plan(tmp_path, tmp_path)
    first.claim()
    first.next_trial(())
    second.claim()
    assert [trial.index for trial in second.ledger.trials] == [0]
    first.ledger[0].status = "failed"
    with pytest.raises(StillgrainError, match=r"process \d+ on .* has started to write this sweep, so this one stops"):
        first.ledger.save()
    assert Plan(second.config).ledger[0].status == "running"
