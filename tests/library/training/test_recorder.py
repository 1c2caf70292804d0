from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from upath import UPath

from library.errors import StillgrainError
from library.files.places import is_local, place
from library.training.recorder import METRICS_FILE, Recorder, read_metrics


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def start(self, step: int) -> None:
        self.told.append(("start", step))

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self.told.append((step, split, dict(metrics)))

    def flush(self) -> None:
        self.told.append(("flush",))

    def close(self) -> None:
        self.told.append(("close",))


@pytest.fixture(params=["folder", "object store"])
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """Of a run on this machine, and of one in an object store."""
    return place(tmp_path / "run" if request.param == "folder" else f"memory:/{tmp_path}/run")


@pytest.fixture
def recorder(run_folder: UPath) -> Iterator[Recorder]:
    recorder = Recorder(run_folder)
    recorder.start(0)
    yield recorder
    recorder.close()


def writing(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.json").write_text(text)

    return write


write_nothing = writing("whole")


def checkpoints(recorder: Recorder) -> list[str]:
    return sorted(path.name for path in (recorder.run_folder / "checkpoints").iterdir())


def content(run_folder: UPath) -> dict[str, str]:
    return {path.name: path.read_text() for path in run_folder.rglob("*") if path.is_file()}


def latest(recorder: Recorder) -> UPath:
    checkpoint = recorder.latest_checkpoint()
    assert checkpoint is not None
    return checkpoint


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_every_value_is_a_line_with_step_split_and_name(recorder: Recorder):
    recorder.log(20, "train", {"loss": 0.1, "lr": 1e-3})
    recorder.log(40, "val", {"psnr.linear": 30.25})
    recorder.commit(40, write_nothing)
    assert read_metrics(recorder.run_folder) == [
        {"step": 20, "split": "train", "name": "loss", "value": 0.1},
        {"step": 20, "split": "train", "name": "lr", "value": 1e-3},
        {"step": 40, "split": "val", "name": "psnr.linear", "value": 30.25},
    ]


def test_lines_show_at_once_in_a_folder_and_at_each_commit_in_an_object_store(recorder: Recorder):
    """An object store cannot append."""
    at_once = is_local(recorder.run_folder)
    for step in (10, 20, 30):
        recorder.log(step, "train", {"loss": 1.0})
        shown = [line["step"] for line in read_metrics(recorder.run_folder)]
        assert shown == list(range(10, step + (1 if at_once else 0), 10))
        recorder.commit(step, write_nothing)
        assert [line["step"] for line in read_metrics(recorder.run_folder)] == list(range(10, step + 1, 10))


def test_lines_are_there_before_the_checkpoint_that_a_restart_goes_on_from(recorder: Recorder):
    recorder.log(10, "train", {"loss": 1.0})
    seen = []

    def write(folder: Path) -> None:
        seen.extend(read_metrics(recorder.run_folder))
        write_nothing(folder)

    recorder.commit(10, write)
    assert [line["step"] for line in seen] == [10]


def test_values_come_back_exactly(recorder: Recorder):
    values = [0.1, 1 / 3, 1e-300, 123456789.123456789, float("inf")]
    for step, value in enumerate(values):
        recorder.log(step, "train", {"loss": value})
    recorder.commit(5, write_nothing)
    assert [line["value"] for line in read_metrics(recorder.run_folder)] == values


def test_starting_at_a_step_forgets_what_came_later(recorder: Recorder):
    file = recorder.run_folder / METRICS_FILE
    for step in (10, 20, 30, 40):
        recorder.log(step, "train", {"loss": float(step)})
    recorder.commit(40, write_nothing)
    before = file.read_text().splitlines(keepends=True)
    again = Recorder(recorder.run_folder)
    again.start(20)
    assert file.read_text() == "".join(before[:2])
    again.log(30, "train", {"loss": 30.0})
    again.commit(30, write_nothing)
    assert file.read_text() == "".join(before[:3])
    again.close()


def test_a_last_line_cut_by_a_kill_is_ignored_and_then_removed(recorder: Recorder):
    recorder.log(10, "train", {"loss": 1.0})
    recorder.commit(10, write_nothing)
    file = recorder.run_folder / METRICS_FILE
    whole = file.read_text()
    for cut in range(1, len(whole)):
        file.write_text(whole + whole[:cut].rstrip("\n"))
        assert len(read_metrics(recorder.run_folder)) == 1
    again = Recorder(recorder.run_folder)
    again.start(10)
    again.close()
    assert file.read_text() == whole


def test_metrics_are_json_that_other_programs_read(recorder: Recorder):
    recorder.log(1, "train", {"loss": 0.5})
    recorder.commit(1, write_nothing)
    (line,) = (recorder.run_folder / METRICS_FILE).read_text().splitlines()
    assert list(json.loads(line)) == ["step", "split", "name", "value"]


def test_a_run_that_recorded_nothing_has_no_metrics(run_folder: UPath):
    assert read_metrics(run_folder) == []
    assert Recorder(run_folder).latest_checkpoint() is None


def test_loggers_are_told_everything_and_flushed_at_each_commit(run_folder: UPath):
    loggers = [Kept(), Kept()]
    recorder = Recorder(run_folder, loggers=loggers)
    recorder.start(4)
    recorder.log(6, "train", {"loss": 0.5, "lr": 1e-3})
    recorder.log(6, "val", {"psnr": 30.0})
    recorder.commit(6, write_nothing)
    recorder.close()
    for logger in loggers:
        assert logger.told == [
            ("start", 4),
            (6, "train", {"loss": 0.5, "lr": 1e-3}),
            (6, "val", {"psnr": 30.0}),
            ("flush",),
            ("close",),
        ]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_latest_checkpoint_is_that_of_the_most_steps(recorder: Recorder):
    for step in (9, 10, 100):
        recorder.commit(step, write_nothing)
        assert latest(recorder).name == f"step-{step:08d}"
        assert (latest(recorder) / "state.json").read_text() == "whole"


@pytest.mark.parametrize(("num_last", "kept"), [(2, [40, 50]), (3, [30, 40, 50]), (9, [10, 20, 30, 40, 50])])
def test_the_newest_checkpoints_are_kept_so_that_a_damaged_one_is_no_loss(
    recorder: Recorder, num_last: int, kept: list[int]
):
    for step in (10, 20, 30, 40, 50):
        recorder.commit(step, write_nothing, num_last=num_last)
    assert checkpoints(recorder) == [f"step-{step:08d}" for step in kept]


def test_steps_that_are_to_be_kept_stay_as_long_as_they_are(recorder: Recorder):
    keep = {10: {10}, 20: {10}, 30: {10, 30}, 40: {10, 30}, 50: {30}, 60: {30}, 70: {20}}
    after = {
        30: [10, 20, 30],
        40: [10, 30, 40],
        50: [30, 40, 50],
        60: [30, 50, 60],
        70: [60, 70],
    }
    for step, kept in keep.items():
        recorder.commit(step, write_nothing, keep=kept)
        if step in after:
            assert checkpoints(recorder) == [f"step-{s:08d}" for s in after[step]]


def test_a_checkpoint_that_fails_while_being_written_never_appears_and_harms_no_other(recorder: Recorder):
    recorder.commit(10, write_nothing)
    recorder.commit(20, write_nothing)
    seen = []

    def fail(folder: Path) -> None:
        write_nothing(folder)
        seen.append(latest(recorder).name)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        recorder.commit(30, fail)
    assert seen == ["step-00000020"]
    assert checkpoints(recorder) == ["step-00000010", "step-00000020"]


def test_a_checkpoint_that_was_not_sent_to_its_end_is_none(run_folder: UPath):
    """Its files are there, but not the one that vouches for them."""
    recorder = Recorder(run_folder)
    recorder.start(0)
    recorder.commit(10, write_nothing)
    half = run_folder / "checkpoints" / "step-00000020"
    half.mkdir(parents=True)
    (half / "tensors.safetensors").write_bytes(b"half")
    assert latest(recorder).name == "step-00000010"
    recorder.commit(20, write_nothing)
    assert [path.name for path in latest(recorder).iterdir()] == ["state.json"]


def test_a_checkpoint_of_a_step_that_exists_replaces_it(recorder: Recorder):
    recorder.commit(10, write_nothing)
    recorder.commit(10, writing("newer"))
    assert checkpoints(recorder) == ["step-00000010"]
    assert (latest(recorder) / "state.json").read_text() == "newer"


# --- who writes -------------------------------------------------------------------------------------------------------


def test_a_worker_that_does_not_lead_writes_nothing(run_folder: UPath):
    recorder = Recorder(run_folder, leads=False)
    recorder.start(0)
    recorder.commit(10, write_nothing)
    recorder.close()
    assert not run_folder.exists()


def test_a_worker_that_does_not_lead_sees_the_checkpoints_of_the_one_that_does(recorder: Recorder):
    recorder.commit(10, write_nothing)
    assert Recorder(recorder.run_folder, leads=False).latest_checkpoint() == recorder.latest_checkpoint()


@pytest.mark.parametrize(
    "write",
    [
        lambda recorder: recorder.log(20, "train", {"loss": 9.0}),
        lambda recorder: recorder.commit(20, writing("the first's")),
    ],
    ids=["log", "commit"],
)
def test_a_process_that_starts_takes_the_run_over_and_the_one_before_stops_at_its_next_word(
    recorder: Recorder, write: Callable[[Recorder], None]
):
    """Two that write one run would mix their lines and remove each other's checkpoints: a worker that Ray took for dead
    may come back."""
    recorder.log(10, "train", {"loss": 1.0})
    recorder.commit(10, write_nothing)
    second = Recorder(recorder.run_folder)
    second.start(10)
    second.log(20, "train", {"loss": 2.0})
    second.commit(20, writing("the second's"))
    before = content(recorder.run_folder)
    with pytest.raises(StillgrainError, match=r"process \d+ on .* has started to write this run, so this one stops"):
        write(recorder)
    assert content(recorder.run_folder) == before
    second.log(30, "train", {"loss": 3.0})
    second.commit(30, writing("the second's"))
    assert [line["value"] for line in read_metrics(recorder.run_folder)] == [1.0, 2.0, 3.0]
    assert checkpoints(second) == ["step-00000020", "step-00000030"]
    second.close()


def test_a_worker_that_does_not_lead_takes_nothing_over(recorder: Recorder):
    Recorder(recorder.run_folder, leads=False).start(0)
    recorder.log(10, "train", {"loss": 1.0})
    recorder.commit(10, write_nothing)
    assert len(read_metrics(recorder.run_folder)) == 1
