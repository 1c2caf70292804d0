"""Gives Ray the queue's jobs in their order, and finds out what became of them.

Ray 2.60 runs jobs but does not queue them, forgets them with its head, and may go on calling a job RUNNING that ended
with a machine. So nothing is believed for longer than it can be checked:

- A job is written down as `submitting`, with its submission id, before Ray hears of it. Whatever is lost after that
  (the answer, this process, the machine), the next look at Ray tells whether it arrived; and the same id is submitted
  again, which Ray refuses if it did.
- A job that Ray does not know any more, or whose node is not among the living, is lost after `lost_after_s`: Ray's own
  supervisor ends a driver together with its node or head, at the latest by then.
- A submission of ours that runs while its job does not is stopped.
- A job that neither its status nor the end of its log shows to go on is stopped, and tried again.

What an exit code of `stillgrain` means, and whether the job is tried again:

    0         done                                                                         no
    1         ran to its end, and some of what it was given failed: files, trials          no: they would again
    2         what only a person can put right: a config, a path, a full disk              no
    126, 127  the node has no Python that could run it                                     no
    75        not now: the cluster had no room for it within its limit                     yes
    others    an error of ours, of Ray's, lost workers; a signal is a negative one         yes
    none      Ray or a node took it away                                                   yes
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cluster.errors import RayUnreachable
from cluster.package import remove_unneeded
from cluster.processes import find
from cluster.ray_jobs import ENDED, AlreadySubmitted, Jobs, RayJob, RayNodes, Refused
from cluster.room import Room, shortage
from cluster.store import ACTIVE, Attempt, Job, State, Store

_NOT_TRIED_AGAIN = {
    1: "ended, and some of what it was given failed",
    2: "a user's error",
    126: "cannot be run there",
    127: "cannot be run there",
}
_SLOTS_WHERE_NONE_ARE_DECLARED = 4
_LOOKS_PER_LIMIT = 10
_LONGEST_BETWEEN_LOOKS_S = 300.0
_BETWEEN_LOOKS_FOR_ROOM_S = 15.0
# Of a pause. Beyond all patience, and far from what a float can hold.
_MOST_DOUBLINGS = 64


@dataclass(frozen=True)
class Policy:
    """How many jobs run at once, and how long is waited for what."""

    job_slots: int | None = None
    """Jobs at a time; left out, what the cluster's nodes declare as `job_slot`, and 4 where none does."""
    capacity: Mapping[str, float] = field(default_factory=dict)
    """What running jobs may have declared together: {"GPU": 8}. What is not named is not counted: a cluster that grows
    has none of it before somebody asks."""
    backoff_s: float = 30.0
    """Before the second attempt; doubles with each further one."""
    longest_backoff_s: float = 900.0
    lost_after_s: float = 60.0
    """Without a sign of a job. Longer than Ray needs to end a driver whose head or node is gone, and than a request can
    be under way."""
    start_within_s: float = 1200.0
    """PENDING for longer, a job is started anew; Ray's own limit is 900 s, unless its record is all that is left."""
    room_within_s: float = 600.0
    """A job that no node has room for is held back for so long, while nodes may still be starting or be replaced, and
    fails then; at once where `room` says what nodes there can be."""
    room: Room | None = None
    """What nodes there can be, from the cluster's file. Left out, those that are seen; and where they say that an
    autoscaler started them, nothing is known."""
    keep_packages_s: float = 30 * 86400.0
    """How long the packed working directory of a job that did not succeed is kept for a retry."""
    sweep_every_s: float = 60.0
    """Between looks for submissions of ours that should not run."""
    lease_s: float = 240.0
    """A dispatcher that has not moved for so long may be replaced. Longer than one answer of Ray may take."""


