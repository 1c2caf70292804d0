"""What orchestration, data, precision, layout and the split over workers cost a training step, each pair in one run.

python -m tests.benchmarks.bench_training   (from the project's root, on a quiet machine; about ten minutes)

Medians over windows of ten steps, the first of each round left out, rounds interleaved.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import ray
import torch
from rich.console import Console
from rich.table import Table

from library.datasets import synthetic
from library.training.recorder import read_metrics
from tests.benchmarks.training_runs import CONFIG, Bare, ray_seconds, training_config, with_threads
from workloads.ray_session import ray_session

STEPS, ROUNDS = 80, 3


class Measured:
    """Seconds a step by what was timed, over all rounds."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def add(self, name: str, times: list[float]) -> None:
        self.times.setdefault(name, []).extend(times)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def spread(self, name: str) -> float:
        low, _, high = statistics.quantiles(self.times[name], n=4)
        return high - low


def main() -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    found = Measured()
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work:
        storage = Path(work)
        demo = training_config(storage, "bare", STEPS)
        store = Path(cast(synthetic.Config, demo.dataset).prepare(storage / "stores"))
        bf16 = training_config(storage, "bf16", STEPS, "precision=bf16")
        with ray_session():
            for number in range(ROUNDS):
                bare = Bare(demo, store)
                found.add("bare loop, 1 thread", with_threads(1, lambda b=bare: b.seconds(b.batches(STEPS))))
                cached = bare.batch(0)
                found.add(
                    "one cached batch, 1 thread",
                    with_threads(1, lambda b=bare, c=cached: b.seconds(itertools.repeat(c, STEPS))),
                )
                found.add("bare loop, 2 threads", with_threads(2, lambda b=bare: b.seconds(b.batches(STEPS))))
                plain = Bare(demo, store, channels_last=False)
                found.add("contiguous, 1 thread", with_threads(1, lambda b=plain: b.seconds(b.batches(STEPS))))
                half = Bare(bf16, store)
                found.add("bf16, 1 thread", with_threads(1, lambda b=half: b.seconds(b.batches(STEPS))))
                for workers, cpus in ((1, 1), (2, 1), (1, 2)):
                    words = (f"scaling.workers={workers}", f"scaling.cpus_per_worker={cpus}")
                    config = training_config(storage, f"ray-{workers}x{cpus}-{number}", STEPS, *words)
                    name = f"TorchTrainer, {workers} workers x {cpus} threads"
                    found.add(name, ray_seconds(config, store))
        starts = {name: start_up(storage, name, words) for name, words in STARTS.items()}
    report(found, starts)


STARTS = {"in this process": ["scaling.workers=0"], "Ray started for it, 1 worker": ["scaling.workers=1"]}


def start_up(storage: Path, name: str, words: list[str]) -> float:
    """Seconds from the command until the first step is recorded, scenes being prepared already; median of 3."""
    times = []
    for number in range(ROUNDS):
        folder = storage / f"start-{len(words[0])}-{name[:2]}-{number}"
        command = [sys.executable, "-m", "stillgrain", "run", str(CONFIG), f"storage={storage}", f"name={folder.name}"]
        command += ["steps=2", "log_every=1", "validate_every=2", "checkpoint_every=2", *words]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not read_metrics(folder) and process.poll() is None:
            time.sleep(0.02)
        times.append(time.perf_counter() - start)
        process.wait()
    return statistics.median(times)


def report(found: Measured, starts: dict[str, float]) -> None:
    console = Console(width=110)
    console.print(
        f"torch {torch.__version__}, ray {ray.__version__}, python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} CPUs; {CONFIG.name}, batch of 8 x 128 px; {ROUNDS} rounds of {STEPS} steps"
    )
    table = Table("", "ms a step", "iqr", "steps a second", box=None)
    for name in found.times:
        table.add_row(
            name, f"{found.median(name) * 1e3:.1f}", f"{found.spread(name) * 1e3:.1f}", f"{1 / found.median(name):.2f}"
        )
    console.print(table)
    bare = found.median("bare loop, 1 thread")
    ratios = {
        "TorchTrainer with 1 worker over the bare loop, steps per second (at least 0.97)": bare
        / found.median("TorchTrainer, 1 workers x 1 threads"),
        "real loader over a cached batch, time (at most 1.05)": bare / found.median("one cached batch, 1 thread"),
        "channels_last over contiguous, speed": found.median("contiguous, 1 thread") / bare,
        "bf16 over fp32, speed": bare / found.median("bf16, 1 thread"),
        "2 workers x 1 thread over the bare loop of 1 thread, speed": bare
        / found.median("TorchTrainer, 2 workers x 1 threads"),
        "1 worker x 2 threads over the bare loop of 1 thread, speed": bare
        / found.median("TorchTrainer, 1 workers x 2 threads"),
        "bare loop of 2 threads over 1, speed": bare / found.median("bare loop, 2 threads"),
        "2 workers x 1 thread over 1 worker x 2 threads, speed": found.median("TorchTrainer, 1 workers x 2 threads")
        / found.median("TorchTrainer, 2 workers x 1 threads"),
    }
    for name, ratio in ratios.items():
        console.print(f"{ratio:6.3f}  {name}")
    for name, seconds in starts.items():
        console.print(f"{seconds:6.1f} s from the command to the first step, {name}")


if __name__ == "__main__":
    main()
