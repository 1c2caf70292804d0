"""The queue and a real Ray: its job API, its token, its word for how a job ended.

Everything that speaks to Ray is a process of its own, since a process keeps the first token that it has read.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import jobqueue
from cluster.submit import submit
from library.config import to_yaml
from workloads.run import read_config

ROOT = Path(__file__).resolve().parents[2]

# All ports are free ones: a Ray without an agent for jobs answers "No available agent", which two Rays on one machine
# come to that want the same port for it.
HEAD = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, shutdown_at_exit=True, head_node_args={
    "num_cpus": 2, "resources": {"job_slot": 1}, "include_dashboard": True, "dashboard_port": 0,
    "dashboard_agent_listen_port": 0, "object_store_memory": 100 * 2**20, "temp_dir": sys.argv[1],
})
print("http://" + cluster.head_node.webui_url, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

DISPATCH = """
import os, signal, sys
from cluster.jobqueue import dispatch
from cluster.ray_jobs import RayJobs

class DiesOnceRayHasIt(RayJobs):
    def submit(self, *what):
        super().submit(*what)
        os.kill(os.getpid(), signal.SIGKILL)

address, folder, connect = sys.argv[1:]
dispatch(address, folder, until_idle=True, every_s=0.3, connect=DiesOnceRayHasIt if connect == "dies" else RayJobs)
"""

ASK = """
import json, sys
from cluster.errors import RayUnreachable
from cluster.jobqueue import logs
from cluster.ray_jobs import RayJobs
ray = RayJobs(sys.argv[1])
jobs = ray.list()
details = [json.loads(d.json()) for d in ray._client.list_jobs() if d.submission_id]
(node,) = ray.nodes().ids
marks = [ray.mark(job, node) for job in (*jobs, "not-there-yet")]
try:
    ray.mark(next(iter(jobs)), "0" * len(node))
except RayUnreachable as error:
    marks.append(str(error))
log = "".join(logs(1, sys.argv[2], follow=True))
print(json.dumps({"ids": list(jobs), "details": details, "log": log, "marks": marks}))
"""


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]

    def python(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *words]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=240)


@pytest.fixture
def head() -> Iterator[Head]:
    """A Ray with one job slot and a token, in a process of its own."""
    # Ray's sockets lie in this folder, and a socket's path holds at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="sg-", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            address = next(line for line in process.stdout if line.startswith("http://")).strip()
            yield Head(address, environment)
        finally:
            process.communicate("", timeout=60)
            shutil.rmtree(folder, ignore_errors=True)


def command_lines() -> str:
    """What anybody on this machine sees of every process."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has just ended
    return "\n".join(lines)


def resolve(config: Path, words: Sequence[str]) -> str:
    return to_yaml(read_config(config, words))


@pytest.mark.slow
def test_two_jobs_go_through_a_real_ray_and_a_dispatcher_killed_on_the_way(head: Head, tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    configs = ROOT / "workloads" / "configs"
    words = [f"output={tmp_path}/suite", f"storage={tmp_path}/runs", "dataset.held_out=[chelsea]"]
    submit([configs / "simulate_demo.yaml"], words, resolve=resolve, folder=folder, working_dir=ROOT, name="simulate")
    words = [f"raws={tmp_path}/suite/raws", f"output={tmp_path}/archive", "bundle=/nowhere"]
    submit(
        [configs / "infer.yaml"],
        words,
        resolve=resolve,
        folder=folder,
        working_dir=ROOT,
        name="infer",
        after=["simulate"],
    )

    killed = head.python(DISPATCH, head.address, str(folder), "dies")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert jobqueue.show("simulate", folder)["state"] == "submitting"
    assert head.environment["RAY_AUTH_TOKEN"] not in command_lines()

    done = head.python(DISPATCH, head.address, str(folder), "goes on")
    assert done.returncode == 0, done.stderr
    simulate, infer = (jobqueue.show(name, folder) for name in ("simulate", "infer"))
    assert simulate["state"] == "succeeded", simulate
    assert list((tmp_path / "suite" / "raws").iterdir())
    assert (infer["state"], infer["attempts"][0]["exit_code"]) == ("failed", 2), infer
    assert "a user's error" in infer["reason"]
    assert "/nowhere" in infer["reason"]

    asked = head.python(ASK, head.address, str(folder))
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert sorted(answer["ids"]) == sorted(job["attempts"][0]["submission_id"] for job in (simulate, infer))
    assert "suite" in answer["log"]
    *there, not_yet, node_away = answer["marks"]
    assert (all(there), not_yet, "status code 500" in node_away) == (True, "", True), answer["marks"]
    assert {job["metadata"]["name"] for job in answer["details"]} == {"simulate", "infer"}
    everything = [done.stdout, done.stderr, asked.stdout, asked.stderr]
    everything += [file.read_bytes().decode(errors="replace") for file in folder.glob("queue.sqlite*")]
    assert not any(head.environment["RAY_AUTH_TOKEN"] in text for text in everything)

    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(f"{head.address}/api/jobs/"):
        pass
    refused.value.close()
    assert refused.value.code == 401
    stranger = Head(head.address, {**head.environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert "does not take our token" in stranger.python(ASK, head.address, str(folder)).stderr
