"""The job queue as people use it: many jobs in order, on a cluster that only runs them.

    stillgrain submit workloads/configs/denoise_rawnind.yaml storage=/data/runs --priority 5
    stillgrain queue dispatch --address http://127.0.0.1:8265     # one process, anywhere Ray can be reached from
    stillgrain queue status

All functions but `dispatch` and `logs` work on the queue's folder alone, whether a dispatcher is there or not. They
return plain values that JSON can hold; times are ISO 8601 in UTC.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.dispatcher import Dispatcher, Policy, is_dead
from cluster.errors import QueueError, RayUnreachable
from cluster.metrics import served
from cluster.ray_jobs import ENDED, Jobs, RayJobs
from cluster.store import ACTIVE, UNFINISHED, Job, LeaseLost, Store

DEFAULT_FOLDER = Path("~/.stillgrain/queue")
DEFAULT_POLICY = Policy()
_LOOKS_FOR_SIGNALS_S = 0.2
_log = logging.getLogger(__name__)


# --- looking ----------------------------------------------------------------------------------------------------------


def status(folder: str | Path = DEFAULT_FOLDER, *, ended: int | None = 10) -> dict[str, Any]:
    """The queue: its dispatcher, whether it is paused, how many jobs are in each state, and the jobs.

    ended    how many of those that have ended are listed too; None for all
    returns  jobs: those that run, then those that are queued in the order in which they are looked at (users of one
             priority take turns), those that wait for others, those that have ended, the last first
    """
    with Store(folder) as store:
        unfinished = store.jobs(UNFINISHED)
        place = {"running": 0, "submitting": 0, "queued": 1, "waiting": 2}
        unfinished.sort(key=lambda job: (place[job.state], -job.priority if job.state == "queued" else 0, job.id))
        listed = [*unfinished, *store.ended_jobs(ended)]
        return {
            "folder": str(store.folder),
            "dispatcher": _dispatcher(store),
            "paused": store.paused,
            "limits": store.limits(),
            "counts": store.counts(),
            "jobs": [_row(job) for job in listed],
        }


def show(which: str | int, folder: str | Path = DEFAULT_FOLDER) -> dict[str, Any]:
    """All that is known of one job.

    which   its number, or its name: then the newest of that name
    raises  QueueError
    """
    with Store(folder) as store:
        return _facts(store, store.find(which))


def _facts(store: Store, job: Job) -> dict[str, Any]:
    return {
        **_row(job),
        "after": store.needed_by(job.id),
        "resources": job.resources,
        "bundles": None if job.bundles is None else {"count": job.bundles.count, "each": dict(job.bundles.each)},
        "labels": list(job.labels),
        "stalled_after": job.stalled_after,
        "allow_pending": job.allow_pending,
        "retries": job.retries,
        "failures": job.failures,
        "entrypoint": job.entrypoint,
        "package": store.package(job),
        "metadata": job.metadata,
        "attempts": [
            {
                "submission_id": attempt.submission_id,
                "number": attempt.number,
                "sent": _time(attempt.sent_at),
                "ended": _time(attempt.ended_at),
                "exit_code": attempt.exit_code,
                "outcome": attempt.outcome,
            }
            for attempt in store.attempts(job.id)
        ],
        "events": [{"at": _time(at), "what": what} for at, what in store.events(job.id)],
    }


def _row(job: Job) -> dict[str, Any]:
    reason = job.reason
    if job.state == "queued" and job.not_before > time.time():
        reason = f"not before {_time(job.not_before)}; {reason}"
    return {
        "job": job.id,
        "name": job.name,
        "user": job.user,
        "priority": job.priority,
        "state": job.state,
        "reason": reason,
        "submitted": _time(job.submitted_at),
        "started": _time(job.started_at),
        "ended": _time(job.ended_at),
    }


def _dispatcher(store: Store) -> dict[str, Any]:
    holder, until = store.lease()
    return {
        "at_work": until > time.time() and not is_dead(holder),
        "holder": holder,
        "address": store.setting("address"),
        "trouble": store.setting("trouble"),
    }


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def logs(
    which: str | int,
    folder: str | Path = DEFAULT_FOLDER,
    *,
    attempt: int | None = None,
    follow: bool = False,
    allow_clear: bool = False,
    connect: Callable[[str], Jobs] | None = None,
    every_s: float = 1.0,
) -> Iterator[str]:
    """What a job has printed, in pieces as they come.

    attempt  its number; left out, the newest
    follow   go on until that attempt has ended
    connect  gives the Ray at an address: the dispatcher's
    raises   QueueError for a job that has not been started; RayUnreachable
    """
    with Store(folder) as store:
        job = store.find(which)
        attempts = {a.number: a for a in store.attempts(job.id)}
        if not attempts:
            raise QueueError(f"{job} has not been started: it is {job.state}")
        if attempt is not None and attempt not in attempts:
            raise QueueError(f"{job} has no attempt {attempt}; it has had {len(attempts)}")
        submission_id = attempts[attempt or max(attempts)].submission_id
        address = store.setting("address")
    if not address:
        raise QueueError("no dispatcher has connected to a Ray yet: stillgrain queue dispatch --address URL")
    jobs = _connect(address, connect, allow_clear)
    printed = 0
    while True:
        # Asked before the log is read, or the last lines could come in between.
        seen = jobs.status(submission_id) if follow else None
        text = jobs.logs(submission_id)
        if len(text) > printed:
            yield text[printed:]
            printed = len(text)
        if seen is None or seen.status in ENDED:
            return
        time.sleep(every_s)


# --- changing ---------------------------------------------------------------------------------------------------------


def stop(which: Sequence[str | int], folder: str | Path = DEFAULT_FOLDER) -> list[dict[str, Any]]:
    """End jobs; returns them. Those that come after one fail.

    raises  QueueError for one that has ended; those before it are stopped
    """
    with Store(folder) as store:
        return [_row(store.stop(store.find(w).id, time.time())) for w in which]


def retry(which: Sequence[str | int], folder: str | Path = DEFAULT_FOLDER) -> list[dict[str, Any]]:
    """Put jobs that did not succeed back into the queue, with what failed because of them; returns them.

    They run what was submitted then, not what the working directory holds now.

    raises  QueueError
    """
    with Store(folder) as store:
        return [_row(store.retry(store.find(w).id, time.time())) for w in which]


def priority(which: str | int, number: int, folder: str | Path = DEFAULT_FOLDER) -> dict[str, Any]:
    """Change when a job is started; higher goes first.

    raises  QueueError for one that has ended
    """
    with Store(folder) as store:
        return _row(store.set_priority(store.find(which).id, number, time.time()))


def pause(folder: str | Path = DEFAULT_FOLDER) -> dict[str, Any]:
    """Start no further job; what runs is left running."""
    with Store(folder) as store:
        store.set_paused(True)
    return status(folder, ended=0)


def resume(folder: str | Path = DEFAULT_FOLDER) -> dict[str, Any]:
    """Start jobs again."""
    with Store(folder) as store:
        store.set_paused(False)
    return status(folder, ended=0)


def limit(user: str, most_running: int | None, folder: str | Path = DEFAULT_FOLDER) -> dict[str, int]:
    """How many jobs of a user, or of a label, may run at once; returns all limits.

    user          '*' for everybody who has no limit of their own; 'label:X' for all jobs that have this label
    most_running  None lifts it
    """
    if most_running is not None and most_running < 0:
        raise QueueError(f"limit: {most_running} is below 0; leave it out to lift the limit")
    with Store(folder) as store:
        store.set_limit(user, most_running)
        return store.limits()


# --- the dispatcher ---------------------------------------------------------------------------------------------------


def dispatch(
    address: str,
    folder: str | Path = DEFAULT_FOLDER,
    *,
    policy: Policy = DEFAULT_POLICY,
    allow_clear: bool = False,
    moved: bool = False,
    until_idle: bool = False,
    every_s: float = 2.0,
    metrics_port: int | None = None,
    connect: Callable[[str], Jobs] | None = None,
) -> None:
    """Be the queue's dispatcher until SIGINT or SIGTERM. Ending it, in whatever way, harms no job.

    address      of Ray's dashboard
    allow_clear  see `cluster.ray_jobs.check_address`
    moved        the jobs that ran at the dispatcher's last address are gone, and may be started here
    until_idle   end when no job is left that could still run
    every_s      between two looks at everything
    metrics_port  of this machine's loopback, for Prometheus; see `cluster.metrics`
    raises       QueueError when there is a dispatcher, or this is another Ray than the running jobs'; SubmitError
    """
    jobs = _connect(address, connect, allow_clear)
    with Store(folder) as store:
        dispatcher = Dispatcher(store, jobs, policy)
        _displace_the_dead(store)
        if not dispatcher.start():
            raise QueueError(f"{store.lease()[0]} is this queue's dispatcher; there is one at a time")
        with _signals() as came, served(folder, metrics_port):
            try:
                _claim_address(store, address, moved=moved)
                broken = ""
                while not came:
                    try:
                        _round(store, dispatcher)
                        if until_idle and not store.jobs(UNFINISHED):
                            break
                        broken = ""
                    except sqlite3.OperationalError as error:
                        # A full disk, or another's lock. What was begun is taken up again, as after a death.
                        if str(error) != broken:
                            broken = str(error)
                            _log.warning("%s: %s; trying again", store.folder, broken)
                    _wait(every_s, came)
            except LeaseLost:
                raise QueueError(f"{store.lease()[0]} has taken over as this queue's dispatcher") from None
            finally:
                # Whoever comes next sees that this process is no more.
                with contextlib.suppress(sqlite3.OperationalError):
                    dispatcher.stop()


def _connect(address: str, connect: Callable[[str], Jobs] | None, allow_clear: bool) -> Jobs:
    return connect(address) if connect else RayJobs(address, allow_clear=allow_clear)


def _round(store: Store, dispatcher: Dispatcher) -> None:
    trouble = ""
    try:
        dispatcher.tick()
    except RayUnreachable as error:
        trouble = str(error)
    if trouble != store.setting("trouble"):
        store.note("trouble", trouble)
        if trouble:
            _log.warning("%s; trying again", trouble)


def _claim_address(store: Store, address: str, *, moved: bool) -> None:
    # Another Ray knows none of the running jobs. They would be taken for lost, and run twice.
    before = store.setting("address")
    running = store.jobs(ACTIVE)
    if before and before != address and running and not moved:
        raise QueueError(
            f"{len(running)} jobs run on {before}, and {address} would start them once more: give that address, or say "
            "--moved when it is the same Ray, or that one is gone"
        )
    store.note("address", address)


def _displace_the_dead(store: Store) -> None:
    holder, _ = store.lease()
    if is_dead(holder):
        store.break_lease(holder)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Those of SIGINT and SIGTERM that have come during the block, where signals can be had: on the main thread.

    No Event: its lock may be held by the very step of this thread that a signal interrupts.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(seconds: float, came: list[int]) -> None:
    """Until then, or soon after a signal has come."""
    until = time.monotonic() + seconds
    while not came and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOKS_FOR_SIGNALS_S))
