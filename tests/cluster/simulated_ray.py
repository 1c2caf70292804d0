"""A Ray for the queue's tests, in this process and on a clock of its own: loses answers, delays, restarts, lets drivers
die. It does what Ray 2.60 was seen to do, and keeps account of what really ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster.errors import RayUnreachable
from cluster.ray_jobs import ENDED, AlreadySubmitted, RayJob, RayNodes, RayStatus


class Killed(BaseException):
    """The dispatcher's process is no more."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Record:
    """One submission, in Ray's memory and in truth."""

    status: RayStatus = "PENDING"
    exit_code: int | None = None
    error: str | None = None
    node: str | None = None
    has_supervisor: bool = True
    stopping: bool = False
    runs: bool = False


@dataclass
class SimulatedRay:
    """`Jobs`. The next call of a name meets with the fault that stands for it in `faults`, once:

    down         no connection
    lost         it is done, but the answer is lost
    late         a submission arrives only when `deliver` is called; the answer is lost
    kill         the dispatcher dies before Ray hears of it
    killed after the dispatcher dies before it hears of the answer
    stall        the dispatcher sleeps through its lease while another takes over, and then the call goes on
    """

    slots: int = 2
    workers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Nodes beside the head, and what each has; while there are none, Ray says nothing of what nodes have."""
    grows: bool = False
    printed: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    under_way: list[str] = field(default_factory=list)
    ended_well: list[str] = field(default_factory=list)
    """Submissions whose process truly ended with exit code 0."""
    ended_badly: list[str] = field(default_factory=list)
    """Those with another exit code."""
    asked: list[str] = field(default_factory=list)
    """Submissions that a dispatcher was about to make, in their order."""
    started: list[str] = field(default_factory=list)
    refused_twice: int = 0
    while_stalled: Callable[[], None] = lambda: None
    restarts: int = 0

    # --- what the dispatcher calls ------------------------------------------------------------------------------------

    def submit(self, submission_id: str, entrypoint: str, package: str | None, metadata: Mapping[str, str]) -> None:
        self.asked.append(submission_id)
        fault = self._meet("submit", submission_id)
        self._arrive(submission_id)
        self._answer(fault)

    def status(self, submission_id: str) -> RayJob | None:
        fault = self._meet("status")
        self._answer(fault)
        return self._say(submission_id) if submission_id in self.records else None

    def stop(self, submission_id: str) -> bool:
        fault = self._meet("stop")
        heard = self._stop(submission_id)
        self._answer(fault)
        return heard

    def list(self) -> dict[str, RayJob]:
        fault = self._meet("list")
        self._answer(fault)
        return {submission_id: self._say(submission_id) for submission_id in self.records}

    def logs(self, submission_id: str) -> str:
        return f"{submission_id} was here\n" if submission_id in self.records else ""

    def mark(self, submission_id: str, node: str | None) -> str:
        fault = self._meet("mark")
        self._answer(fault)
        return self.printed.get(submission_id, "")

    def nodes(self) -> RayNodes:
        fault = self._meet("nodes")
        self._answer(fault)
        return RayNodes(frozenset({self.head, *self.workers}), self.slots, dict(self.workers), self.grows)

    # --- what happens to it -------------------------------------------------------------------------------------------

    @property
    def head(self) -> str:
        return f"head{self.restarts}"

    @property
    def running(self) -> list[str]:
        return [submission_id for submission_id, record in self.records.items() if record.runs]

    def progress(self) -> None:
        """Stop what is to be stopped, and start what has a slot."""
        for record in self.records.values():
            if record.stopping and record.has_supervisor:
                record.status, record.runs, record.has_supervisor = "STOPPED", False, False
        for submission_id, record in self.records.items():
            if record.status == "PENDING" and record.has_supervisor and len(self.running) < self.slots:
                record.status, record.runs, record.node = "RUNNING", True, self.head
                self.started.append(submission_id)

    def finish(self, submission_id: str, exit_code: int) -> None:
        """A process ends by itself."""
        record = self.records[submission_id]
        record.status = "SUCCEEDED" if exit_code == 0 else "FAILED"
        record.exit_code, record.runs, record.has_supervisor = exit_code, False, False
        (self.ended_well if exit_code == 0 else self.ended_badly).append(submission_id)

    def lose(self, submission_id: str) -> None:
        """A process is taken away, and Ray sees that."""
        record = self.records[submission_id]
        record.status, record.error = "FAILED", "JOB_SUPERVISOR_ACTOR_DIED"
        record.runs = record.has_supervisor = False

    def stop_from_outside(self, submission_id: str) -> None:
        self._stop(submission_id)

    def restart(self, *, with_memory: bool) -> None:
        """The head dies and comes back; its drivers do not, whatever its memory says of them."""
        self.restarts += 1
        self.under_way.clear()  # a connection ends with the process it was made to
        if not with_memory:
            self.records.clear()
        for record in self.records.values():
            record.runs = record.has_supervisor = False

    def notice_ghosts(self) -> None:
        """Ray's own monitor comes to see that there is nothing behind a RUNNING."""
        for submission_id, record in self.records.items():
            if record.status == "RUNNING" and not record.runs:
                self.lose(submission_id)

    def deliver(self) -> None:
        """What was under way arrives."""
        for submission_id in self.under_way:
            try:
                self._arrive(submission_id)
            except AlreadySubmitted:
                self.refused_twice += 1
        self.under_way.clear()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _meet(self, call: str, submission_id: str = "") -> str:
        fault = self.faults.pop(call, "")
        if fault == "down":
            raise RayUnreachable("no connection")
        if fault == "kill":
            raise Killed
        if fault == "stall":
            self.while_stalled()
        if fault == "late" and submission_id:
            self.under_way.append(submission_id)
            raise RayUnreachable("no answer")
        return fault

    def _answer(self, fault: str) -> None:
        if fault in ("lost", "late"):
            raise RayUnreachable("the answer is lost")
        if fault == "killed after":
            raise Killed

    def _arrive(self, submission_id: str) -> None:
        if submission_id in self.records:
            raise AlreadySubmitted(submission_id)
        self.records[submission_id] = Record()

    def _say(self, submission_id: str) -> RayJob:
        record = self.records[submission_id]
        return RayJob(record.status, record.exit_code, record.error, f"words of {submission_id}", record.node)

    def _stop(self, submission_id: str) -> bool:
        record = self.records.get(submission_id)
        if record is None or not record.has_supervisor or record.status in ENDED:
            return False
        record.stopping = True
        return True
