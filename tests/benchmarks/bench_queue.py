"""What the queue costs, and how far it goes: on this machine's disk, against a real Ray, and for a cluster of 1,000
nodes by simulation.

python -m tests.benchmarks.bench_queue                                  # submits, listing, choosing: 10,000 jobs
python -m tests.benchmarks.bench_queue --ray 8                          # 8 jobs through Ray, bare and through the queue
python -m tests.benchmarks.bench_queue --simulate --jobs 10000 --nodes 1000
"""

from __future__ import annotations

import argparse
import heapq
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster import jobqueue
from cluster.dispatcher import Dispatcher, Policy
from cluster.ray_jobs import RayJob, RayNodes
from cluster.store import ACTIVE, NewJob, Store
from tests.cluster.ray_head import Head

# As large as a training's: a resolved config of 100 lines.
METADATA = {"config": "workloads/configs/denoise_rawnind.yaml", "resolved": "some.key: a value\n" * 150}
USERS = ("ada", "bob", "cem", "dov", "eve")


# --- on this machine's disk -------------------------------------------------------------------------------------------


def measure_store(folder: Path, num_jobs: int) -> None:
    rng = random.Random(0)
    jobs = [
        NewJob(f"job{i}", "true", user=rng.choice(USERS), priority=rng.randrange(3), metadata=METADATA)
        for i in range(num_jobs)
    ]
    with Store(folder) as store:
        one_by_one = [_seconds(lambda job=job: store.add([job], time.time())) for job in jobs[:100]]
        print(f"submits one by one   {1 / statistics.median(one_by_one):8.0f} a second")
        together = _seconds(lambda: store.add(jobs[100:], time.time()))
        print(f"submits in one call  {(num_jobs - 100) / together:8.0f} a second")
        heads = [_seconds(lambda: store.heads(time.time())) for _ in range(11)]
        print(f"what is next         {_of(heads)} of {num_jobs:,} queued")
    listed = [_seconds(lambda: jobqueue.status(folder)) for _ in range(7)]
    print(f"queue status         {_of(listed)} for {num_jobs:,} jobs")
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "stillgrain", "queue", "status", "--json", "--queue", str(folder)],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    print(f"stillgrain queue status --json {time.perf_counter() - start:.2f} s, its start included")
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"on disk              {size / num_jobs / 1024:.1f} KiB a job")


# --- against a real Ray -----------------------------------------------------------------------------------------------

BARE = """
import sys, time
from ray.job_submission import JobSubmissionClient
client, done = JobSubmissionClient(sys.argv[1]), {"SUCCEEDED", "FAILED", "STOPPED"}
for i in range(int(sys.argv[2])):
    start = time.perf_counter()
    job = client.submit_job(entrypoint="true", entrypoint_resources={"job_slot": 1})
    submitted = time.perf_counter()
    while client.get_job_status(job).value not in done:
        time.sleep(0.05)
    print("bare", submitted - start, time.perf_counter() - start)
"""
QUEUED = """
import sys, time
from pathlib import Path
from cluster.dispatcher import Dispatcher, Policy
from cluster.ray_jobs import RayJobs
from cluster.store import NewJob, Store
store = Store(sys.argv[3])
dispatcher = Dispatcher(store, RayJobs(sys.argv[1]), Policy(job_slots=1))
assert dispatcher.start()
for i in range(int(sys.argv[2])):
    start = time.perf_counter()
    store.add([NewJob(f"job{i}", "true")], time.time())
    dispatcher.tick()
    submitted = time.perf_counter()
    while store.jobs():
        dispatcher.tick()
        time.sleep(0.05)
    print("queued", submitted - start, time.perf_counter() - start)
"""


