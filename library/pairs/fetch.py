"""Fetch a data set from a Dataverse repository: many files at once, each resumed where a connection broke, and under
its name only when its bytes have the checksums that were promised.

Source: Dataverse API guide, native API (list files in a dataset) and data access API.
"""

from __future__ import annotations

import email.utils
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import requests

from library.errors import ConfigError, DataError
from library.pairs.names import parse_name

DATASETS = {"rawnind": "doi:10.14428/DVN/DEQCIM"}
"""DOIs of data sets whose names are known here."""
LATEST = ":latest-published"

_BLOCK = 1 << 20
_ROOM_TO_SPARE = 64 << 20
"""Bytes of the disk that are left to others."""
_LONGEST_WAIT = 600.0
"""Seconds. A server may ask for any time."""
_LISTING_ATTEMPTS = 4
"""At most: a person waits for it, whose address may be mistyped."""
_MOST_WRONG = 3
"""Times that a file may come with wrong bytes, before it is believed that the server has no others."""
_ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
"""Of checksums that a repository may choose, by the names hashlib has for them."""
_TRY_AGAIN = (408, 425, 429)
"""Of the client errors, those that may pass."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of the listing.

    place      relative to the folder that all is fetched to
    checksums  by the name hashlib has for them, in lower-case hex
    problem    why it cannot be fetched, where the listing alone tells
    """

    place: str
    url: str
    size: int
    checksums: dict[str, str]
    problem: str = ""

    def is_at(self, path: Path) -> bool:
        """Whether it is there already. Its bytes decide only where it has another size than the listing says, since
        reading them all would take as long as an archive is large."""
        if not path.is_file():
            return False
        if path.stat().st_size == self.size:
            return True
        present = _Part(path, tuple(self.checksums))
        present.begin()
        return bool(self.checksums) and present.has(self.checksums)


@dataclass(frozen=True)
class Fetched:
    """What came of each file.

    fetched  places of files that came now
    present  and of those that were there
    failed   (place, reason)
    """

    folder: Path
    fetched: tuple[str, ...]
    present: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    bytes_fetched: int

    @property
    def exit_code(self) -> int:
        """1 when a file could not be fetched."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        counts = (
            f"{self.folder}: {len(self.fetched)} files fetched ({self.bytes_fetched / 1e9:.2f} GB), "
            f"{len(self.present)} there already, {len(self.failed)} failed"
        )
        return "\n".join([*(f"{place}: {reason}" for place, reason in self.failed), counts])


@dataclass(frozen=True)
class Policy:
    """How patient a fetch is.

    attempts  in a row that bring nothing new, for each file
    timeout   seconds without a byte after which a connection counts as broken
    back_off  seconds before the second attempt; doubled for each further one
    wait      sleeps that many seconds; left out, until then or until the fetch is stopped
    """

    attempts: int = 8
    timeout: float = 60.0
    back_off: float = 1.0
    wait: Callable[[float], object] | None = None


def fetch(
    dataset: str,
    folder: str | Path,
    *,
    base_url: str,
    version: str = LATEST,
    only: str = "*",
    connections: int = 4,
    policy: Policy = Policy(),
    progress: Callable[[Sequence[Future[int | None]]], Iterable[Future[int | None]]] = iter,
) -> Fetched:
    """Fetch a data set's files. Doing it again fetches what is missing, and goes on with what was begun.

    A file is checked against the SHA-1 in its name, where it has one, and against the listing's own checksum. Until
    then it is a dot-named `.part` beside its place. A file that is there with the listing's size is not fetched again;
    what its bytes are, `library.pairs.check` says. A file that cannot be fetched harms only itself.

    dataset      one of `DATASETS`, or a persistent identifier such as a DOI: `doi:10.14428/DVN/DEQCIM`
    base_url     of the Dataverse repository that holds it: `https://HOST`
    version      of the data set: `1.0`, say
    only         pattern of file names, as a shell has them: `Bayer_*_GT_*`
    connections  files at a time
    progress     hands on the files' results while it shows how far they are
    raises       ConfigError for an address that is none; DataError when the listing cannot be had, nothing fits the
                 pattern, the disk has no room for all of it, or another fetch works in the folder
    """
    folder = Path(folder)
    with _locked(folder), _Client(policy) as client:
        files = [file for file in _listing(client, dataset, base_url, version) if _fits(file.place, only)]
        if not files:
            raise DataError(f"{dataset}: has no file called {only}: correct the pattern; * stands for any letters")
        _make_room(files, folder)
        with ThreadPoolExecutor(connections) as pool:
            jobs = [pool.submit(client.download, file, folder) for file in files]
            try:
                results = [_outcome(done) for done in progress(jobs)]
            except BaseException:
                client.stop()
                pool.shutdown(cancel_futures=True)
                raise
    done = list(zip((file.place for file in files), results, strict=True))
    return Fetched(
        folder,
        tuple(place for place, result in done if isinstance(result, int)),
        tuple(place for place, result in done if result is None),
        tuple((place, str(result)) for place, result in done if isinstance(result, _FetchError)),
        sum(result for result in results if isinstance(result, int)),
    )


class _FetchError(Exception):
    """Why one file could not be fetched."""


class _Broken(Exception):
    """An attempt that ended early. `wait`: seconds that the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass
