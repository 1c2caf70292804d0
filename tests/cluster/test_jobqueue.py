"""The queue's order, its limits, and what it makes of Ray's answers, one at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import jobqueue, processes
from cluster.dispatcher import Dispatcher, Policy
from cluster.errors import QueueError, RayUnreachable
from cluster.ray_jobs import Refused
from cluster.room import Bundles, Room, room_of_cluster_file, shortage
from cluster.store import LeaseLost, NewJob, Store
from tests.cluster.simulated_ray import Clock, Killed, SimulatedRay

ROOT = Path(jobqueue.__file__).parents[1]
POLICY = Policy(capacity={"GPU": 4}, backoff_s=30, lost_after_s=60, lease_s=200)


class Scene:
    """A queue, a dispatcher at work and a Ray, on one clock."""

    def __init__(self, folder: Path, slots: int = 1) -> None:
        self.clock = Clock()
        self.ray = SimulatedRay(slots=slots)
        self.store = Store(folder)
        self.start()

    def start(self) -> None:
        self.dispatcher = Dispatcher(self.store, self.ray, POLICY, clock=self.clock)
        assert self.dispatcher.start()

    def add(self, name: str, **settings: object) -> int:
        return self.store.add([NewJob(name, "true", **settings)], self.clock())[0]  # type: ignore[arg-type]

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.dispatcher.tick()
            self.ray.progress()
            self.clock.now += 1

    def run_all(self) -> list[str]:
        """Names in the order in which they were started, every job ending well at once."""
        for _ in range(500):
            self.tick()
            for submission_id in self.ray.running:
                self.ray.finish(submission_id, 0)
            if not self.store.jobs():
                break
        return [self.store.job(int(s.split("-")[2])).name for s in self.ray.started]

    def state(self, job: int) -> str:
        return self.store.job(job).state


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "queue")
    yield made
    made.store.close()


# --- order ------------------------------------------------------------------------------------------------------------


def test_the_highest_priority_goes_first_and_within_one_the_oldest(scene: Scene) -> None:
    for name, priority in [("a", 0), ("b", 5), ("c", 0), ("d", 9), ("e", 5)]:
        scene.add(name, priority=priority)
    assert scene.run_all() == ["d", "b", "e", "a", "c"]


def test_users_of_one_priority_take_turns_however_much_one_has_submitted(scene: Scene) -> None:
    for i in range(4):
        scene.add(f"ada{i}", user="ada")
    for i in range(2):
        scene.add(f"bob{i}", user="bob")
    assert scene.run_all() == ["ada0", "bob0", "ada1", "bob1", "ada2", "ada3"]


def test_a_priority_changed_on_the_way_counts(scene: Scene) -> None:
    scene.add("a")
    late = scene.add("b")
    scene.store.set_priority(late, 1, scene.clock())
    assert scene.run_all() == ["b", "a"]


def test_a_job_waits_for_those_it_comes_after(scene: Scene) -> None:
    scene.ray.slots = 4
    first = scene.add("first")
    second = scene.add("second", after=(first,), priority=9)
    scene.add("third", after=(first, second), priority=9)
    assert scene.run_all() == ["first", "second", "third"]


def test_a_big_job_is_not_overtaken_for_ever_by_small_ones(scene: Scene) -> None:
    scene.ray.slots = 4
    small = scene.add("small", resources={"GPU": 2})
    scene.tick()
    big = scene.add("big", resources={"GPU": 4})
    scene.add("small2", resources={"GPU": 1})
    scene.tick()
    assert scene.store.job(big).reason == "needs 4 GPU, and there are 4, of which running jobs have 2"
    assert len(scene.ray.running) == 1
    scene.ray.finish(scene.ray.running[0], 0)
    scene.tick()
    assert (scene.state(small), scene.state(big)) == ("succeeded", "running")


def test_what_will_never_have_room_fails_with_the_arithmetic_and_holds_up_nobody(scene: Scene) -> None:
    job = scene.add("huge", resources={"GPU": 5})
    assert (scene.add("next"), scene.run_all()) == (2, ["next"])
    assert scene.store.job(job).reason == "will never have room: needs 5 GPU, and there are 4"


def test_a_users_limit_holds_that_user_up_and_nobody_else(scene: Scene) -> None:
    scene.ray.slots = 4
    scene.store.set_limit("ada", 1)
    for i in range(3):
        scene.add(f"ada{i}", user="ada", priority=9)
    scene.add("bob", user="bob")
    scene.tick()
    assert [job.name for job in scene.store.jobs(("running",))] == ["ada0", "bob"]


def test_a_labels_limit_holds_up_its_jobs_and_no_others_of_the_same_user(scene: Scene) -> None:
    scene.ray.slots = 4
    scene.store.set_limit("label:gpu", 1)
    for i in range(2):
        scene.add(f"train{i}", user="ada", labels=("gpu",))
        scene.add(f"look{i}", user="bob", labels=("gpu", "night"))
    scene.add("other", user="ada")
    scene.tick()
    assert [job.name for job in scene.store.jobs(("running",))] == ["train0", "other"]


# --- room -------------------------------------------------------------------------------------------------------------

FOUR_CPUS = Bundles(2, {"CPU": 2.0})


def test_what_no_node_has_room_for_is_held_back_while_nodes_may_come_and_fails_then(scene: Scene) -> None:
    scene.ray.slots = 2
    scene.ray.workers = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}
    job = scene.add("big", bundles=FOUR_CPUS, priority=9)
    scene.add("small", bundles=Bundles(1, {"CPU": 1.0}))
    scene.tick()
    assert [job.name for job in scene.store.jobs(("running",))] == ["small"]
    held = scene.store.job(job)
    assert held.state == "queued"
    assert held.reason.startswith("needs 4 CPU in bundles of 2, and the largest node has 1; fails at ")
    scene.clock.now += POLICY.room_within_s
    scene.tick()
    assert scene.state(job) == "failed"
    assert scene.store.job(job).reason == (
        "will never have room: needs 4 CPU in bundles of 2, and the largest node has 1"
    )


def test_nodes_that_come_in_time_let_a_held_job_start(scene: Scene) -> None:
    scene.ray.workers = {"a": {"CPU": 2.0}}
    job = scene.add("big", bundles=FOUR_CPUS)
    scene.tick(3)
    assert scene.store.job(job).reason.startswith("needs 2 bundles of 2 CPU, and 1 nodes have room for 1 of them")
    scene.ray.workers["b"] = {"CPU": 2.0}
    scene.tick(20)
    assert scene.state(job) == "running"


def test_a_node_that_was_lost_a_moment_ago_still_counts(scene: Scene) -> None:
    """Or each loss of a spot node would hold up what needs it, although another is on its way."""
    scene.ray.workers = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}
    scene.tick()
    del scene.ray.workers["b"]
    job = scene.add("big", bundles=FOUR_CPUS)
    scene.tick()
    assert scene.state(job) == "running"


@pytest.mark.parametrize("why", ["it grows", "somebody says so", "its file says so"])
def test_where_nodes_may_come_a_job_that_has_no_room_yet_is_started(scene: Scene, why: str) -> None:
    scene.ray.workers = {"a": {"CPU": 1.0}}
    scene.ray.grows = why == "it grows"
    if why == "its file says so":
        scene.dispatcher.policy = replace(POLICY, room=Room((({"CPU": 2.0}, 2),)))
    job = scene.add("big", bundles=FOUR_CPUS, allow_pending=why == "somebody says so")
    scene.tick()
    assert scene.state(job) == "running"


def test_what_a_clusters_file_has_no_room_for_fails_at_once(scene: Scene) -> None:
    scene.dispatcher.policy = replace(POLICY, room=Room((({"CPU": 2.0}, 1),)))
    job = scene.add("big", bundles=FOUR_CPUS)
    scene.tick()
    assert scene.state(job) == "failed"


def test_the_time_without_room_is_counted_from_when_the_room_went(scene: Scene) -> None:
    """A job that its user's limit kept waiting while there was room failed at once when a node went."""
    scene.ray.workers = {"a": {"CPU": 1.0}}
    job = scene.add("big", user="ada", bundles=FOUR_CPUS)
    scene.tick()
    assert scene.store.job(job).no_room_since is not None
    scene.store.set_limit("ada", 0)
    scene.ray.workers["b"] = {"CPU": 4.0}
    scene.tick()
    assert (scene.store.job(job).no_room_since, scene.store.job(job).reason) == (None, "")
    scene.clock.now += 10 * POLICY.room_within_s
    scene.tick()
    del scene.ray.workers["b"]
    scene.clock.now += POLICY.room_within_s
    scene.store.set_limit("ada", None)
    scene.tick()
    assert (scene.state(job), scene.ray.asked) == ("queued", [])


