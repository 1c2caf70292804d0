"""Damaged compressed files through the whole of decoding: how many are found out, and what is left of the picture.

python -m tests.benchmarks.bench_fuzz_sgr [--mutants 2000] [--bundle B --sgr FILE]   (from the project's root)

Half of the files have damage under checksums that fit, so that only the entropy coder can notice; the others are
changed as disks and networks change them.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from library.codec_bundle import load_codec, write_codec_bundle
from library.codecs import rawcodec
from library.errors import StreamFileError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.sgr.container import DamagedTileError, SgrFile, TileRecord, write_sgr
from library.inference.codec import CodecEngine
from library.inference.sgr_files import decode_file, encode_file
from tests.benchmarks.bench_models import commit, processor

HEIGHT, WIDTH, TILE = 190, 250, 128


@dataclass(frozen=True)
class Mutant:
    """A damaged file.

    tile    the one whose streams are not as they were, None when it is something else, or more
    forged  every checksum of the container fits
    """

    data: bytes
    tile: int | None
    forged: bool


@dataclass(frozen=True)
class Verdict:
    """What decoding made of a mutant.

    detected  refused, without being asked to salvage
    named     refused by the number of the very tile
    rest      salvaging gave the latents of every tile that it does not call damaged; None when nothing could be opened
    lost      tiles that it calls damaged
    seconds   of both
    """

    detected: bool
    named: bool
    rest: bool | None
    lost: tuple[int, ...]
    seconds: float


def mutants(path: Path, seed: int, count: int, scratch: Path) -> Iterator[Mutant]:
    """Damaged versions of a file, forged and plain in turn; none is the file itself.

    scratch  a file to write on
    """
    rng = np.random.default_rng(seed)
    data = path.read_bytes()
    with SgrFile(path) as file:
        header, metadata = file.header, file.metadata
        tiles = [file.read_tile(index) for index in range(header.num_tiles)]
    streams = [b"".join(tile.passes) for tile in tiles]
    starts = [data.index(stream) for stream in streams]
    made = 0
    while made < count:
        if made % 2:
            damaged = _accident(data, rng)
            if damaged == data:
                continue
            yield Mutant(damaged, _only_tile(data, damaged, starts, streams), forged=False)
        else:
            tile = int(rng.integers(len(tiles)))
            record = _forged(tiles[tile], tiles, rng)
            if record == tiles[tile]:
                continue
            write_sgr(scratch, header, metadata, [*tiles[:tile], record, *tiles[tile + 1 :]])
            yield Mutant(scratch.read_bytes(), tile, forged=True)
        made += 1


def _forged(tile: TileRecord, tiles: list[TileRecord], rng: np.random.Generator) -> TileRecord:
    """A tile with one damaged stream, or that of another tile."""
    number = int(rng.integers(len(tile.passes)))
    other = tiles[rng.integers(len(tiles))].passes[number]
    stream = other if rng.integers(8) == 0 else _accident(tile.passes[number], rng)
    return replace(tile, passes=(*tile.passes[:number], stream, *tile.passes[number + 1 :]))


def _accident(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits that flip, bytes that are lost, come twice, are zeroed, or are any."""
    if not data:
        return rng.bytes(int(rng.integers(1, 40)))
    at = int(rng.integers(len(data)))
    length = int(rng.integers(1, 1 + min(int(rng.choice([4, 64, len(data)])), len(data) - at)))
    part = data[at : at + length]
    match int(rng.integers(7)):
        case 0 | 1:
            changed = bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 : at + length]
        case 2:
            return data[:at]
        case 3:
            changed = b""
        case 4:
            changed = part + part
        case 5:
            changed = bytes(length)
        case _:
            changed = rng.bytes(length)
    return data[:at] + changed + data[at + length :]


def _only_tile(data: bytes, damaged: bytes, starts: list[int], streams: list[bytes]) -> int | None:
    """The tile in whose streams all changed bytes lie, if there is one."""
    if len(data) != len(damaged):
        return None
    changed = np.flatnonzero(np.frombuffer(data, np.uint8) != np.frombuffer(damaged, np.uint8))
    spans = enumerate(zip(starts, streams, strict=True))
    return next((i for i, (at, s) in spans if at <= changed[0] and changed[-1] < at + len(s)), None)


