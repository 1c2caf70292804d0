"""What the queue asks of Ray, and Ray's own job client behind it.

The queue knows `Jobs` only, so that its tests can put a Ray there that loses answers and restarts.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlencode, urlsplit

from cluster.errors import RayUnreachable, SubmitError

RayStatus = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
ENDED: frozenset[str] = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
SLOT = "job_slot"
_CONNECT_S = 10.0
# How much of an entrypoint's last words is kept with a job; the log has all of them.
_MESSAGE_CHARS = 2000
_MARK_LINES = 20
# Ray answers 500 for whatever it cannot read, an agent that is away included; this is a log without a line in it yet.
_NO_LOG_YET = "A file is not found at"
# Ray's name for the type of a node that no autoscaler has started, as the dashboard writes it.
_OF_ITS_ID = re.compile(r"^node_?[0-9a-f]+$", re.I)


@dataclass(frozen=True)
class RayJob:
    """What Ray says of one submission."""

    status: RayStatus
    exit_code: int | None = None
    """Of the entrypoint, once it has ended by itself."""
    error: str | None = None
    """Ray's word for what went wrong, such as JOB_SUPERVISOR_ACTOR_DIED."""
    message: str = ""
    node: str | None = None
    """Id of the node where the entrypoint runs or ran."""


@dataclass(frozen=True)
class RayNodes:
    """The nodes that are alive."""

    ids: frozenset[str]
    job_slots: int | None
    """How many jobs the cluster lets run at once; None where no node declares the resource."""
    resources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each has in all, by its id: {"CPU": 8, "GPU": 1}."""
    grows: bool = False
    """Whether an autoscaler looks after the cluster: nodes may come that nobody has seen yet."""


class AlreadySubmitted(Exception):
    """Ray knows this submission id."""


class Refused(Exception):
    """Ray has understood the submission and will never take it."""


class Jobs(Protocol):
    """A Ray that runs jobs. Every call may raise RayUnreachable, and may then have had its effect all the same."""

    def submit(self, submission_id: str, entrypoint: str, package: str | None, metadata: Mapping[str, str]) -> None:
        """Start a job.

        package  a zip on this machine, whose content is the job's working directory
        raises   AlreadySubmitted, Refused
        """
        ...

    def status(self, submission_id: str) -> RayJob | None:
        """What Ray says of it; None when Ray says that it does not know it."""
        ...

    def stop(self, submission_id: str) -> bool:
        """Ask it to end. False when there is no process to be asked, whatever its status says."""
        ...

    def list(self) -> dict[str, RayJob]:
        """All submissions that Ray knows."""
        ...

    def logs(self, submission_id: str) -> str:
        """All that it has printed so far."""
        ...

    def mark(self, submission_id: str, node: str | None) -> str:
        """The end of what it has printed: another text than before when it has gone on.

        node  where it runs, if that is known
        """
        ...

    def nodes(self) -> RayNodes: ...


def check_address(address: str, *, allow_clear: bool = False) -> str:
    """The address without a trailing slash, if a token may be sent there.

    address      http://127.0.0.1:8265, or https:// anywhere
    allow_clear  http to another machine too: token, code and logs can then be read and changed on the way
    raises       SubmitError
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(f"address: '{_shown(address)}' is not one of Ray's dashboard: give http://127.0.0.1:8265")
    if parts.username is not None or parts.password is not None:
        raise SubmitError("address: it holds a user's name or password, which would be seen: leave that out")
    if parts.scheme == "http" and not is_loopback(parts.hostname) and not allow_clear:
        raise SubmitError(
            f"address: {address} is http to another machine, where anyone on the way reads the token and can run code "
            f"with it: open a tunnel (ssh -N -L 8265:127.0.0.1:8265 {parts.hostname}) and give http://127.0.0.1:8265, "
            "give an https address, or say --allow-clear"
        )
    return address.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # any other name is what somebody's name server says it is


def _shown(address: str) -> str:
    return address.rpartition("@")[2]


