"""The queue's memory: one SQLite file, in which every change of a job is one transaction.

Any number of processes on this machine may read and submit. Only the dispatcher that holds the lease changes what has
to do with Ray: each of its transactions begins by making sure that the lease is still its own. A network file system
does not keep SQLite's locks: the file belongs on a local disk.

    waiting ──> queued ──> submitting ──> running ──> succeeded
       │          │  ^          │            │  ├───> failed      it ended by itself, or cannot run
       │          │  └──────────┴── again ───┤  ├───> stopped     somebody wanted it to
       └──────────┴──> stopped, failed       │  └───> lost        it was taken from us, as often as it may be tried
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.errors import QueueError
from cluster.room import Bundles

State = Literal["waiting", "queued", "submitting", "running", "succeeded", "failed", "stopped", "lost"]
ACTIVE: tuple[State, ...] = ("submitting", "running")
UNFINISHED: tuple[State, ...] = ("waiting", "queued", *ACTIVE)
_FORMAT = "2"
_BUSY_S = 30.0
_BUSY_AGAIN_S = 0.05

_SCHEMA = f"""
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL, user TEXT NOT NULL, priority INTEGER NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    entrypoint TEXT NOT NULL, package TEXT, metadata TEXT NOT NULL, resources TEXT NOT NULL,
    retries INTEGER NOT NULL, failures INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    stop_wanted INTEGER NOT NULL DEFAULT 0, failed_with INTEGER,
    submitted_at REAL NOT NULL, started_at REAL, ended_at REAL,
    labels TEXT NOT NULL DEFAULT '[]', bundles TEXT NOT NULL DEFAULT '', stalled_after REAL,
    allow_pending INTEGER NOT NULL DEFAULT 0, no_room_since REAL
);
-- Two jobs of one name would write into one run's folder.
CREATE UNIQUE INDEX one_of_a_name ON jobs (name) WHERE state IN {UNFINISHED};
CREATE INDEX in_turn ON jobs (state, priority, user, labels, not_before);
CREATE INDEX by_end ON jobs (ended_at, id);
CREATE TABLE needs (job INTEGER NOT NULL, needed INTEGER NOT NULL, PRIMARY KEY (job, needed)) WITHOUT ROWID;
CREATE INDEX needed_by ON needs (needed);
CREATE TABLE attempts (
    submission_id TEXT PRIMARY KEY, job INTEGER NOT NULL, number INTEGER NOT NULL,
    known INTEGER NOT NULL DEFAULT 0, swept INTEGER NOT NULL DEFAULT 0, sent_at REAL NOT NULL, gone_since REAL,
    ended_at REAL, exit_code INTEGER, outcome TEXT NOT NULL DEFAULT '', mark TEXT NOT NULL DEFAULT '', moved_at REAL
) WITHOUT ROWID;
CREATE INDEX attempts_of ON attempts (job, number);
CREATE TABLE users (name TEXT PRIMARY KEY, most_running INTEGER, served INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, job INTEGER NOT NULL, what TEXT NOT NULL);
CREATE INDEX events_of ON events (job, id);
CREATE TABLE lease (
    one INTEGER PRIMARY KEY CHECK (one = 1), holder TEXT NOT NULL, epoch INTEGER NOT NULL, expires REAL NOT NULL
);
INSERT INTO lease VALUES (1, '', 0, 0);
"""
_FROM_1 = """
ALTER TABLE jobs ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN bundles TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN stalled_after REAL;
ALTER TABLE jobs ADD COLUMN allow_pending INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN no_room_since REAL;
ALTER TABLE attempts ADD COLUMN mark TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN moved_at REAL;
DROP INDEX in_order;
CREATE INDEX in_turn ON jobs (state, priority, user, labels, not_before);
CREATE INDEX by_end ON jobs (ended_at, id);
"""
"""Makes a queue of format 1 one of format 2."""
_ALIKE = (
    "state = 'queued' AND not_before <= :now AND (bundles, resources, allow_pending, no_room_since)"
    " IS (SELECT bundles, resources, allow_pending, no_room_since FROM jobs WHERE id = :job)"
)


class LeaseLost(Exception):
    """Another dispatcher has taken over."""


@dataclass(frozen=True)
class NewJob:
    """What somebody wants to have run."""

    name: str
    entrypoint: str
    user: str = ""
    priority: int = 0
    """Higher goes first."""
    after: tuple[int, ...] = ()
    """Jobs that must have succeeded before."""
    retries: int = 3
    """How many more attempts there are when one does not end well; a user's error is never tried again."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What its config declares: {"CPU": 4, "GPU": 1}."""
    bundles: Bundles | None = None
    """How that is cut up; None where nobody knows."""
    labels: tuple[str, ...] = ()
    """Words by which jobs are limited together, as users are."""
    stalled_after: float | None = None
    """Seconds without a sign of progress after which it is stopped, and tried again; None for never."""
    allow_pending: bool = False
    """Started even when no node that is known has room for it: some will come."""
    package: str | None = None
    """Name of the working directory's zip in the queue's folder `packages`; a path's folder does not count."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Shown by Ray to whoever asks."""


