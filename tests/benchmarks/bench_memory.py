"""The most memory that denoising one raw takes, from file to file, each case in a process of its own.

python -m tests.benchmarks.bench_memory [WIDTH HEIGHT [GIB]]   (from the project's root; 14204 x 10652, 150 MP, and 4)

For each network and kind of engine: the process' peak beside its bound, the tile that was chosen, and the seconds. Then
what a window takes for each of its pixels, beside what the network's own activations say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from library.bundle import load_bundle, write_bundle
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.raw import read_raw
from library.inference.denoise import denoise_file
from library.inference.engine import Engine
from library.inference.strength import Strength
from library.inference.tile_size import activation_bytes
from library.inference.tiled import run_tiled
from library.memory import keep_freed_memory
from library.models import mobile, nafnet, unet
from library.models.blocks.image_model import ImageModel, ModelConfig

MODELS: dict[str, ModelConfig] = {
    "Mobile": mobile.Config(),
    "NAFNet of the demo": nafnet.Config(encoder_blocks=(1, 1, 1), middle_blocks=1, decoder_blocks=(1, 1, 1)),
    "UtNet2": unet.Config(),
}
CASES = {
    "torch": {},
    "torch, strength 0.5": {"strength": Strength(0.5, 0.5)},
    "torch, arbitrary gain": {},
    "onnx": {"backend": "onnx"},
    "openvino": {"backend": "openvino"},
}


def large_dng(path: Path, width: int, height: int) -> None:
    """A smooth scene under noise, of one noisy block again and again."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:1024, :1024]
    block = 512 + 5000 * (1.2 + np.sin(rows / 81) * np.cos(columns / 93)) + rng.normal(0, 100, rows.shape)
    block = np.clip(block, 0, 16383).astype(np.uint16)
    mosaic = np.tile(block, (-(-height // 1024), -(-width // 1024)))[:height, :width]
    metadata = ImageMetadata(make="Stillgrain", model="Test")
    write_cfa_dng(path, mosaic, cfa="GRBG", black_level=np.full((2, 2), 512.0), white_level=16383, metadata=metadata)


def bright(model: ImageModel) -> ImageModel:
    """Fresh weights whose output has a brightness, which an arbitrary gain needs."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head") and parameter.ndim == 1:
                parameter.fill_(0.3)
    return model


def peak_memory() -> int:
    """Bytes of this process at its largest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def one_case(bundle: str, raw: str, case: str, memory: str) -> None:
    """In a process of its own."""
    engine = Engine(load_bundle(bundle), memory=int(memory), **CASES[case])
    tile = engine.tile_of(read_raw(raw))
    start = time.perf_counter()
    denoise_file(raw, {"dng": Path(raw).with_name("out.dng")}, engine)
    print(peak_memory(), tile, time.perf_counter() - start)


def one_window(bundle: str, side: str) -> None:
    """In a process of its own: bytes for each pixel of a window, measured and of the activations alone."""
    keep_freed_memory()
    model = load_bundle(bundle).model
    expected, sides = activation_bytes(model), int(side)
    next(run_tiled(model, 256, 256, lambda tile: torch.zeros(4, 256, 256), tile=256))
    before = peak_memory()
    for _ in range(3):
        next(run_tiled(model, sides, sides, lambda tile: torch.zeros(4, sides, sides), tile=sides))
    print((peak_memory() - before) / sides**2, expected)


def in_a_process(cache: str, *words: str) -> list[float]:
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    command = [sys.executable, "-m", "tests.benchmarks.bench_memory", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    width, height = (int(word) for word in (sys.argv[1:3] or (14204, 10652)))
    bound = float(sys.argv[3]) if len(sys.argv) > 3 else 4.0
    console = Console()
    cases = Table(title=f"{width} x {height}, {width * height / 1e6:.0f} MP, from raw DNG to linear DNG")
    for column in ("network", "engine", "peak GiB", f"within {bound:g} GiB", "tile", "s", "MP/s"):
        cases.add_column(column)
    windows = Table(title="Bytes for each packed pixel of a window of 1024 x 1024")
    for column in ("network", "measured", "of its activations", "ratio"):
        windows.add_column(column)
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work:
        raw = Path(work, "large.dng")
        large_dng(raw, width, height)
        for name, config in MODELS.items():
            for gain in ("absolute", "arbitrary"):
                folder = Path(work, config.kind, gain)
                facts = {"name": name, "training": {}, "data_digest": "none", "metrics": {}, "step": 0}
                write_bundle(folder, bright(config.build()), gain=gain, **facts)
            measured, expected = in_a_process(work, "window", str(Path(work, config.kind, "absolute")), "1024")
            windows.add_row(name, f"{measured:.0f}", f"{expected:.0f}", f"{measured / expected:.2f}")
            for case in CASES:
                folder = Path(work, config.kind, "arbitrary" if "arbitrary" in case else "absolute")
                peak, tile, seconds = in_a_process(work, "case", str(folder), str(raw), case, str(int(bound * 2**30)))
                fits = "yes" if peak <= bound * 2**30 else "NO"
                rate = width * height / 1e6 / seconds
                cases.add_row(name, case, f"{peak / 2**30:.2f}", fits, f"{tile:.0f}", f"{seconds:.0f}", f"{rate:.1f}")
    console.print(cases)
    console.print(windows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        one_case(*sys.argv[2:])
    elif sys.argv[1:2] == ["window"]:
        one_window(*sys.argv[2:])
    else:
        main()