class SlowClock(Clock):
    """Each look at it takes a second, of which there are not many."""

    def __call__(self) -> float:
        self.now += 1
        assert self.now < 1_000_300, "this never ends"
        return self.now


@pytest.mark.parametrize(("jobs", "kinds"), [(40, 40), (2000, 1)])
def test_a_tick_ends_however_many_jobs_have_no_room(tmp_path: Path, jobs: int, kinds: int) -> None:
    """Those that were held back first were looked at again before the last had been looked at once."""
    with Store(tmp_path) as store:
        bundles = [Bundles(1, {"CPU": 2.0 + i % kinds}) for i in range(jobs)]
        store.add([NewJob(f"job{i}", "true", bundles=each) for i, each in enumerate(bundles)], 0.0)
        dispatcher = Dispatcher(store, SimulatedRay(workers={"a": {"CPU": 1.0}}), POLICY, clock=SlowClock())
        assert dispatcher.start()
        dispatcher.tick()
        assert {job.state for job in store.jobs() if job.no_room_since is not None} == {"queued"}
        assert len({job.not_before for job in store.jobs()}) == 1
        dispatcher.tick()


def test_what_a_clusters_file_does_not_name_the_cloud_may_have(tmp_path: Path) -> None:
    """Ray lays a type's resources over what the cloud says of it: here a GPU and the memory."""
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "head_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 0, GPU: 0}, max_workers: 0}\n"
        "  gpu: {resources: {CPU: 8}, max_workers: 4}\n"
    )
    room = Room.from_json(room_of_cluster_file(file).to_json())
    assert shortage(Bundles(4, {"CPU": 8.0, "GPU": 1.0}), room) == ""
    assert "4 nodes have room" not in shortage(Bundles(5, {"CPU": 8.0, "GPU": 1.0}), room)
    assert shortage(Bundles(1, {"CPU": 9.0}), room) == "needs 9 CPU in bundles of 9, and the largest node has 8"
    file.write_text(file.read_text().replace("{CPU: 8}", "{CPU: 8, GPU: 0}"))
    assert shortage(Bundles(1, {"GPU": 1.0}), room_of_cluster_file(file)).endswith("the largest node has 0")
    file.write_text(file.read_text().replace("resources: {CPU: 8, GPU: 0}, ", ""))
    assert shortage(Bundles(4, {"CPU": 64.0, "GPU": 8.0}), room_of_cluster_file(file)) == ""


