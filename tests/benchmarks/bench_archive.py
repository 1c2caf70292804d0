"""What an archive costs beside the network: a second run over finished files; all of a raw's way against the network
alone; one actor against two; overlapping steps against one after another; plain actors against Ray Data.

python -m tests.benchmarks.bench_archive --finished 10000 --raws 0
python -m tests.benchmarks.bench_archive --model nafnet
python -m tests.benchmarks.bench_archive --model unet --backend openvino --precision bf16 --ways 2x3
(from the project's root; 3 GB of disk for 40 raws of 24 MP, and 6 for each way in turn; see --help)

Finished files are raws of equal bytes, computed once and linked; to a second run they are files like any other. Raws to
compute are noise. Models have random weights, unless --bundle gives a trained one. Everything has two CPUs: the network
alone is two processes of one thread each, as two actors are.

The system's file cache is filled first, as it is on a machine that has been at it for an hour: pages of memory that
nobody has used yet are slow to come by on a virtual machine (0.35 s for the output of a raw of 24 MP), and while there
are any, every written file takes new ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from library.inference.backends.base import BackendName, Precision
from library.inference.denoise import render_denoised
from library.inference.engine import Engine
from library.memory import KEEP_FREED
from workloads import infer

MODELS: Mapping[str, dict[str, Any]] = {"nafnet": {"width": 16}, "unet": {}, "mobile": {}}
NUM_CPUS = 2
WAYS = ("1x3", "2x3", "2x1", "data")
ALONE = 3
"""Raws that each process of the network alone takes, of which the median counts."""


@dataclass(frozen=True)
class Computing:
    """What computes the network."""

    backend: BackendName
    precision: Precision

    def engine(self, bundle: Path) -> Engine:
        torch.set_num_threads(1)
        return Engine(load_bundle(bundle), backend=self.backend, precision=self.precision)


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


def fill_file_cache(folder: Path) -> None:
    """Read as much as the machine has memory: of a file of holes, which takes no disk."""
    path = folder / "holes"
    with path.open("wb") as file:
        file.truncate(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with path.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass
    # Its pages are let go when others need them, not with its name: it stays until the folder goes.


def compute(bundle: Path, computing: Computing, raws: list[Path], together: Barrier, seconds: Any) -> None:
    """A process that runs the network over raws which it has in memory, and says how long each took."""
    engine = computing.engine(bundle)
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


def network_alone(folder: Path, computing: Computing, num_processes: int) -> list[float]:
    """Seconds for each raw, of so many processes at once."""
    context = multiprocessing.get_context("spawn")
    together, seconds = context.Barrier(num_processes), context.Queue()
    raws = sorted((folder / "raws").glob("*.dng"))[:ALONE]
    arguments = (folder / "bundle", computing, raws, together, seconds)
    processes = [context.Process(target=compute, args=arguments) for _ in range(num_processes)]
    for process in processes:
        process.start()
    found = [seconds.get() for _ in range(num_processes * len(raws))]
    for process in processes:
        process.join()
    return found


def rate_of(output: Path, megapixels: float, num_workers: int) -> float:
    """MP/s from one output to the next: neither the start of Ray nor that of a worker is counted."""
    times = sorted(path.stat().st_mtime for path in output.glob("*.dng"))
    return megapixels * (len(times) - num_workers) / (times[-1] - times[num_workers - 1])


def with_actors(
    folder: Path, computing: Computing, megapixels: float, num_raws: int, **scaling: int
) -> tuple[float, float, int]:
    """MP/s, seconds with the start, and the most bytes that an actor has held."""
    output = folder / "out"
    changes = {"scaling": scaling, "duplicates": "make", **dataclasses.asdict(computing)}
    summary = infer.run(config(folder, "out", "raws", **changes))
    assert summary.done == num_raws, summary
    memory = max(event["memory"] for event in read_events(output) if event["event"] == "done")
    rate = rate_of(output, megapixels, scaling["workers"])
    shutil.rmtree(output)
    return rate, summary.seconds, memory


class DataNetwork:
    """The network as Ray Data wants it: a stage that holds a model."""

    def __init__(self, bundle: str, computing: Computing) -> None:
        self.engine = computing.engine(Path(bundle))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        rendering = render_denoised(row["raw"], ["dng"], self.engine)
        return {"path": row["path"], "picture": rendering.pictures["dng"]}


def with_ray_data(
    folder: Path, computing: Computing, megapixels: float, num_raws: int, num_workers: int
) -> tuple[float, float]:
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
    kept = {"runtime_env": {"env_vars": KEEP_FREED}}  # as in our actors
    rows = (
        ray.data.from_items(paths, override_num_blocks=len(paths))
        .map(decode, num_cpus=0.25, **kept)
        .map(DataNetwork, fn_constructor_args=(str(folder / "bundle"), computing), compute=pool, num_cpus=0.5, **kept)
        .map(write, num_cpus=0.25, **kept)
    )
    assert len(rows.take_all()) == num_raws  # counting would leave the work out
    seconds = time.perf_counter() - start
    rate = rate_of(output, megapixels, num_workers)
    shutil.rmtree(output)
    return rate, seconds


def compare(folder: Path, computing: Computing, num_raws: int, width: int, height: int, ways: list[str]) -> None:
    """A table of the ways that are asked for."""
    megapixels = width * height / 1e6
    for number in range(num_raws):
        write_raw(folder / "raws" / f"{number:03}.dng", number, width, height)
    fill_file_cache(folder)
    actors = [NUM_CPUS if way == "data" else int(way[0]) for way in ways]
    found: list[tuple[str, float, float, str]] = []
    # Before and after, since a machine of others' is not always as fast.
    alone = {n: network_alone(folder, computing, n) for n in sorted(set(actors))}
    for way, num_workers in zip(ways, actors, strict=True):
        if way == "data":
            rate, seconds = with_ray_data(folder, computing, megapixels, num_raws, num_workers)
            found.append((f"Ray Data, {num_workers} network actors", rate, seconds, ""))
        else:
            scaling = {"workers": num_workers, "files_per_worker": int(way[-1])}
            rate, seconds, num_bytes = with_actors(folder, computing, megapixels, num_raws, **scaling)
            found.append((f"{num_workers} actors, {way[-1]} files in hand", rate, seconds, f"{num_bytes / 1e9:.2f}"))
        print(f"{found[-1]}", flush=True)
    rates = {}
    print("| way | MP/s | of the network alone | s with the start | GB an actor |\n|---|---|---|---|---|")
    for n in alone:
        spent = [alone[n], network_alone(folder, computing, n)]
        rates[n] = n * megapixels / statistics.median(spent[0] + spent[1])
        before, after = (n * megapixels / statistics.median(each) for each in spent)
        name = f"network alone, {n} processes of one thread ({before:.2f} before, {after:.2f} after)"
        print(f"| {name} | {rates[n]:.2f} | 1 | | |")
    for num_workers, (name, rate, seconds, memory) in zip(actors, found, strict=True):
        print(f"| {name} | {rate:.2f} | {rate / rates[num_workers]:.2f} | {seconds:.0f} | {memory} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What an archive costs beside the network.")
    parser.add_argument("--finished", type=int, default=0, help="finished files to run over again")
    parser.add_argument("--raws", type=int, default=40, help="raws to compute")
    parser.add_argument("--width", type=int, default=6000)
    parser.add_argument("--height", type=int, default=4000)
    parser.add_argument("--model", choices=MODELS, default="nafnet", help="of random weights (nafnet: of width 16)")
    parser.add_argument("--bundle", type=Path, help="a trained one instead")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="actors x files in the hands of each; Ray Data"
    )
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    computing = Computing(asked.backend, asked.precision)
    network = f"bundle {asked.bundle}" if asked.bundle else f"{asked.model} {MODELS[asked.model]}"
    print(
        f"torch {torch.__version__}, ray {ray.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{asked.raws} raws of {asked.width} x {asked.height}, {network}, {asked.backend} {asked.precision}",
        flush=True,
    )
    torch.manual_seed(0)
    store = 4 * 2 * asked.width * asked.height * 4 + 200 * 2**20  # for Ray Data, whose pictures go there; ours do not
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work:
        folder = Path(work)
        if asked.bundle:
            shutil.copytree(asked.bundle, folder / "bundle")
        else:
            model: Any = config_class("library.models", asked.model)(**MODELS[asked.model])
            write_bundle(
                folder / "bundle", model.build(), name="b", training={}, data_digest="none", metrics={}, step=1
            )
        computing.engine(folder / "bundle")  # a refusal ends the program here; in a process of its own it would not
        ray.init(num_cpus=NUM_CPUS, object_store_memory=store, log_to_driver=False, include_dashboard=False)
        try:
            if asked.finished:
                run_again(folder, asked.finished)
            if asked.raws:
                compare(folder, computing, asked.raws, asked.width, asked.height, asked.ways)
        finally:
            ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
