"""A node is cut off from the network while a pool works on it and on another: it lives in a network namespace, whose
link goes down. Needs to be root."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.processes import end, find

ROOT = Path(__file__).resolve().parents[1]
MARK = "STILLGRAIN_TEST_PARTITION"
NUM_ITEMS = 16

DRIVER = """
import json, sys, time
from pathlib import Path
import ray
from workloads.pool import run_pool

class Slow:
    def __init__(self, folder):
        self.node, self.folder = ray.util.get_node_ip_address(), Path(folder)
    def process(self, item):
        with open(self.folder / "begun", "a") as file:
            file.write(f"{item} {self.node}\\n")
        time.sleep(1.0)
        return self.node

address, folder, num_items = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
options = {"num_workers": 2, "num_cpus": 1, "time_limit_s": 300.0}
for outcome in run_pool(Slow, (folder,), range(int(num_items)), **options):
    print(json.dumps([outcome.item, outcome.status, outcome.result, time.time()]), flush=True)
"""


@contextlib.contextmanager
def namespace(name: str, here: str, there: str) -> Iterator[str]:
    """A network namespace that is joined to this one by a link between two addresses; gives the name of our end."""
    link = f"{name}-a"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", f"{name}-b")
        _ip("link", "set", f"{name}-b", "netns", name)
        for words in (
            ["addr", "add", f"{here}/30", "dev", link],
            ["link", "set", link, "up"],
            ["-n", name, "addr", "add", f"{there}/30", "dev", f"{name}-b"],
            ["-n", name, "link", "set", f"{name}-b", "up"],
            ["-n", name, "link", "set", "lo", "up"],
        ):
            _ip(*words)
        yield link
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", link)
        _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def why_not() -> str | None:
    """Why there can be no namespace here; None where there can be."""
    name = f"sg{secrets.token_hex(2)}"
    try:
        with namespace(name, "10.213.10.1", "10.213.10.2"):
            return None
    except FileNotFoundError:
        return "there is no `ip` command"
    except subprocess.CalledProcessError as error:
        return error.stderr.decode().strip()


def partition_story() -> dict[str, float]:
    """Seconds from the cut, by what then happened; raises where an item is lost."""
    name, octet = f"sg{secrets.token_hex(2)}", secrets.randbelow(200) + 20
    here, there = f"10.213.{octet}.1", f"10.213.{octet}.2"
    folder = Path(tempfile.mkdtemp(prefix="sg-", dir="/tmp"))
    mark = f"{MARK}={secrets.token_hex(8)}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_MODE": "token",
        # A node that does not answer is lost after some seconds; by default after about a minute.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
        "OMP_NUM_THREADS": "1",
        MARK: mark.partition("=")[2],
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start(words: list[str], prefix: tuple[str, ...] = ()) -> None:
        common = ["--block", f"--object-store-memory={100 * 2**20}", "--min-worker-port=0", "--max-worker-port=0"]
        with open(folder / f"{len(processes)}.log", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", *words, *common],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    try:
        with namespace(name, here, there) as link:
            gcs = f"{here}:6411"
            head = ["--head", "--port=6411", f"--temp-dir={folder / 'head'}", "--include-dashboard=false"]
            start([*head, f"--node-ip-address={here}", "--num-cpus=1", "--disable-usage-stats"])
            _until(lambda: _answers(here, 6411), "the head answers")
            start(
                [f"--address={gcs}", f"--node-ip-address={there}", "--num-cpus=1"],
                ("ip", "netns", "exec", name),
            )
            driver = subprocess.Popen(
                [sys.executable, "-c", DRIVER, gcs, str(folder), str(NUM_ITEMS)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert driver.stdout is not None
            try:
                begun = folder / "begun"
                _until(
                    lambda: begun.exists() and there in begun.read_text(), "an item begins on the other node", driver
                )
                _ip("link", "set", link, "down")
                cut = time.time()
                # Ray prints a line of its own when a node is gone.
                outcomes = [json.loads(line) for line in driver.stdout if line.startswith("[")]
                assert driver.wait(timeout=60) == 0
            finally:
                driver.kill()
                driver.wait()
                driver.stdout.close()
            lost = [int(line.split()[0]) for line in begun.read_text().splitlines() if there in line]
    finally:
        end([p for p in (find(process.pid) for process in processes) if p], mark, grace_s=0.0)
        for process in processes:
            process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)
    assert sorted(item for item, *_ in outcomes) == list(range(NUM_ITEMS)), outcomes
    assert {status for _, status, *_ in outcomes} == {"done"}, outcomes
    after = [(item, node, at - cut) for item, _, node, at in outcomes if at > cut]
    return {
        "the other node went on": min(at for _, _, at in after),
        "what was under way beyond the cut was done here": max(at for item, _, at in after if item in lost),
        "all done": max(at for *_, at in after),
    }


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _until(
    true: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None, within_s: float = 120.0
) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert process is None or process.poll() is None, f"ended before: {what}"
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)