def test_pausing_starts_nothing_and_stops_nothing(scene: Scene) -> None:
    scene.ray.slots = 2
    scene.add("a")
    scene.tick()
    scene.store.set_paused(True)
    later = scene.add("b")
    scene.tick(3)
    assert (len(scene.ray.running), scene.state(later)) == (1, "queued")
    scene.store.set_paused(False)
    scene.tick()
    assert len(scene.ray.running) == 2


# --- how jobs end -----------------------------------------------------------------------------------------------------


def test_a_users_error_is_not_tried_again_and_fails_what_comes_after_with_the_reason(scene: Scene) -> None:
    job = scene.add("train", retries=5)
    after = scene.add("infer", after=(job,))
    last = scene.add("report", after=(after,))
    scene.tick()
    scene.ray.finish(scene.ray.running[0], 2)
    scene.tick()
    assert scene.store.job(job).reason.startswith("a user's error: words of")
    assert scene.store.job(after).reason.startswith("comes after job 1 (train), which failed: a user's error")
    assert (scene.state(last), len(scene.ray.started)) == ("failed", 1)


@pytest.mark.parametrize("exit_code", [1, 126, 127])
def test_what_would_end_in_the_same_way_again_is_not_tried_again(scene: Scene, exit_code: int) -> None:
    """Exit code 1 says that some files or trials failed, which the run's own folder lists."""
    job = scene.add("infer", retries=5)
    scene.tick()
    scene.ray.finish(scene.ray.running[0], exit_code)
    scene.tick()
    assert (scene.state(job), scene.store.attempts(job)[-1].exit_code) == ("failed", exit_code)


