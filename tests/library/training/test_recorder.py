from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from library.training.recorder import METRICS_FILE, Recorder, read_metrics


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "run")
    recorder.start(0)
    yield recorder
    recorder.close()


def write_nothing(folder: Path) -> None:
    (folder / "state").write_text("whole")


def checkpoints(recorder: Recorder) -> list[str]:
    return sorted(path.name for path in (recorder.run_folder / "checkpoints").iterdir())


def test_every_value_is_a_line_with_step_split_and_name(recorder: Recorder):
    recorder.log(20, "train", {"loss": 0.1, "lr": 1e-3})
    recorder.log(40, "val", {"psnr.linear": 30.25})
    assert read_metrics(recorder.run_folder) == [
        {"step": 20, "split": "train", "name": "loss", "value": 0.1},
        {"step": 20, "split": "train", "name": "lr", "value": 1e-3},
        {"step": 40, "split": "val", "name": "psnr.linear", "value": 30.25},
    ]
    assert list((recorder.run_folder / "tensorboard").glob("events*"))


def test_values_come_back_exactly(recorder: Recorder):
    values = [0.1, 1 / 3, 1e-300, 123456789.123456789, float("inf")]
    for step, value in enumerate(values):
        recorder.log(step, "train", {"loss": value})
    assert [line["value"] for line in read_metrics(recorder.run_folder)] == values


def test_starting_at_a_step_forgets_what_came_later(recorder: Recorder):
    for step in (10, 20, 30, 40):
        recorder.log(step, "train", {"loss": float(step)})
    before = (recorder.run_folder / METRICS_FILE).read_text().splitlines(keepends=True)
    again = Recorder(recorder.run_folder)
    again.start(20)
    assert (recorder.run_folder / METRICS_FILE).read_text() == "".join(before[:2])
    again.log(30, "train", {"loss": 30.0})
    assert (recorder.run_folder / METRICS_FILE).read_text() == "".join(before[:3])
    again.close()


def test_a_last_line_cut_by_a_kill_is_ignored_and_then_removed(recorder: Recorder):
    recorder.log(10, "train", {"loss": 1.0})
    file = recorder.run_folder / METRICS_FILE
    whole = file.read_text()
    for cut in range(1, len(whole)):
        file.write_text(whole + whole[:cut].rstrip("\n"))
        assert len(read_metrics(recorder.run_folder)) == 1
    again = Recorder(recorder.run_folder)
    again.start(10)
    again.close()
    assert file.read_text() == whole


def test_a_run_that_recorded_nothing_has_no_metrics(tmp_path: Path):
    assert read_metrics(tmp_path) == []
    assert Recorder(tmp_path).latest_checkpoint() is None


def test_the_latest_checkpoint_is_that_of_the_most_steps(recorder: Recorder):
    for step in (9, 10, 100):
        recorder.commit(step, {}, write_nothing)
        latest = recorder.latest_checkpoint()
        assert latest is not None
        assert latest.name == f"step-{step:08d}"
        assert (latest / "state").read_text() == "whole"


def test_two_checkpoints_are_kept_so_that_a_damaged_one_is_no_loss(recorder: Recorder):
    for step in (10, 20, 30, 40):
        recorder.commit(step, {}, write_nothing)
    assert checkpoints(recorder) == ["step-00000030", "step-00000040"]


def test_a_checkpoint_that_fails_while_being_written_never_appears_and_harms_no_other(recorder: Recorder):
    recorder.commit(10, {}, write_nothing)
    seen = []

    def fail(folder: Path) -> None:
        write_nothing(folder)
        latest = recorder.latest_checkpoint()
        assert latest is not None
        seen.append(latest.name)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        recorder.commit(20, {}, fail)
    assert seen == ["step-00000010"]
    assert checkpoints(recorder) == ["step-00000010"]


def test_a_checkpoint_of_a_step_that_exists_replaces_it(recorder: Recorder):
    recorder.commit(10, {}, write_nothing)

    def write_newer(folder: Path) -> None:
        (folder / "state").write_text("newer")

    recorder.commit(10, {}, write_newer)
    assert checkpoints(recorder) == ["step-00000010"]
    latest = recorder.latest_checkpoint()
    assert latest is not None
    assert (latest / "state").read_text() == "newer"


def test_a_worker_that_does_not_lead_writes_no_metrics(tmp_path: Path):
    recorder = Recorder(tmp_path / "run", leads=False)
    recorder.start(0)
    recorder.close()
    assert not (tmp_path / "run").exists()


def test_metrics_are_json_that_other_programs_read(recorder: Recorder):
    recorder.log(1, "train", {"loss": 0.5})
    (line,) = (recorder.run_folder / METRICS_FILE).read_text().splitlines()
    assert list(json.loads(line)) == ["step", "split", "name", "value"]
