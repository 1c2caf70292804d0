"""Every network: its size, what it costs, how far it looks, and how long it takes here on one thread.

python -m tests.benchmarks.bench_models   (from the project's root)
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from library.models import demosaic, mobile, nafnet, unet, utnet3
from library.models.blocks.image_model import ImageModel, ModelConfig

MEGAPIXEL = 2**20
SIDE = 512
"""Pixels of the output: a quarter of a megapixel."""
WARM_UPS, RUNS = 1, 5

CONFIGS: list[ModelConfig] = [
    demosaic.Config(),
    demosaic.Config(method="malvar"),
    mobile.Config(),
    mobile.Config(encoder_blocks=(), decoder_blocks=()),
    nafnet.Config(),
    unet.Config(),
    unet.Config(head="transposed"),
    unet.Config(head="preupsample"),
    unet.Config(in_channels=3, head="plain"),
    unet.Config(funit=48),
    unet.Config(in_channels=3, head="plain", funit=64),
    utnet3.Config(),
]


def settings_of(config: ModelConfig) -> str:
    """What differs from the defaults."""
    default = type(config)(kind=config.kind).model_dump()
    changed = {name: value for name, value in config.model_dump().items() if value != default[name]}
    return ", ".join(f"{name} {value}" for name, value in changed.items())


@torch.no_grad()
def seconds(model: ImageModel) -> list[float]:
    """Of each run over one input in the layout that inference uses."""
    side = SIDE // model.scale
    x = torch.rand(1, model.in_channels, side, side).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(WARM_UPS + RUNS):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return times[WARM_UPS:]


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table(
        caption=f"Mpx: 2^20 pixels of the output. Median of {RUNS} runs on {SIDE} x {SIDE}, 1 thread, float32."
    )
    for column in ("model", "settings"):
        table.add_column(column)
    for column in ("parameters", "kMAC/px", "GMAC/Mpx", "reach", "halo", "lattice", "ms/Mpx", "iqr"):
        table.add_column(column, justify="right", no_wrap=True)
    console = Console()
    with console.status("measuring") as status:
        for config in CONFIGS:
            status.update(f"measuring {config.kind} {settings_of(config)}")
            model = config.build().eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            per_mpx = [1e3 * t * MEGAPIXEL / SIDE**2 for t in seconds(model)]
            quartiles = statistics.quantiles(per_mpx, n=4)
            table.add_row(
                config.kind,
                settings_of(config),
                f"{model.num_parameters:,}",
                f"{model.macs_per_pixel / 1e3:,.2f}",
                f"{model.macs_per_pixel * MEGAPIXEL / 1e9:,.1f}",
                str(model.geometry.reach),
                str(model.halo),
                str(model.lattice),
                f"{statistics.median(per_mpx):,.0f}",
                f"{quartiles[2] - quartiles[0]:,.0f}",
            )
    console.print(f"commit {commit()}, torch {torch.__version__}, python {platform.python_version()}, {processor()}")
    console.print(table)


if __name__ == "__main__":
    main()