@pytest.mark.parametrize("exit_code", [70, 75, -9])
def test_what_may_end_otherwise_is_tried_again(scene: Scene, exit_code: int) -> None:
    job = scene.add("train", retries=1)
    scene.tick()
    scene.ray.finish(scene.ray.running[0], exit_code)
    scene.tick()
    assert (scene.state(job), scene.store.job(job).failures) == ("queued", 1)


def test_a_job_without_progress_is_stopped_with_its_reason_and_tried_again(scene: Scene) -> None:
    job = scene.add("train", stalled_after=100.0, retries=1)
    scene.tick()
    first = scene.ray.running[0]
    for i in range(5):
        scene.ray.printed[first] = f"step {i}"
        scene.clock.now += 90
        scene.tick()
    assert scene.state(job) == "running"  # each time a new line
    for _ in range(8):
        scene.clock.now += 20
        scene.tick()
    assert scene.store.attempts(job)[0].outcome == "no progress for 100 s: neither its status nor its log has moved"
    assert (scene.state(job), scene.ray.running) == ("running", [scene.store.attempts(job)[1].submission_id])


@pytest.mark.parametrize("fault", ["down", "kill"])
def test_a_job_that_hangs_is_told_to_stop_until_it_has(scene: Scene, fault: str) -> None:
    """That it was told was noted before it was: when that request was lost, nobody ever told it again."""
    job = scene.add("train", stalled_after=100.0, retries=1)
    scene.tick()
    (first,) = scene.ray.running
    scene.ray.faults = {"stop": fault}
    with contextlib.suppress(RayUnreachable, Killed):
        scene.tick(200)
    assert not scene.ray.faults
    scene.clock.now += POLICY.lease_s
    scene.dispatcher.stop()
    scene.start()
    scene.tick(40)
    assert scene.store.attempts(job)[0].outcome.startswith("no progress for 100 s")
    assert scene.ray.running == [scene.store.attempts(job)[1].submission_id] != [first]


def test_a_dispatcher_that_was_away_for_long_does_not_take_that_for_a_standstill(scene: Scene) -> None:
    job = scene.add("train", stalled_after=100.0)
    scene.tick(2)
    scene.clock.now += 10_000
    scene.ray.printed[scene.ray.running[0]] = "step 5000"
    scene.start()
    scene.tick(3)
    assert scene.state(job) == "running"


def test_a_retry_brings_back_what_failed_because_of_it(scene: Scene) -> None:
    job = scene.add("train")
    after = scene.add("infer", after=(job,))
    scene.tick()
    scene.ray.finish(scene.ray.running[0], 2)
    scene.tick()
    with pytest.raises(QueueError, match="retry that one"):
        scene.store.retry(after, scene.clock())
    scene.store.retry(job, scene.clock())
    assert scene.run_all() == ["train", "train", "infer"]
    assert scene.state(after) == "succeeded"


def test_a_job_that_was_taken_away_is_tried_again_later_and_later_and_then_lost(scene: Scene) -> None:
    job = scene.add("train", retries=2)
    pauses = []
    for _ in range(3):
        while not scene.ray.running:
            scene.tick()
        scene.ray.lose(scene.ray.running[0])
        scene.tick()
        pauses.append(scene.store.job(job).not_before - (scene.clock() - 1))
    assert pauses[:2] == [30, 60]
    assert scene.state(job) == "lost"
    assert scene.store.job(job).reason.endswith("(attempt 3, the last)")
    assert [a.number for a in scene.store.attempts(job)] == [1, 2, 3]


def test_a_pause_has_an_end_however_often_a_job_has_failed(scene: Scene) -> None:
    job = scene.add("train", retries=5000)
    with sqlite3.connect(scene.store.folder / "queue.sqlite") as db:
        db.execute("UPDATE jobs SET failures = 2000")
    db.close()
    scene.tick()
    scene.ray.finish(scene.ray.running[0], 70)
    scene.tick()
    assert scene.store.job(job).not_before == scene.clock() - 1 + POLICY.longest_backoff_s


