"""What computes a network fastest: PyTorch in float32 and bfloat16, ONNX Runtime, OpenVINO, by turns in one run.

python -m tests.benchmarks.bench_backends [THREADS]   (from the project's root, on a quiet machine; a few minutes)

Network only: no decoding, no writing. Each backend computes the same tile; its difference from PyTorch in float32 is
printed beside its speed.
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
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from library.bundle import Bundle, golden_inputs, load_bundle, write_bundle
from library.export.golden import Run
from library.export.onnx import network_graph, onnx_session, sized_graph
from library.export.openvino import openvino_session
from library.models import mobile, nafnet, unet
from library.models.blocks.image_model import ImageModel, ModelConfig

TILE = 512
"""Packed pixels a side: 1,048,576 photosites."""
WARM_UPS, ROUNDS = 2, 11
MODELS: dict[str, ModelConfig] = {
    "UtNet2": unet.Config(),
    "NAFNet of the demo": nafnet.Config(encoder_blocks=(1, 1, 1), middle_blocks=1, decoder_blocks=(1, 1, 1)),
    "Mobile": mobile.Config(),
}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")


def in_torch(model: ImageModel, *, bf16: bool) -> Run:
    """As the engine runs it."""

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)).float().numpy()

    return run


def backends(bundle: Bundle, threads: int) -> dict[str, Run]:
    graph = network_graph(bundle)
    any_size = graph.SerializeToString()
    fixed = sized_graph(bundle, graph, TILE).SerializeToString()
    return {
        "PyTorch fp32": in_torch(bundle.model, bf16=False),
        "PyTorch bf16": in_torch(bundle.model, bf16=True),
        "ONNX Runtime fp32": onnx_session(fixed, num_threads=threads),
        "ONNX Runtime fp32, any size": onnx_session(any_size, num_threads=threads),
        "OpenVINO fp32": openvino_session(fixed, num_threads=threads),
        "OpenVINO bf16": openvino_session(fixed, precision="bf16", num_threads=threads),
    }


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def with_random_weights(config: ModelConfig, folder: Path) -> Bundle:
    """Every layer takes part: zeros might be skipped."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    write_bundle(folder, model, name=config.kind, training={}, data_digest="none", metrics={}, step=0)
    return load_bundle(folder)


def measure(name: str, bundle: Bundle, threads: int, table: Table) -> None:
    tiles = golden_inputs(4, bundle.model.lattice)
    side = torch.arange(TILE) % tiles.shape[-1]
    x = np.ascontiguousarray(tiles[:1, :, side[:, None], side].numpy())
    runs = backends(bundle, threads)
    wanted = runs["PyTorch fp32"](x)
    times: dict[str, list[float]] = {backend: [] for backend in runs}
    for round_ in range(WARM_UPS + ROUNDS):
        for backend, run in runs.items():
            spent = seconds(lambda run=run: run(x))
            if round_ >= WARM_UPS:
                times[backend].append(spent)
    baseline = statistics.median(times["ONNX Runtime fp32"])
    for backend, run in runs.items():
        low, median, high = statistics.quantiles(times[backend], n=4)
        error = float(np.abs(run(x) - wanted).mean() / np.abs(wanted).mean())
        megapixels = [(2 * TILE) ** 2 / 1e6 / value for value in (median, high, low)]
        row = (f"{megapixels[0]:.2f}", f"{megapixels[1]:.2f} .. {megapixels[2]:.2f}", f"{baseline / median:.2f}")
        table.add_row(name, backend, *row, f"{error:.1e}")
    table.add_section()


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    torch.set_num_threads(threads)
    console = Console()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    console.print(
        f"{processor()}, {threads} threads, python {platform.python_version()}, {versions}, commit {commit()}"
    )
    console.print(f"load of the machine at the start: {os.getloadavg()[0]:.1f}")
    table = Table(
        caption=f"MP: 10^6 photosites. Median and quartiles of {ROUNDS} tiles of {TILE} x {TILE} packed pixels, by "
        "turns. Error: mean difference from PyTorch fp32, of the mean."
    )
    for column in ("network", "backend", "MP/s", "quartiles", "times ONNX Runtime fp32", "error"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as folder:
        for name, config in MODELS.items():
            measure(name, with_random_weights(config, Path(folder, config.kind)), threads, table)
    console.print(table)
    console.print(f"load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
