"""What an archive costs beside the network: a second run over finished files, one actor against two, and all of a raw's
way against the network alone.

python -m tests.benchmarks.bench_archive [finished_files raws side]   (from the project's root; 10000 24 1500)

Finished files are raws of equal bytes, computed once and linked; to a second run they are files like any other. Raws to
compute are noise of `side` x `side` photosites. The network is a NAFNet of width 16 with random weights.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch

from library.bundle import load_bundle, write_bundle
from library.config import validate
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.raw import read_raw
from library.inference.engine import Engine
from library.models import nafnet
from workloads import infer


def write_raw(path: Path, seed: int, side: int) -> None:
    mosaic = np.random.default_rng(seed).integers(600, 9000, (side, side)).astype(np.uint16)
    black_level = np.full((2, 2), 512.0)
    write_cfa_dng(path, mosaic, cfa="RGGB", black_level=black_level, white_level=16383, metadata=ImageMetadata())


def config(folder: Path, output: str, raws: str, **changes: object) -> infer.Config:
    places = {"raws": str(folder / raws), "output": str(folder / output), "bundle": str(folder / "bundle")}
    return validate(infer.Config, {**places, **changes}, "benchmark")


def run_again(folder: Path, num_files: int) -> None:
    """Wall and processor seconds of a run that finds everything done."""
    write_raw(folder / "finished" / "first.dng", 0, 64)
    data = (folder / "finished" / "first.dng").read_bytes()
    for number in range(1, num_files):
        path = folder / "finished" / f"{number // 500:03}" / f"{number:06}.dng"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    settings = config(folder, "finished_out", "finished")
    first = infer.run(settings)
    assert first.done == num_files, first
    walls, cpus = [], []
    for _ in range(5):
        wall, cpu = time.perf_counter(), time.process_time()
        assert infer.run(settings).skipped == num_files
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    print(
        f"{num_files} finished files again: {statistics.median(walls):.2f} s, at best {min(walls):.2f} s, of the "
        f"processor {statistics.median(cpus):.2f} s (linking them took {first.seconds:.0f} s)",
        flush=True,
    )


def rates(folder: Path, num_raws: int, side: int) -> None:
    """MP/s of one actor, of two, and of the network alone in one process; actors are warm when the clock starts."""
    for number in range(num_raws):
        write_raw(folder / "raws" / f"{number:03}.dng", number, side)
    engine = Engine(load_bundle(folder / "bundle"))
    torch.set_num_threads(1)
    seconds = []
    for path in sorted((folder / "raws").glob("*.dng"))[: min(num_raws, 6)]:
        raw = read_raw(path)
        start = time.perf_counter()
        for _ in engine.camera_rgb(raw):
            pass
        seconds.append(time.perf_counter() - start)
    network = side * side / 1e6 / statistics.median(seconds[1:])
    print(f"network alone, one thread: {network:.2f} MP/s", flush=True)
    for workers in (1, 2):
        settings = config(folder, f"out{workers}", "raws", scaling={"workers": workers})
        summary = infer.run(settings)
        assert summary.done == num_raws, summary
        times = sorted(path.stat().st_mtime for path in (folder / f"out{workers}").glob("*.dng"))
        # From one output to the next: neither the start of Ray nor that of an actor is counted.
        rate = side * side / 1e6 * (len(times) - workers) / (times[-1] - times[workers - 1])
        print(
            f"{workers} actors: {rate:.2f} MP/s, {rate / workers / network:.2f} of the network's for each "
            f"({summary.seconds:.0f} s with the start)",
            flush=True,
        )


def main() -> int:
    num_files, num_raws, side = (int(word) for word in (sys.argv[1:] or (10_000, 24, 1500)))
    print(f"torch {torch.__version__}, ray {ray.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work:
        folder = Path(work)
        model = nafnet.Config(width=16).build()
        write_bundle(folder / "bundle", model, name="b", training={}, data_digest="none", metrics={}, step=1)
        run_again(folder, num_files)
        rates(folder, num_raws, side)
    return 0


if __name__ == "__main__":
    sys.exit(main())