def test_what_ray_will_never_take_fails_with_rays_words(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Refused("ValueError: no such thing")

    job = scene.add("odd")
    monkeypatch.setattr(scene.ray, "submit", refuse)
    scene.tick()
    assert scene.store.job(job).reason == "Ray refuses it: ValueError: no such thing"


def test_a_job_that_ray_cannot_answer_for_holds_up_no_other(scene: Scene) -> None:
    scene.ray.slots = 2
    poor, good = scene.add("poor"), scene.add("good")
    scene.ray.faults = {"submit": "down"}
    with pytest.raises(RayUnreachable):
        scene.tick()
    assert (scene.state(poor), scene.state(good)) == ("submitting", "running")
    assert scene.store.job(poor).reason == "not submitted yet: no connection"
    scene.tick()
    assert (scene.state(poor), scene.store.job(poor).reason) == ("running", "")


@pytest.mark.parametrize("when", ["queued", "running"])
def test_a_stopped_job_ends_and_is_not_tried_again(scene: Scene, when: str) -> None:
    job = scene.add("train")
    if when == "running":
        scene.tick()
    scene.store.stop(job, scene.clock())
    scene.tick(3)
    assert (scene.state(job), scene.ray.running) == ("stopped", [])
    with pytest.raises(QueueError, match="has ended already: it was stopped"):
        scene.store.stop(job, scene.clock())


# --- after trouble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", "killed after"])
def test_a_dispatcher_that_dies_around_a_submission_leaves_one_job_not_two_or_none(scene: Scene, fault: str) -> None:
    job = scene.add("train")
    scene.ray.faults = {"submit": fault}
    with pytest.raises(Killed):
        scene.tick()
    assert scene.state(job) == "submitting"
    scene.clock.now += POLICY.lease_s
    scene.start()
    scene.tick()
    assert (scene.state(job), len(scene.ray.running), len(scene.ray.records)) == ("running", 1, 1)


def under_way_and_stopped(scene: Scene) -> int:
    """A job whose submission was sent, and has not arrived by the time it counts as stopped."""
    job = scene.add("train", retries=0)
    scene.ray.faults = {"submit": "late"}
    with pytest.raises(RayUnreachable):
        scene.tick()
    scene.store.stop(job, scene.clock())
    scene.tick(10)
    assert scene.state(job) == "submitting"  # it may still arrive
    scene.tick(60)
    assert (scene.state(job), scene.ray.records) == ("stopped", {})
    return job


def test_a_submission_that_arrives_after_its_job_was_stopped_is_stopped(scene: Scene) -> None:
    job = under_way_and_stopped(scene)
    scene.ray.deliver()
    scene.ray.progress()
    assert len(scene.ray.running) == 1
    scene.tick(70)
    assert (scene.ray.running, scene.state(job)) == ([], "stopped")
    scene.store.retry(job, scene.clock())
    scene.tick(3)
    assert scene.ray.running == [scene.store.attempts(job)[1].submission_id]


def test_a_retry_of_what_may_still_be_under_way_is_the_same_submission(scene: Scene) -> None:
    scene.ray.slots = 2
    job = under_way_and_stopped(scene)
    scene.store.retry(job, scene.clock())
    scene.tick()
    scene.ray.deliver()
    scene.ray.progress()
    assert scene.ray.running == [scene.store.attempts(job)[0].submission_id]
    assert scene.ray.refused_twice == 1


def test_what_does_not_start_is_started_anew(scene: Scene) -> None:
    """Ray knows a job before anything is there that could run it; when that comes to nothing it stays PENDING."""
    job = scene.add("train")
    scene.dispatcher.tick()
    scene.ray.restart(with_memory=True)
    for _ in range(40):
        scene.clock.now += 61
        scene.tick()
    assert scene.ray.running == [scene.store.attempts(job)[1].submission_id]
    assert scene.store.attempts(job)[0].outcome == "not started within 1200 s"


def test_a_head_that_restarts_without_memory_has_its_jobs_started_anew(scene: Scene) -> None:
    job = scene.add("train")
    scene.tick()
    scene.ray.restart(with_memory=False)
    scene.tick(50)
    assert scene.state(job) == "running"  # it may be that the head has not read its memory yet
    scene.tick(60)
    assert scene.ray.running == [scene.store.attempts(job)[1].submission_id]


def test_a_job_that_ray_says_runs_on_a_node_that_is_gone_is_started_anew(scene: Scene) -> None:
    """Ray 2.60 with its memory on disk was seen to say RUNNING of jobs that had ended with their head."""
    job = scene.add("train")
    scene.tick()
    scene.ray.restart(with_memory=True)
    assert scene.ray.records[scene.store.attempts(job)[0].submission_id].status == "RUNNING"
    scene.tick(120)
    assert scene.ray.running == [scene.store.attempts(job)[1].submission_id]


def test_a_look_for_what_should_not_run_that_fails_is_not_due_again_at_once(scene: Scene) -> None:
    scene.ray.faults = {"list": "down"}
    with pytest.raises(RayUnreachable):
        scene.tick()
    scene.ray.faults = {"list": "down"}
    scene.tick(int(POLICY.sweep_every_s))
    with pytest.raises(RayUnreachable):
        scene.tick()


def test_there_is_one_dispatcher_and_one_that_slept_too_long_changes_nothing(scene: Scene) -> None:
    sleeper = scene.dispatcher
    assert not Dispatcher(scene.store, scene.ray, POLICY, clock=scene.clock).start()
    scene.clock.now += POLICY.lease_s + 1
    scene.start()
    scene.add("train")
    with pytest.raises(LeaseLost):
        sleeper.tick()
    assert scene.ray.asked == []


# --- as people use it -------------------------------------------------------------------------------------------------


def test_everything_people_ask_is_answered_without_a_dispatcher_and_as_json(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    with Store(folder) as store:
        store.add([NewJob("a", "true"), NewJob("b", "true", after=(1,)), NewJob("c", "true", priority=3)], time.time())
    status = jobqueue.status(folder)
    assert [job["name"] for job in status["jobs"]] == ["c", "a", "b"]
    assert status["dispatcher"]["at_work"] is False
    assert jobqueue.pause(folder)["paused"] is True
    assert jobqueue.resume(folder)["paused"] is False
    assert jobqueue.priority("a", 7, folder)["priority"] == 7
    assert jobqueue.limit("*", 2, folder) == {"*": 2}
    assert [job["state"] for job in jobqueue.stop(["a"], folder)] == ["stopped"]
    assert jobqueue.show("b", folder)["reason"].startswith("comes after job 1 (a), which was stopped")
    assert [job["state"] for job in jobqueue.retry([1], folder)] == ["queued"]
    assert jobqueue.show(2, folder)["state"] == "waiting"
    json.dumps([status, jobqueue.show("a", folder)])
    with pytest.raises(QueueError, match="has not been started"):
        next(jobqueue.logs("a", folder))
    with pytest.raises(QueueError, match="no job named 'd'"):
        jobqueue.show("d", folder)


def test_the_dispatchers_loop_ends_when_nothing_is_left_and_logs_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    ray = SimulatedRay()

    def connect(_: str) -> SimulatedRay:
        ray.progress()
        for submission_id in ray.running:
            ray.finish(submission_id, 0)
        return ray

    with Store(folder) as store:
        store.add([NewJob("a", "true")], time.time())
        ray.submit(f"stillgrain-{store.setting('queue')}-1-1", "true", None, {})  # by one that died before it knew
    jobqueue.dispatch("http://127.0.0.1:1", folder, until_idle=True, every_s=0.01, connect=connect)
    assert jobqueue.show("a", folder)["state"] == "succeeded"
    assert "was here" in "".join(jobqueue.logs("a", folder, follow=True, connect=connect, every_s=0.01))


class FullDisk(logging.Handler):
    """No file grows, until somebody says that they are trying again."""

    def __init__(self) -> None:
        super().__init__()
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.said: list[str] = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, self.before[1]))

    def emit(self, record: logging.LogRecord) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        self.said.append(record.getMessage())


