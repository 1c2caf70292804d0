"""What was made of every file of an archive: a SQLite file beside the outputs.

It answers "is this output there, and made by this bundle with these parameters?" without reading the input, and it is
the truth after a `kill -9`: a row is on the disk before `record` returns. One process writes it, the driver of the run;
any may read it meanwhile.

    outputs   what each file holds, or why it is not there. A row belongs to the path of an output, because a file holds
              one thing: a run with another bundle replaces the row together with the file. What the file holds is named
              by its key: same key, same output
    inputs    the digest of each raw, and the size and time of change by which it is known to be still that raw; the
              JSON file that describes a headless raw has a row of its own, and is part of the raw's digest
    claims    paths that a run was about to write: after a kill a file may be there of which no row tells
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from library.errors import DataError

Status = Literal["done", "failed", "quarantined"]

SCHEMA_VERSION = 2
TABLES = (
    """
    CREATE TABLE outputs (
        output_path TEXT PRIMARY KEY,
        output_sha256 TEXT,
        output_size INTEGER,
        output_mtime_ns INTEGER,
        key TEXT,
        input_path TEXT NOT NULL,
        input_sha256 TEXT,
        input_size INTEGER,
        input_mtime_ns INTEGER,
        bundle_digest TEXT NOT NULL,
        parameters TEXT NOT NULL,
        engine TEXT NOT NULL,
        status TEXT NOT NULL,
        seconds REAL NOT NULL,
        error TEXT,
        finished_at TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE inputs (
        path TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        sha256 TEXT,
        probe TEXT,
        facts TEXT
    )
    """,
    "CREATE TABLE claims (output_path TEXT PRIMARY KEY) WITHOUT ROWID",
)


def output_key(input_sha256: str, bundle_digest: str, parameters: dict[str, Any], engine: str) -> str:
    """The name of an output by all that determines it: sha256, in hex.

    parameters  of the output, JSON-able: their order does not matter, their types do (1 is not 1.0)
    engine      version of the code that turns an input into an output
    """
    return hashlib.sha256(_canonical_json([input_sha256, bundle_digest, parameters, engine]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One output, or the failure to make it.

    input_path     relative to the archive's root; absolute for a file that was named by itself
    output_path    relative to the output folder
    *_mtime_ns     modification time as `os.stat` gives it; of the input from before it was read, or a change meanwhile
                   would go unnoticed
    parameters, engine  as in `output_key`
    seconds        duration of the work
    error          why there is no output
    finished_at    UTC, ISO 8601

    What a failure leaves unknown is None: the digest of an input that killed its worker, all about its output.
    """

    input_path: str
    input_sha256: str | None = None
    input_size: int | None = None
    input_mtime_ns: int | None = None
    bundle_digest: str
    parameters: dict[str, Any]
    engine: str
    output_path: str
    output_sha256: str | None = None
    output_size: int | None = None
    output_mtime_ns: int | None = None
    status: Status
    seconds: float
    error: str | None = None
    finished_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        assert not PurePath(self.output_path).is_absolute()
        if self.status == "done":
            assert None not in (self.input_sha256, self.input_size, self.input_mtime_ns)
            assert None not in (self.output_sha256, self.output_size, self.output_mtime_ns)

    @property
    def key(self) -> str | None:
        """None if the input's digest is unknown."""
        if self.input_sha256 is None:
            return None
        return output_key(self.input_sha256, self.bundle_digest, self.parameters, self.engine)


@dataclass(frozen=True)
class Known:
    """What is known of a raw while its size and its time of change stay.

    sha256  of its bytes; None while nobody has read them all
    probe   a digest of its first and last bytes, which tells most files of one size apart
    facts   what its metadata says, for names made of it
    """

    size: int
    mtime_ns: int
    sha256: str | None = None
    probe: str | None = None
    facts: dict[str, str] | None = None


class OutputRow(NamedTuple):
    """The part of a row that says whether there is something to do."""

    key: str | None
    status: Status
    size: int | None
    mtime_ns: int | None
    sha256: str | None
    error: str | None


class Ledger:
    """The rows of one output folder. Made by `Ledger.open` or `Ledger.read`; every method may raise DataError as these
    do."""

    def __init__(self, folder: Path, path: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self.path = path
        self.connection = connection

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Ledger]:
        """Open `<folder>/.stillgrain/ledger.sqlite` for this process alone, making it if there is none.

        Raises DataError for a ledger that another process holds, that is damaged, of an unknown schema, or in a folder
        that cannot be written.
        """
        path = _ledger_path(folder)
        with _lock(path.with_suffix(".lock")), closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            ledger = cls(folder, path, connection)
            # A write-ahead log costs one sync a row instead of three or more, and lets others read. Where the file
            # system cannot share memory (some network ones), SQLite says so and keeps its rollback journal.
            ledger._execute("PRAGMA journal_mode = WAL")
            ledger._execute("PRAGMA synchronous = EXTRA")
            ledger._check_or_create()
            yield ledger

    @classmethod
    @contextmanager
    def read(cls, folder: Path) -> Iterator[Ledger]:
        """Open the ledger to look at it only, whether or not a run is writing it.

        Raises DataError too for a folder that has none.
        """
        path = _ledger_path(folder)
        if not path.is_file():
            raise DataError(f"{folder}: holds no ledger ({path.relative_to(folder)}): give a folder that a run wrote")
        # Of a folder that nobody can write, nothing changes; only there SQLite may do without its shared memory.
        options = "mode=ro" if os.access(path.parent, os.W_OK) else "mode=ro&immutable=1"
        uri = f"{Path(os.path.abspath(path)).as_uri()}?{options}"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            ledger = cls(folder, path, connection)
            ledger._check_schema()
            yield ledger

    def record(
        self, *entries: Entry, known: Mapping[str, Known] = MappingProxyType({}), vacant: Iterable[str] = ()
    ) -> None:
        """Write the rows of some outputs, replacing older ones, and what is known of their raw, by path. All of it is
        on the disk on return, or none.

        vacant  paths of outputs that were not made, and where no file lies: what comes to lie there is somebody else's
        """
        with self._transaction():
            for entry in entries:
                row = asdict(entry) | {"key": entry.key, "parameters": _canonical_json(entry.parameters)}
                names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
                self._execute(f"INSERT OR REPLACE INTO outputs ({names}) VALUES ({places})", row)
            for path, facts in known.items():
                self._remember(path, facts)
            self._disclaim(vacant)

    def remember(self, inputs: Iterable[tuple[str, Known]]) -> None:
        """Keep what was found out about raws, by their paths."""
        with self._transaction():
            for path, known in inputs:
                self._remember(path, known)

    def inputs(self) -> dict[str, Known]:
        """All that is known of raws, by their paths."""
        return {
            path: Known(size, mtime_ns, sha256, probe, json.loads(facts) if facts else None)
            for path, size, mtime_ns, sha256, probe, facts in self._execute(
                "SELECT path, size, mtime_ns, sha256, probe, facts FROM inputs"
            )
        }

    def claim(self, output_paths: Iterable[str]) -> None:
        """Say, before it happens, which paths below the folder a run is going to write."""
        with self._transaction():
            for path in output_paths:
                self._execute("INSERT OR IGNORE INTO claims VALUES (?)", (path,))

    def disclaim(self, output_paths: Iterable[str]) -> None:
        """Take back what was said of paths that nothing was written to, and nothing is going to be."""
        with self._transaction():
            self._disclaim(output_paths)

    def _disclaim(self, output_paths: Iterable[str]) -> None:
        for path in output_paths:
            self._execute("DELETE FROM claims WHERE output_path = ?", (path,))

    def claims(self) -> set[str]:
        """Every path that a run has written or was going to: what lies there was made here."""
        rows = self._execute(
            "SELECT output_path FROM claims UNION SELECT output_path FROM outputs WHERE status = 'done'"
        )
        return {path for (path,) in rows}

    def retouch(self, mtimes_ns: Iterable[tuple[str, int]]) -> None:
        """Note new times of change of outputs whose content is still what was recorded."""
        with self._transaction():
            for path, mtime_ns in mtimes_ns:
                self._execute("UPDATE outputs SET output_mtime_ns = ? WHERE output_path = ?", (mtime_ns, path))

    def rows(self) -> Iterator[Entry]:
        """All rows as they are now, by the path of the output."""
        for row in self._execute("SELECT * FROM outputs ORDER BY output_path"):
            values = dict(row) | {"parameters": json.loads(row["parameters"])}
            del values["key"]
            self._check_inside(row["output_path"])
            yield Entry(**values)

    def keys(self) -> dict[str, OutputRow]:
        """The key and the state of every output, by its path: what it takes to see what is done, a hundred times as
        quick as `rows`."""
        columns = "output_path, key, status, output_size, output_mtime_ns, output_sha256, error"
        rows = self._execute(f"SELECT {columns} FROM outputs")
        for row in rows:
            self._check_inside(row[0])
        return {row[0]: OutputRow(*row[1:]) for row in rows}

    def _check_inside(self, output_path: str) -> None:
        """A ledger that came with its folder from elsewhere must not name files that lie outside: outputs are copied
        from one path to another."""
        if output_path.startswith("/") or ".." in output_path.split("/"):
            raise self._damage(f"it names {output_path}, which is outside of its folder")

    def counts(self) -> dict[Status, int]:
        """The number of rows of each status."""
        rows = self._execute("SELECT status, COUNT(*) AS num FROM outputs GROUP BY status")
        found = {row["status"]: row["num"] for row in rows}
        return {status: found.get(status, 0) for status in ("done", "failed", "quarantined")}

    def _remember(self, path: str, known: Known) -> None:
        facts = _canonical_json(known.facts) if known.facts is not None else None
        self._execute(
            "INSERT OR REPLACE INTO inputs (path, size, mtime_ns, sha256, probe, facts) VALUES (?, ?, ?, ?, ?, ?)",
            (path, known.size, known.mtime_ns, known.sha256, known.probe, facts),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def _execute(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """Run one statement, which outside a transaction commits itself."""
        try:
            return self.connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            raise DataError(f"{self.path}: cannot be used ({error}): see to the disk and to its permissions") from error
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # faults of our own
        except sqlite3.DatabaseError as error:
            raise self._damage(str(error)) from error

    def _check_or_create(self) -> None:
        [finding] = self._execute("PRAGMA integrity_check(1)")
        if finding[0] != "ok":
            raise self._damage(finding[0])
        [[version]] = self._execute("PRAGMA user_version")
        [[num_tables]] = self._execute("SELECT COUNT(*) FROM sqlite_master")
        if version == 0 and num_tables == 0:  # a new file, or its maker died before the next line was through
            for statement in ("BEGIN", *TABLES, f"PRAGMA user_version = {SCHEMA_VERSION}", "COMMIT"):
                self._execute(statement)
        else:
            self._check_schema()

    def _check_schema(self) -> None:
        [[version]] = self._execute("PRAGMA user_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{self.path}: has schema {version}, and this version of Stillgrain knows schema {SCHEMA_VERSION}: use "
                "the version that wrote it, or move the file away together with the outputs, and the next run makes "
                "them anew"
            )

    def _damage(self, what: str) -> DataError:
        return DataError(
            f"{self.path}: is damaged ({what}): bring it back from a backup, or move it away together with the "
            "outputs, and the next run makes them anew"
        )


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _ledger_path(folder: Path) -> Path:
    return folder / ".stillgrain" / "ledger.sqlite"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """The kernel frees the lock when its holder ends, however it ends. The file stays: removing it would be a race."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): choose another output folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise DataError(f"{path.parent.parent}: {holder} is writing here: wait for its end, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