class RayJobs:
    """`Jobs` of a running Ray, through its JobSubmissionClient, with its token."""

    def __init__(self, address: str, *, allow_clear: bool = False, answer_within_s: float = 60.0) -> None:
        """Connects at once.

        address          of Ray's dashboard; RAY_ADDRESS does not change it
        answer_within_s  Ray's own client would wait for ever
        raises           SubmitError for an address that is not safe; RayUnreachable
        """
        self.address = check_address(address, allow_clear=allow_clear)
        # Ray 2.60 clients send no token unless told to, even where one lies in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        with _asking(self.address), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            self._client = _client_class()(self.address)
        self._client.timeout = (_CONNECT_S, answer_within_s)
        self._has_slots: bool | None = None
        self._grows = False

    def submit(self, submission_id: str, entrypoint: str, package: str | None, metadata: Mapping[str, str]) -> None:
        if package and not os.path.isfile(package):
            raise Refused(f"{package}: the packed working directory is gone; submit the job again")
        if self._has_slots is None:
            self.nodes()
        with _asking(self.address):
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env={"working_dir": package} if package else {},
                    metadata=dict(metadata),
                    # Keeps the entrypoint on the head, where the slots are; without it that is Ray's own choice.
                    entrypoint_resources={SLOT: 1} if self._has_slots else None,
                )
            except RuntimeError as error:
                if f"{submission_id} already exists" in str(error):
                    raise AlreadySubmitted(submission_id) from None
                if _http_status(error) in (400, 413, 422):
                    raise Refused(str(error)[-_MESSAGE_CHARS:]) from None
                raise

    def status(self, submission_id: str) -> RayJob | None:
        with _asking(self.address):
            try:
                return _ray_job(self._client.get_job_info(submission_id))
            except RuntimeError as error:
                if _http_status(error) == 404:
                    return None
                raise

    def stop(self, submission_id: str) -> bool:
        with _asking(self.address):
            try:
                return self._client.stop_job(submission_id)
            except RuntimeError as error:
                if _http_status(error) == 404:
                    return False
                raise

    def list(self) -> dict[str, RayJob]:
        with _asking(self.address):
            return {job.submission_id: _ray_job(job) for job in self._client.list_jobs() if job.submission_id}

    def logs(self, submission_id: str) -> str:
        with _asking(self.address):
            try:
                return self._client.get_job_logs(submission_id)
            except RuntimeError as error:
                if _http_status(error) == 404:
                    return ""
                raise

    def mark(self, submission_id: str, node: str | None) -> str:
        if node is None:
            return ""
        with _asking(self.address):
            # The whole log may be long. Ray's job client has no call for its end; that for logs of all kinds has one.
            words = {"node_id": node, "filename": f"job-driver-{submission_id}.log", "lines": _MARK_LINES}
            answer = self._client._do_request("GET", f"/api/v0/logs/file?{urlencode(words)}")
            if answer.status_code == 200:
                return answer.text
            if answer.status_code == 500 and _NO_LOG_YET in answer.text:
                return ""
            raise RuntimeError(f"status code {answer.status_code}: {answer.text}")

    def nodes(self) -> RayNodes:
        with _asking(self.address):
            # Ray's job client has no call for this; its dashboard's page of nodes does.
            answer = self._client._do_request("GET", "/nodes?view=summary")
            answer.raise_for_status()
            alive = [n["raylet"] for n in answer.json()["data"]["summary"] if n["raylet"].get("state") == "ALIVE"]
            # A head that is seconds old has no report of its autoscaler yet.
            self._grows = self._grows or self._has_autoscaler(alive)
        totals = [n.get("resourcesTotal", {}) for n in alive]
        # The dashboard writes keys in camel case, a resource's name included.
        slots = [total.get("jobSlot", 0) for total in totals]
        self._has_slots = any(slots)
        return RayNodes(
            frozenset(n["nodeId"] for n in alive),
            int(sum(slots)) if any(slots) else None,
            {
                n["nodeId"]: {name: float(total.get(name, 0)) for name in ("CPU", "GPU")}
                for n, total in zip(alive, totals, strict=True)
            },
            self._grows,
        )

    def _has_autoscaler(self, nodes: Sequence[Mapping[str, Any]]) -> bool:
        """Nodes that an autoscaler starts bear the name of their type; others none, or one made of their id."""
        if any(node.get("nodeTypeName") for node in nodes):
            return True
        answer = self._client._do_request("GET", "/api/cluster_status")
        answer.raise_for_status()
        report = ((answer.json()["data"].get("clusterStatus") or {}).get("autoscalerReport")) or {}
        types = {**(report.get("activeNodes") or {}), **(report.get("pendingLaunches") or {})}
        return any(not _OF_ITS_ID.match(name) for name in types)


def _client_class() -> Any:
    # Ray takes a second to import, which `stillgrain --help` should not.
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        timeout: tuple[float, float] = (_CONNECT_S, 60.0)

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", self.timeout)
            if is_loopback(urlsplit(self._address).hostname or ""):
                # A proxy of the environment would be sent the token.
                kwargs.setdefault("proxies", {"http": None, "https": None, "all": None})
            return super()._do_request(*args, **kwargs)

    return Client


def _ray_job(details: Any) -> RayJob:
    return RayJob(
        status=str(details.status.value),  # type: ignore[arg-type]
        exit_code=details.driver_exit_code,
        error=details.error_type,
        message=(details.message or "")[-_MESSAGE_CHARS:],
        node=details.driver_node_id,
    )


def _http_status(error: Exception) -> int | None:
    """Ray's client raises the same error for every answer, with the answer's code in its text."""
    words = str(error).partition("status code ")[2][:3]
    return int(words) if words.isdigit() else None


@contextlib.contextmanager
def _asking(address: str) -> Iterator[None]:
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        # Ray's own message is a page long, and may come to hold what was sent.
        raise RayUnreachable(
            f"{address} does not take our token: put the cluster's into ~/.ray/auth_token (mode 0600), or the path "
            "of a file with it into RAY_AUTH_TOKEN_PATH"
        ) from None
    except (requests.exceptions.RequestException, ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        # Ray's answer may be a traceback, and ends in a line of its own full stop.
        last = next((line for line in reversed(str(error).splitlines()) if any(map(str.isalnum, line))), "")[:300]
        raise RayUnreachable(f"{address}: {type(error).__name__}: {last}") from None


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """These environment variables are not there during the block."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
