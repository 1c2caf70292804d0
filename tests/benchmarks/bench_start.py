"""What processes of ours take to start: of this checkout beside another one, in turns.

python -m tests.benchmarks.bench_start --against ../other [--rounds 7]
(both with the packages of the running interpreter; from the project's root)
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch

ROOT = Path(__file__).resolve().parents[2]
DEMO = "workloads/configs/denoise_demo.yaml"
STARTS = {
    "a training worker's imports": ["-c", "import workloads.denoise"],
    "stillgrain check": ["-m", "stillgrain", "check", DEMO],
    "stillgrain check, of a codec": ["-m", "stillgrain", "check", "workloads/configs/compress_demo.yaml"],
    "stillgrain submit": ["-m", "stillgrain", "submit", DEMO, "storage=/shared/runs", "--queue"],
}


def start(checkout: Path, words: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a process and its children."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as queue:
        words = [*words, queue] if words[-1] == "--queue" else words
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        subprocess.run([sys.executable, *words], cwd=checkout, env=environment, check=True, capture_output=True)
        wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="What processes of ours take to start, here and in another checkout.")
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, ray {ray.__version__}, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f}; medians of {asked.rounds}\n"
        "| | s there | s here | processor s there | here |\n|---|---|---|---|---|"
    )
    checkouts = (asked.against.resolve(), ROOT)
    for name, words in STARTS.items():
        found = [[start(checkout, words) for checkout in checkouts] for _ in range(asked.rounds + 1)][1:]
        walls, cpus = ([statistics.median(pair[i][j] for pair in found) for i in range(2)] for j in range(2))
        print(f"| {name} | {walls[0]:.2f} | {walls[1]:.2f} | {cpus[0]:.2f} | {cpus[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
