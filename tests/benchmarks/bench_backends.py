"""What computes a network fastest: PyTorch, ONNX Runtime and OpenVINO, at several tile sizes, by turns in one run.

python -m tests.benchmarks.bench_backends [THREADS [ROUNDS [TILE...]]]   (from the project's root, on a quiet machine; 2
threads, 11 rounds, tiles of 256, 512 and 1024: about a quarter of an hour)

Network only: no decoding, no writing. Each backend computes one window, a tile with its halo. MP/s counts the
photosites of the tile alone, as in an image without borders: what a halo costs is in it. Both targets are counted from
ONNX Runtime in fp32 with UtNet2 at its best tile.

Weights are random, so that what half precision makes of the golden tiles says little of a trained network: here it is
printed, where the engine refuses what would be seen.

What a small network loses is not seen here: train both on the same scenes (`stillgrain run
workloads/configs/denoise_demo.yaml model.kind=mobile`) and compare their bundles on suites that neither has seen
(`workloads/configs/evaluate_suites.yaml`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from rich.console import Console
from rich.table import Table

from library.bundle import Bundle, golden_inputs, load_bundle, write_bundle
from library.inference.backends.base import BackendName, Precision
from library.inference.backends.golden import Run, golden_tiles, lightness_error
from library.inference.backends.graph import cached_graph, sized_graph
from library.inference.backends.onnx import onnx_session
from library.inference.backends.openvino import openvino_session
from library.inference.backends.torch import TorchBackend
from library.memory import keep_freed_memory
from library.models import mobile, nafnet, unet
from library.models.blocks.image_model import ModelConfig

TILES = (256, 512, 1024)
"""Packed pixels a side."""
WARM_UPS, ROUNDS = 2, 11
MODELS: dict[str, ModelConfig] = {
    "UtNet2": unet.Config(),
    "NAFNet of the demo": nafnet.Config(encoder_blocks=(1, 1, 1), middle_blocks=1, decoder_blocks=(1, 1, 1)),
    "Mobile": mobile.Config(),
}
BACKENDS: tuple[tuple[BackendName, Precision], ...] = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)
BASELINE = ("UtNet2", "onnx fp32")
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")


@dataclass
class Measured:
    """One backend with one tile."""

    network: str
    backend: str
    tile: int
    error: str
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    def rate(self, seconds: float) -> float:
        return (2 * self.tile) ** 2 / 1e6 / seconds

    @property
    def median(self) -> float:
        return self.rate(statistics.median(self.seconds))


class _Calibration(quantization.CalibrationDataReader):
    def __init__(self, tiles: torch.Tensor) -> None:
        self._tiles = iter(tiles)

    def get_next(self) -> dict[str, np.ndarray] | None:
        tile = next(self._tiles, None)
        return None if tile is None else {"input": tile[None].numpy()}


def int8_graph(bundle: Bundle, folder: Path) -> onnx.ModelProto:
    """Weights and activations of 8 bits, by channel, with the ranges that the golden tiles have: no training for it, so
    what it loses is the least that can be said of it."""
    tiles = golden_inputs(4, bundle.model.lattice)
    source, target = folder / "source.onnx", folder / "int8.onnx"
    onnx.save(sized_graph(bundle, cached_graph(bundle), tiles.shape[-1]), source)
    quantization.quantize_static(
        source, target, _Calibration(tiles), per_channel=True, op_types_to_quantize=["Conv", "Add", "Clip"]
    )
    return onnx.load(target)


def input_of(bundle: Bundle, side: int) -> np.ndarray:
    tiles = golden_inputs(4, bundle.model.lattice)
    pixels = torch.arange(side) % tiles.shape[-1]
    return np.ascontiguousarray(tiles[:1, :, pixels[:, None], pixels].numpy())


def candidates(name: str, bundle: Bundle, tiles: tuple[int, ...], threads: int, folder: Path) -> list[Measured]:
    found = []
    lattice, halo = bundle.model.lattice, bundle.model.halo
    for tile in tiles:
        tile = tile // lattice * lattice
        x = input_of(bundle, tile + 2 * halo)
        for backend, precision in BACKENDS:
            run, on_golden = runs(bundle, backend, precision, tile + 2 * halo, threads)
            error = "" if precision == "fp32" else error_of(bundle, on_golden)
            found.append(Measured(name, f"{backend} {precision}", tile, error, lambda run=run, x=x: run(x)))
        if name == "Mobile":
            graph = int8_graph(bundle, folder)
            run, on_golden = (
                openvino_session(sized_graph(bundle, graph, side).SerializeToString(), num_threads=threads)
                for side in (tile + 2 * halo, golden_inputs(4, lattice).shape[-1])
            )
            error = error_of(bundle, on_golden)
            found.append(Measured(name, "openvino int8", tile, error, lambda run=run, x=x: run(x)))
    return found


def runs(bundle: Bundle, backend: BackendName, precision: Precision, side: int, threads: int) -> tuple[Run, Run]:
    """What the engine's backend computes a window with, and golden tiles."""
    if backend == "torch":
        in_torch = TorchBackend(bundle, precision).run
        run = lambda x: in_torch(torch.from_numpy(x)).numpy()  # noqa: E731
        return run, run
    graph, golden = cached_graph(bundle), golden_inputs(4, bundle.model.lattice).shape[-1]
    contents = [sized_graph(bundle, graph, each).SerializeToString() for each in (side, golden)]
    if backend == "onnx":
        sessions = [onnx_session(content, num_threads=threads) for content in contents]
    else:
        sessions = [openvino_session(content, precision=precision, num_threads=threads) for content in contents]
    return sessions[0], sessions[1]