def test_a_dispatcher_goes_on_after_a_disk_that_was_full(tmp_path: Path) -> None:
    full: list[FullDisk] = []

    class FillsTheDisk(SimulatedRay):
        def submit(self, submission_id: str, *what: Any) -> None:
            super().submit(submission_id, *what)
            self.progress()
            self.finish(submission_id, 0)
            full.append(FullDisk())
            logging.getLogger("cluster.jobqueue").addHandler(full[0])

    with Store(tmp_path) as store:
        store.add([NewJob("a", "true")], time.time())
    try:
        ray = FillsTheDisk()
        jobqueue.dispatch("http://127.0.0.1:1", tmp_path, until_idle=True, every_s=0.01, connect=lambda _: ray)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, full[0].before)
        logging.getLogger("cluster.jobqueue").removeHandler(full[0])
    assert full[0].said == [f"{tmp_path}: disk I/O error; trying again"]
    assert (jobqueue.show("a", tmp_path)["state"], len(ray.asked)) == ("succeeded", 1)


def test_a_change_that_finds_the_disk_full_is_undone_and_says_so(tmp_path: Path) -> None:
    """SQLite had undone it by itself, and what was said was that there was nothing to undo."""
    with Store(tmp_path) as store:
        full = FullDisk()
        try:
            with pytest.raises(sqlite3.OperationalError, match="disk"):
                store.note("a", "x" * 10**7)
        finally:
            full.emit(logging.makeLogRecord({}))
        store.note("b", "y")
        assert (store.setting("a"), store.setting("b")) == ("", "y")