@dataclass(frozen=True)
class Attempt:
    """One submission to Ray. Its id says which, so that submitting it twice is found out by Ray."""

    submission_id: str
    job: int
    number: int
    known: bool
    """Whether Ray has ever said that it has it."""
    swept: bool
    """Whether the dispatcher itself had it stopped: it did not start, or turned up after its job had ended."""
    sent_at: float
    """When it was last about to be submitted."""
    gone_since: float | None
    """Since when there is no sign of it where there should be one."""
    ended_at: float | None
    exit_code: int | None
    outcome: str
    mark: str
    """What its progress was known by, when that was last looked at."""
    moved_at: float | None
    """When that was last another than before."""


@dataclass(frozen=True)
class Job:
    """One job as the queue knows it."""

    id: int
    name: str
    user: str
    priority: int
    state: State
    reason: str
    """Why it is in this state, where that is not plain."""
    entrypoint: str
    package: str | None
    metadata_json: str
    resources: dict[str, float]
    retries: int
    failures: int
    not_before: float
    stop_wanted: bool
    failed_with: int | None
    """The job whose end made it fail."""
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    labels: tuple[str, ...]
    bundles: Bundles | None
    stalled_after: float | None
    allow_pending: bool
    no_room_since: float | None
    """Since when it is held back because no node has room for it."""

    @property
    def metadata(self) -> dict[str, str]:
        # Holds a whole config: parsed when asked for, not for each of ten thousand jobs in a list.
        return json.loads(self.metadata_json)

    def __str__(self) -> str:
        return f"job {self.id} ({self.name})"