def error_of(bundle: Bundle, run: Run) -> str:
    inputs, wanted = golden_tiles(bundle)
    error = lightness_error(torch.cat([torch.from_numpy(run(tile[None].numpy())) for tile in inputs]), wanted)
    return f"{error.noise:.2g} / {error.shift:.2g}"


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def with_random_weights(config: ModelConfig, folder: Path) -> Bundle:
    """Every layer takes part, since zeros might be skipped, but changes little, as in a trained network."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.005 * torch.randn_like(parameter))
    write_bundle(folder, model, name=config.kind, training={}, data_digest="none", metrics={}, step=0)
    return load_bundle(folder)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def main() -> None:
    words = [int(word) for word in sys.argv[1:]]
    threads, rounds = words[0] if words else 2, words[1] if len(words) > 1 else ROUNDS
    tiles = tuple(words[2:]) or TILES
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the engine does
    console = Console()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    console.print(
        f"{processor()}, {threads} threads, python {platform.python_version()}, {versions}, commit {commit()}"
    )
    console.print(f"load of the machine at the start: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = work
        folder = Path(work)
        everything: list[Measured] = []
        for name, config in MODELS.items():
            bundle = with_random_weights(config, folder / config.kind)
            everything += candidates(name, bundle, tiles, threads, folder)
        for round_ in range(WARM_UPS + rounds):
            for each in everything:
                spent = seconds(each.run)
                if round_ >= WARM_UPS:
                    each.seconds.append(spent)
    baseline = max(each.median for each in everything if (each.network, each.backend) == BASELINE)
    table = Table(
        caption=f"MP: 10^6 photosites of a tile without its halo; median and quartiles of {rounds} windows, by turns. "
        "Error: lightness L* at random / on the mean of a tile, of the golden tiles."
    )
    for column in ("network", "backend", "tile", "MP/s", "quartiles", "times UtNet2 in ONNX Runtime fp32", "error"):
        table.add_column(column)
    for each in everything:
        low, _, high = statistics.quantiles(each.seconds, n=4)
        table.add_row(
            each.network,
            each.backend,
            str(each.tile),
            f"{each.median:.2f}",
            f"{each.rate(high):.2f} .. {each.rate(low):.2f}",
            f"{each.median / baseline:.2f}",
            each.error,
            end_section=each is everything[-1],
        )
    console.print(table)
    for name in MODELS:
        best = max((each for each in everything if each.network == name), key=lambda each: each.median)
        own = max(each.median for each in everything if (each.network, each.backend) == (name, BASELINE[1]))
        console.print(
            f"{name}: {best.backend} with tiles of {best.tile} is {best.median / baseline:.1f} times as fast as UtNet2 "
            f"in ONNX Runtime fp32, and {best.median / own:.1f} times as it is there itself"
        )
    console.print(f"load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
