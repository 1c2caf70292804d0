"""A local cluster: what it starts is closed to strangers, and ends without a trace; nothing else is ever ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from cluster import local
from cluster.local import LocalCluster, LocalClusterError
from cluster.processes import Process, boot, end, family, find, is_alive, send

ROOT = Path(__file__).resolve().parents[2]
MARK = "STILLGRAIN_TEST_MARK"


SLEEP = "import time; time.sleep(300)"


class Sleepers(Protocol):
    def __call__(self, script: str = SLEEP, *, marked: bool = False) -> subprocess.Popen[bytes]: ...


# A child in a session of its own, and an orphan in another: prints the numbers of both.
FAMILY = """
import subprocess, sys, time
START = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], " \\
    "start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)"
exec(START)
print(subprocess.run([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True).stdout, flush=True)
time.sleep(300)
"""


@pytest.fixture
def mark() -> str:
    return os.urandom(8).hex()


@pytest.fixture
def sleeper(mark: str) -> Iterator[Sleepers]:
    """Processes that sleep, whatever a test makes of them."""
    with contextlib.ExitStack() as stack:

        def start(script: str = SLEEP, *, marked: bool = False) -> subprocess.Popen[bytes]:
            environment = {**os.environ, **({MARK: mark} if marked else {})}
            process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def there(process: subprocess.Popen[bytes]) -> Process:
    found = find(process.pid)
    assert found is not None
    return found


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_number_that_belongs_to_another_process_now_is_never_hit(mark: str, sleeper: Sleepers) -> None:
    """Numbers of processes are used again: the same number with another start is somebody else."""
    stranger = there(sleeper())
    recycled = Process(stranger.pid, stranger.started - 1)
    assert not is_alive(recycled)
    assert not send(recycled, signal.SIGKILL)
    assert end([recycled], f"{MARK}={mark}", grace_s=0) == 0
    assert is_alive(stranger)
    assert end([stranger], f"{MARK}={mark}", grace_s=0) == 1
    assert not is_alive(stranger)


def test_ending_takes_children_and_those_whose_parent_has_gone(mark: str, sleeper: Sleepers) -> None:
    """A child of its own session, and an orphan: Ray starts jobs in one, and leaves the other when it is killed."""
    process, stranger = sleeper(FAMILY, marked=True), there(sleeper())
    assert process.stdout is not None
    root, child, orphan = there(process), find(int(process.stdout.readline())), find(int(process.stdout.readline()))
    assert family([root], f"{MARK}={mark}") == {root, child, orphan}
    assert family([root], f"{MARK}=another") == {root, child}
    assert end([root], f"{MARK}={mark}", grace_s=5) == 3
    assert not any(is_alive(one) for one in (root, child, orphan) if one is not None)
    assert is_alive(stranger)


def test_one_that_does_not_listen_is_killed_after_its_time(mark: str, sleeper: Sleepers) -> None:
    deaf = sleeper("import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(300)")
    assert deaf.stdout is not None
    deaf.stdout.readline()
    root = there(deaf)
    assert end([root], f"{MARK}={mark}", grace_s=0.3) == 1
    assert not is_alive(root)


# --- the folder -------------------------------------------------------------------------------------------------------


def state_of(folder: Path, **changes: object) -> LocalCluster:
    plain = {
        "id": "0" * 16,
        "boot": boot(),
        "address": "127.0.0.1:1",
        "dashboard": "http://127.0.0.1:2",
        "token_file": str(folder / "token"),
        "temp": str(folder / "temp"),
        **changes,
    }
    return LocalCluster(**plain)  # type: ignore[arg-type]


def write_state(folder: Path, state: LocalCluster) -> None:
    folder.mkdir(exist_ok=True)
    plain = asdict(state)
    del plain["started"]
    (folder / "state.json").write_text(json.dumps(plain))


def test_nothing_is_ended_where_nothing_was_started(tmp_path: Path) -> None:
    assert local.down(tmp_path / "cluster") == []
    assert local.down(tmp_path / "cluster") == []
    assert local.status(tmp_path / "cluster") is None
    assert stat.S_IMODE((tmp_path / "cluster").stat().st_mode) == 0o700
    with pytest.raises(LocalClusterError, match="node: node-1 is not alive; alive: nothing"):
        local.down(tmp_path / "cluster", node="node-1")


@pytest.mark.parametrize("other", ["boot", "start"])
def test_a_state_of_another_time_ends_nothing(tmp_path: Path, other: str, sleeper: Sleepers) -> None:
    """The machine was started anew, or the number used again: the process of that number is not ours."""
    stranger = there(sleeper())
    process = Process(stranger.pid, stranger.started + (other == "start"))
    changes = {"boot": "another"} if other == "boot" else {}
    write_state(tmp_path, state_of(tmp_path, nodes=(local.Node("head", "head-1", process),), **changes))
    assert local.status(tmp_path) is None
    assert local.down(tmp_path) == []
    assert is_alive(stranger)
    assert not (tmp_path / "state.json").exists()


def test_a_state_removes_no_folder_but_one_of_ours(tmp_path: Path) -> None:
    precious = tmp_path / "sg-local-photos"
    precious.mkdir()
    (precious / "raw.dng").write_bytes(b"raw")
    for temp in (precious, Path("/tmp/sg-local-x/../.."), Path("/tmp")):
        write_state(tmp_path / "c", state_of(tmp_path / "c", temp=str(temp)))
        local.down(tmp_path / "c")
    assert (precious / "raw.dng").read_bytes() == b"raw"


def test_a_damaged_state_is_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"nodes": [{"name": "head"}]}')
    with pytest.raises(LocalClusterError, match=r"state\.json: is not what .* writes"):
        local.down(tmp_path)
    assert (tmp_path / "state.json").exists()


@pytest.mark.parametrize(
    ("mode", "text", "says"),
    [(0o644, "a" * 64, "can be read by others: chmod 600"), (0o600, "short", "fewer than 16 characters")],
)
def test_a_token_that_protects_nothing_is_refused(tmp_path: Path, mode: int, text: str, says: str) -> None:
    token = tmp_path / "token"
    token.write_text(text)
    token.chmod(mode)
    with pytest.raises(LocalClusterError, match=says):
        local.up(tmp_path / "cluster", token_file=token)
    with pytest.raises(LocalClusterError, match="cannot be read"):
        local.up(tmp_path / "cluster", token_file=tmp_path / "none")
    assert not (tmp_path / "cluster" / "state.json").exists()


def test_more_gpus_than_there_are_are_refused_with_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with pytest.raises(LocalClusterError, match="2 nodes of 2 GPUs need 4, and this machine has 3"):
        local.up(tmp_path, nodes=2, gpus_per_node=2)
    with pytest.raises(LocalClusterError, match="nodes: -1 is below 0"):
        local.up(tmp_path, nodes=-1)


# --- the real one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cluster"
    local.down(tmp_path / "cluster")


def answer(url: str, token: str | None = None, body: bytes | None = None) -> int:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(urllib.request.Request(url, body, headers), timeout=60) as got:
            return got.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def processes_of(cluster: LocalCluster) -> set[Process]:
    return family([node.process for node in cluster.nodes], f"STILLGRAIN_LOCAL_CLUSTER={cluster.id}")


def command_line(process: Process) -> str:
    """What anybody on this machine sees of it."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""  # it has just ended


def call(address: str, method: str, token: str | None = None) -> grpc.StatusCode:
    """How a door answers that is not the dashboard: the GCS, where drivers join, and the server of Ray's client."""
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=30, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]
    return grpc.StatusCode.OK


