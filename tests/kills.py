"""Kill a training run in every way there is, as often as one likes, and compare what comes of it with a run left alone.

Used by tests/workloads/test_kills.py with a few seeds, and by tests/benchmarks/bench_kills.py with many.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from safetensors.torch import load_file
from upath import UPath

from library.files.places import place
from library.training.checkpoint import checkpoints
from library.training.recorder import read_metrics

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("worker", "all workers", "driver", "node")
STEPS = 90


class Nodes:
    """A Ray cluster of a head without CPUs and worker nodes of one CPU each, on this machine."""

    def __init__(self, num_nodes: int) -> None:
        # Ray's sockets lie in this folder, and a socket's path holds at most 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="sg-", dir="/tmp")
        self.cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": 0,
                "dashboard_agent_listen_port": 0,
                "temp_dir": self.folder,
            },
        )
        for _ in range(num_nodes):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        """One more worker node. Only on the main thread, since Ray sets a signal handler."""
        self.cluster.add_node(num_cpus=1)

    def kill(self, node_id: str) -> None:
        """Lose a worker node at once, with all that runs on it."""
        (node,) = (node for node in self.cluster.worker_nodes if node.node_id == node_id)
        self.cluster.remove_node(node, allow_graceful=False)

    def workers(self) -> list[Any]:
        """The training workers that are alive: pid and node_id."""
        return self.actors("TrainWorker")

    def wait_for_workers(self, number: int, timeout: float = 60) -> bool:
        """Whether so many train before the time is over; Ray takes a while to see that a node has gone."""
        deadline = time.monotonic() + timeout
        while len(self.workers()) != number and time.monotonic() < deadline:
            time.sleep(0.2)
        return len(self.workers()) == number

    def actors(self, name: str) -> list[Any]:
        """Those that are alive and have this in their class's name: pid and node_id."""
        return _actors_of(self.address, name)

    def close(self) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def cluster_of(num_nodes: int) -> Iterator[Nodes]:
    """`Nodes` for a block, with a token of its own and fast polling."""
    changes = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "6",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    if "RAY_AUTH_TOKEN" not in os.environ:
        changes["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    before = {name: os.environ.get(name) for name in changes}
    os.environ |= changes
    nodes = Nodes(num_nodes)
    try:
        yield nodes
    finally:
        nodes.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_config(scenes: str | Path, storage: str | Path, workers: int, **changes: Any) -> dict[str, Any]:
    """A tiny run that uses all the state a run can have: two stages, moving average, plateau, best checkpoints."""
    return {
        "workload": "denoise",
        "name": "run",
        "storage": str(storage),
        "model": {"kind": "nafnet", "width": 4},
        "dataset": {"kind": "synthetic", "scenes": str(scenes), "held_out": 0.34, "crop": 32, "validation_crop": 168},
        "losses": {"l1": {"weight": 1.0}, "mse": {"weight": 0.5}},
        "batch_size": 4,
        "optim": {"lr": 5e-3, "schedule": {"kind": "plateau", "patience": 10, "factor_per_decay": 0.5}},
        "moving_average": {"decay": 0.9},
        "steps": STEPS - 30,
        "then": [{"steps": 30, "changes": {"dataset.crop": 48, "optim.lr": 2e-3, "frozen": ["encoder"]}}],
        "log_every": 1,
        "validate_every": 15,
        "checkpoint_every": 4,
        "num_pictures": 1,
        "retention": {"best": True},
        "scaling": {"workers": workers, "max_failures": 100},
        **changes,
    }


class Driver:
    """`stillgrain run` as a process of its own, started again as often as it takes."""

    def __init__(self, settings: dict[str, Any], address: str, folder: Path | None = None) -> None:
        folder = folder or Path(settings["storage"])
        folder.mkdir(parents=True, exist_ok=True)
        self.run_folder = place(settings["storage"]) / settings["name"]
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.log = folder / "driver.log"
        self.environment = {**os.environ, "RAY_ADDRESS": address}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stillgrain", "run", str(self.config)],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def kill(self) -> None:
        """End it, and start it again at once, while its workers may still be there."""
        self.end()
        self.process = self._start()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def step(self) -> int:
        """Of the newest line that the run has recorded."""
        return max((line["step"] for line in read_metrics(self.run_folder)), default=0)

    def wait_for_step(self, step: int, timeout: float = 180) -> bool:
        """Until the run has come so far. False when it has ended instead."""
        deadline = time.monotonic() + timeout
        while self.step < step:
            if not self.is_running:
                return False
            assert time.monotonic() < deadline, f"no step {step} within {timeout} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.01)
        return True

    def finish(self, timeout: float = 240) -> UPath:
        code = self.process.wait(timeout)
        assert code == 0, f"the run ended with code {code}:\n{self.log.read_text()[-3000:]}"
        return self.run_folder


def workers_of(address: str) -> set[int]:
    """Process ids of the training workers of a Ray that are alive."""
    return {actor.pid for actor in _actors_of(address, "TrainWorker")}


def _actors_of(address: str, name: str) -> list[Any]:
    return [a for a in list_actors(address=address, filters=[("state", "=", "ALIVE")]) if name in a.class_name]


def kill_at_random(driver: Driver, nodes: Nodes, rng: random.Random) -> list[str]:
    """Kill each of `TARGETS` once, in random order at random steps; returns what was killed, and when."""
    targets = rng.sample(TARGETS, len(TARGETS))
    steps = sorted(rng.sample(range(1, STEPS - 25), len(targets)))
    killed = []
    for step, target in zip(steps, targets, strict=True):
        if not driver.wait_for_step(step):
            break
        time.sleep(rng.uniform(0, 0.3))  # so that it may fall into a validation, a commit, or the start of another step
        workers = nodes.workers()
        while target != "driver" and not workers and driver.is_running:
            workers = nodes.workers()  # those of the last kill are just being replaced
        where = driver.step
        if target == "driver":
            driver.kill()
        elif target == "node":
            nodes.kill(rng.choice(workers).node_id)
            nodes.add()
        else:
            for worker in workers if target == "all workers" else [rng.choice(workers)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        killed.append(f"{target} at step {where}")
    return killed


def differences(folder: UPath, undisturbed: UPath) -> list[str]:
    """In what two finished runs differ: weights, average, optimizer, progress, every reported number, the bundle."""
    ours, theirs = (checkpoints(f)[-1] for f in (folder, undisturbed))
    tensors, expected = (load_file(c / "tensors.safetensors") for c in (ours, theirs))
    found = [name for name in expected if name not in tensors or not bool((tensors[name] == expected[name]).all())]
    found += sorted(tensors.keys() - expected.keys())
    if json.loads((ours / "state.json").read_text()) != json.loads((theirs / "state.json").read_text()):
        found.append("progress")
    if [c.name for c in checkpoints(folder)] != [c.name for c in checkpoints(undisturbed)]:
        found.append("the checkpoints that were kept")
    if (folder / "metrics.jsonl").read_bytes() != (undisturbed / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    manifests = [json.loads((f / "bundle" / "manifest.json").read_text()) for f in (folder, undisturbed)]
    for key in ("sha256", "metrics", "step"):
        if manifests[0][key] != manifests[1][key]:
            found.append(f"the bundle's {key}")
    return found
