"""Finding the shift between two shots, against the neighbourhood search of RawNIND's research code, on known shifts.

python -m tests.benchmarks.bench_align [--height 1900 --width 2850 --trials 3]   (from the project's root)

The search (described in the handbook of the data set, written anew here) compares demosaiced pictures: it scales one to
the mean of the other, and follows the least mean absolute difference through windows of 7 x 7 shifts until it stays, or
is 128 pixels away. It is given pictures that are demosaiced already, and torch with the same threads; the alignment is
given mosaics. Both are right when they name the very pixel.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage

from library.datasets.samples import dead_leaves
from library.ops.cfa import sample_cfa
from library.ops.demosaic import demosaic_bilinear
from library.pairs.align import Mosaic, align

T = TypeVar("T")
THREADS = 2
BLACK, WHITE = 512.0, 15872.0
NOISES = {"ISO 100": (1e-4, 1e-7), "ISO 6400": (6e-3, 4e-5), "ISO 51200": (5e-2, 3e-3), "ISO 204800": (0.2, 2e-2)}
# Full-resolution pixels; every sign and parity.
SHIFTS = [(0, 0), (1, -1), (-2, 3), (5, 4), (-10, 0), (9, -11), (14, 13), (-30, 25), (0, -63), (77, 50), (-128, 127)]
LARGEST = 128
WINDOW = 3


def search(gt: torch.Tensor, f: torch.Tensor) -> tuple[int, int]:
    """The shift by neighbourhood search; gt, f (3, H, W) in linear light."""
    f = f * (gt.mean() / f.mean())
    losses: dict[tuple[int, int], float] = {}

    def loss(dy: int, dx: int) -> float:
        height, width = gt.shape[1:]
        a = gt[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
        b = f[:, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
        return float((a - b).abs_().mean())

    best, losses[0, 0] = (0, 0), loss(0, 0)
    while losses[best] > 0 and abs(best[0]) + abs(best[1]) < LARGEST:
        for dy in range(best[0] - WINDOW, best[0] + WINDOW + 1):
            for dx in range(best[1] - WINDOW, best[1] + WINDOW + 1):
                if (dy, dx) not in losses:
                    losses[dy, dx] = loss(dy, dx)
        found = min(losses, key=lambda shift: losses[shift])
        if found == best:
            break
        best = found
    return best


def make_scene(height: int, width: int, seed: int) -> torch.Tensor:
    """(3, H, W) linear: large things with edges, fine things on them."""
    rng = np.random.default_rng(seed)
    small = dead_leaves(500, rng)
    factor = -(-max(height, width) // 500)
    large = np.kron(small, np.ones((factor, factor, 1), np.float32))
    large = ndimage.uniform_filter(large, (factor, factor, 1))[:height, :width]
    repeats = (-(-height // 500), -(-width // 500), 1)
    fine = np.tile(dead_leaves(500, rng), repeats)[:height, :width]
    return torch.from_numpy(np.ascontiguousarray((large * (0.6 + 0.8 * fine) * 0.5).transpose(2, 0, 1)))


def expose(light: torch.Tensor, a: float, b: float, seed: int) -> Mosaic:
    linear = sample_cfa(light).numpy()
    noise = np.sqrt(a * np.maximum(linear, 0) + b) * np.random.default_rng(seed).standard_normal(linear.shape)
    counts = np.clip(np.round((linear + noise) * (WHITE - BLACK) + BLACK), 0, WHITE).astype(np.uint16)
    return Mosaic(counts, (BLACK,) * 4, WHITE)


def picture(mosaic: Mosaic) -> torch.Tensor:
    linear = (torch.from_numpy(mosaic.counts.astype(np.float32)) - BLACK) / (WHITE - BLACK)
    return demosaic_bilinear(linear)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--height", type=int, default=1900)
    parser.add_argument("--width", type=int, default=2850)
    parser.add_argument("--trials", type=int, default=3, help="scenes")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    height, width, margin = options.height, options.width, max(max(map(abs, s)) for s in SHIFTS)
    print(f"numpy {np.__version__}, torch {torch.__version__}, {platform.machine()}, {THREADS} threads")
    print(f"{height * width / 1e6:.1f} MP, {options.trials} scenes, {len(SHIFTS)} shifts, times are medians\n")
    print(
        f"{'noise':<12} {'shift':<12} {'search right':>12} {'s':>7}   "
        f"{'alignment right':>15} {'sure':>5} {'ms':>7} {'x':>6}"
    )
    both = of_found = 0
    scenes = [make_scene(height + 2 * margin, width + 2 * margin, seed) for seed in range(options.trials)]

    def view(scene: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
        return scene[:, margin + dy : margin + dy + height, margin + dx : margin + dx + width]

    warm = expose(view(scenes[0], 0, 0), *NOISES["ISO 100"], seed=0)
    align(warm, warm, threads=THREADS)
    search(picture(warm)[:, :200, :200], picture(warm)[:, 2:202, :200])
    for name, (a, b) in NOISES.items():
        for shift in SHIFTS:
            searched, aligned = [], []
            for trial, scene in enumerate(scenes):
                gt = expose(view(scene, 0, 0), *NOISES["ISO 100"], seed=trial)
                f = expose(0.7 * view(scene, *shift), a, b, seed=100 + trial)
                gt_rgb, f_rgb = picture(gt), picture(f)
                searched.append(timed(lambda gt=gt_rgb, f=f_rgb: search(gt, f)))
                aligned.append(timed(lambda gt=gt, f=f: align(gt, f, threads=THREADS)))
            was_found = [result == shift for result, _ in searched]
            is_right = [result.shift == shift for result, _ in aligned]
            of_found += sum(was_found)
            both += sum(right for found, right in zip(was_found, is_right, strict=True) if found)
            seconds = [statistics.median(t for _, t in results) for results in (searched, aligned)]
            print(
                f"{name:<12} {shift!s:<12} {sum(was_found):>9} / {len(scenes)} {seconds[0]:7.2f}   "
                f"{sum(is_right):>12} / {len(scenes)} {sum(result.ok for result, _ in aligned):>5} "
                f"{seconds[1] * 1e3:7.0f} {seconds[0] / seconds[1]:6.0f}",
                flush=True,
            )
    print(f"\nwhere the search is right, the alignment is too in {both} of {of_found}: {both / max(1, of_found):.1%}")


if __name__ == "__main__":
    main()