class Dispatcher:
    """The one process that submits. Make one, `start` it, and `tick` for as long as it should work."""

    def __init__(
        self, store: Store, jobs: Jobs, policy: Policy = Policy(), *, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = store
        self.jobs = jobs
        self.policy = policy
        self._clock = clock
        self._epoch = 0
        self._swept_at = float("-inf")
        self._looked_at: dict[str, float] = {}
        self._nodes: dict[str, tuple[Mapping[str, float], float]] = {}
        self._room = Room((), grows=True)
        self._trouble: RayUnreachable | None = None

    def start(self) -> bool:
        """Become the dispatcher. False while there is another."""
        epoch = self.store.take_lease(_this_process(), self._clock(), self.policy.lease_s)
        self._epoch = epoch or 0
        return epoch is not None

    def stop(self) -> None:
        """Let another start at once. What runs is left running."""
        self.store.release_lease(self._epoch)

    def tick(self) -> None:
        """Look after every job once, and start what may start.

        raises  LeaseLost when another dispatcher has taken over; RayUnreachable, after all has been done that could be
        """
        with self._change():
            pass  # keeps the lease while Ray is not there
        nodes = self.jobs.nodes()
        self._trouble = None
        with self._going_on():
            if self._clock() - self._swept_at >= self.policy.sweep_every_s:
                # Noted first: one that fails is not due again at every tick.
                self._swept_at = self._clock()
                self._sweep()
                remove_unneeded(
                    self.store.packages,
                    lambda: self.store.packages_needed(self._clock() - self.policy.keep_packages_s),
                )
        for job in self.store.jobs(ACTIVE):
            # What Ray cannot answer about one job holds up no other.
            with self._going_on():
                self._follow(job, nodes)
        self._admit(nodes)
        if self._trouble is not None:
            raise self._trouble

    # --- what became of it --------------------------------------------------------------------------------------------

    def _follow(self, job: Job, nodes: RayNodes) -> None:
        attempt = self.store.attempts(job.id)[-1]
        seen = self.jobs.status(attempt.submission_id)
        if seen is None:
            if attempt.known:
                self._miss(job, attempt, "Ray does not know it any more")
            elif not job.stop_wanted:
                self._send(job, attempt)
            elif self._clock() - attempt.sent_at >= self.policy.lost_after_s:
                # Should it arrive all the same, it is swept away.
                self._close(job, attempt, "stopped", "stopped before it was started")
            return
        if not attempt.known:
            with self._change() as store:
                store.attempt_is_known(attempt, self._clock())
        if seen.status in ENDED:
            self._ended(job, attempt, seen)
        elif job.stop_wanted:
            self._see(job, attempt, self.jobs.stop(attempt.submission_id), "there was nothing to stop")
        elif seen.status == "PENDING" and self._clock() - attempt.sent_at > self.policy.start_within_s:
            why = f"not started within {self.policy.start_within_s:.0f} s"
            with self._change() as store:
                store.sweep(attempt.submission_id, why)
            self._see(job, attempt, self.jobs.stop(attempt.submission_id), why)
        elif seen.node is not None and seen.node not in nodes.ids:
            self._miss(job, attempt, f"its node is gone, and Ray still says {seen.status}")
        elif attempt.swept:
            # That it was told so once does not say that this arrived.
            self._see(job, attempt, self.jobs.stop(attempt.submission_id), attempt.outcome or "it turned up late")
        elif why := self._stalled(job, attempt, seen):
            with self._change() as store:
                store.sweep(attempt.submission_id, why)
            self._see(job, attempt, self.jobs.stop(attempt.submission_id), why)
        else:
            self._see(job, attempt, True, "")

    def _stalled(self, job: Job, attempt: Attempt, seen: RayJob) -> str:
        """Why an attempt is to be stopped that does not go on; nothing while it does."""
        if job.stalled_after is None or seen.status != "RUNNING":
            return ""
        now = self._clock()
        since = now - self._looked_at.get(attempt.submission_id, float("-inf"))
        if since < min(job.stalled_after / _LOOKS_PER_LIMIT, _LONGEST_BETWEEN_LOOKS_S):
            return ""
        # A log that cannot be had is none that stands still: RayUnreachable leaves the job as it is.
        mark = f"{seen.status} {hashlib.sha256(self.jobs.mark(attempt.submission_id, seen.node).encode()).hexdigest()}"
        self._looked_at[attempt.submission_id] = now
        if mark != attempt.mark or attempt.moved_at is None:
            with self._change() as store:
                store.attempt_has_moved(attempt, mark, now)
            return ""
        if now - attempt.moved_at < job.stalled_after:
            return ""
        return f"no progress for {job.stalled_after:g} s: neither its status nor its log has moved"

    def _see(self, job: Job, attempt: Attempt, there: bool, otherwise: str) -> None:
        if not there:
            self._miss(job, attempt, otherwise)
        elif attempt.gone_since is not None:
            with self._change() as store:
                store.attempt_is_gone(attempt, None)
                store.explain(job.id, "")

    def _miss(self, job: Job, attempt: Attempt, why: str) -> None:
        now = self._clock()
        if attempt.gone_since is None:
            with self._change() as store:
                store.attempt_is_gone(attempt, now)
                store.explain(job.id, why)
        elif now - attempt.gone_since >= self.policy.lost_after_s:
            self._try_again(job, attempt, "lost", why)

    def _ended(self, job: Job, attempt: Attempt, seen: RayJob) -> None:
        if seen.status == "SUCCEEDED":
            self._close(job, attempt, "succeeded", "", seen.exit_code)
        elif job.stop_wanted:
            self._close(job, attempt, "stopped", "", seen.exit_code)
        elif seen.status == "STOPPED" and attempt.swept:
            # One that turned up late is not the job's fault.
            why = attempt.outcome or "an earlier submission turned up late"
            self._try_again(job, attempt, "lost", why, counts=bool(attempt.outcome))
        elif seen.status == "STOPPED":
            self._close(job, attempt, "stopped", "stopped in Ray, not through the queue", seen.exit_code)
        elif seen.exit_code in _NOT_TRIED_AGAIN:
            why = f"{_NOT_TRIED_AGAIN[seen.exit_code]}: {_last_line(seen.message)}"
            self._close(job, attempt, "failed", why, seen.exit_code)
        elif seen.exit_code is None:
            self._try_again(job, attempt, "lost", f"{seen.error or 'no exit code'}: {_last_line(seen.message)}")
        else:
            why = f"exit code {seen.exit_code}: {_last_line(seen.message)}"
            self._try_again(job, attempt, "failed", why, seen.exit_code)

    def _try_again(
        self, job: Job, attempt: Attempt, otherwise: State, why: str, exit_code: int | None = None, counts: bool = True
    ) -> None:
        now = self._clock()
        with self._change() as store:
            store.end_attempt(attempt, why, now, exit_code)
            failures = job.failures + counts
            if store.job(job.id).stop_wanted:
                store.end(job.id, "stopped", why, now)
            elif failures > job.retries:
                store.end(job.id, otherwise, f"{why} (attempt {attempt.number}, the last)", now)
            else:
                pause = self.policy.backoff_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS) if counts else 0.0
                not_before = now + min(pause, self.policy.longest_backoff_s)
                store.again(job.id, f"attempt {attempt.number}: {why}", now, not_before=not_before, failures=failures)

    def _close(self, job: Job, attempt: Attempt, state: State, reason: str, exit_code: int | None = None) -> None:
        now = self._clock()
        with self._change() as store:
            store.end_attempt(attempt, reason or state, now, exit_code)
            store.end(job.id, state, reason, now)

    def _sweep(self) -> None:
        """Stop submissions of ours that run while their job does not."""
        prefix = f"stillgrain-{self.store.setting('queue')}-"
        wanted = self.store.submission_ids(ACTIVE)
        for submission_id, seen in self.jobs.list().items():
            if submission_id.startswith(prefix) and seen.status not in ENDED and submission_id not in wanted:
                with self._change() as store:
                    store.sweep(submission_id, "")
                self.jobs.stop(submission_id)

    # --- what is next -------------------------------------------------------------------------------------------------

    def _admit(self, nodes: RayNodes) -> None:
        slots = self.policy.job_slots or nodes.job_slots or _SLOTS_WHERE_NONE_ARE_DECLARED
        self._note_room(nodes)
        active = self.store.jobs(ACTIVE)
        # One time for all: what was held back is not looked at again before the next tick, however long this one takes.
        now = self._clock()
        while not self.store.paused:
            job = self._next(active, now) if len(active) < slots else None
            if job is None:
                return
            short = _shortage(job, self.policy.capacity, ())
            if short:
                with self._change() as store:
                    store.end(job.id, "failed", f"will never have room: {short}", self._clock())
                continue
            short = self._no_room(job)
            if short:
                self._hold_back(job, short, now)
                continue
            short = _shortage(job, self.policy.capacity, active)
            if short:
                # Those behind wait too: jobs that need little would otherwise always come before it.
                if job.reason != short:
                    with self._change() as store:
                        store.explain(job.id, short)
                return
            with self._change() as store:
                attempt = store.begin_attempt(job.id, self._clock())
            if attempt is not None:
                active.append(job)
                with self._going_on():
                    self._send(job, attempt)

    def _note_room(self, nodes: RayNodes) -> None:
        """What nodes there can be. One that has just gone still counts: it may be on its way back."""
        now = self._clock()
        self._nodes.update({node: (resources, now) for node, resources in nodes.resources.items()})
        self._nodes = {n: (r, at) for n, (r, at) in self._nodes.items() if now - at < self.policy.room_within_s}
        seen = Room(tuple((resources, 1) for resources, _ in self._nodes.values()), nodes.grows or not self._nodes)
        self._room = self.policy.room or seen
        text = self._room.to_json()
        if text != self.store.setting("room"):
            with self._change() as store:
                # For `submit`, which refuses at once what will not begin here.
                store.keep("room", text)
                for bundles in store.held_back():
                    if not shortage(bundles, self._room):
                        store.let_go(bundles)

    def _no_room(self, job: Job) -> str:
        return "" if job.allow_pending else shortage(job.bundles, self._room)

    def _hold_back(self, job: Job, short: str, now: float) -> None:
        """Let others go first; with it go all that ask for the same, since there may be thousands of them."""
        since = job.no_room_since or now
        with self._change() as store:
            if self.policy.room is not None or now - since >= self.policy.room_within_s:
                for alike in store.alike(job.id, now):
                    store.end(alike, "failed", f"will never have room: {short}", now)
            else:
                why = f"{short}; fails at {_clock_time(since + self.policy.room_within_s)} unless nodes come"
                store.hold_back(job.id, why, since, now, now + _BETWEEN_LOOKS_FOR_ROOM_S)

    def _next(self, active: list[Job], now: float) -> Job | None:
        """Of the highest priority; among users the one with the fewest running, then whose turn is the longest ago; of
        one user the oldest."""
        running = Counter(job.user for job in active)
        labelled = Counter(label for job in active for label in job.labels)
        limits, served = self.store.limits(), self.store.served()
        free = [
            job
            for job in self.store.heads(now)
            if running[job.user] < limits.get(job.user, limits.get("*", running[job.user] + 1))
            and all(labelled[label] < limits.get(f"label:{label}", labelled[label] + 1) for label in job.labels)
        ]
        return min(
            free, key=lambda job: (-job.priority, running[job.user], served.get(job.user, 0), job.id), default=None
        )

    def _send(self, job: Job, attempt: Attempt) -> None:
        with self._change() as store:
            store.about_to_send(attempt, self._clock())
        metadata = {
            **job.metadata,
            "stillgrain_job": str(job.id),
            "stillgrain_attempt": str(attempt.number),
            "name": job.name,
            "user": job.user,
        }
        try:
            self.jobs.submit(attempt.submission_id, job.entrypoint, self.store.package(job), metadata)
        except AlreadySubmitted:
            pass  # an answer was lost
        except Refused as error:
            self._close(job, attempt, "failed", f"Ray refuses it: {_last_line(str(error))}")
            return
        except RayUnreachable as error:
            with self._change() as store:
                store.explain(job.id, f"not submitted yet: {error}")
            raise
        with self._change() as store:
            store.attempt_is_known(attempt, self._clock())

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except RayUnreachable as error:
            self._trouble = error

    def _change(self) -> contextlib.AbstractContextManager[Store]:
        return self.store.as_dispatcher(self._epoch, self._clock() + self.policy.lease_s)


def is_dead(holder: str) -> bool:
    """Whether a dispatcher was on this machine and is no more; one elsewhere is given its time."""
    host, _, rest = holder.partition(":")
    pid, _, started = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return holder != _this_process()
    there = find(int(pid))
    if there is not None and started:
        return started != str(there.started)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _this_process() -> str:
    """host:number:start. The first process of a container has the same number each time; where nothing says when a
    process has started, outside of Linux, there are no containers either."""
    own = find(os.getpid())
    return f"{socket.gethostname()}:{os.getpid()}{f':{own.started}' if own else ''}"


def _shortage(job: Job, capacity: Mapping[str, float], active: tuple[()] | list[Job]) -> str:
    """What is missing for a job beside those that run, with the arithmetic; nothing when it has room."""
    parts = []
    for resource, total in capacity.items():
        needed = job.resources.get(resource, 0.0)
        used = sum(other.resources.get(resource, 0.0) for other in active)
        if needed and needed + used > total + 1e-9:
            beside = f", of which running jobs have {used:g}" if active else ""
            parts.append(f"needs {needed:g} {resource}, and there are {total:g}{beside}")
    return "; ".join(parts)


def _clock_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