ANY_MOMENT = """
import signal, sys
from cluster.jobqueue import dispatch
from tests.cluster.simulated_ray import SimulatedRay

for moment in range(60):
    lines = 0

    def trace(frame, event, _):
        global lines
        if not frame.f_code.co_filename.endswith(("jobqueue.py", "threading.py")):
            return None
        lines += event == "line" and frame.f_code.co_name in ("dispatch", "wait", "_wait", "__enter__", "__exit__")
        if event == "line" and lines == moment + 20:
            sys.settrace(None)
            signal.raise_signal(signal.SIGTERM)
        return trace

    sys.settrace(trace)
    dispatch("http://127.0.0.1:1", sys.argv[1], every_s=0.001, connect=lambda _: SimulatedRay())
    sys.settrace(None)
print("ended each time")
"""


def test_a_signal_ends_the_dispatcher_at_whatever_step_it_comes(tmp_path: Path) -> None:
    """One that came while the lock of an Event was held waited for that lock for ever."""
    command = [sys.executable, "-c", ANY_MOMENT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "ended each time\n", done.stderr


@pytest.mark.parametrize("holder", ["{host}:{pid}:7", "{host}:{pid}", "{host}:{parent}:7", "{host}:4194304:7"])
def test_a_dispatcher_whose_number_another_process_has_now_is_dead(tmp_path: Path, holder: str) -> None:
    """In a container the first process always has the same number."""
    name = holder.format(host=socket.gethostname(), pid=os.getpid(), parent=os.getppid())
    with Store(tmp_path) as store:
        assert store.take_lease(name, time.time(), 240)
    jobqueue.dispatch("http://127.0.0.1:1", tmp_path, until_idle=True, connect=lambda _: SimulatedRay())


@pytest.mark.parametrize("holder", ["elsewhere:7:7", "{host}:{parent}", "{host}:{parent}:{started}"])
def test_a_dispatcher_that_may_be_alive_keeps_its_queue(tmp_path: Path, holder: str) -> None:
    parent = processes.find(os.getppid())
    assert parent is not None
    with Store(tmp_path) as store:
        name = holder.format(host=socket.gethostname(), parent=parent.pid, started=parent.started)
        assert store.take_lease(name, time.time(), 240)
    with pytest.raises(QueueError, match="there is one at a time"):
        jobqueue.dispatch("http://127.0.0.1:1", tmp_path, until_idle=True, connect=lambda _: SimulatedRay())


def test_another_ray_is_not_given_the_jobs_that_run_on_the_first(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add([NewJob("a", "true")], time.time())
        Dispatcher(store, SimulatedRay()).start()
        dispatcher = Dispatcher(store, SimulatedRay(), clock=lambda: time.time() + 1000)
        assert dispatcher.start()
        dispatcher.tick()
        dispatcher.stop()
        store.note("address", "http://127.0.0.1:1")
    with pytest.raises(QueueError, match="would start them once more"):
        jobqueue.dispatch("http://127.0.0.1:2", tmp_path, until_idle=True, connect=lambda _: SimulatedRay())


def test_ten_thousand_jobs_are_taken_in_and_listed_in_seconds(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add([NewJob(f"job{i}", "true", user=f"user{i % 7}") for i in range(10_000)], time.time())
        start = time.perf_counter()
        assert len(store.heads(time.time())) == 7
    assert len(jobqueue.status(tmp_path)["jobs"]) == 10_000
    assert time.perf_counter() - start < 5  # below one on an idle machine


def test_packages_that_no_job_needs_any_more_are_removed_and_new_ones_never(scene: Scene) -> None:
    packages = scene.store.folder / "packages"
    packages.mkdir()
    files = {name: packages / f"{name}.zip" for name in ("done", "failed", "waiting", "young")}
    for name, file in files.items():
        file.write_bytes(b"zip")
        if name != "young":
            os.utime(file, (1e9, 1e9))
    (left := packages / ".done.zip.7.tmp").write_bytes(b"half")
    os.utime(left, (1e9, 1e9))
    scene.add("waiting", package=str(files["waiting"]), priority=-1)
    scene.add("done", package=str(files["done"]))
    scene.add("failed", package=str(files["failed"]))
    scene.tick()
    scene.ray.finish(scene.ray.running[0], 0)
    scene.tick()
    scene.ray.finish(scene.ray.running[0], 2)
    scene.tick()
    scene.clock.now += POLICY.sweep_every_s
    scene.tick()
    assert sorted(packages.iterdir()) == sorted([files["failed"], files["waiting"], files["young"]])
    scene.clock.now += POLICY.keep_packages_s
    scene.tick()
    assert sorted(packages.iterdir()) == sorted([files["waiting"], files["young"]])


@pytest.mark.parametrize("stored", ["{}/real/queue/packages/a.zip", "{}/link/queue/packages/a.zip", "a.zip"])
def test_a_package_is_found_and_kept_by_whatever_name_the_queues_folder_was_given(tmp_path: Path, stored: str) -> None:
    """Jobs of versions before hold whole paths, of a folder that a dispatcher may have been given by another name."""
    (tmp_path / "real" / "queue" / "packages").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    package = tmp_path / "real" / "queue" / "packages" / "a.zip"
    package.write_bytes(b"zip")
    os.utime(package, (1e9, 1e9))
    with Store(tmp_path / "link" / ".." / "link" / "queue") as client:
        client.add([NewJob("a", "true", package=stored.format(tmp_path))], 0.0)
        client.set_paused(True)
    scene = Scene(tmp_path / "real" / "queue")
    scene.tick()
    assert package.exists()
    assert scene.store.package(scene.store.job(1)) == str(package)
    scene.store.close()


def test_who_opens_a_new_queue_waits_for_another_that_makes_it(tmp_path: Path) -> None:
    """SQLite itself does not wait where two change a file to another kind of journal."""
    other = sqlite3.connect(tmp_path / "queue.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.2, other.execute, ["COMMIT"])
    done.start()
    Store(tmp_path).close()
    done.join()
    other.close()


def test_a_queue_of_the_version_before_goes_on_in_this_one(tmp_path: Path) -> None:
    """Format 1 knew neither labels nor bundles nor limits of progress."""
    with Store(tmp_path) as store:
        store.add([NewJob("old", "true")], time.time())
    with sqlite3.connect(tmp_path / "queue.sqlite") as db:
        db.executescript(
            "DROP INDEX in_turn; DROP INDEX by_end;"
            "ALTER TABLE jobs DROP COLUMN labels; ALTER TABLE jobs DROP COLUMN bundles;"
            "ALTER TABLE jobs DROP COLUMN stalled_after; ALTER TABLE jobs DROP COLUMN allow_pending;"
            "ALTER TABLE jobs DROP COLUMN no_room_since;"
            "ALTER TABLE attempts DROP COLUMN mark; ALTER TABLE attempts DROP COLUMN moved_at;"
            "CREATE INDEX in_order ON jobs (state, priority DESC, user, id);"
            "UPDATE settings SET value = '1' WHERE key = 'format';"
        )
    db.close()
    with Store(tmp_path) as store:
        store.add([NewJob("new", "true", labels=("gpu",), bundles=FOUR_CPUS)], time.time())
        assert [(job.name, job.labels, job.bundles) for job in store.jobs()] == [
            ("old", (), None),
            ("new", ("gpu",), FOUR_CPUS),
        ]


def test_a_queue_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "queue.sqlite") as db:
        db.execute("UPDATE settings SET value = '99' WHERE key = 'format'")
    db.close()
    with pytest.raises(QueueError, match="format 99"):
        Store(tmp_path)
