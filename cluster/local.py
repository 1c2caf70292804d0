"""A Ray cluster on this machine: a head that runs no training and nodes beside it, as processes of their own.

    stillgrain cluster up-local --nodes 2 --cpus-per-node 4
    stillgrain cluster down

What is promised of a cluster in the cloud holds here too: a token is asked for, the dashboard listens on this machine
only, the head has `job_slot` and `tune_driver`. So jobs, queues and the loss of a node can be tried before they cost.

The folder of a cluster holds its token, and what was started: both for the eyes of their owner (mode 0600).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.processes import Process, boot, end, find, is_alive

DEFAULT_FOLDER = Path("~/.stillgrain/cluster")
HEAD = "head"
_CLUSTER, _NODE = "STILLGRAIN_LOCAL_CLUSTER", "STILLGRAIN_LOCAL_NODE"
_LOOPBACK = "127.0.0.1"
# Ray's sockets lie in this folder, and a socket's path holds at most 107 bytes (ray-project/ray#7724).
_TEMP = Path("/tmp")
_TEMP_PREFIX = "sg-local-"
# A sweep's driver is one small process: as many as one sweep may have at a time.
_TUNE_DRIVERS = 8
# Ray's own way to end, before it is killed: raylets first say goodbye, then wait for their workers.
_GRACE_S = 8.0
_LOOK_AGAIN_S = 0.2
# Set here for our processes; what the caller has of them is about another cluster.
_OURS = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_TMPDIR",
)


class LocalClusterError(ClusterError):
    """A local cluster that does not come up, or a folder of one that cannot be used."""


@dataclass(frozen=True)
class Node:
    """One `ray start`, which lives as long as its node does."""

    name: str
    ray_name: str
    """As Ray lists it: another one each time, since Ray goes on listing one that was lost."""
    process: Process


@dataclass(frozen=True)
class LocalCluster:
    """What was started, as its state file tells it."""

    id: str
    boot: str
    """Of the machine; after the next start of it nothing of this is left."""
    address: str
    """Of Ray's GCS, HOST:PORT: what `ray.init` and RAY_ADDRESS take."""
    dashboard: str
    """Of the job server, a URL: what `stillgrain queue dispatch --address` takes."""
    token_file: str
    temp: str
    """Folder of Ray's sessions and logs, removed when the cluster goes down."""
    nodes: tuple[Node, ...] = ()
    started: tuple[str, ...] = field(default=(), compare=False)
    """Names of the nodes that the last `up` has started; none if all were there."""

    @property
    def alive(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if self.boot == boot() and is_alive(node.process))

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use it."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": self.token_file}

    def to_json(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "dashboard": self.dashboard,
            "token_file": self.token_file,
            "logs": self.temp,
            "nodes": {node.name: node.process.pid for node in self.alive},
            "started": list(self.started),
            "environment": self.environment,
        }

    def __str__(self) -> str:
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        return "\n".join(
            [
                f"{'started ' + ', '.join(self.started) if self.started else 'is already up'}; "
                f"alive: {', '.join(f'{node.name} (process {node.process.pid})' for node in self.alive)}",
                f"dashboard  {self.dashboard}",
                "use it:",
                f"  export {exports}",
                "  stillgrain submit workloads/configs/denoise_demo.yaml storage=/tmp/runs",
                f"  stillgrain queue dispatch --address {self.dashboard} --until-idle",
                "  stillgrain cluster down",
            ]
        )