class _Part:
    """A file on its way: what is on the disk, and the checksums of that."""

    path: Path
    algorithms: tuple[str, ...]
    size: int = 0
    digests: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """Take up what is there."""
        self._forget()
        if self.path.exists():
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK):
                    self._count(block)

    def append(self, blocks: Iterable[bytes], limit: int) -> None:
        """Stops when there is more than `limit` bytes."""
        with self.path.open("ab") as file:
            for block in blocks:
                file.write(block)
                self._count(block)
                if self.size > limit:
                    return

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._forget()

    def has(self, checksums: dict[str, str]) -> bool:
        return all(self.digests[name].hexdigest() == value for name, value in checksums.items())

    def finish(self, target: Path) -> None:
        """Under its name from now on."""
        self.path.touch()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _forget(self) -> None:
        self.size = 0
        self.digests = {name: hashlib.new(name) for name in self.algorithms}

    def _count(self, block: bytes) -> None:
        self.size += len(block)
        for digest in self.digests.values():
            digest.update(block)


class _Client:
    """Talks to one repository from many threads."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._stopped = threading.Event()
        self._sessions = threading.local()
        self._open: list[requests.Session] = []

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._open:
            session.close()

    def stop(self) -> None:
        """Ends every wait and every download at its next block."""
        self._stopped.set()

    def json(self, url: str, query: dict[str, str]) -> Any:
        """What an address answers, as JSON. Raises `_FetchError`."""

        def attempt() -> bytes:
            with self._get(url, query=query) as response:
                try:
                    return response.content
                except (requests.RequestException, ConnectionError) as error:
                    raise _Broken(f"broke off ({_said(error)})") from error

        return json.loads(self._persist(attempt, lambda: 0, min(self.policy.attempts, _LISTING_ATTEMPTS)))

    def download(self, file: RemoteFile, folder: Path) -> int | None:
        """Bytes that came for a file, or None when it was there. Raises `_FetchError`, or DataError when the disk is
        full."""
        if file.problem:
            raise _FetchError(file.problem)
        target = folder / file.place
        part = _Part(_part_of(target), tuple(file.checksums))
        came = wrong = 0

        def is_whole() -> bool:
            # The checksums have the last word: a listing may be wrong about a size.
            return part.has(file.checksums) if file.checksums else part.size == file.size

        def attempt() -> None:
            nonlocal came, wrong
            if part.size and is_whole():
                return
            before = part.size
            try:
                self._continue(file, part)
            finally:
                came += max(0, part.size - before)
            if is_whole():
                return
            if part.size < file.size:
                raise _Broken(f"ended after {part.size} of {file.size} bytes")
            part.discard()
            wrong += 1
            if wrong == _MOST_WRONG:
                raise _FetchError(f"came {wrong} times with bytes of another checksum: tell who keeps the data set")
            raise _Broken("came with bytes of another checksum")

        try:
            if file.is_at(target):
                return None
            target.parent.mkdir(parents=True, exist_ok=True)
            part.begin()
            self._persist(attempt, lambda: came, self.policy.attempts)
            part.finish(target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(f"{folder}: the disk is full: free some space and fetch again") from error
            raise _FetchError(f"cannot be written ({error.strerror}): check the folder's permissions") from error
        return came

    def _continue(self, file: RemoteFile, part: _Part) -> None:
        """One request for what is missing; returns when the server has sent all it wants to send."""
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        with self._get(file.url, headers=headers) as response:
            start = 0
            if response.status_code == 206:
                place = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
                start = int(place[1]) if place else -1
            if response.status_code == 416:
                part.discard()
                raise _Broken("is shorter at the server than what was fetched of it")
            if start != part.size:
                part.discard()
                if start:
                    raise _Broken("came from another place than was asked for")
            length = response.headers.get("Content-Length", "")
            said = int(length) if length.isdigit() else 0
            try:
                # A server that never stops must not fill the disk.
                part.append(self._blocks(response), max(file.size, part.size + said) + _BLOCK)
            except (requests.RequestException, ConnectionError) as error:
                raise _Broken(f"broke off after {part.size} of {file.size} bytes ({_said(error)})") from error

    def _blocks(self, response: requests.Response) -> Iterator[bytes]:
        for block in response.iter_content(_BLOCK // 16):
            if self._stopped.is_set():
                raise _FetchError("was stopped")
            yield block

    def _get(
        self, url: str, *, query: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> requests.Response:
        """An answer of status 200, 206 or 416, whose body is still to come."""
        # Compressed on the way, a body has another length than was said, and a range another meaning.
        headers = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            response = self._session().get(
                url, params=query, headers=headers, stream=True, timeout=(self.policy.timeout, self.policy.timeout)
            )
        except requests.RequestException as error:
            raise _Broken(f"cannot be reached ({_said(error)})") from error
        if response.status_code in (200, 206, 416):
            return response
        with response:
            status = f"{response.status_code} {response.reason}".strip()
            if 400 <= response.status_code < 500 and response.status_code not in _TRY_AGAIN:
                raise _FetchError(f"the server answers {status}: it is not there, or not public")
            raise _Broken(f"the server answers {status}", _retry_after(response.headers.get("Retry-After")))

    def _session(self) -> requests.Session:
        if not hasattr(self._sessions, "own"):
            self._sessions.own = requests.Session()
            self._open.append(self._sessions.own)
        return self._sessions.own

    def _persist(self, attempt: Callable[[], Any], progress: Callable[[], int], attempts: int) -> Any:
        """Attempts until one succeeds, waiting longer each time, or until `attempts` in a row bring nothing new."""
        failures, best = 0, progress()
        while True:
            try:
                return attempt()
            except _Broken as error:
                failures, best = (1, progress()) if progress() > best else (failures + 1, best)
                if failures >= attempts:
                    raise _FetchError(f"{error}, {failures} times in a row: fetch again later") from error
                # Spread out, or all connections that a server sent away come back at once.
                pause = self.policy.back_off * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
                (self.policy.wait or self._stopped.wait)(min(max(pause, error.wait or 0.0), _LONGEST_WAIT))
                if self._stopped.is_set():
                    raise _FetchError("was stopped") from error


def _listing(client: _Client, dataset: str, base_url: str, version: str) -> list[RemoteFile]:
    identifier = DATASETS.get(dataset, dataset)
    if ":" not in identifier:
        known = ", ".join(DATASETS)
        raise ConfigError(f"dataset '{dataset}' is not known: known are {known}; or give its DOI, as doi:10.14428/...")
    if not re.match(r"https?://[^/]+", base_url):
        raise ConfigError(f"'{base_url}' is no address of a Dataverse repository: give one such as https://HOST")
    base_url = base_url.rstrip("/")
    url = f"{base_url}/api/datasets/:persistentId/versions/{version}/files"
    try:
        answer = client.json(url, {"persistentId": identifier})
        files = {file.place: file for file in (_remote_file(entry, base_url) for entry in answer["data"])}
        return list(files.values())
    except _FetchError as error:
        raise DataError(f"{url}: the listing of {identifier}: {error}; check the repository's address") from None
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{url}: gives no listing of a Dataverse data set ({error!r}): check the address of the repository"
        ) from None


def _remote_file(entry: dict[str, Any], base_url: str) -> RemoteFile:
    facts = entry["dataFile"]
    place = PurePosixPath(entry.get("directoryLabel") or "", entry["label"])
    problem = ""
    # Names come from outside, and none may lead out of the folder or hide in it.
    if place.is_absolute() or any(part.startswith(".") or "\\" in part or "\0" in part for part in place.parts):
        problem = "its name would lead out of the folder, or hide in it"
    checksums = {}
    checksum = facts.get("checksum") or ({"type": "MD5", "value": facts["md5"]} if "md5" in facts else None)
    if checksum:
        algorithm = checksum["type"].lower().replace("-", "")
        if algorithm in _ALGORITHMS:
            checksums[algorithm] = checksum["value"].lower()
    name = parse_name(place.name)
    if name is not None and not name.is_sidecar:
        if checksums.get("sha1", name.sha1) != name.sha1:
            problem = (
                f"the listing has the SHA-1 {checksums['sha1']}, and its name another: tell who keeps the data set"
            )
        checksums["sha1"] = name.sha1
    url = f"{base_url}/api/access/datafile/{int(facts['id'])}"
    return RemoteFile(str(place), url, int(facts["filesize"]), checksums, problem)


def _make_room(files: Sequence[RemoteFile], folder: Path) -> None:
    missing = 0
    for file in files:
        target = folder / file.place
        if not file.problem and not (target.is_file() and target.stat().st_size == file.size):
            part = _part_of(target)
            missing += file.size - min(file.size, part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(folder).free
    if missing and missing + _ROOM_TO_SPARE > free:
        raise DataError(
            f"{folder}: {missing / 1e9:.2f} GB are to be fetched and {free / 1e9:.2f} GB are free: "
            "free some space, choose another disk, or fetch a part with a pattern of names"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One fetch a folder at a time, or two would write the same parts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".fetch.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}): check its permissions") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another fetch works in this folder: wait until it is done") from None
        except OSError:
            pass  # a file system without locks, where nobody looks out
        yield
    finally:
        os.close(descriptor)


def _outcome(done: Future[int | None]) -> int | _FetchError | None:
    try:
        return done.result()
    except _FetchError as error:
        return error


def _part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _fits(place: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(place, pattern) or fnmatch.fnmatchcase(PurePosixPath(place).name, pattern)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which has them as such or as a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _said(error: Exception) -> str:
    """The innermost reason of an exception that wraps others."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, Exception):
            return type(error).__name__
        error = inner