def measure_ray(folder: Path, num_jobs: int) -> None:
    head = Head(memory=False)
    head.switch_on()
    try:
        lines: list[str] = []
        for _ in range(2):  # by turns, since the machine may be busier at one time than at another
            for script in (BARE, QUEUED):
                done = subprocess.run(
                    [sys.executable, "-c", script, head.address, str(max(1, num_jobs // 2)), str(folder / "ray")],
                    env=head.environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                lines += done.stdout.splitlines()
                shutil.rmtree(folder / "ray", ignore_errors=True)
    finally:
        head.close()
    for kind in ("bare", "queued"):
        rows = [[float(x) for x in line.split()[1:]] for line in lines if line.startswith(kind)]
        submits, wholes = zip(*rows, strict=True)
        print(f"{kind:7}  submit {_of(submits)}, until it has ended {_of(wholes)}")


# --- 1,000 nodes ------------------------------------------------------------------------------------------------------


@dataclass
class SimulatedCluster:
    """`Jobs` of a cluster on a clock of its own, as a discrete-event simulation: jobs of random length, one a node, and
    spot nodes that are lost, and replaced after minutes."""

    num_nodes: int
    rng: random.Random
    mean_job_s: float
    mean_spot_life_s: float
    now: float = 1_000_000.0
    jobs: dict[str, RayJob] = field(default_factory=dict)
    nodes_alive: set[str] = field(default_factory=set)
    nodes_of: dict[str, str] = field(default_factory=dict)
    free: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    busy_s: float = 0.0
    losses: int = 0
    _count: int = 0

    def __post_init__(self) -> None:
        for _ in range(self.num_nodes):
            self._join()

    def at(self, delay: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self.events, (self.now + delay, self._count, what))

    def run_until(self, when: float) -> None:
        while self.events and self.events[0][0] <= when:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = when

    def _join(self) -> None:
        self._count += 1
        node = f"node{self._count}"
        self.nodes_alive.add(node)
        self.free.append(node)
        self.at(self.rng.expovariate(1 / self.mean_spot_life_s), lambda: self._leave(node))
        self._begin()

    def _leave(self, node: str) -> None:
        self.losses += 1
        self.nodes_alive.discard(node)
        if node in self.free:
            self.free.remove(node)
        job = self.nodes_of.pop(node, None)
        if job is not None:
            self.jobs[job] = RayJob("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", "", node)
        self.at(self.rng.uniform(60, 300), self._join)

    def _begin(self) -> None:
        while self.waiting and self.free:
            job, node = self.waiting.pop(0), self.free.pop()
            self.nodes_of[node] = job
            self.jobs[job] = RayJob("RUNNING", node=node)
            seconds = self.rng.expovariate(1 / self.mean_job_s)
            self.at(seconds, partial(self._end, job, node, seconds))

    def _end(self, job: str, node: str, seconds: float) -> None:
        if self.nodes_of.get(node) != job or self.jobs[job].status != "RUNNING":
            return
        del self.nodes_of[node]
        self.jobs[job] = RayJob("SUCCEEDED", 0, None, "", node)
        self.runs[job.split("-")[2]] += 1
        self.busy_s += seconds
        self.free.append(node)
        self._begin()

    # What the dispatcher calls.

    def submit(self, submission_id: str, entrypoint: str, package: str | None, metadata: Mapping[str, str]) -> None:
        self.calls["submit"] += 1
        self.jobs[submission_id] = RayJob("PENDING")
        self.waiting.append(submission_id)
        self._begin()

    def status(self, submission_id: str) -> RayJob | None:
        self.calls["status"] += 1
        return self.jobs.get(submission_id)

    def stop(self, submission_id: str) -> bool:
        self.calls["stop"] += 1
        return False

    def list(self) -> dict[str, RayJob]:
        self.calls["list"] += 1
        return dict(self.jobs)

    def logs(self, submission_id: str) -> str:
        return ""

    def mark(self, submission_id: str, node: str | None) -> str:
        return ""

    def nodes(self) -> RayNodes:
        self.calls["nodes"] += 1
        return RayNodes(frozenset(self.nodes_alive), self.num_nodes)


def simulate(folder: Path, num_jobs: int, num_nodes: int, mean_job_s: float, spot_life_s: float, call_s: float) -> None:
    """The real dispatcher and store over a simulated Ray.

    call_s  what one call of Ray takes, added to the simulated clock: the dispatcher makes one after the other
    """
    rng = random.Random(0)
    ray = SimulatedCluster(num_nodes, rng, mean_job_s, spot_life_s)
    began = ray.now
    with Store(folder) as store:
        store.add(
            [
                NewJob(f"job{i}", "true", user=rng.choice(USERS), priority=rng.randrange(3), retries=1000)
                for i in range(num_jobs)
            ],
            ray.now,
        )
        dispatcher = Dispatcher(store, ray, Policy(lease_s=1e9), clock=lambda: ray.now)
        assert dispatcher.start()
        ticks: list[float] = []
        rounds: list[float] = []
        while store.counts().get("succeeded", 0) < num_jobs:
            calls, start, at = ray.calls.total(), time.perf_counter(), ray.now
            dispatcher.tick()
            ticks.append(time.perf_counter() - start)
            ray.run_until(ray.now + max(2.0, (ray.calls.total() - calls) * call_s + ticks[-1]))
            rounds.append(ray.now - at)
            assert len(store.jobs(ACTIVE)) <= num_nodes
        assert all(count == 1 for count in ray.runs.values()), "a job has run to its end twice"
        assert len(ray.runs) == num_jobs
        attempts, _ = store.count_attempts()
    took = ray.now - began
    print(
        f"{num_jobs:,} jobs of {mean_job_s:.0f} s on {num_nodes:,} spot nodes of {spot_life_s / 3600:g} h; "
        f"{call_s * 1e3:g} ms a call of Ray"
    )
    share = ray.busy_s / took / num_nodes
    print(f"  all done once after {took / 3600:.2f} h; nodes were busy with work that counted for {share:.0%} of it")
    print(
        f"  {ray.losses:,} nodes lost, {attempts:,} attempts, {attempts - num_jobs:,} of them again; {dict(ray.calls)}"
    )
    print(
        f"  a round of the dispatcher: {_of(ticks)} of its own, longest {max(ticks):.2f} s; with Ray's answers "
        f"{statistics.median(rounds):.1f} s, longest {max(rounds):.1f} s"
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _of(seconds: list[float] | tuple[float, ...]) -> str:
    """Median and spread."""
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return f"{middle * 1e3:.1f} ms (iqr {(high - low) * 1e3:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--ray", type=int, default=0, metavar="N", help="jobs through a real Ray")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--job-s", type=float, default=3600.0)
    parser.add_argument("--spot-life-s", type=float, default=6 * 3600.0)
    parser.add_argument("--call-ms", type=float, default=10.0, help="of Ray's job API, in the simulation")
    words = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        if words.simulate:
            simulate(Path(folder), words.jobs, words.nodes, words.job_s, words.spot_life_s, words.call_ms / 1e3)
        elif words.ray:
            measure_ray(Path(folder), words.ray)
        else:
            measure_store(Path(folder), words.jobs)


if __name__ == "__main__":
    main()