class Store:
    """The queue in one folder: queue.sqlite, and packages/ for what the jobs' working directories hold."""

    def __init__(self, folder: str | Path) -> None:
        """Opens the queue, or makes an empty one that only its owner can read.

        raises  QueueError for a folder that cannot be used, or a queue of another version
        """
        # By one name, whichever it was given by: what people and dispatchers write into it must agree.
        self.folder = Path(os.path.realpath(Path(folder).expanduser()))
        file = self.folder / "queue.sqlite"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(file, isolation_level=None, timeout=_BUSY_S)
            self._db.row_factory = sqlite3.Row
            self._write_ahead()
            # A job that was accepted is on the disk, whatever happens to the machine.
            self._db.execute("PRAGMA synchronous = FULL")
            with self._changing():
                if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'settings'").fetchone():
                    for statement in _SCHEMA.split(";\n"):
                        self._db.execute(statement)
                    self._set("format", _FORMAT)
                    self._set("queue", secrets.token_hex(4))
                elif self.setting("format") == "1":
                    for statement in _FROM_1.strip().split(";\n"):
                        self._db.execute(statement)
                    self._set("format", _FORMAT)
        except (OSError, sqlite3.Error) as error:
            raise QueueError(f"{file}: cannot be used as a queue ({error}); give another folder") from None
        if self.setting("format") != _FORMAT:
            raise QueueError(f"{file}: is of format {self.setting('format')}, and this version reads {_FORMAT}")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    def setting(self, key: str, otherwise: str = "") -> str:
        row = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return row["value"] if row else otherwise

    @property
    def paused(self) -> bool:
        return self.setting("paused") == "yes"

    def job(self, job: int) -> Job:
        row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            raise QueueError(f"there is no job {job}: see stillgrain queue status --all")
        return _job(row)

    def find(self, which: str | int) -> Job:
        """A job by its number, or the newest of a name.

        raises  QueueError
        """
        if str(which).isdigit():
            return self.job(int(which))
        row = self._db.execute("SELECT * FROM jobs WHERE name = ? ORDER BY id DESC LIMIT 1", (which,)).fetchone()
        if row is None:
            raise QueueError(f"there is no job named '{which}': see stillgrain queue status --all")
        return _job(row)

    def jobs(self, states: Sequence[State] = UNFINISHED) -> list[Job]:
        """Those in these states, in the order in which they were submitted."""
        marks = ",".join("?" * len(states))
        return [_job(r) for r in self._db.execute(f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY id", states)]

    def ended_jobs(self, most: int | None) -> list[Job]:
        """Those that have ended, the last one first."""
        rows = self._db.execute(
            f"SELECT * FROM jobs WHERE state NOT IN {UNFINISHED} ORDER BY ended_at DESC, id DESC LIMIT ?",
            (-1 if most is None else most,),
        )
        return [_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {r["state"]: r["n"] for r in self._db.execute("SELECT state, COUNT(*) n FROM jobs GROUP BY state")}

    def count_attempts(self) -> tuple[int, int]:
        """Of all jobs; and those of them that ended without an exit code and were not stopped for their user."""
        row = self._db.execute(
            "SELECT COUNT(*) n, SUM(attempts.ended_at IS NOT NULL AND exit_code IS NULL"
            " AND jobs.state NOT IN ('stopped', 'succeeded')) lost FROM attempts JOIN jobs ON jobs.id = job"
        ).fetchone()
        return int(row["n"]), int(row["lost"] or 0)

    def oldest_queued(self) -> float | None:
        """When the oldest job was submitted of those that could start."""
        return self._db.execute("SELECT MIN(submitted_at) at FROM jobs WHERE state = 'queued'").fetchone()["at"]

    def attempts(self, job: int) -> list[Attempt]:
        """In their order."""
        return [_attempt(r) for r in self._db.execute("SELECT * FROM attempts WHERE job = ? ORDER BY number", (job,))]

    def events(self, job: int) -> list[tuple[float, str]]:
        """When and what has happened to a job."""
        return [
            (r["at"], r["what"]) for r in self._db.execute("SELECT * FROM events WHERE job = ? ORDER BY id", (job,))
        ]

    def needed_by(self, job: int) -> list[int]:
        """The jobs that this one comes after."""
        return [r["needed"] for r in self._db.execute("SELECT needed FROM needs WHERE job = ?", (job,))]

    def limits(self) -> dict[str, int]:
        """How many jobs a user may have running, for those who are limited; '*' is for everybody else, and 'label:X'
        for all jobs of a label."""
        rows = self._db.execute("SELECT name, most_running FROM users WHERE most_running IS NOT NULL")
        return {row["name"]: row["most_running"] for row in rows}

    def served(self) -> dict[str, int]:
        """Whose turn was when: the higher, the later a job of that user was started."""
        return {row["name"]: row["served"] for row in self._db.execute("SELECT name, served FROM users")}

    def heads(self, now: float) -> list[Job]:
        """The first job that may start, of each user at each priority with the same labels."""
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE id IN (SELECT MIN(id) FROM jobs WHERE state = 'queued' AND not_before <= ?"
            " GROUP BY priority, user, labels)",
            (now,),
        )
        return [_job(row) for row in rows]

    @property
    def packages(self) -> Path:
        """The folder of packed working directories."""
        return self.folder / "packages"

    def package(self, job: Job) -> str | None:
        """The zip that a job needs, where it lies now."""
        return job.package and str(self.packages / Path(job.package).name)

    def packages_needed(self, ended_since: float) -> set[str]:
        """Names of the packages of jobs that have not ended, or ended later than this without success and may be
        retried."""
        rows = self._db.execute(
            f"SELECT DISTINCT package FROM jobs WHERE package IS NOT NULL AND (state IN {UNFINISHED}"
            " OR (state != 'succeeded' AND ended_at >= ?))",
            (ended_since,),
        )
        return {Path(row["package"]).name for row in rows}

    def held_back(self) -> list[Bundles]:
        """What is asked for by jobs that no node had room for when they were last looked at, each once."""
        rows = self._db.execute(
            "SELECT DISTINCT bundles FROM jobs WHERE state = 'queued' AND no_room_since IS NOT NULL"
        )
        return [Bundles(*json.loads(row["bundles"])) for row in rows if row["bundles"]]

    def alike(self, job: int, now: float) -> list[int]:
        """This queued job, and those that may start and ask for the same and have been without room as long."""
        rows = self._db.execute(f"SELECT id FROM jobs WHERE {_ALIKE}", {"job": job, "now": now})
        return [row["id"] for row in rows]

    def submission_ids(self, states: Sequence[State]) -> set[str]:
        """Of the current attempts of all jobs in these states."""
        marks = ",".join("?" * len(states))
        rows = self._db.execute(
            f"SELECT submission_id FROM attempts JOIN jobs ON jobs.id = job WHERE state IN ({marks})"
            " AND number = (SELECT MAX(number) FROM attempts other WHERE other.job = jobs.id)",
            states,
        )
        return {row["submission_id"] for row in rows}

    # --- what any client does -----------------------------------------------------------------------------------------

    def add(self, jobs: Iterable[NewJob], now: float) -> list[int]:
        """Take in jobs, all or none; returns their numbers.

        raises  QueueError for a name that an unfinished job has, or a job to come after that will never succeed
        """
        numbers = []
        with self._changing():
            for new in jobs:
                for needed in new.after:
                    before = self.job(needed)
                    if before.state in ("failed", "stopped", "lost"):
                        raise QueueError(
                            f"after: {before} is {before.state}, so {new.name} would never start: "
                            f"stillgrain queue retry {before.id}"
                        )
                self._check_name_is_free(new.name)
                ready = all(self.job(needed).state == "succeeded" for needed in new.after)
                cursor = self._db.execute(
                    "INSERT INTO jobs (name, user, priority, state, entrypoint, package, metadata, resources, retries,"
                    " submitted_at, labels, bundles, stalled_after, allow_pending)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        new.name,
                        new.user,
                        new.priority,
                        "queued" if ready else "waiting",
                        new.entrypoint,
                        new.package,
                        json.dumps(dict(new.metadata)),
                        json.dumps(dict(new.resources)),
                        new.retries,
                        now,
                        json.dumps(sorted(set(new.labels))),
                        _bundles_text(new.bundles) if new.bundles else "",
                        new.stalled_after,
                        new.allow_pending,
                    ),
                )
                number = cursor.lastrowid
                assert number is not None
                self._db.executemany(
                    "INSERT INTO needs VALUES (?, ?)", [(number, needed) for needed in dict.fromkeys(new.after)]
                )
                self._tell(now, number, "submitted")
                numbers.append(number)
        return numbers

    def stop(self, job: int, now: float) -> Job:
        """End a job: at once when it has not been started, else as soon as the dispatcher has told Ray.

        raises  QueueError when it has ended already
        """
        with self._changing():
            there = self.job(job)
            if there.state in ("waiting", "queued"):
                self._end(there, "stopped", "stopped before it was started", now)
            elif there.state in ACTIVE:
                self._db.execute("UPDATE jobs SET stop_wanted = 1, reason = 'is being stopped' WHERE id = ?", (job,))
                self._tell(now, job, "stop wanted")
            else:
                raise QueueError(f"{there} has ended already: it {_ended_as(there.state)}")
            return self.job(job)

    def retry(self, job: int, now: float) -> Job:
        """Put a job that did not succeed back into the queue, and with it those that failed because of it.

        raises  QueueError for one that succeeded or has not ended, or whose name another job has
        """
        with self._changing():
            there = self.job(job)
            if there.state in UNFINISHED:
                raise QueueError(f"{there} has not ended: it is {there.state}")
            if there.state == "succeeded":
                raise QueueError(f"{there} has succeeded: to run it again, submit it again")
            for needed in map(self.job, self.needed_by(job)):
                if needed.state in ("failed", "stopped", "lost"):
                    raise QueueError(f"{there} comes after {needed}, which is {needed.state}: retry that one")
            self._check_name_is_free(there.name)
            self._revive(there, now)
            return self.job(job)

    def set_priority(self, job: int, priority: int, now: float) -> Job:
        """raises  QueueError for one that has ended"""
        with self._changing():
            there = self.job(job)
            if there.state not in UNFINISHED:
                raise QueueError(f"{there} has ended already: it {_ended_as(there.state)}")
            self._db.execute("UPDATE jobs SET priority = ? WHERE id = ?", (priority, job))
            self._tell(now, job, f"priority {priority}")
            return self.job(job)

    def set_paused(self, paused: bool) -> None:
        """Start no job, or go on. What runs is left running."""
        with self._changing():
            self._set("paused", "yes" if paused else "no")

    def set_limit(self, user: str, most_running: int | None) -> None:
        """How many jobs of a user may run at once; '*' for everybody who has no limit of their own, 'label:X' for all
        jobs of a label. None lifts it."""
        with self._changing():
            self._db.execute(
                "INSERT INTO users (name, most_running) VALUES (?1, ?2)"
                " ON CONFLICT (name) DO UPDATE SET most_running = ?2",
                (user, most_running),
            )

    def note(self, key: str, value: str) -> None:
        """Keep a fact for everybody who reads the queue."""
        with self._changing():
            self._set(key, value)

    # --- what the dispatcher does -------------------------------------------------------------------------------------

    def take_lease(self, holder: str, now: float, lasts_s: float) -> int | None:
        """Become the dispatcher, unless there is one; returns the number to show in every change."""
        with self._changing():
            lease = self._db.execute("SELECT * FROM lease").fetchone()
            if lease["expires"] > now:
                return None
            self._db.execute("UPDATE lease SET holder = ?, epoch = epoch + 1, expires = ?", (holder, now + lasts_s))
            return int(lease["epoch"]) + 1

    def release_lease(self, epoch: int) -> None:
        """Let the next dispatcher start at once."""
        with self._changing():
            self._db.execute("UPDATE lease SET expires = 0 WHERE epoch = ?", (epoch,))

    def break_lease(self, holder: str) -> None:
        """Let the next dispatcher start at once, because this one is known to be no more."""
        with self._changing():
            self._db.execute("UPDATE lease SET expires = 0 WHERE holder = ?", (holder,))

    def lease(self) -> tuple[str, float]:
        """Who the dispatcher is or was, and until when."""
        row = self._db.execute("SELECT * FROM lease").fetchone()
        return row["holder"], row["expires"]

    @contextlib.contextmanager
    def as_dispatcher(self, epoch: int, until: float) -> Iterator[Store]:
        """One transaction of the dispatcher, which also prolongs its lease.

        raises  LeaseLost before anything is changed
        """
        with self._changing():
            # An expired lease that nobody has taken is still ours.
            if not self._db.execute("UPDATE lease SET expires = ? WHERE epoch = ?", (until, epoch)).rowcount:
                raise LeaseLost
            yield self

    def begin_attempt(self, job: int, now: float) -> Attempt | None:
        """Write down that a job is about to be submitted, before it is. None when it is no longer to be.

        An attempt of which Ray never knew is taken up again under its id: should that submission still be under way,
        Ray will refuse the second of the two.
        """
        there = self.job(job)
        if there.state != "queued" or self.paused:
            return None
        last = next(reversed(self.attempts(job)), None)
        if last is not None and not last.known:
            self._db.execute(
                "UPDATE attempts SET sent_at = ?, gone_since = NULL, ended_at = NULL, outcome = '', mark = '',"
                " moved_at = NULL WHERE submission_id = ?",
                (now, last.submission_id),
            )
        else:
            number = last.number + 1 if last else 1
            self._db.execute(
                "INSERT INTO attempts (submission_id, job, number, sent_at) VALUES (?, ?, ?, ?)",
                (f"stillgrain-{self.setting('queue')}-{job}-{number}", job, number, now),
            )
        self._db.execute(
            "UPDATE jobs SET state = 'submitting', reason = '', started_at = ?, no_room_since = NULL WHERE id = ?",
            (now, job),
        )
        self._db.execute(
            "INSERT INTO users (name, served) SELECT ?1, COALESCE(MAX(served), 0) + 1 FROM users WHERE true"
            " ON CONFLICT (name) DO UPDATE SET served = (SELECT MAX(served) + 1 FROM users)",
            (there.user,),
        )
        self._tell(now, job, "submitting")
        return self.attempts(job)[-1]

    def keep(self, key: str, value: str) -> None:
        """As `note`, within a transaction."""
        self._set(key, value)

    def about_to_send(self, attempt: Attempt, now: float) -> None:
        self._db.execute("UPDATE attempts SET sent_at = ? WHERE submission_id = ?", (now, attempt.submission_id))

    def sweep(self, submission_id: str, why: str) -> None:
        """It is being stopped by the dispatcher itself.

        why  nothing when it only turned up late
        """
        self._db.execute(
            "UPDATE attempts SET swept = 1, outcome = IIF(?1 = '', outcome, ?1) WHERE submission_id = ?2",
            (why, submission_id),
        )

    def attempt_is_known(self, attempt: Attempt, now: float) -> None:
        """Ray has it."""
        self._db.execute("UPDATE attempts SET known = 1 WHERE submission_id = ?", (attempt.submission_id,))
        changed = self._db.execute(
            "UPDATE jobs SET state = 'running', reason = IIF(stop_wanted, reason, '')"
            " WHERE id = ? AND state = 'submitting'",
            (attempt.job,),
        )
        if changed.rowcount:
            self._tell(now, attempt.job, f"running as {attempt.submission_id}")

    def attempt_is_gone(self, attempt: Attempt, since: float | None) -> None:
        """There is no sign of it, since then; or there is one again."""
        self._db.execute("UPDATE attempts SET gone_since = ? WHERE submission_id = ?", (since, attempt.submission_id))

    def attempt_has_moved(self, attempt: Attempt, mark: str, now: float) -> None:
        """There is progress, known by another mark than before."""
        self._db.execute(
            "UPDATE attempts SET mark = ?, moved_at = ? WHERE submission_id = ?", (mark, now, attempt.submission_id)
        )

    def hold_back(self, job: int, reason: str, since: float, now: float, until: float) -> None:
        """Let others go first, because no node has room for this one and those alike."""
        self._db.execute(
            f"UPDATE jobs SET reason = :reason, no_room_since = :since, not_before = :until WHERE {_ALIKE}",
            {"job": job, "reason": reason, "since": since, "now": now, "until": until},
        )

    def let_go(self, bundles: Bundles) -> None:
        """There is room again for those that were held back and ask for this."""
        self._db.execute(
            "UPDATE jobs SET reason = '', no_room_since = NULL, not_before = 0"
            " WHERE state = 'queued' AND no_room_since IS NOT NULL AND bundles = ?",
            (_bundles_text(bundles),),
        )

    def explain(self, job: int, reason: str) -> None:
        self._db.execute("UPDATE jobs SET reason = ? WHERE id = ?", (reason, job))

    def end_attempt(self, attempt: Attempt, outcome: str, now: float, exit_code: int | None = None) -> None:
        self._db.execute(
            "UPDATE attempts SET ended_at = ?, outcome = ?, exit_code = ? WHERE submission_id = ?",
            (now, outcome, exit_code, attempt.submission_id),
        )

    def end(self, job: int, state: State, reason: str, now: float) -> None:
        """A job's end, and what follows from it for those that come after it."""
        self._end(self.job(job), state, reason, now)

    def again(self, job: int, reason: str, now: float, *, not_before: float, failures: int) -> None:
        """Back into the queue.

        failures  how many of its attempts have not ended well
        """
        self._db.execute(
            "UPDATE jobs SET state = 'queued', reason = ?, not_before = ?, failures = ? WHERE id = ?",
            (reason, not_before, failures, job),
        )
        self._tell(now, job, f"to be tried again: {reason}")

    # --- inside a transaction -----------------------------------------------------------------------------------------

    def _write_ahead(self) -> None:
        """So that readers and a writer do not wait for each other. Two that change a new file to this at once would
        wait for each other for ever: then SQLite tells one of them at once, whatever its timeout, to try again."""
        until = time.monotonic() + _BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(_BUSY_AGAIN_S)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # Of some errors, such as a full disk, SQLite may have rolled back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _set(self, key: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO settings VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2", (key, value)
        )

    def _tell(self, now: float, job: int, what: str) -> None:
        self._db.execute("INSERT INTO events (at, job, what) VALUES (?, ?, ?)", (now, job, what))

    def _check_name_is_free(self, name: str) -> None:
        row = self._db.execute(f"SELECT * FROM jobs WHERE name = ? AND state IN {UNFINISHED}", (name,)).fetchone()
        if row is not None:
            raise QueueError(
                f"name: {_job(row)} is {row['state']}, and two of one name would write into one folder: give another "
                f"name, or stillgrain queue stop {row['id']}"
            )

    def _end(self, job: Job, state: State, reason: str, now: float) -> None:
        pending: list[tuple[Job, State, str, int | None]] = [(job, state, reason, None)]
        while pending:
            there, state, reason, failed_with = pending.pop()
            if self.job(there.id).state not in UNFINISHED:
                continue  # it comes after two jobs that have failed
            self._db.execute(
                "UPDATE jobs SET state = ?, reason = ?, failed_with = ?, ended_at = ?, stop_wanted = 0 WHERE id = ?",
                (state, reason, failed_with, now, there.id),
            )
            self._tell(now, there.id, f"{state}: {reason}" if reason else state)
            rows = self._db.execute(
                "SELECT jobs.* FROM jobs JOIN needs ON needs.job = jobs.id WHERE needed = ? AND state = 'waiting'",
                (there.id,),
            )
            for after in map(_job, rows.fetchall()):
                if state != "succeeded":
                    why = f"comes after job {there.id} ({there.name}), which {_ended_as(state)}"
                    pending.append((after, "failed", f"{why}: {reason}" if reason else why, there.id))
                elif all(self.job(needed).state == "succeeded" for needed in self.needed_by(after.id)):
                    self._db.execute("UPDATE jobs SET state = 'queued' WHERE id = ?", (after.id,))

    def _revive(self, job: Job, now: float) -> None:
        pending = [job]
        while pending:
            there = pending.pop()
            needed = [self.job(n) for n in self.needed_by(there.id)]
            # Another job that it comes after may have failed since; that one's retry will bring it back.
            other = next((n for n in needed if n.state in ("failed", "stopped", "lost")), None)
            taken = self._db.execute(
                f"SELECT 1 FROM jobs WHERE name = ? AND state IN {UNFINISHED}", (there.name,)
            ).fetchone()
            if other is not None or taken:
                self._db.execute(
                    "UPDATE jobs SET failed_with = COALESCE(?, failed_with) WHERE id = ?",
                    (other.id if other else None, there.id),
                )
                continue
            self._db.execute(
                "UPDATE jobs SET state = ?, reason = '', failures = 0, not_before = 0, failed_with = NULL,"
                " no_room_since = NULL, ended_at = NULL WHERE id = ?",
                ("queued" if all(n.state == "succeeded" for n in needed) else "waiting", there.id),
            )
            self._tell(now, there.id, "retried")
            rows = self._db.execute("SELECT * FROM jobs WHERE failed_with = ? AND state = 'failed'", (there.id,))
            pending += map(_job, rows.fetchall())


def _bundles_text(bundles: Bundles) -> str:
    return json.dumps([bundles.count, dict(bundles.each)])


def _ended_as(state: State) -> str:
    return {"stopped": "was stopped", "lost": "was lost"}.get(state, str(state))


def _job(row: sqlite3.Row) -> Job:
    values: dict[str, Any] = dict(row)
    values["metadata_json"] = values.pop("metadata")
    values["resources"] = json.loads(row["resources"])
    values["labels"] = tuple(json.loads(row["labels"]))
    values["bundles"] = Bundles(*json.loads(row["bundles"])) if row["bundles"] else None
    for key in ("stop_wanted", "allow_pending"):
        values[key] = bool(row[key])
    return Job(**values)


def _attempt(row: sqlite3.Row) -> Attempt:
    values: dict[str, Any] = dict(row)
    values["known"] = bool(row["known"])
    values["swept"] = bool(row["swept"])
    return Attempt(**values)
