"""A real Ray head that can be switched off and on again at the same address, for tests and stories."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from cluster.processes import end, find

ROOT = Path(__file__).resolve().parents[2]
MARK = "STILLGRAIN_TEST_HEAD"

DISPATCH = """
import sys
from cluster.dispatcher import Policy
from cluster.jobqueue import dispatch
address, folder, lost_after = sys.argv[1:]
policy = Policy(job_slots=1, lost_after_s=float(lost_after), backoff_s=0.5)
dispatch(address, folder, policy=policy, until_idle=True, every_s=0.3)
"""


class Head:
    """`ray start --head` on ports of its own, with a token.

    memory  keep what the head knows on disk, so that it has it again after `switch_off` and `switch_on`
    """

    def __init__(self, *, memory: bool) -> None:
        # Ray's sockets lie in this folder, and a socket's path holds at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="sg-", dir="/tmp"))
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        self.ports = _free_ports(3)
        self.address = f"http://127.0.0.1:{self.ports[1]}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_AUTH_MODE": "token",
            "OMP_NUM_THREADS": "1",
            MARK: self.mark.partition("=")[2],
        }
        if memory:
            self.environment |= {
                "RAY_gcs_storage": "rocksdb",
                "RAY_gcs_storage_path": str(self.folder / "memory"),
            }
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def switch_on(self, within_s: float = 90.0) -> None:
        """Until its dashboard answers."""
        self._starts += 1
        gcs, dashboard, client = self.ports
        words = [
            "--head",
            "--block",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={self.folder / str(self._starts)}",
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
            "--num-cpus=2",
            '--resources={"job_slot": 2}',
            f"--object-store-memory={100 * 2**20}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            "--disable-usage-stats",
        ]
        with open(self.folder / "head.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + within_s
        request = urllib.request.Request(
            f"{self.address}/nodes?view=summary",
            headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            with contextlib.suppress(OSError), direct.open(request, timeout=5) as answer:
                if b'"ALIVE"' in answer.read():
                    return
            assert self._process.poll() is None, (self.folder / "head.log").read_text()[-2000:]
            assert time.monotonic() < deadline, f"no head within {within_s} s"
            time.sleep(0.2)

    def switch_off(self) -> None:
        """At once and with all that ran on it, as when a machine loses its power."""
        assert self._process is not None
        there = find(self._process.pid)
        end([there] if there else [], self.mark, grace_s=0.0)
        self._process.wait(timeout=20)

    def dispatch(self, queue: Path, lost_after_s: float) -> subprocess.Popen[str]:
        """The queue's dispatcher, until nothing is left to do. A process of its own: one keeps the first token it has
        read."""
        environment = {name: value for name, value in self.environment.items() if name != MARK}
        return subprocess.Popen(
            [sys.executable, "-c", DISPATCH, self.address, str(queue), str(lost_after_s)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        if self._process is not None:
            self.switch_off()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