@pytest.mark.slow
def test_two_nodes_take_jobs_with_the_token_only_and_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    """Up, strangers at every door, a job, a node lost, down."""
    cluster = local.up(folder, nodes=2, cpus_per_node=1)
    assert cluster.started == ("head", "node-1", "node-2")
    token = (folder / "token").read_text()
    assert [stat.S_IMODE((folder / name).stat().st_mode) for name in ("token", "state.json", "lock")] == [0o600] * 3
    assert token not in (folder / "state.json").read_text()

    # Strangers: submit, dashboard, and a driver that wants to join, each without a token or with one of their own.
    marker = tmp_path / "ran"
    job = json.dumps({"entrypoint": f"sh -c 'touch {marker}; sleep 300'", "entrypoint_resources": {"job_slot": 1}})
    paths = ("/api/jobs/", "/nodes?view=summary", "/api/v0/actors", "/api/cluster_status", "/logs")
    for stranger in (None, "f" * 64):
        assert answer(f"{cluster.dashboard}/api/jobs/", stranger, job.encode()) in (401, 403)
        assert {answer(cluster.dashboard + path, stranger) for path in paths} <= {401, 403}
    (client,) = re.findall(r"--ray-client-server-port=(\d+)", command_line(cluster.nodes[0].process))
    doors = {
        cluster.address: "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
        f"127.0.0.1:{client}": "/ray.rpc.RayletDriver/ClusterInfo",
    }
    for address, method in doors.items():
        codes = [call(address, method, who) for who in (None, "f" * 64, token)]
        assert codes[:2] == [grpc.StatusCode.UNAUTHENTICATED] * 2
        # The client's server then finds that no client has said hello.
        assert codes[2] in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
    assert not marker.exists()

    # With the token the same request runs, on the head, where the slots are.
    assert answer(f"{cluster.dashboard}/api/jobs/", token, job.encode()) == 200
    until = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < until, "the job has not started"
        time.sleep(0.1)

    local.down(folder, node="node-2")
    now = local.status(folder)
    assert now is not None
    assert [node.name for node in now.alive] == ["head", "node-1"]
    assert local.up(folder, nodes=1).started == ()  # is there already: nothing is started, and the token stays

    seen = [command_line(process) for process in processes_of(now)]
    assert len(seen) > 10
    assert not any(token in line for line in seen)
    logs = [file for file in Path(cluster.temp).rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(logs) > 10
    assert not [file for file in logs if token.encode() in file.read_bytes()]
    assert stat.S_IMODE(Path(cluster.temp).stat().st_mode) == 0o700

    everything = processes_of(now)
    assert len(everything) > 10
    assert local.down(folder) == ["head", "node-1"]
    assert not [process for process in everything if is_alive(process)]
    assert not processes_of(cluster)
    assert not Path(cluster.temp).exists()
    assert [file.name for file in folder.iterdir()] == ["lock"]
    assert local.down(folder) == []
