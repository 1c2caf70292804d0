"""A queue whose Ray is switched off and on again, and one of whose jobs Ray loses: told once, run by a test and by a
benchmark."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster import jobqueue
from cluster.store import NewJob, Store
from tests.cluster.ray_head import Head

LOST_AFTER_S = 4.0


def restart_story(folder: Path, *, memory: bool) -> dict[str, float]:
    """Three jobs, each after the one before; the first is taken away by its supervisor's death, the second runs while
    the head loses its power. Each must end well, in order, never twice at once.

    returns  seconds to recover, by what happened
    """
    queue, journal = folder / "queue", folder / "journal"
    with Store(queue) as store:
        for name, seconds in (("a", 6), ("b", 8), ("c", 0)):
            after = tuple(job.id for job in store.jobs()[-1:])
            store.add([NewJob(name, _entrypoint(journal, name, seconds), after=after)], time.time())
    head = Head(memory=memory)
    recovered: dict[str, float] = {}
    try:
        head.switch_on()
        dispatcher = head.dispatch(queue, LOST_AFTER_S)
        try:
            until = partial(_until, queue=queue, dispatcher=dispatcher)
            until(lambda: "begin a" in _read(journal), within_s=60)
            lost = time.monotonic()
            _kill_supervisor_of(journal)
            until(lambda: _read(journal).count("begin a") == 2, within_s=60)
            recovered["a job that Ray lost"] = time.monotonic() - lost
            until(lambda: "begin b" in _read(journal), within_s=60)
            head.switch_off()
            lost = time.monotonic()
            head.switch_on()
            recovered["the head is back"] = time.monotonic() - lost
            until(lambda: _read(journal).count("begin b") == 2, within_s=120)
            recovered["its job runs again"] = time.monotonic() - lost
            output, _ = dispatcher.communicate(timeout=90)
            assert dispatcher.returncode == 0, output
        finally:
            if dispatcher.poll() is None:
                dispatcher.kill()
                dispatcher.communicate()
    finally:
        head.close()
    jobs = [jobqueue.show(name, queue) for name in "abc"]
    assert [job["state"] for job in jobs] == ["succeeded"] * 3, jobs
    assert [len(job["attempts"]) for job in jobs] == [2, 2, 1], jobs
    words = [" ".join(line.split()[:2]) for line in _read(journal).splitlines()]
    assert words == ["begin a", "begin a", "end a", "begin b", "begin b", "end b", "begin c", "end c"], words
    return recovered


def _entrypoint(journal: Path, name: str, seconds: float) -> str:
    """Says when it begins, under which process, and when it ends."""
    return f'echo "begin {name} $PPID" >> {journal}; sleep {seconds} && echo "end {name}" >> {journal}'


def _kill_supervisor_of(journal: Path) -> None:
    """Of the job that has begun last: Ray's own process, which started it."""
    begun = [line for line in _read(journal).splitlines() if line.startswith("begin")]
    os.kill(int(begun[-1].split()[2]), signal.SIGKILL)


def _read(journal: Path) -> str:
    return journal.read_text() if journal.exists() else ""


def _until(true: Callable[[], bool], *, queue: Path, dispatcher: subprocess.Popen[str], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        ended = dispatcher.poll() is not None
        assert not ended, (dispatcher.communicate()[0], jobqueue.status(queue)["jobs"])
        assert time.monotonic() < deadline, f"not within {within_s} s: {jobqueue.status(queue)['jobs']}"
        time.sleep(0.05)
