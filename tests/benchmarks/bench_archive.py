"""What an archive costs beside the network: a second run over finished files; all of a raw's way against the network
alone; one actor against two; overlapping steps against one after another; plain actors against Ray Data.

python -m tests.benchmarks.bench_archive [finished_files raws width height model]
(from the project's root; 10000 40 6000 4000 nafnet; 3 GB of disk for the raws, and 6 for each way in turn)

Finished files are raws of equal bytes, computed once and linked; to a second run they are files like any other. Raws to
compute are noise. Models have random weights: nafnet (width 16), unet (UtNet2), mobile. Everything has two CPUs: the
network alone is two processes of one thread each, as two actors are.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from library.bundle import load_bundle, write_bundle
from library.config import config_class, validate
from library.files.dng import write_cfa_dng, write_linear_dng
from library.files.metadata import ImageMetadata
from library.files.raw import read_raw
from library.inference.archive_events import read_events
from library.inference.denoise import render_denoised
from library.inference.engine import Engine
from workloads import infer

MODELS: Mapping[str, dict[str, Any]] = {"nafnet": {"width": 16}, "unet": {}, "mobile": {}}
NUM_CPUS = 2


def write_raw(path: Path, seed: int, width: int, height: int) -> None:
    mosaic = np.random.default_rng(seed).integers(600, 9000, (height, width), np.uint16)
    black_level = np.full((2, 2), 512.0)
    write_cfa_dng(path, mosaic, cfa="RGGB", black_level=black_level, white_level=16383, metadata=ImageMetadata())


def config(folder: Path, output: str, raws: str, **changes: object) -> infer.Config:
    places = {"raws": str(folder / raws), "output": str(folder / output), "bundle": str(folder / "bundle")}
    return validate(infer.Config, {**places, **changes}, "benchmark")


def run_again(folder: Path, num_files: int) -> None:
    """Wall and processor seconds of a run that finds everything done."""
    write_raw(folder / "finished" / "first.dng", 0, 64, 64)
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


# --- ways -------------------------------------------------------------------------------------------------------------


def compute(bundle: Path, raws: list[Path], together: Barrier, seconds: Any) -> None:
    """A process that runs the network over raws which it has in memory, and says how long each took."""
    torch.set_num_threads(1)
    engine = Engine(load_bundle(bundle))
    raw = read_raw(raws[0])
    for _ in engine.camera_rgb(raw):
        break
    together.wait()
    for path in raws:
        raw = read_raw(path)
        start = time.perf_counter()
        for _ in engine.camera_rgb(raw):
            pass
        seconds.put(time.perf_counter() - start)


def network_alone(folder: Path, num_processes: int, num_each: int, megapixels: float) -> float:
    """MP/s of so many processes at once."""
    context = multiprocessing.get_context("spawn")
    together, seconds = context.Barrier(num_processes), context.Queue()
    raws = sorted((folder / "raws").glob("*.dng"))[:num_each]
    arguments = (folder / "bundle", raws, together, seconds)
    processes = [context.Process(target=compute, args=arguments) for _ in range(num_processes)]
    for process in processes:
        process.start()
    found = [seconds.get() for _ in range(num_processes * len(raws))]
    for process in processes:
        process.join()
    return num_processes * megapixels / statistics.median(found)


def rate_of(output: Path, megapixels: float, num_workers: int) -> float:
    """MP/s from one output to the next: neither the start of Ray nor that of a worker is counted."""
    times = sorted(path.stat().st_mtime for path in output.glob("*.dng"))
    return megapixels * (len(times) - num_workers) / (times[-1] - times[num_workers - 1])


def with_actors(folder: Path, megapixels: float, num_raws: int, **scaling: int) -> tuple[float, float, int]:
    """MP/s, seconds with the start, and the most bytes that an actor has held."""
    output = folder / "out"
    summary = infer.run(config(folder, "out", "raws", scaling=scaling, duplicates="make"))
    assert summary.done == num_raws, summary
    memory = max(event["memory"] for event in read_events(output) if event["event"] == "done")
    rate = rate_of(output, megapixels, scaling["workers"])
    shutil.rmtree(output)
    return rate, summary.seconds, memory


class DataNetwork:
    """The network as Ray Data wants it: a stage that holds a model."""

    def __init__(self, bundle: str) -> None:
        torch.set_num_threads(1)
        self.engine = Engine(load_bundle(bundle))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        rendering = render_denoised(row["raw"], ["dng"], self.engine)
        return {"path": row["path"], "picture": rendering.pictures["dng"]}


def with_ray_data(folder: Path, megapixels: float, num_raws: int, num_workers: int) -> tuple[float, float]:
    """MP/s, and seconds with the start: decoding, network and writing as three stages that Ray Data schedules. It keeps
    no ledger, verifies nothing and bears no bad file."""
    output = folder / "out"
    output.mkdir()

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return {"path": row["path"], "raw": read_raw(row["path"])}

    def write(row: dict[str, Any]) -> dict[str, Any]:
        target = output / Path(row["path"]).name
        write_linear_dng(target, row["picture"], black_level=1024, white_level=65535, metadata=ImageMetadata())
        return {"path": str(target)}

    start = time.perf_counter()
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = [{"path": str(path)} for path in sorted((folder / "raws").glob("*.dng"))]
    pool = ray.data.ActorPoolStrategy(size=num_workers)
    rows = (
        ray.data.from_items(paths, override_num_blocks=len(paths))
        .map(decode, num_cpus=0.25)
        .map(DataNetwork, fn_constructor_args=(str(folder / "bundle"),), compute=pool, num_cpus=0.5)
        .map(write, num_cpus=0.25)
    )
    assert len(rows.take_all()) == num_raws  # counting would leave the work out
    seconds = time.perf_counter() - start
    rate = rate_of(output, megapixels, num_workers)
    shutil.rmtree(output)
    return rate, seconds


def rates(folder: Path, num_raws: int, width: int, height: int) -> None:
    """A table of all ways."""
    megapixels = width * height / 1e6
    for number in range(num_raws):
        write_raw(folder / "raws" / f"{number:03}.dng", number, width, height)
    alone = {n: network_alone(folder, n, min(num_raws, 5), megapixels) for n in (1, 2)}
    print("| way | MP/s | of the network alone | s with the start | GB an actor |\n|---|---|---|---|---|")
    for num_workers, rate in alone.items():
        print(f"| network alone, {num_workers} processes of one thread | {rate:.2f} | 1 | | |", flush=True)
    for num_workers, num_in_hand in ((1, 3), (2, 3), (2, 1)):
        scaling = {"workers": num_workers, "files_per_worker": num_in_hand}
        rate, seconds, memory = with_actors(folder, megapixels, num_raws, **scaling)
        print(
            f"| {num_workers} actors, {num_in_hand} files in hand | {rate:.2f} | {rate / alone[num_workers]:.2f} | "
            f"{seconds:.0f} | {memory / 1e9:.2f} |",
            flush=True,
        )
    rate, seconds = with_ray_data(folder, megapixels, num_raws, 2)
    print(f"| Ray Data, 2 network actors | {rate:.2f} | {rate / alone[2]:.2f} | {seconds:.0f} | |", flush=True)


def main() -> int:
    words = [*sys.argv[1:], *("10000", "40", "6000", "4000", "nafnet")[len(sys.argv) - 1 :]]
    num_files, num_raws, width, height = map(int, words[:4])
    model = config_class("library.models", words[4])(**MODELS[words[4]])
    print(
        f"torch {torch.__version__}, ray {ray.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{num_raws} raws of {width} x {height}, {words[4]} {MODELS[words[4]]}",
        flush=True,
    )
    torch.manual_seed(0)
    store = 4 * 2 * width * height * 4 + 200 * 2**20  # for Ray Data, which puts pictures there; ours puts none
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work:
        folder = Path(work)
        write_bundle(folder / "bundle", model.build(), name="b", training={}, data_digest="none", metrics={}, step=1)
        ray.init(num_cpus=NUM_CPUS, object_store_memory=store, log_to_driver=False, include_dashboard=False)
        try:
            if num_files:
                run_again(folder, num_files)
            if num_raws:
                rates(folder, num_raws, width, height)
        finally:
            ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
