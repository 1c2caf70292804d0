"""Whatever fails, and in whatever order: no job is lost, none runs twice at once, order and dependencies hold."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from cluster.dispatcher import Dispatcher, Policy
from cluster.errors import QueueError, RayUnreachable
from cluster.store import ACTIVE, UNFINISHED, LeaseLost, NewJob, Store
from tests.cluster.simulated_ray import Clock, Killed, SimulatedRay

POLICY = Policy(capacity={"GPU": 3}, backoff_s=30, lost_after_s=60, start_within_s=600, sweep_every_s=40, lease_s=200)
# Where commits are fast; what SQLite promises of a disk is not what is tested.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
FAULTS = st.dictionaries(
    st.sampled_from(["submit", "submit", "status", "stop", "list", "nodes", "mark"]),
    st.sampled_from(["down", "lost", "late", "kill", "killed after", "stall"]),
    min_size=1,
    max_size=2,
)
SETTINGS = st.fixed_dictionaries(
    {
        "priority": st.integers(0, 2),
        "user": st.integers(0, 1),
        "retries": st.integers(0, 2),
        "gpus": st.integers(0, 2),
        "stalled_after": st.sampled_from([None, None, 90.0]),
    }
)
SECONDS = st.sampled_from([5.0, 31.0, 61.0, 700.0])
EXIT_CODES = st.sampled_from([0, 0, 0, 1, 2, -9])


def job_of(submission_id: str) -> int:
    return int(submission_id.split("-")[2])


class QueueAndRay(RuleBasedStateMachine):
    """Clients, dispatchers that die or stall, and a Ray that forgets, each doing what it likes."""

    jobs: Bundle[int] = Bundle("jobs")

    @initialize(target=jobs)
    def begin(self) -> object:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.clock = Clock()
        self.ray = SimulatedRay()
        self.ray.while_stalled = self.take_over
        self.client = Store(self.folder)
        self.dispatchers: list[Dispatcher] = []
        self.stores: list[Store] = [self.client]
        self.stops_wanted: set[int] = set()
        self.names = 0
        self.hung: set[str] = set()
        self.start_dispatcher()
        return multiple(*self.client.add([self.job(0, 0, 1, 1), self.job(0, 1, 1, 1), self.job(1, 0, 0, 2)], 0.0))

    # --- clients ------------------------------------------------------------------------------------------------------

    @rule(target=jobs, several=st.lists(SETTINGS, min_size=1, max_size=4))
    def several(self, several: list[dict[str, int]]) -> object:
        return multiple(*(self.client.add([self.job(**one)], self.clock())[0] for one in several))

    @rule(target=jobs, after=st.lists(jobs, min_size=1, max_size=2), one=SETTINGS)
    def submit_after(self, after: list[int], one: dict[str, int]) -> object:
        try:
            return self.client.add([self.job(**one, after=tuple(after))], self.clock())[0]
        except QueueError:
            assert any(self.client.job(needed).state in ("failed", "stopped", "lost") for needed in after)
            return multiple()

    def job(
        self,
        priority: int,
        user: int,
        retries: int,
        gpus: int,
        stalled_after: float | None = None,
        after: tuple[int, ...] = (),
    ) -> NewJob:
        self.names += 1
        return NewJob(
            f"job{self.names}",
            "true",
            user=("ada", "bob")[user],
            priority=priority,
            after=after,
            retries=retries,
            resources={"GPU": gpus},
            stalled_after=stalled_after,
        )

    @rule(job=jobs)
    def stop_job(self, job: int) -> None:
        self.wish_stopped(job)

    def wish_stopped(self, job: int) -> None:
        with contextlib.suppress(QueueError):
            self.client.stop(job, self.clock())
            self.stops_wanted.add(job)

    @rule(job=jobs)
    def retry_job(self, job: int) -> None:
        with contextlib.suppress(QueueError):
            self.client.retry(job, self.clock())

    @rule(job=jobs, priority=st.integers(0, 2))
    def change_priority(self, job: int, priority: int) -> None:
        with contextlib.suppress(QueueError):
            self.client.set_priority(job, priority, self.clock())

    @rule(paused=st.sampled_from([True, False, False]))
    def pause_or_resume(self, paused: bool) -> None:
        self.client.set_paused(paused)

    @rule(most=st.none() | st.integers(1, 2))
    def limit_ada(self, most: int | None) -> None:
        self.client.set_limit("ada", most)

    # --- dispatchers --------------------------------------------------------------------------------------------------

    @rule()
    def start_dispatcher(self) -> None:
        store = Store(self.folder)
        self.stores.append(store)
        dispatcher = Dispatcher(store, self.ray, POLICY, clock=self.clock)
        if dispatcher.start():
            self.dispatchers.append(dispatcher)

    @rule(seconds=SECONDS, goes_on=st.booleans(), exit_codes=st.lists(EXIT_CODES, max_size=2))
    def all_is_well(self, seconds: float, goes_on: bool, exit_codes: list[int]) -> None:
        """A dispatcher at work, jobs that start and end, time that passes: what is between two troubles."""
        self.tick({})
        if goes_on:
            self.ray.progress()
        for submission_id, exit_code in zip(self.able_to_end, exit_codes, strict=False):
            self.ray.finish(submission_id, exit_code)
        self.clock.now += seconds

    @rule(seconds=SECONDS, rounds=st.integers(1, 6))
    def time_passes_for_all(self, seconds: float, rounds: int) -> None:
        for _ in range(rounds):
            self.tick({})
            self.ray.progress()
            self.no_job_runs_twice_at_once()
            self.clock.now += seconds

    @rule(target=jobs, faults=FAULTS, one=SETTINGS, stop_it=st.booleans())
    def trouble(self, faults: dict[str, str], one: dict[str, int], stop_it: bool) -> object:
        """A dispatcher at work on a new job, and others, while a call fails."""
        job = self.client.add([self.job(**one)], self.clock())[0]
        self.tick(faults)
        if stop_it:
            self.wish_stopped(job)
        return job

    def tick(self, faults: dict[str, str]) -> None:
        if not self.dispatchers:
            self.clock.now += POLICY.lease_s + 1
            self.start_dispatcher()
        self.ray.faults = dict(faults)
        limits, was_paused = self.client.limits(), self.client.paused
        before = {j.id: j for j in self.client.jobs(("queued",)) if j.not_before <= self.clock()}
        self.ray.asked.clear()
        self.run_dispatcher(self.dispatchers[0])
        if "stall" in faults.values():
            return  # another clock, and another dispatcher's choices
        new = [job for job in map(job_of, self.ray.asked) if job in before]
        assert not (new and was_paused)
        left = dict(before)
        for job in new:
            chosen = left.pop(job)
            for other in left.values():
                if other.user == chosen.user:
                    assert (-chosen.priority, chosen.id) < (-other.priority, other.id), f"{other} was before {chosen}"
                elif other.user not in limits and "*" not in limits:
                    assert chosen.priority >= other.priority, f"{other} matters more than {chosen}"

    def run_dispatcher(self, dispatcher: Dispatcher) -> None:
        try:
            dispatcher.tick()
        except RayUnreachable:
            pass
        except (Killed, LeaseLost):
            self.dispatchers.remove(dispatcher)
        finally:
            self.ray.faults = {}

    def take_over(self) -> None:
        """Another dispatcher finds the lease expired, and looks after everything twice."""
        self.clock.now += POLICY.lease_s + 1
        self.start_dispatcher()
        faults, self.ray.faults = self.ray.faults, {}
        for _ in range(2):
            self.dispatchers[-1].tick()
        self.ray.faults = faults

    # --- Ray ----------------------------------------------------------------------------------------------------------

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def ray_goes_on(self) -> None:
        self.ray.progress()

    @property
    def able_to_end(self) -> list[str]:
        return [submission_id for submission_id in self.ray.running if submission_id not in self.hung]

    @precondition(lambda self: self.able_to_end)
    @rule(data=st.data(), exit_code=EXIT_CODES)
    def a_process_ends(self, data: st.DataObject, exit_code: int) -> None:
        self.ray.finish(data.draw(st.sampled_from(self.able_to_end)), exit_code)

    @rule(target=jobs, fault=st.sampled_from(["down", "lost", "kill", "killed after"]), retries=st.integers(0, 2))
    def a_process_hangs_and_asking_it_to_stop_fails(self, fault: str, retries: int) -> object:
        """One that is looked after: nobody else would ever end it."""
        job = self.client.add([self.job(2, 1, retries, 0, 90.0)], self.clock())[0]
        for _ in range(5):
            self.tick({"stop": fault})
            self.ray.progress()
            self.hung |= {submission_id for submission_id in self.ray.running if job_of(submission_id) == job}
            self.clock.now += 61
        return job

    @precondition(lambda self: self.ray.running)
    @rule(data=st.data(), by_somebody=st.booleans())
    def a_process_is_taken_away(self, data: st.DataObject, by_somebody: bool) -> None:
        which = data.draw(st.sampled_from(self.ray.running))
        if by_somebody:
            self.ray.stop_from_outside(which)
            self.stops_wanted.add(job_of(which))
        else:
            self.ray.lose(which)

    @rule(with_memory=st.booleans(), busy=st.booleans())
    def ray_restarts(self, with_memory: bool, busy: bool) -> None:
        if busy:
            self.tick({})
            self.ray.progress()
        self.ray.restart(with_memory=with_memory)

    @rule()
    def ray_notices_ghosts(self) -> None:
        self.ray.notice_ghosts()

    @rule()
    def what_was_under_way_arrives(self) -> None:
        self.ray.deliver()

    # --- laws ---------------------------------------------------------------------------------------------------------

    @invariant()
    def no_job_runs_twice_at_once(self) -> None:
        counts = Counter(job_of(submission_id) for submission_id in self.ray.running)
        assert not counts or max(counts.values()) == 1, f"at once: {self.ray.running}"

    @invariant()
    def what_runs_has_what_it_comes_after(self) -> None:
        well = {job_of(submission_id) for submission_id in self.ray.ended_well}
        for submission_id in self.ray.started:
            assert well.issuperset(self.client.needed_by(job_of(submission_id)))

    @invariant()
    def no_more_is_admitted_than_there_is_room_for(self) -> None:
        active = self.client.jobs(ACTIVE)
        assert len(active) <= self.ray.slots
        assert sum(job.resources["GPU"] for job in active) <= POLICY.capacity["GPU"]

    @invariant()
    def success_is_true_and_stopping_was_wanted(self) -> None:
        well = {job_of(submission_id) for submission_id in self.ray.ended_well}
        for job in self.client.ended_jobs(None):
            assert job.state != "succeeded" or job.id in well
            assert job.state != "stopped" or job.id in self.stops_wanted
            assert job.state != "lost" or job.failures == job.retries

    def teardown(self) -> None:
        """Once nothing fails any more, every job comes to an end, and what was not hindered to a good one."""
        if not hasattr(self, "client"):
            return
        self.client.set_paused(False)
        self.client.set_limit("ada", None)
        left = {job.id for job in self.client.jobs(UNFINISHED)}
        self.ray.deliver()
        for _ in range(8 * len(left) + 60):
            if not self.client.jobs(UNFINISHED):
                break
            if not self.dispatchers:
                self.clock.now += POLICY.lease_s
                self.start_dispatcher()
            self.clock.now += 61
            if self.dispatchers:
                self.run_dispatcher(self.dispatchers[-1])
            self.ray.progress()
            self.no_job_runs_twice_at_once()
            self.what_runs_has_what_it_comes_after()
            for submission_id in self.able_to_end:
                self.ray.finish(submission_id, 0)
        ends = [self.client.job(job) for job in left]
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)
        badly = {job_of(submission_id) for submission_id in self.ray.ended_badly}
        for job in ends:
            assert job.state not in UNFINISHED, f"{job} has not ended: {job.state} {job.reason}"
            assert job.state != "failed" or job.failed_with or job.id in badly, f"{job} failed: {job.reason}"


TestQueueAndRay = QueueAndRay.TestCase
TestQueueAndRay.settings = settings(max_examples=100, stateful_step_count=50)
