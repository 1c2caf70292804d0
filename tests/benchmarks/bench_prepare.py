"""Preparing pairs: time and memory a megapixel, from one worker to two; and whether to keep the truth demosaiced.

python -m tests.benchmarks.bench_prepare [--height 4000 --width 6000 --scenes 2]   (from the project's root)

Three tables. Crops a second of a store that demosaics each crop's truth from the mosaic with a halo, and of one that
has it stored as half floats, with the bytes of either. Then a made-up tree prepared in one process, whose memory is
noted. Then the same tree by Ray with one worker and with two; and on paper, what all of RawNIND would take.
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

import numpy as np
import torch

from library.config import validate
from library.pairs.generate import generate
from library.pairs.index import write_index
from library.pairs.prepare import DirectReader, ScenePreparation, Settings, Work
from library.pairs.store import DEMOSAICS, PairStore
from library.pairs.tree import scan_tree
from workloads import prepare

CROP, CROPS, ROUNDS = 256, 64, 5
# Ordered (gt, f) pairs and files of RawNIND v1.0, counted from its listing; most are of 24 megapixels.
PAIRS, FILES, MEGAPIXELS = 5682, 2840, 24.0
HOUR = 3600.0


def crops_a_second(store: PairStore) -> float:
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(CROPS):
        index = int(rng.integers(len(store)))
        top, left = (int(rng.integers((n - CROP) // 2 + 1)) * 2 for n in store.size(index))
        store.crop(index, top, left, CROP, CROP)
    return CROPS / (time.perf_counter() - start)


def compare_targets(tree: Path, work: Path) -> None:
    print(f"\ncrops of {CROP} px a second, one thread, files in the page cache; bytes of what a clean image takes")
    stores: dict[str, PairStore] = {}
    for targets in ("recomputed", "stored"):
        folder = work / targets
        rows = []
        for scene in scan_tree(tree)[:1]:
            preparation = ScenePreparation(scene, tree, folder, Settings(targets=targets))
            preparation.run(DirectReader())
            rows += preparation.rows()
        write_index(folder, rows)
        for method in DEMOSAICS if targets == "recomputed" else ("menon",):
            name = f"from the mosaic, {method}" if targets == "recomputed" else "stored"
            stores[name] = PairStore(folder, demosaic=method)
    for store in stores.values():
        crops_a_second(store)
    rates = {name: [crops_a_second(store) for _ in range(ROUNDS)] for name, store in stores.items()}
    for name, store in stores.items():
        pair = store.pairs[0]
        files = [pair.gt_mosaic, pair.target]
        size = sum((store.folder / file).stat().st_size for file in files if file)
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        print(f"{name:<28} {statistics.median(rates[name]):7.0f} crops/s ({spread}), {size / 1e6:7.1f} MB")


def read_and_compare(tree: Path, folder: Path) -> tuple[float, float, Work]:
    """Seconds for reading, seconds for pairs, of a tree in this process."""
    scenes = scan_tree(tree)
    start, work = time.perf_counter(), Work()
    for scene in scenes:
        # A tree of one file at a time has no pairs but each with itself, so this is nearly all reading.
        lone = [
            ScenePreparation(type(scene)(scene.name, scene.sensor, scene.folder, (gt,), ()), tree, folder, Settings())
            for gt in (*scene.gt, *scene.noisy)
        ]
        for preparation in lone:
            work += preparation.run(DirectReader())
    reading = time.perf_counter() - start
    start, work = time.perf_counter(), Work()
    for scene in scenes:
        work += ScenePreparation(scene, tree, folder, Settings()).run(DirectReader())
    return reading, time.perf_counter() - start, work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--height", type=int, default=4000)
    parser.add_argument("--width", type=int, default=6000)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--alone", nargs=2, metavar=("TREE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.alone:
        reading, pairing, work = read_and_compare(*map(Path, options.alone))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(reading, pairing, work.pairs_made, memory)
        return
    print(f"numpy {np.__version__}, torch {torch.__version__}, {platform.machine()}")
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as temporary:
        work = Path(temporary)
        planted = generate(work / "tree", scenes=options.scenes, width=options.width, height=options.height)
        tree, megapixels = planted.folder, options.width * options.height / 1e6
        print(f"{planted}, {megapixels:.1f} MP each")
        compare_targets(tree, work)

        command = [sys.executable, "-m", "tests.benchmarks.bench_prepare", "--alone", str(tree), str(work / "alone")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
        reading, pairing, pairs, memory = float(said[0]), float(said[1]), int(said[2]), float(said[3])
        readable = sum(file.flaw not in ("empty", "truncated") for file in planted.files)
        a_file, a_pair = reading / readable / megapixels, pairing / max(1, pairs) / megapixels
        print(
            f"\none process: {a_file * 1e3:.0f} ms a megapixel to read a file and keep its mosaic, "
            f"{a_pair * 1e3:.0f} ms a megapixel to make a pair of two; {memory:.0f} MiB resident at most"
        )
        seconds = {}
        for workers in (1, 2):
            changes = {"tree": str(tree), "storage": str(work / f"{workers}"), "scaling": {"workers": workers}}
            start = time.perf_counter()
            summary = prepare.run(validate(prepare.Config, changes, "bench"))
            seconds[workers] = time.perf_counter() - start
            print(f"Ray, {workers} worker(s), a scene at a time: {seconds[workers]:.1f} s for {summary.pairs} pairs")
        print(f"two workers are {seconds[1] / seconds[2]:.2f} times as fast as one, Ray's start included")
        core_hours = MEGAPIXELS * (FILES * a_file + PAIRS * a_pair) / HOUR
        print(
            f"on paper, all of RawNIND ({FILES} files, {PAIRS} pairs of {MEGAPIXELS:g} MP): {core_hours:.1f} hours of "
            f"one core, {core_hours / 16:.2f} hours on 16, {core_hours / 128:.2f} hours on 128, if disks keep up"
        )


if __name__ == "__main__":
    main()
