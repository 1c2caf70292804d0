"""Twenty random seeds of killing everything: in each, a worker, all workers, the driver and a node at random steps.

python -m tests.benchmarks.bench_kills [first_seed last_seed]   (from the project's root; about half an hour)
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch

from tests.kills import Driver, cluster_of, differences, kill_at_random, run_config
from tests.scenes import paint_scenes


def main() -> int:
    first, last = (int(word) for word in sys.argv[1:]) if len(sys.argv) == 3 else (1, 20)
    print(f"torch {torch.__version__}, ray {ray.__version__}; a cluster of two nodes of one CPU each", flush=True)
    failures, times, kills = 0, [], 0
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work, cluster_of(2) as nodes:
        scenes = paint_scenes(Path(work, "scenes"))
        undisturbed = {}
        for workers in (1, 2):
            with Driver(run_config(scenes, Path(work, f"undisturbed-{workers}"), workers), nodes.address) as driver:
                undisturbed[workers] = driver.finish()
        for seed in range(first, last + 1):
            workers = 1 + seed % 2
            start = time.monotonic()
            with Driver(run_config(scenes, Path(work, f"seed-{seed}"), workers), nodes.address) as driver:
                killed = kill_at_random(driver, nodes, random.Random(seed))
                found = differences(driver.finish(), undisturbed[workers])
            times.append(time.monotonic() - start)
            kills += len(killed)
            failures += bool(found)
            verdict = f"DIFFERS in {', '.join(found)}" if found else "the same bits"
            print(f"seed {seed:>2}, {workers} workers: {', '.join(killed)}: {verdict} ({times[-1]:.0f} s)", flush=True)
    print(f"{kills} kills in {len(times)} runs, {failures} runs differ; median {statistics.median(times):.0f} s a run")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
