"""What orchestration, data, precision, layout and the split over workers cost a training step, each pair in one run.

python -m tests.benchmarks.bench_training   (from the project's root, on a quiet machine; about half an hour)

Windows of a few steps by turns, the first round left out. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, cast

import ray
import torch
from rich.console import Console
from rich.table import Table

from library.datasets import synthetic
from library.training.recorder import read_metrics
from tests.benchmarks.training_runs import CONFIGS, Bare, against_ray, by_turns, training_config
from workloads.ray_session import ray_session


class Case(NamedTuple):
    base: str
    window: int
    rounds: int
    words: tuple[str, ...]


CASES = (Case("denoise_demo", 10, 40, ()), Case("denoise_rawnind", 2, 24, ("batch_size=2",)))
STARTS = {"in this process": "scaling.workers=0", "on a Ray worker, Ray started for it": "scaling.workers=1"}
COLUMNS = ("pair", "ms a step", "ms of the other", "ratio of speeds", "from", "to")


def pair(name: str, ours: list[float], others: list[float]) -> tuple[str, ...]:
    """A row: `ours` is the first in `name`, `others` the second; above 1 the first is faster."""
    ratios = [other / own for own, other in zip(ours, others, strict=True)]
    low, *_, high = statistics.quantiles(ratios, n=4)
    own, other = statistics.median(ours) * 1e3, statistics.median(others) * 1e3
    return (name, f"{own:.1f}", f"{other:.1f}", f"{statistics.median(ratios):.3f}", f"{low:.3f}", f"{high:.3f}")


def compare(case: Case, storage: Path) -> Table:
    def config(name: str, *words: str):
        return training_config(storage, case.base, name, case.window, case.rounds, *case.words, *words)

    plain = config(f"{case.base}-bare")
    store = Path(cast(synthetic.Config, plain.dataset).prepare(storage / "stores"))
    bare, two = Bare(plain, store), Bare(plain, store, threads=2)
    contiguous, half = Bare(plain, store, channels_last=False), Bare(config("half", "precision=bf16"), store)
    loaded, cached, contiguous_times, half_times, two_times = by_turns(
        bare.window, bare.cached_window, contiguous.cached_window, half.cached_window, two.cached_window,
        rounds=case.rounds,
    )  # fmt: skip
    table = Table(*COLUMNS, box=None, title=f"{case.base}.yaml {' '.join(case.words)}", title_justify="left")
    table.add_row(*pair("real loader / cached batch (at least 1 / 1.05)", loaded, cached))
    table.add_row(*pair("channels_last / contiguous", cached, contiguous_times))
    table.add_row(*pair("bf16 / fp32", half_times, cached))
    table.add_row(*pair("2 threads / 1 thread, bare loop", two_times, cached))
    for workers, cpus in ((1, 1), (2, 1), (1, 2)):
        words = (f"scaling.workers={workers}", f"scaling.cpus_per_worker={cpus}")
        ours, bares = against_ray(config(f"{case.base}-{workers}x{cpus}", *words), store, bare.window)
        wanted = " (at least 0.97)" if (workers, cpus) == (1, 1) else ""
        table.add_row(*pair(f"TorchTrainer {workers} worker x {cpus} thread / bare loop{wanted}", ours, bares))
    return table


def start_up(storage: Path, word: str) -> float:
    """Seconds from the command until the first step is recorded, scenes being prepared already; median of 3."""
    times = []
    for number in range(3):
        folder = storage / f"start-{word[-1]}-{number}"
        command = [sys.executable, "-m", "stillgrain", "run", str(CONFIGS / "denoise_demo.yaml"), word]
        command += [f"storage={storage}", f"name={folder.name}"]
        command += ["steps=2", "log_every=1", "validate_every=2", "checkpoint_every=2"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not read_metrics(folder) and process.poll() is None:
            time.sleep(0.02)
        times.append(time.perf_counter() - start)
        process.wait()
    return statistics.median(times)


def main() -> None:
    console = Console(width=120)
    console.print(
        f"torch {torch.__version__}, ray {ray.__version__}, python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} CPUs"
    )
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work:
        storage = Path(work)
        with ray_session():
            for case in CASES:
                console.print(compare(case, storage))
        for name, word in STARTS.items():
            console.print(f"{start_up(storage, word):6.1f} s from the command to the first step, {name}")


if __name__ == "__main__":
    main()