def up(
    folder: str | Path = DEFAULT_FOLDER,
    *,
    nodes: int = 2,
    cpus_per_node: int = 1,
    gpus_per_node: int = 0,
    job_slots: int = 2,
    token_file: str | Path | None = None,
    object_store_mb: int = 200,
    answer_within_s: float = 120.0,
) -> LocalCluster:
    """Start a head and nodes, or those of them that are not there; return when Ray says that all are alive.

    folder           of the cluster; another folder is another cluster
    nodes            beside the head; more than there are adds some, fewer takes none away
    cpus_per_node    what Ray is told; nothing keeps a node to it
    gpus_per_node    of this machine, each node its own
    job_slots        jobs at a time
    token_file       of the token to ask for, readable by its owner only; left out, a new one in the folder
    object_store_mb  of each node and of the head, in memory
    answer_within_s  for all of it
    raises           LocalClusterError saying what did not come up, with the last lines of its log
    """
    for name, value, least in (("nodes", nodes, 0), ("cpus-per-node", cpus_per_node, 0), ("job-slots", job_slots, 1)):
        if value < least:
            raise LocalClusterError(f"{name}: {value} is below {least}")
    top = _private_folder(folder)
    with _alone(top):
        state = _read(top)
        if state is not None and not any(node.name == HEAD for node in state.alive):
            _end_all(top, state)
            state = None
        there = {node.name for node in state.alive} if state else set()
        wanted = [f"node-{number}" for number in range(1, nodes + 1)]
        shares = _gpu_shares(nodes, gpus_per_node)
        until = time.monotonic() + answer_within_s
        if state is None:
            state = _new_cluster(top, token_file)
            _write(top, state)
        elif token_file is not None and Path(token_file).expanduser().resolve() != Path(state.token_file):
            raise LocalClusterError(
                f"token-file: the cluster of {top} is up with {state.token_file}: leave it out, or take it down first"
            )
        state = replace(state, nodes=state.alive)
        try:
            if HEAD not in there:
                state = _start(top, state, HEAD, _head_words(state, job_slots, object_store_mb), None)
                _await_socket(state, 0, until)
            for name, gpus in zip(wanted, shares, strict=True):
                if name not in there:
                    words = _node_words(state, name, cpus_per_node, gpus_per_node, object_store_mb)
                    sockets = _num_sockets(state)
                    state = _start(top, state, name, words, gpus)
                    _await_socket(state, sockets, until)
            _await_nodes(state, until)
        except BaseException:
            # All or nothing: half of it would pass for the whole.
            if HEAD not in there:
                _end_all(top, _read(top) or state)
            else:
                for node in (_read(top) or state).alive:
                    if node.name not in there:
                        _lose(top, _read(top), node.name)
            raise
        return replace(state, started=tuple(node.name for node in state.nodes if node.name not in there))


def status(folder: str | Path = DEFAULT_FOLDER) -> LocalCluster | None:
    """The cluster of a folder; None when its head is not there."""
    state = _read(Path(folder).expanduser().absolute())
    return state if state is not None and any(node.name == HEAD for node in state.alive) else None


def down(folder: str | Path = DEFAULT_FOLDER, *, node: str | None = None) -> list[str]:
    """End what `up` has started, and all that came of it: workers, jobs and their processes. Nothing else.

    node     end only this one, at once and without a word, as a machine does that is lost
    returns  names of the nodes that were alive; none when there was nothing to end
    raises   LocalClusterError for a node that is not there
    """
    top = _private_folder(folder)
    with _alone(top):
        state = _read(top)
        if node is not None:
            return [_lose(top, state, node)]
        return [] if state is None else _end_all(top, state)


# --- starting ---------------------------------------------------------------------------------------------------------


def _new_cluster(top: Path, token_file: str | Path | None) -> LocalCluster:
    if token_file is None:
        token = top / "token"
        _write_private(token, secrets.token_hex(32))
    else:
        token = Path(token_file).expanduser().resolve()
        _check_token(token)
    gcs, dashboard = _free_ports(2)
    return LocalCluster(
        id=secrets.token_hex(8),
        boot=boot(),
        address=f"{_LOOPBACK}:{gcs}",
        dashboard=f"http://{_LOOPBACK}:{dashboard}",
        token_file=str(token),
        temp=tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=_TEMP),
    )


