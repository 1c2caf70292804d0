"""How fast raws are coded and decoded, tier by tier and part by part; or how a bundle does on every raw of a folder.

python -m tests.benchmarks.bench_codec [--megapixels 24] [--codecs tiny small]   (from the project's root)
python -m tests.benchmarks.bench_codec --bundle B --raws FOLDER

The first codes a synthetic raw with random weights, which take as long as trained ones but for the entropy coder: that
has more to do the more bits there are. The second prints what is on disk against what the model said.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from library.codec_bundle import CodecBundle, load_codec, write_codec_bundle
from library.codecs import balle_manypriors, rawcodec
from library.entropy import rans
from library.errors import RawFileError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.raw import RAW_SUFFIXES
from library.files.sgr.container import SgrFile
from library.inference.codec import CodecEngine
from library.inference.sgr_files import decode_file, encode_file
from library.models.blocks.codec import CodecConfig, Conditions, Passed
from tests.benchmarks.bench_models import commit, processor

WARM_UPS, RUNS = 1, 3
QUALITY = 32
QUALITIES = (4, 20, 36, 50, 63)
WINDOW = 512
"""Packed pixels a side of what the parts are timed on: as inference takes them, but at most the picture."""
TILE = 1024

CODECS: dict[str, CodecConfig] = {
    "tiny": rawcodec.Config(tier="tiny"),
    "small": rawcodec.Config(tier="small"),
    "base": rawcodec.Config(tier="base"),
    "balle_manypriors": balle_manypriors.Config(head="pixelshuffle"),
}


def median_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(WARM_UPS + RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UPS:])


def synthetic_raw(path: Path, megapixels: float) -> Path:
    """A noisy raw with waves of several lengths, 3 to 2."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5 / 2) * 2
    rows, columns = np.ogrid[:height, : height * 3 // 2]
    light = 0.3 + 0.2 * np.sin(rows / 90) * np.cos(columns / 70) + 0.05 * np.sin((rows + 2 * columns) / 5)
    noise = np.random.default_rng(0).standard_normal(light.shape, np.float32) * np.sqrt(2e-3 * light)
    write_cfa_dng(
        path,
        np.clip(512 + 15871 * (light + noise), 0, 16383).astype(np.uint16),
        cfa="RGGB",
        black_level=np.full((2, 2), 512.0),
        white_level=16383,
        metadata=ImageMetadata(noise_profile=((2e-3, 1e-6),)),
    )
    return path


def random_bundle(config: CodecConfig, folder: Path) -> CodecBundle:
    torch.manual_seed(0)
    return write_codec_bundle(
        folder, config.build(), name=config.kind, training={}, data_digest="none", metrics={}, step=0
    )


@torch.no_grad()
def seconds_per_megapixel(bundle: CodecBundle, side: int) -> dict[str, float]:
    """Of each part, over one window of the transforms and its tiles.

    side  packed pixels, a multiple of a tile
    """
    model, tables = bundle.model, bundle.tables
    conditions = Conditions(*(torch.tensor([value]) for value in (float(QUALITY), 1.0, 2e-3, 2e-3)))
    x = torch.rand(1, model.in_channels, side, side) * 0.5
    x = x.contiguous(memory_format=torch.channels_last)
    y = model.analyze(x, conditions)
    tile = min(side, TILE // model.scale) // model.stride
    per_side = y.shape[2] // tile
    tiles = y.unfold(2, tile, tile).unfold(3, tile, tile).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()
    assert len(tiles) == per_side**2
    passes = model.encode_latents(tiles, conditions)
    flat = [(v, i) for p in passes for v, i in zip(p.values, p.indices, strict=True)]
    streams = rans.encode(flat, tables)
    coded = [(stream, indices) for stream, (_, indices) in zip(streams, flat, strict=True)]
    parts = {
        "analysis": lambda: model.analyze(x, conditions),
        "nets, encoding": lambda: model.encode_latents(tiles, conditions),
        "coder, encoding": lambda: rans.encode(flat, tables),
        "coder, decoding": lambda: [
            rans.decode(coded[n : n + len(tiles)], tables) for n in range(0, len(coded), len(tiles))
        ],
        "nets, decoding": lambda: model.decode_latents(len(tiles), tile, tile, conditions, _known(passes)),
        "synthesis": lambda: model.synthesize(y, conditions),
    }
    megapixels = (model.scale * side) ** 2 / 1e6
    return {name: median_seconds(call) / megapixels for name, call in parts.items()}


def _known(passes: Sequence[Passed]) -> Callable[[np.ndarray], np.ndarray]:
    """A reader that knows what it would read."""
    values = iter([p.values for p in passes])
    return lambda indices: next(values)


def measure_speed(console: Console, names: Sequence[str], megapixels: float) -> None:
    table = Table(
        caption=f"MP: million photosites. Median of {RUNS} runs, 1 thread, float32, random weights, quality {QUALITY}. "
        "Whole: a DNG read and an .sgr written; an .sgr read and a linear DNG written. Parts in s/MP."
    )
    for column in ("codec", "bpp", "encode MP/s", "decode MP/s", *PARTS):
        table.add_column(column, justify="left" if column == "codec" else "right", no_wrap=True)
    with tempfile.TemporaryDirectory() as name, console.status("measuring") as status:
        folder = Path(name)
        raw, coded, dng = synthetic_raw(folder / "raw.dng", megapixels), folder / "raw.sgr", folder / "out.dng"
        for codec in names:
            status.update(f"measuring {codec}")
            engine = CodecEngine(random_bundle(CODECS[codec], folder / codec))
            encoded = encode_file(raw, coded, engine, quality=QUALITY, tile=TILE)
            of_raw = encoded.photosites / 1e6
            encoding = median_seconds(lambda e=engine: encode_file(raw, coded, e, quality=QUALITY, tile=TILE))
            decoding = median_seconds(lambda e=engine: decode_file(coded, {"dng": dng}, e))
            parts = seconds_per_megapixel(engine.bundle, WINDOW)
            rates = f"{encoded.bpp:.2f}", f"{of_raw / encoding:.2f}", f"{of_raw / decoding:.2f}"
            table.add_row(codec, *rates, *(f"{parts[part]:.3f}" for part in PARTS))
    console.print(table)


PARTS = ("analysis", "nets, encoding", "coder, encoding", "coder, decoding", "nets, decoding", "synthesis")


def measure_rates(console: Console, bundle: str, raws: Path) -> None:
    engine = CodecEngine(load_codec(bundle))
    table = Table(caption=f"{bundle}. Real: bytes of the streams; estimated: by the model's probabilities. 1 thread.")
    for column in ("raw", "MP", "quality", "bpp", "bytes", "real vs estimated %", "encode s", "decode s"):
        table.add_column(column, justify="left" if column == "raw" else "right", no_wrap=True)
    gaps, refused = [], []
    paths = sorted(path for path in raws.rglob("*") if path.suffix.lower() in RAW_SUFFIXES)
    with tempfile.TemporaryDirectory() as name, console.status("coding") as status:
        output = Path(name) / "raw.sgr"
        for path in paths:
            status.update(f"coding {path.name}")
            for quality in QUALITIES if engine.model.num_qualities > 1 else (0,):
                start = time.perf_counter()
                try:
                    encoded = encode_file(path, output, engine, quality=quality)
                except RawFileError as error:
                    refused.append(str(error))
                    break
                half = time.perf_counter()
                with SgrFile(output) as file:
                    region = (0, 0, file.header.height, file.header.width)
                    y_hat, _ = engine.latents(file, range(file.header.num_tiles))
                    for patch in engine.camera_rgb(file.header, y_hat, region):
                        assert patch.pixels.isfinite().all(), f"{path} at quality {quality}"
                end = time.perf_counter()
                gap = 100 * (encoded.stream_bits / max(encoded.estimated_bits, 1) - 1)
                gaps.append((abs(gap), encoded.stream_bits // 8))
                table.add_row(
                    path.name,
                    f"{encoded.photosites / 1e6:.2f}",
                    str(quality),
                    f"{encoded.bpp:.4f}",
                    f"{encoded.sizes.total:,}",
                    f"{gap:+.2f}",
                    f"{half - start:.2f}",
                    f"{end - half:.2f}",
                )
    console.print(table)
    large = [gap for gap, size in gaps if size >= 4000]
    if large:
        within = sum(gap <= 1 for gap in large)
        console.print(
            f"streams of 4 kB and more: {within} of {len(large)} within 1 %, the furthest off by {max(large):.2f} %"
        )
    for reason in refused:
        console.print(f"refused: {reason}", soft_wrap=True, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=2.0)
    parser.add_argument("--codecs", nargs="+", choices=list(CODECS), default=list(CODECS))
    parser.add_argument("--bundle", help="with --raws: a trained codec")
    parser.add_argument("--raws", type=Path, help="a folder of raw files")
    words = parser.parse_args()
    if (words.bundle is None) != (words.raws is None):
        parser.error("give --bundle and --raws together")
    torch.set_num_threads(1)
    console = Console(width=max(150, Console().width))  # also into a file
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    console.print(f"commit {commit()}, {versions}, python {platform.python_version()}, {processor()}")
    if words.bundle is None:
        measure_speed(console, words.codecs, words.megapixels)
    else:
        measure_rates(console, words.bundle, words.raws)


if __name__ == "__main__":
    main()
