"""Ending exactly the processes that were started here, whatever became of their numbers since.

A process is its number and the time it started at: a number is used again, the pair is not. Signals go through a file
descriptor of the process, so that nobody slips in between looking and sending. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LOOK_AGAIN_S = 0.1
_KILLED_WITHIN_S = 20.0


@dataclass(frozen=True, order=True)
class Process:
    """One process, never another that has its number later."""

    pid: int
    started: int
    """Clock ticks from the machine's start to the process's own: field 22 of /proc/PID/stat, see proc(5)."""


def find(pid: int) -> Process | None:
    """The process that has this number now; None when there is none, or only its remains."""
    facts = _stat(pid)
    return None if facts is None else facts[0]


def is_alive(process: Process) -> bool:
    return find(process.pid) == process


def send(process: Process, number: signal.Signals) -> bool:
    """Send a signal to this process and no other. False when it has ended, or is somebody else's."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def family(roots: Collection[Process], mark: str) -> set[Process]:
    """These processes, their descendants, and whoever carries the mark, with their descendants.

    mark  NAME=VALUE in the environment a process was started with. It finds those whose parent has ended; the tree
          finds those that have written over their environment, as Ray's workers do to change their title
    """
    parents: dict[Process, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (facts := _stat(int(entry.name))) is not None:
            parents[facts[0]] = facts[1]
    found = {process for process in roots if process in parents}
    found |= {process for process in parents if process not in found and _carries(process.pid, mark)}
    numbers = {process.pid for process in found}
    while more := {process for process, parent in parents.items() if parent in numbers and process not in found}:
        found |= more
        numbers |= {process.pid for process in more}
    return found - {process for process in found if process.pid == os.getpid()}


def end(roots: Collection[Process], mark: str, *, grace_s: float) -> int:
    """End these processes and all that came of them.

    mark     see `family`
    grace_s  how long they may take for it; 0 kills at once, as a machine does that is switched off
    returns  how many there were
    raises   TimeoutError if any is left, which Linux allows for one that waits on a disk only
    """
    known = family(roots, mark)
    started = time.monotonic()
    if grace_s:
        for process in roots:
            send(process, signal.SIGTERM)
    while alive := {process for process in known if is_alive(process)}:
        waited = time.monotonic() - started
        if waited >= grace_s:
            for process in alive:
                send(process, signal.SIGKILL)
        if waited > grace_s + _KILLED_WITHIN_S:
            raise TimeoutError(f"processes that do not end: {sorted(process.pid for process in alive)}")
        _reap(roots)
        time.sleep(_LOOK_AGAIN_S)
        known |= family(alive, mark)
    _reap(roots)
    return len(known)


def boot() -> str:
    """A name for the time since the machine was started: times of processes count from there."""
    return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()


def _stat(pid: int) -> tuple[Process, int] | None:
    """A living process, and the number of its parent."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the command's name in parentheses, which may hold anything.
    fields = text.rpartition(")")[2].split()
    state, parent, started = fields[0], int(fields[1]), int(fields[19])
    return None if state in "ZX" else (Process(pid, started), parent)


def _carries(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False  # somebody else's, or it has just ended


def _reap(processes: Collection[Process]) -> None:
    """Collect those that are children of this process; all others are collected by their parents."""
    for process in processes:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