def _head_words(state: LocalCluster, job_slots: int, object_store_mb: int) -> list[str]:
    resources = {"job_slot": job_slots, "tune_driver": _TUNE_DRIVERS}
    (client,) = _free_ports(1)
    return [
        "--head",
        f"--port={_port(state.address)}",
        # Ray makes this one open to everybody (mode 0777), with its logs and sockets; the one around it is not.
        f"--temp-dir={state.temp}/ray",
        "--num-cpus=0",
        "--num-gpus=0",
        f"--resources={json.dumps(resources)}",
        "--include-dashboard=true",
        f"--dashboard-host={_LOOPBACK}",
        f"--dashboard-port={_port(state.dashboard)}",
        f"--ray-client-server-port={client}",
        "--disable-usage-stats",
        *_common_words(object_store_mb),
    ]


def _node_words(state: LocalCluster, name: str, cpus: int, gpus: int, object_store_mb: int) -> list[str]:
    return [
        f"--address={state.address}",
        # Its own, as another machine has one: a node that first needs a job's working directory unpacks it anew, and in
        # the head's folder would take it away from under the job that runs in it.
        f"--temp-dir={state.temp}/{name}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        *_common_words(object_store_mb),
    ]


def _common_words(object_store_mb: int) -> list[str]:
    return [
        "--block",
        f"--node-ip-address={_LOOPBACK}",
        f"--object-store-memory={object_store_mb * 2**20}",
        # Ray's defaults are fixed numbers, and several clusters on one machine would want the same.
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-agent-listen-port=0",
    ]


def _start(top: Path, state: LocalCluster, name: str, words: list[str], gpus: str | None) -> LocalCluster:
    """Start one node, and write it down before anything else happens."""
    environment = {key: value for key, value in os.environ.items() if key not in _OURS}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": state.token_file,
        _CLUSTER: state.id,
        _NODE: f"{state.id}/{name}",
    }
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    log = os.fspath(_log(state, name))
    ray_name = f"{name}-{secrets.token_hex(2)}"
    # Not subprocess: nobody waits for these, and they outlive the command. A session of their own, since Ray's reaper
    # ends its whole process group.
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-name={ray_name}", *words],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    process = find(pid)
    if process is None:
        raise LocalClusterError(f"{name} ended at once: {_last_words(state, name)}")
    state = replace(state, nodes=(*state.nodes, Node(name, ray_name, process)))
    _write(top, state)
    return state


def _gpu_shares(nodes: int, gpus_per_node: int) -> list[str | None]:
    """Which GPUs of this machine each node sees, as CUDA_VISIBLE_DEVICES; None where none are shared out."""
    if gpus_per_node < 1:
        return [None] * nodes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    if nodes * gpus_per_node > len(names):
        raise LocalClusterError(
            f"gpus-per-node: {nodes} nodes of {gpus_per_node} GPUs need {nodes * gpus_per_node}, and this machine has "
            f"{len(names)}: ask for fewer"
        )
    return [",".join(names[gpus_per_node * i : gpus_per_node * (i + 1)]) for i in range(nodes)]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


# --- waiting ----------------------------------------------------------------------------------------------------------


def _await_socket(state: LocalCluster, before: int, until: float) -> None:
    """Until the newest node has its socket: Ray takes the first name that is free, and makes it seconds later, so that
    two nodes which start together may take the same one (`Node._make_inc_temp` in Ray 2.60)."""
    while _num_sockets(state) <= before:
        _go_on_waiting(state, until, f"{state.nodes[-1].name} does not listen")


def _num_sockets(state: LocalCluster) -> int:
    return len(list(Path(state.temp).glob("*/session_*/sockets/raylet*")))


def _await_nodes(state: LocalCluster, until: float) -> None:
    token = Path(state.token_file).read_text().strip()
    while True:
        alive = _alive_in_ray(state.dashboard, token) or set()
        missing = [node.name for node in state.nodes if node.ray_name not in alive]
        if not missing:
            return
        _go_on_waiting(state, until, f"Ray does not say that {', '.join(missing)} is alive")


def _go_on_waiting(state: LocalCluster, until: float, what: str) -> None:
    """A pause; LocalClusterError when there is nothing to wait for, or no time left."""
    for node in state.nodes:
        if not is_alive(node.process):
            raise LocalClusterError(f"{node.name} has ended: {_last_words(state, node.name)}")
    if time.monotonic() > until:
        raise LocalClusterError(f"{what} in time: {_last_words(state, state.nodes[-1].name)}")
    time.sleep(_LOOK_AGAIN_S)