def judge(engine: CodecEngine, mutant: Mutant, wanted: Tensor, folder: Path) -> Verdict:
    """Decode a mutant to a picture that is not written, as anybody would, and once more to salvage.

    wanted  latents of the whole file
    raises  whatever decoding should not
    """
    path = folder / "mutant.sgr"
    path.write_bytes(mutant.data)
    start = time.perf_counter()
    detected = named = False
    try:
        decode_file(path, {}, engine)
    except DamagedTileError as error:
        detected, named = True, error.tile == mutant.tile
    except StreamFileError:
        detected = True
    rest, lost = None, ()
    try:
        lost = tuple(decode_file(path, {}, engine, salvage=True).damaged_tiles)
        with SgrFile(path, salvage=True) as file:
            y_hat, _ = engine.latents(file, range(file.header.num_tiles), salvage=True)
            # Without the tiles that are lost: those are decoded to nothing on both sides.
            rest = y_hat.shape == wanted.shape and torch.equal(y_hat, _without(wanted, file, engine, lost))
    except StreamFileError:
        pass
    return Verdict(detected, named, rest, lost, time.perf_counter() - start)


def _without(wanted: Tensor, file: SgrFile, engine: CodecEngine, lost: tuple[int, ...]) -> Tensor:
    """Latents with 0 in some tiles; those of the last row and column reach to the padding's end."""
    unit = engine.model.stride * engine.model.scale
    left = wanted.clone()
    rows, columns = file.tile_grid
    for tile in lost:
        row, column = divmod(tile, columns)
        side = file.header.tile // unit
        bottom = None if row == rows - 1 else (row + 1) * side
        right = None if column == columns - 1 else (column + 1) * side
        left[:, :, row * side : bottom, column * side : right] = 0
    return left


def example(folder: Path) -> tuple[CodecEngine, Path]:
    """A small codec with weights of no training, and a raw that it coded."""
    torch.manual_seed(0)
    config = rawcodec.Config(width=16, latents=16, hyper_latents=8, encoder_blocks=2, decoder_blocks=2)
    bundle = write_codec_bundle(
        folder / "bundle", config.build(), name="fuzzed", training={}, data_digest="none", metrics={}, step=0
    )
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).normal(0, 60, rows.shape)
    mosaic = 512 + 6000 * (1 + np.sin(rows / 9) * np.cos(columns / 7)) + noise
    write_cfa_dng(
        folder / "raw.dng",
        np.clip(mosaic, 0, 16383).astype(np.uint16),
        cfa="GRBG",
        black_level=np.full((2, 2), 512.0),
        white_level=16383,
        metadata=ImageMetadata(),
    )
    engine = CodecEngine(bundle)
    encode_file(folder / "raw.dng", folder / "raw.sgr", engine, quality=32, tile=TILE)
    return engine, folder / "raw.sgr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--bundle", help="with --sgr: a file that this bundle made, in place of a small one")
    parser.add_argument("--sgr", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=max(110, Console().width))  # also into a file
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine, path = (CodecEngine(load_codec(words.bundle)), words.sgr) if words.bundle else example(folder)
        with SgrFile(path) as file:
            described = f"{file.header.width} x {file.header.height}, {file.header.num_tiles} tiles"
            wanted, _ = engine.latents(file, range(file.header.num_tiles))
        decode_file(path, {}, engine)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found: list[tuple[Mutant, Verdict]] = []
        with console.status("decoding") as status:
            for mutant in mutants(path, 0, words.mutants, folder / "scratch.sgr"):
                found.append((mutant, judge(engine, mutant, wanted, folder)))
                status.update(f"decoding {len(found)}")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = Table(caption=f"{described}; {path.name}. None crashed, or this would not be printed.")
    for column in ("damage", "files", "detected %", "of one tile", "named %", "opened", "rest whole %", "slowest s"):
        table.add_column(column, justify="left" if column == "damage" else "right")
    for label, kinds in (("under fitting checksums", [True]), ("plain", [False]), ("all", [True, False])):
        some = [(m, v) for m, v in found if m.forged in kinds]
        of_tile = [v for m, v in some if m.tile is not None]
        opened = [v for _, v in some if v.rest is not None]
        table.add_row(
            label,
            str(len(some)),
            _percent([v.detected for _, v in some]),
            str(len(of_tile)),
            _percent([v.named for v in of_tile]),
            str(len(opened)),
            _percent([bool(v.rest) for v in opened]),
            f"{max((v.seconds for _, v in some), default=0):.3f}",
        )
    console.print(f"commit {commit()}, torch {torch.__version__}, python {platform.python_version()}, {processor()}")
    console.print(table)
    console.print(
        f"peak memory {after / 1024:.0f} MiB, {(after - before) / 1024:.1f} MiB above the whole file's decoding"
    )


def _percent(holds: list[bool]) -> str:
    return f"{100 * sum(holds) / len(holds):.2f}" if holds else "-"


if __name__ == "__main__":
    main()
