"""Crops a second from the scene store, against decoding a whole tile for each sample as the research code did.

python -m tests.benchmarks.bench_loader   (from the project's root)

The research code reads, for each sample, a 2048 px half-float TIFF of three channels and a 1024 px array of four
(8 MB), and cuts four crops of 256 px from them. The store reads the crops alone. Here noise is drawn for each crop too,
which the research code did not do; so the time with it is given apart.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch

from library.datasets import synthetic
from library.datasets.store import Scene, SceneStore

CROP, CROPS_A_SAMPLE, SAMPLES, ROUNDS = 256, 4, 12, 5


def crops_a_second(take_sample: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for number in range(SAMPLES):
        take_sample(number)
    return SAMPLES * CROPS_A_SAMPLE / (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work:
        folder = Path(work)
        tile = rng.random((3, 2048, 2048), dtype=np.float32).astype(np.float16)
        tifffile.imwrite(folder / "tile.tif", tile, compression="zlib", planarconfig="separate")
        np.save(folder / "tile.npy", rng.random((4, 1024, 1024), dtype=np.float32).astype(np.float16))
        scenes = [Scene(f"s{n}", rng.random((2048, 2048, 3), dtype=np.float32), "lin_srgb") for n in range(4)]
        SceneStore.create(folder / "store", scenes, "random")
        store = SceneStore(folder / "store")
        dataset = synthetic.Config(crop=CROP, validation_crop=CROP, held_out=("s3",)).open(folder / "store", 0)

        def decode(number: int) -> object:
            clean, noisy = tifffile.imread(folder / "tile.tif"), np.load(folder / "tile.npy")
            starts = np.random.default_rng(number).integers(0, (1024 - CROP // 2) // 2, (CROPS_A_SAMPLE, 2)) * 2
            return [
                (
                    torch.from_numpy(clean[:, 2 * y : 2 * y + CROP, 2 * x : 2 * x + CROP].astype(np.float32)),
                    torch.from_numpy(noisy[:, y : y + CROP // 2, x : x + CROP // 2].astype(np.float32)),
                )
                for y, x in starts
            ]

        def read(number: int) -> object:
            starts = np.random.default_rng(number).integers(0, 2048 - CROP, (CROPS_A_SAMPLE, 2))
            return [torch.from_numpy(store.crop(number % 4, int(y), int(x), CROP, CROP)) for y, x in starts]

        def simulate(number: int) -> object:
            return dataset.batch(number, range(CROPS_A_SAMPLE), batch_size=CROPS_A_SAMPLE)

        ways = {"decoding a tile a sample": decode, "the store": read, "the store, with simulated noise": simulate}
        for way in ways.values():
            way(0)
        rates = {name: [crops_a_second(way) for _ in range(ROUNDS)] for name, way in ways.items()}
    print(f"numpy {np.__version__}, torch {torch.__version__}, tifffile {tifffile.__version__}, {platform.machine()}")
    decoded = statistics.median(rates["decoding a tile a sample"])
    for name, values in rates.items():
        rate = statistics.median(values)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{name:<34} {rate:8.0f} crops of {CROP} px a second ({spread}), {rate / decoded:6.1f} times decoding")


if __name__ == "__main__":
    main()