def _alive_in_ray(dashboard: str, token: str) -> set[str] | None:
    """Names of the nodes that are alive; None while there is no answer."""
    request = urllib.request.Request(f"{dashboard}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    # A proxy of the environment would be sent the token.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {node["raylet"]["nodeName"] for node in nodes if node["raylet"].get("state") == "ALIVE"}


def _log(state: LocalCluster, name: str) -> Path:
    return Path(state.temp) / f"{name}.log"


def _last_words(state: LocalCluster, name: str) -> str:
    try:
        lines = [line for line in _log(state, name).read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return " | ".join(lines[-8:]) or "it has printed nothing"


# --- ending -----------------------------------------------------------------------------------------------------------


def _end_all(top: Path, state: LocalCluster) -> list[str]:
    alive = state.alive
    if state.boot == boot():
        # Also without a living root: a head that was killed leaves the processes of its jobs behind.
        end([node.process for node in alive], f"{_CLUSTER}={state.id}", grace_s=_GRACE_S if alive else 0.0)
    _remove_temp(Path(state.temp))
    if Path(state.token_file) == top / "token":
        (top / "token").unlink(missing_ok=True)
    (top / "state.json").unlink(missing_ok=True)
    return [node.name for node in alive]


def _lose(top: Path, state: LocalCluster | None, name: str) -> str:
    node = next((node for node in state.alive if node.name == name), None) if state else None
    if state is None or node is None:
        there = ", ".join(node.name for node in state.alive) if state else "nothing"
        raise LocalClusterError(f"node: {name} is not alive; alive: {there}")
    end([node.process], f"{_NODE}={state.id}/{name}", grace_s=0.0)
    _write(top, replace(state, nodes=tuple(other for other in state.nodes if other.name != name)))
    return name


def _remove_temp(temp: Path) -> None:
    """Only what `mkdtemp` has made for us, whatever a state file says."""
    if temp.parent == _TEMP and temp.name.startswith(_TEMP_PREFIX) and not temp.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            if temp.stat().st_uid == os.getuid():
                shutil.rmtree(temp, ignore_errors=True)


# --- the folder -------------------------------------------------------------------------------------------------------


def _private_folder(folder: str | Path) -> Path:
    top = Path(folder).expanduser().absolute()
    try:
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        if top.stat().st_uid != os.getuid():
            raise LocalClusterError(f"{top}: belongs to somebody else, and would hold a token: give another folder")
        top.chmod(0o700)
    except OSError as error:
        raise LocalClusterError(f"{top}: {error.strerror}: give another folder") from None
    return top


@contextlib.contextmanager
def _alone(top: Path) -> Iterator[None]:
    """One command at a time; another waits."""
    with open(os.open(top / "lock", os.O_CREAT | os.O_RDWR, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_token(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LocalClusterError(f"token-file: {path} cannot be read ({error}): leave it out for a new token") from None
    if stat.S_IMODE(mode) & 0o077:
        raise LocalClusterError(f"token-file: {path} can be read by others: chmod 600 {shlex.quote(str(path))}")
    if len(text) < 16:
        raise LocalClusterError(f"token-file: {path} holds fewer than 16 characters: leave it out for a new token")


def _read(top: Path) -> LocalCluster | None:
    try:
        data = json.loads((top / "state.json").read_text())
        nodes = tuple(Node(one["name"], one["ray_name"], Process(**one["process"])) for one in data.pop("nodes"))
        return LocalCluster(**data, nodes=nodes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LocalClusterError(
            f"{top / 'state.json'}: is not what `stillgrain cluster up-local` writes ({error}): look for processes of "
            "`ray start` yourself, then remove it"
        ) from None


def _write(top: Path, state: LocalCluster) -> None:
    plain: dict[str, Any] = asdict(state)
    del plain["started"]
    _write_private(top / "state.json", json.dumps(plain, indent=2) + "\n")


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, for its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
