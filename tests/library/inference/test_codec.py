"""What a raw becomes as an `.sgr` and back, from one file to another."""

from __future__ import annotations

import io
import math
import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
import tifffile
import torch
from PIL import Image
from torch import Tensor

from library.codec_bundle import load_codec, write_codec_bundle
from library.codecs import balle_manypriors, rawcodec
from library.errors import ConfigError, ImageFileError, RawFileError, StillgrainError, StreamFileError
from library.files.dng import write_cfa_dng
from library.files.exr import read_exr
from library.files.metadata import ImageMetadata
from library.files.picture import write_png
from library.files.raw import read_raw
from library.files.sgr.container import DamagedTileError, SgrFile, TileRecord, write_sgr
from library.inference.codec import CodecEngine, Encoded
from library.inference.outputs import ENCODERS, Format, Written
from library.inference.sgr_files import decode_file, describe_file, encode_file, format_of, parse_region
from library.models.blocks.codec import Conditions
from library.ops.cfa import BAYER_PHASES
from library.ops.develop import camera_rgb_to_balanced_lin_rec2020
from tests.benchmarks.bench_fuzz_sgr import judge, mutants
from workloads import compress

Region = tuple[int, int, int, int]
QUALITY = 40
QUALITIES = (4, 20, 36, 50, 63)
BLACK, WHITE = 512.0, 16383
LEVELS = 65535 - 1024
"""Of a DNG that is written: from black to white."""
MATRIX = np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])
# So few steps do not teach the entropy model steps as fine as a real codec's highest: hence the narrow range of gains.
SETTINGS: dict[str, Any] = {
    "workload": "compress",
    "name": "small",
    "model": {
        "kind": "rawcodec",
        "width": 16,
        "latents": 16,
        "hyper_latents": 8,
        "encoder_blocks": 2,
        "decoder_blocks": 2,
        "gain_range": [1.0, 2.0],
    },
    "dataset": {
        "kind": "synthetic",
        "scenes": "samples",
        "held_out": ["astronaut"],
        "crop": 64,
        "validation_crop": 192,
        "exposure_ev": [-2.0, 0.0],
        "sensor": {"kind": "parametric", "shot": [2.0e-3, 8.0e-3]},
    },
    "losses": {"mse": {"weight": 1.0}},
    "transfer": "root",
    "rate": {"lmbda": [30.0, 10000.0], "warmup_steps": 20},
    "optim": {"lr": 5.0e-3, "warmup_steps": 10, "lr_multipliers": {"entropy": 10.0}},
    "moving_average": {"decay": 0.9},
    "batch_size": 8,
    "steps": 150,
    "log_every": 150,
    "validate_every": 150,
    "checkpoint_every": 150,
    "validation_qualities": [40],
    "scaling": {"workers": 0},
}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CodecEngine:
    """A small codec, trained for so long that its rates mean something."""
    storage = tmp_path_factory.mktemp("codec")
    compress.run(compress.Config.model_validate(SETTINGS | {"storage": str(storage)}))
    return CodecEngine(load_codec(storage / "small" / "bundle"))


@pytest.fixture(scope="module")
def small_tiles(engine: CodecEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coded picture of 9 x 10 tiles, GBRG, odd sides."""
    folder = tmp_path_factory.mktemp("tiles")
    encode_file(paint_raw(folder / "photo.dng", 549, 611, "GBRG"), folder / "photo.sgr", engine, quality=63, tile=64)
    return folder / "photo.sgr"


@pytest.fixture(scope="module")
def large(engine: CodecEngine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A coded picture of several windows of the synthesis, and what it decodes to."""
    folder = tmp_path_factory.mktemp("large")
    encode_file(paint_raw(folder / "photo.dng", 1220, 1404, "GBRG"), folder / "photo.sgr", engine, quality=63)
    return folder / "photo.sgr", picture_of(engine, folder / "photo.sgr")


def paint_raw(path: Path, height: int, width: int, cfa: str, metadata: ImageMetadata | None = None) -> Path:
    """A noisy raw with edges, gradients and texture of several sizes, in the colours of a sensor."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / 31) * np.cos(columns / 23) + np.sin((rows + 2 * columns) / 5) * (rows > columns)
    light = 0.2 + 0.08 * waves
    color = np.array([{"R": 0.55, "G": 1.0, "B": 0.7}[letter] for letter in cfa]).reshape(2, 2)[rows % 2, columns % 2]
    noise = np.random.default_rng(height * width).normal(size=rows.shape) * np.sqrt(2e-3 * light + 1e-6)
    mosaic = BLACK + (WHITE - BLACK) * (light * color + noise)
    write_cfa_dng(
        path,
        np.clip(mosaic, 0, WHITE).round().astype(np.uint16),
        cfa=cfa,
        black_level=np.full((2, 2), BLACK),
        white_level=WHITE,
        metadata=metadata or ImageMetadata(xyz_to_camera=MATRIX, as_shot_white_balance=np.array([2.0, 1.0, 1.5])),
    )
    return path


def picture_of(engine: CodecEngine, path: Path, region: Region | None = None, *, salvage: bool = False) -> Tensor:
    """(3, h, w) camera RGB of a file's region, each pixel of which is given exactly once."""
    with SgrFile(path, salvage=salvage) as file:
        region = region or (0, 0, file.header.height, file.header.width)
        y_hat, _ = engine.latents(file, engine.needed_tiles(file, region), salvage=salvage)
        picture, given = torch.full((3, *region[2:]), math.nan), torch.zeros(region[2:])
        for patch in engine.camera_rgb(file.header, y_hat, region):
            height, width = patch.pixels.shape[1:]
            spot = (slice(patch.top, patch.top + height), slice(patch.left, patch.left + width))
            picture[:, *spot] = patch.pixels
            given[spot] += 1
    assert (given == 1).all()
    return picture


def latents_of(engine: CodecEngine, path: Path) -> Tensor:
    with SgrFile(path) as file:
        return engine.latents(file, range(file.header.num_tiles))[0]


def conditions_of(path: Path) -> Conditions:
    with SgrFile(path) as file:
        h = file.header
        assert h.noise is not None
        return Conditions(*(torch.tensor([v]) for v in (float(h.quality), h.strength, h.noise[0], h.stabilizer[0])))


def analyzed(engine: CodecEngine, raw_path: Path, conditions: Conditions) -> Tensor:
    """The latents of a raw, by NumPy's padding and one pass of the network over the whole of it."""
    raw = read_raw(raw_path)
    dy, dx = divmod(raw.cfa.index("R"), 2)
    side = engine.side
    whole_cfa = np.pad(raw.mosaic, ((dy, (raw.height + dy) % 2), (dx, (raw.width + dx) % 2)), mode="reflect")
    padded = np.pad(whole_cfa, [(0, -length % side) for length in whole_cfa.shape], mode="reflect")
    mosaic = (padded.astype(np.float32) - BLACK) / (WHITE - BLACK)
    packed = np.stack([mosaic[i::2, j::2] for i in (0, 1) for j in (0, 1)]).astype(np.float32)
    x = torch.from_numpy(packed)[None].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return engine.model.analyze(x, conditions)


def damaged(path: Path, tile: int, target: Path, *, forged: bool) -> Path:
    """The file with one tile damaged, by a bit that flipped or under checksums that fit."""
    with SgrFile(path) as file:
        header, metadata = file.header, file.metadata
        tiles = [file.read_tile(index) for index in range(header.num_tiles)]
    if forged:
        *passes, last = tiles[tile].passes
        flipped = last[: len(last) // 2] + bytes([last[len(last) // 2] ^ 4]) + last[len(last) // 2 + 1 :]
        tiles[tile] = TileRecord(tile, tiles[tile].quality, (*passes, flipped))
        write_sgr(target, header, metadata, tiles)
    else:
        data, streams = bytearray(path.read_bytes()), b"".join(tiles[tile].passes)
        data[data.index(streams) + len(streams) // 2] ^= 4
        target.write_bytes(data)
    return target


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "cfa"),
    [
        (128, 192, "RGGB"),
        (127, 193, "GRBG"),
        (129, 191, "GBRG"),
        (128, 128, "BGGR"),
        (64, 63, "BGGR"),
        (24, 37, "GRBG"),
    ],
)
def test_a_file_carries_the_very_latents_of_its_encoder_and_decodes_to_their_synthesis(
    engine: CodecEngine, tmp_path: Path, height: int, width: int, cfa: str
) -> None:
    raw = paint_raw(tmp_path / "raw.dng", height, width, cfa)
    encode_file(raw, tmp_path / "raw.sgr", engine, quality=QUALITY)
    conditions = conditions_of(tmp_path / "raw.sgr")
    y = analyzed(engine, raw, conditions)
    passes = iter(engine.model.encode_latents(y, conditions))
    y_hat = engine.model.decode_latents(1, *y.shape[2:], conditions, lambda _: next(passes).values)
    assert torch.equal(latents_of(engine, tmp_path / "raw.sgr"), y_hat)
    assert y_hat.abs().max() > 0
    dy, dx = divmod(cfa.index("R"), 2)
    with torch.no_grad():
        expected = engine.model.synthesize(y_hat, conditions)[0, :, dy : dy + height, dx : dx + width]
    torch.testing.assert_close(picture_of(engine, tmp_path / "raw.sgr"), expected, rtol=0, atol=1e-5)


def test_each_colour_of_a_decoded_picture_is_where_and_as_bright_as_its_photosites(
    engine: CodecEngine, small_tiles: Path
) -> None:
    raw = read_raw(small_tiles.with_name("photo.dng"))
    mosaic = (torch.from_numpy(raw.mosaic.astype(np.float32)) - BLACK) / (WHITE - BLACK)
    picture = picture_of(engine, small_tiles)
    for i in (0, 1):
        for j in (0, 1):
            plane = picture["RGB".index(raw.cfa[2 * i + j])]
            ratio = plane[i::2, j::2].mean() / mosaic[i::2, j::2].mean()
            assert abs(ratio - 1) < 0.1
            correlation = torch.corrcoef(torch.stack([plane[i::2, j::2].flatten(), mosaic[i::2, j::2].flatten()]))
            assert correlation[0, 1] > 0.6


def test_the_same_raw_gives_the_same_bytes(engine: CodecEngine, raw_dng: Path, tmp_path: Path) -> None:
    for name in ("a.sgr", "b.sgr"):
        encode_file(raw_dng, tmp_path / name, engine, quality=QUALITY, thumbnail=True, verify=True)
    assert (tmp_path / "a.sgr").read_bytes() == (tmp_path / "b.sgr").read_bytes()


def test_every_latent_is_within_half_a_step_and_no_tile_size_shows(engine: CodecEngine, tmp_path: Path) -> None:
    """The tile changes what the entropy model sees, and so the means that latents are rounded about: the picture moves
    by no more than two independent roundings differ, and no more along a tile's border than elsewhere."""
    height, width = 383, 449
    raw = paint_raw(tmp_path / "raw.dng", height, width, "GRBG")
    pictures, unrounded = {}, torch.empty(0)
    for tile in (64, 128, 512):
        path = tmp_path / f"{tile}.sgr"
        encode_file(raw, path, engine, quality=QUALITY, tile=tile)
        pictures[tile] = picture_of(engine, path)
        y = analyzed(engine, raw, conditions_of(path))
        error = (latents_of(engine, path) - y).abs()
        # Means are in sixteenths; only what is taken to be certain may be further off.
        assert (error <= 0.5 + 1e-4).float().mean() > 0.995
        assert error.max() < 4
        with torch.no_grad():
            unrounded = engine.model.synthesize(y, conditions_of(path))[0, :, :height, 1 : 1 + width]
    rounding = (pictures[512] - unrounded).square().mean()
    for tile in (64, 128):
        moved = (pictures[tile] - pictures[512]).square()
        assert moved.mean() < 2 * rounding
        rows, columns = torch.arange(height)[:, None], torch.arange(width) + 1
        from_border = torch.minimum((rows + 4) % tile, (columns + 4) % tile)
        near = (from_border < 8).expand(height, width)
        error = (pictures[tile] - unrounded).square().mean(0)
        assert error[near].mean() < 1.15 * error[~near].mean()


# --- a region ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "region",
    [
        (0, 0, 549, 611),
        (0, 0, 64, 64),
        (255, 190, 67, 131),
        (301, 200, 1, 1),
        (500, 560, 49, 51),
        (0, 610, 549, 1),
        (548, 0, 1, 611),
    ],
)
def test_a_region_is_that_part_of_the_whole_picture(engine: CodecEngine, small_tiles: Path, region: Region) -> None:
    top, left, height, width = region
    whole = picture_of(engine, small_tiles)
    part = picture_of(engine, small_tiles, region)
    assert torch.equal(part, whole[:, top : top + height, left : left + width])


@pytest.mark.parametrize("region", [(1003, 1150, 130, 141), (1215, 0, 5, 1404), (700, 900, 1, 1)])
def test_a_region_of_a_picture_of_several_windows_is_that_part_too(
    engine: CodecEngine, large: tuple[Path, Tensor], region: Region
) -> None:
    """The synthesis takes 1024 photosites at a time, and a region begins its windows elsewhere."""
    path, whole = large
    top, left, height, width = region
    assert torch.equal(picture_of(engine, path, region), whole[:, top : top + height, left : left + width])


def test_a_region_is_decoded_from_its_own_tiles_alone(engine: CodecEngine, small_tiles: Path, tmp_path: Path) -> None:
    region = (290, 300, 21, 17)
    with SgrFile(small_tiles) as file:
        needed = engine.needed_tiles(file, region)
        others = [index for index in range(file.header.num_tiles) if index not in needed]
        streams = [b"".join(file.read_tile(index).passes) for index in others]
    assert len(needed) <= 16 < len(others)
    data = small_tiles.read_bytes()
    for stream in streams:
        data = data.replace(stream, bytes(len(stream)))
    (tmp_path / "holes.sgr").write_bytes(data)
    assert torch.equal(picture_of(engine, tmp_path / "holes.sgr", region), picture_of(engine, small_tiles, region))
    decode_file(tmp_path / "holes.sgr", {"png": tmp_path / "region.png"}, engine, region=region)
    with pytest.raises(DamagedTileError):
        decode_file(tmp_path / "holes.sgr", {"png": tmp_path / "whole.png"}, engine)
    assert not (tmp_path / "whole.png").exists()


@pytest.mark.parametrize("region", [(0, 0, 30, 40), (33, 20, 30, 41), (20, 33, 41, 30), (33, 33, 31, 31)])
def test_the_mosaic_of_a_region_begins_at_its_own_phase(
    engine: CodecEngine, small_tiles: Path, tmp_path: Path, region: Region
) -> None:
    top, left, height, width = region
    decode_file(small_tiles, {"cfa-dng": tmp_path / "part.dng"}, engine, region=region)
    part = read_raw(tmp_path / "part.dng")
    picture = picture_of(engine, small_tiles, region)
    assert part.mosaic.shape == (height, width)
    whole = np.array(list("GBRG")).reshape(2, 2)
    for i in range(2):
        for j in range(2):
            letter = whole[(top + i) % 2, (left + j) % 2]
            assert part.cfa[2 * i + j] == letter
            expected = (picture["RGB".index(letter), i::2, j::2].numpy() * LEVELS + 1024).clip(0, 65535)
            np.testing.assert_allclose(part.mosaic[i::2, j::2], expected, atol=1)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forged", [False, True])
def test_a_damaged_tile_is_named_and_what_lies_far_from_it_is_salvaged(
    engine: CodecEngine, small_tiles: Path, tmp_path: Path, forged: bool
) -> None:
    tile = 43
    path = damaged(small_tiles, tile, tmp_path / "damaged.sgr", forged=forged)
    with pytest.raises(DamagedTileError, match="tile 43 ") as error:
        decode_file(path, {"png": tmp_path / "x.png"}, engine)
    assert error.value.tile == tile
    assert not (tmp_path / "x.png").exists()
    decoded = decode_file(path, {"png": tmp_path / "x.png"}, engine, salvage=True)
    assert decoded.damaged_tiles == [tile]
    assert "tiles 43 are damaged" in str(decoded)
    with SgrFile(path) as file:
        top, left, height, width = file.tile_bounds(tile)
    salvaged, whole = picture_of(engine, path, salvage=True), picture_of(engine, small_tiles)
    reach = (engine.model.synthesis_reach + 1) * engine.model.stride * engine.model.scale
    hole = torch.zeros(whole.shape[1:], dtype=torch.bool)
    hole[max(0, top - 1 - reach) : top + height + reach, max(0, left - 1 - reach) : left + width + reach] = True
    assert torch.equal(salvaged[:, ~hole], whole[:, ~hole])
    inside = (slice(None), slice(top, top + height), slice(left, left + width))
    assert salvaged.isfinite().all()
    assert salvaged[inside].std() < 0.5 * whole[inside].std()


def test_a_truncated_file_says_so_and_its_first_tiles_are_salvaged(
    engine: CodecEngine, small_tiles: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.sgr"
    data = small_tiles.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(StreamFileError, match=r"cut.sgr: is truncated: \d+ of its \d+ bytes are missing"):
        decode_file(cut, {"png": tmp_path / "x.png"}, engine)
    decoded = decode_file(cut, {"png": tmp_path / "x.png"}, engine, salvage=True)
    lost = decoded.damaged_tiles
    assert 0 < len(lost) < 90
    assert lost == list(range(lost[0], 90))
    torch.testing.assert_close(
        picture_of(engine, cut, (0, 0, 64, 611), salvage=True),
        picture_of(engine, small_tiles, (0, 0, 64, 611)),
        rtol=0,
        atol=1e-5,
    )


def test_no_damage_goes_unnoticed_or_costs_more_than_its_own_tiles(
    engine: CodecEngine, raw_dng: Path, tmp_path: Path
) -> None:
    """Half of the files have checksums that fit; `python -m tests.benchmarks.bench_fuzz_sgr` tries 2,000."""
    path = tmp_path / "photo.sgr"
    encode_file(raw_dng, path, engine, quality=QUALITY, tile=64)
    wanted = latents_of(engine, path)
    decode_file(path, {}, engine)
    opened, peaks = 0, []
    for number, mutant in enumerate(mutants(path, 0, 150, tmp_path / "scratch.sgr")):
        if number % 15 < 2:  # counting takes longer than decoding
            tracemalloc.start()
        verdict = judge(engine, mutant, wanted, tmp_path)
        if tracemalloc.is_tracing():
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert verdict.detected
        assert verdict.named or mutant.tile is None
        assert verdict.rest is not False
        if mutant.tile is not None:
            assert verdict.lost == (mutant.tile,)
        assert verdict.seconds < 20
        opened += verdict.rest is not None
    assert opened > 130
    # NumPy's and Python's. A header of 131 x 153 photosites allows no more, whatever the streams say.
    assert max(peaks) < 8 * 2**20


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_file_of_another_codec_is_refused_naming_both(engine: CodecEngine, small_tiles: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = rawcodec.Config(width=8, latents=8, hyper_latents=4, encoder_blocks=0, decoder_blocks=0).build()
    other = CodecEngine(
        write_codec_bundle(tmp_path / "other", model, name="other", training={}, data_digest="none", metrics={}, step=0)
    )
    with pytest.raises(StreamFileError) as error:
        decode_file(small_tiles, {"png": tmp_path / "x.png"}, other)
    for part in ("photo.sgr", "small", engine.bundle.codec_digest.hex(), other.bundle.codec_digest.hex(), "give the"):
        assert part in str(error.value)
    assert not (tmp_path / "x.png").exists()


def test_a_header_that_contradicts_its_codec_is_refused(engine: CodecEngine, small_tiles: Path, tmp_path: Path) -> None:
    """Such a file has every checksum right; decoding it asked for streams or a phase that were not there."""
    with SgrFile(small_tiles) as file:
        header, metadata = file.header, file.metadata
        tiles = [file.read_tile(index) for index in range(header.num_tiles)]
    two = [replace(tile, passes=tile.passes[:2]) for tile in tiles]
    for changed, records in ((replace(header, layout="rgb", cfa=""), tiles), (replace(header, num_passes=2), two)):
        write_sgr(tmp_path / "forged.sgr", changed, metadata, records)
        for salvage in (False, True):
            with pytest.raises(StreamFileError, match="which its codec does not make"):
                decode_file(tmp_path / "forged.sgr", {"png": tmp_path / "x.png"}, engine, salvage=salvage)


def test_a_tile_of_another_quality_is_refused_and_not_decoded_at_the_files(
    engine: CodecEngine, small_tiles: Path, tmp_path: Path
) -> None:
    with SgrFile(small_tiles) as file:
        header, metadata = file.header, file.metadata
        tiles = [file.read_tile(index) for index in range(header.num_tiles)]
    tiles[1] = replace(tiles[1], quality=header.quality - 1)
    write_sgr(tmp_path / "mixed.sgr", header, metadata, tiles)
    with pytest.raises(DamagedTileError, match=f"tile 1 has quality {header.quality - 1}"):
        decode_file(tmp_path / "mixed.sgr", {"png": tmp_path / "x.png"}, engine)


def test_a_picture_that_never_was_a_mosaic_becomes_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = rawcodec.Config(in_channels=3, width=8, latents=8, hyper_latents=4, encoder_blocks=0, decoder_blocks=0)
    pictures = CodecEngine(
        write_codec_bundle(
            tmp_path / "b", config.build(), name="rgb", training={}, data_digest="none", metrics={}, step=0
        )
    )
    write_png(tmp_path / "x.png", np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    encode_file(tmp_path / "x.png", tmp_path / "x.sgr", pictures, quality=20, verify=True)
    decode_file(tmp_path / "x.sgr", {"exr": tmp_path / "x.exr"}, pictures)
    assert read_exr(tmp_path / "x.exr").rgb.shape == (70, 90, 3)
    with pytest.raises(ConfigError, match="never was a mosaic"):
        decode_file(tmp_path / "x.sgr", {"cfa-dng": tmp_path / "x.dng"}, pictures)
    assert not (tmp_path / "x.dng").exists()


def test_what_is_no_sgr_is_refused(engine: CodecEngine, raw_dng: Path, tmp_path: Path) -> None:
    with pytest.raises(StreamFileError, match=r"photo\.dng"):
        decode_file(raw_dng, {"png": tmp_path / "x.png"}, engine)
    with pytest.raises(StreamFileError, match="does not exist"):
        decode_file(tmp_path / "gone.sgr", {"png": tmp_path / "x.png"}, engine)
    with pytest.raises(StreamFileError, match=r"photo\.dng"):
        describe_file(raw_dng)


def test_neither_the_raw_nor_the_file_is_ever_overwritten(engine: CodecEngine, raw_dng: Path, tmp_path: Path) -> None:
    raw = tmp_path / "photo.dng"
    raw.write_bytes(raw_dng.read_bytes())
    (tmp_path / "link.sgr").symlink_to(raw)
    for output in (raw, tmp_path / "link.sgr"):
        with pytest.raises(ImageFileError, match="would be lost: give another name"):
            encode_file(raw, output, engine, quality=QUALITY)
    assert raw.read_bytes() == raw_dng.read_bytes()
    coded = tmp_path / "coded.dng"  # a compressed file under any name
    encode_file(raw, coded, engine, quality=QUALITY)
    data = coded.read_bytes()
    with pytest.raises(ImageFileError, match="would be lost: give another name"):
        decode_file(coded, {"png": tmp_path / "x.png", "dng": coded}, engine)
    assert coded.read_bytes() == data
    assert not (tmp_path / "x.png").exists()


def test_a_raw_that_is_missing_is_refused_by_name_even_where_its_output_is_there(
    engine: CodecEngine, tmp_path: Path
) -> None:
    """The test for overwriting asked the file system about the raw before anybody had looked for it."""
    (tmp_path / "old.sgr").write_bytes(b"old")
    with pytest.raises(RawFileError, match=r"gone\.dng: does not exist"):
        encode_file(tmp_path / "gone.dng", tmp_path / "old.sgr", engine, quality=QUALITY)
    assert (tmp_path / "old.sgr").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "either a quality .* or the bits"),
        ({"quality": 3, "bpp": 1.0}, "not both"),
        ({"quality": 64}, "quality is 64, but must be from 0"),
        ({"quality": -1}, "quality is -1"),
        ({"quality": 3, "tile": 100}, "tile is 100, but must be a power of two"),
        ({"quality": 3, "tile": 32}, "tile is 32, .* at least 64"),
        ({"quality": 3, "tile": 8192}, "tile is 8192, .* at most 4096"),
        ({"quality": 3, "strength": 1.5}, "strength is 1.5"),
        ({"quality": 3, "strength": math.nan}, "strength is nan"),
        ({"quality": 3, "noise": (-1e-3, 0.0)}, "noise is -0.001"),
        ({"quality": 3, "noise": (1e-3, math.inf)}, "noise is 0.001, inf"),
        ({"quality": 3, "coder": "huffman"}, "coder is 'huffman', but must be one of rans, constriction"),
        ({"bpp": 0.0}, "bpp is 0"),
        ({"bpp": math.nan}, "bpp is nan"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_words_and_nothing_is_written(
    engine: CodecEngine, raw_dng: Path, tmp_path: Path, words: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        encode_file(raw_dng, tmp_path / "x.sgr", engine, **words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("region", [(-1, 0, 9, 9), (0, -2, 9, 9), (0, 0, 0, 9), (0, 0, 550, 9), (600, 0, 1, 1)])
def test_a_region_outside_of_the_picture_is_refused(
    engine: CodecEngine, small_tiles: Path, tmp_path: Path, region: Region
) -> None:
    with pytest.raises(ConfigError, match="not inside the picture of 549 x 611"):
        decode_file(small_tiles, {"png": tmp_path / "x.png"}, engine, region=region)


def test_words_for_regions_and_formats_are_read_or_refused() -> None:
    assert parse_region("1,2, 3,4") == (1, 2, 3, 4)
    for text in ("1,2,3", "1,2,3,4,5", "a,b,c,d", "1.5,2,3,4", ""):
        with pytest.raises(ConfigError, match="TOP,LEFT,HEIGHT,WIDTH"):
            parse_region(text)
    assert [format_of(f"x{s}", mosaic=False) for s in (".dng", ".EXR", ".tif", ".png")] == ["dng", "exr", "tiff", "png"]
    assert format_of("x.dng", mosaic=True) == "cfa-dng"
    with pytest.raises(ConfigError, match="suffix says no format"):
        format_of("x.jpg", mosaic=False)
    with pytest.raises(ConfigError, match=r"only a \.dng can hold a mosaic"):
        format_of("x.png", mosaic=True)


def test_a_codec_of_one_rate_codes_but_aims_at_no_bpp(raw_dng: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = balle_manypriors.Config(hidden=8, latents=8, num_priors=4).build()
    one_rate = CodecEngine(
        write_codec_bundle(tmp_path / "b", model, name="one", training={}, data_digest="none", metrics={}, step=0)
    )
    encode_file(raw_dng, tmp_path / "x.sgr", one_rate, quality=0, tile=64, verify=True)
    assert picture_of(one_rate, tmp_path / "x.sgr").shape == (3, 131, 153)
    with pytest.raises(ConfigError, match="codec 'one' has one rate"):
        encode_file(raw_dng, tmp_path / "x.sgr", one_rate, bpp=1.0)
    with pytest.raises(ConfigError, match="at least 64"):
        encode_file(raw_dng, tmp_path / "x.sgr", one_rate, quality=0, tile=32)


# --- the other coder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_constriction(engine: CodecEngine, small_tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photo of `small_tiles`."""
    path = tmp_path_factory.mktemp("constriction") / "photo.sgr"
    encode_file(small_tiles.with_name("photo.dng"), path, engine, quality=63, tile=64, coder="constriction")
    return path


def test_a_file_by_constriction_is_decoded_to_the_same_latents_without_being_told(
    engine: CodecEngine, small_tiles: Path, by_constriction: Path
) -> None:
    assert torch.equal(latents_of(engine, by_constriction), latents_of(engine, small_tiles))
    ours, theirs = describe_file(small_tiles), describe_file(by_constriction)
    assert (ours["coder"], theirs["coder"]) == ("rans", "constriction")
    # Streams so short differ by what each takes besides its symbols.
    more = sum(theirs["sizes"]["passes"]) - sum(ours["sizes"]["passes"])
    assert abs(more) < 4 * ours["num_passes"] * ours["num_tiles"]
    assert theirs["bpp"] == pytest.approx(bits_of(by_constriction))


@pytest.mark.parametrize("forged", [False, True])
def test_damage_of_a_tile_by_constriction_is_named_and_the_others_salvaged(
    engine: CodecEngine, small_tiles: Path, by_constriction: Path, tmp_path: Path, forged: bool
) -> None:
    path = damaged(by_constriction, 43, tmp_path / "damaged.sgr", forged=forged)
    with pytest.raises(DamagedTileError, match="tile 43 ") as error:
        decode_file(path, {"png": tmp_path / "x.png"}, engine)
    assert error.value.tile == 43
    with SgrFile(path, salvage=True) as file:
        others = [index for index in range(file.header.num_tiles) if index != 43]
        found, lost = engine.latents(file, range(file.header.num_tiles), salvage=True)
        assert lost == [43]
    with SgrFile(small_tiles) as file:
        assert torch.equal(found, engine.latents(file, others)[0])


def test_a_rate_aimed_at_with_constriction_counts_all_that_it_adds(
    wide: CodecEngine, raw_dng: Path, tmp_path: Path
) -> None:
    encoded = encode_file(raw_dng, tmp_path / "x.sgr", wide, quality=30, coder="constriction", verify=True)
    assert encoded.bpp == pytest.approx(bits_of(tmp_path / "x.sgr"))
    again = encode_file(raw_dng, tmp_path / "y.sgr", wide, bpp=encoded.bpp, coder="constriction")
    assert (again.quality, again.sizes) == (encoded.quality, encoded.sizes)


def test_without_constriction_its_files_are_refused_saying_how_to_get_it(
    engine: CodecEngine, raw_dng: Path, by_constriction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = r"not installed: pip install 'stillgrain\[constriction\]'"
    monkeypatch.setitem(sys.modules, "constriction", None)
    for salvage in (False, True):
        with pytest.raises(StreamFileError, match=f"photo.sgr: cannot be decoded here: .*{remedy}"):
            decode_file(by_constriction, {"png": tmp_path / "x.png"}, engine, salvage=salvage)
    with pytest.raises(ConfigError, match=remedy):
        encode_file(raw_dng, tmp_path / "x.sgr", engine, quality=20, coder="constriction")
    assert not list(tmp_path.iterdir())
    assert describe_file(by_constriction, check=True)["damaged_tiles"] == []


# --- rate -------------------------------------------------------------------------------------------------------------


def bits_of(path: Path) -> float:
    """Bits of a file per photosite but for metadata and thumbnail, by what `info` says of its sizes."""
    facts = describe_file(path)
    sizes = facts["sizes"]
    return 8 * (path.stat().st_size - sizes["metadata"] - sizes["thumbnail"]) / (facts["width"] * facts["height"])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> CodecEngine:
    """A codec whose rates are far apart: quantisation steps as they are before training."""
    torch.manual_seed(0)
    model = rawcodec.Config(width=16, latents=16, hyper_latents=8, encoder_blocks=2, decoder_blocks=2).build()
    folder = tmp_path_factory.mktemp("wide") / "bundle"
    return CodecEngine(
        write_codec_bundle(folder, model, name="wide", training={}, data_digest="none", metrics={}, step=0)
    )


@pytest.mark.parametrize("tile", [64, 512])
def test_a_rate_that_is_aimed_at_is_hit_within_five_percent(
    wide: CodecEngine, small_tiles: Path, tmp_path: Path, tile: int
) -> None:
    raw = small_tiles.with_name("photo.dng")
    least, most = (encode_file(raw, tmp_path / "x.sgr", wide, quality=q, tile=tile).bpp for q in (0, 63))
    assert most > 3 * least
    for share in (0.02, 0.35, 0.7, 1.0):
        wanted = least ** (1 - share) * most**share
        encoded = encode_file(raw, tmp_path / "x.sgr", wide, bpp=wanted, tile=tile, thumbnail=True)
        assert encoded.bpp == pytest.approx(bits_of(tmp_path / "x.sgr"))
        assert encoded.bpp == pytest.approx(wanted, rel=0.05)


def test_a_rate_out_of_range_is_refused_with_what_there_is(
    wide: CodecEngine, small_tiles: Path, tmp_path: Path
) -> None:
    raw = small_tiles.with_name("photo.dng")
    for wanted, quality, end in ((0.001, 0, "least"), (30.0, 63, "most")):
        bpp = encode_file(raw, tmp_path / "x.sgr", wide, quality=quality).bpp
        with pytest.raises(ConfigError, match=f"the {end} that this codec makes of this picture is about {bpp:.3g}:"):
            encode_file(raw, tmp_path / "y.sgr", wide, bpp=wanted)
    assert not (tmp_path / "y.sgr").exists()


def test_more_quality_takes_more_bytes_and_they_are_what_the_model_said(
    engine: CodecEngine, small_tiles: Path, tmp_path: Path
) -> None:
    raw = small_tiles.with_name("photo.dng")
    coded = [encode_file(raw, tmp_path / f"{q}.sgr", engine, quality=q, tile=1024) for q in QUALITIES]
    for encoded in coded:
        with SgrFile(encoded.path) as file:
            streams = sum(len(s) for i in range(file.header.num_tiles) for s in file.read_tile(i).passes)
        assert encoded.stream_bits == 8 * streams > 8 * 3000
        assert encoded.stream_bits == pytest.approx(encoded.estimated_bits, rel=0.01)
    sizes = [encoded.sizes.total for encoded in coded]
    assert sizes == sorted(set(sizes))


# --- what the codec is told -------------------------------------------------------------------------------------------


def test_strength_and_noise_reach_the_stream_and_the_file_remembers_them(
    engine: CodecEngine, raw_dng: Path, tmp_path: Path
) -> None:
    told = {"strength": 1.0, "noise": (2e-3, 1e-6)}
    streams = {}
    for number, change in enumerate(({}, {"strength": 0.25}, {"noise": (8e-3, 1e-6)}, {"noise": (2e-3, 2e-4)})):
        words: dict[str, Any] = told | change
        path = tmp_path / f"{number}.sgr"
        encode_file(raw_dng, path, engine, quality=63, **words)
        with SgrFile(path) as file:
            assert (file.header.strength, file.header.noise) == (words["strength"], words["noise"])
            streams[number] = file.read_tile(0).passes
            kept = file.metadata.image.denoised_by
        assert kept == f"small sha256:{engine.bundle.digest}"
    assert len(set(streams.values())) == 4
    encode_file(raw_dng, path, engine, quality=63, strength=0)
    with SgrFile(path) as file:
        assert file.metadata.image.denoised_by is None


def test_noise_is_the_files_own_or_else_estimated(engine: CodecEngine, tmp_path: Path) -> None:
    profile = ((2e-3, 1e-6), (4e-3, 3e-6), (6e-3, 5e-6))
    known = paint_raw(tmp_path / "known.dng", 200, 222, "RGGB", ImageMetadata(noise_profile=profile))
    encode_file(known, tmp_path / "known.sgr", engine, quality=20)
    with SgrFile(tmp_path / "known.sgr") as file:
        assert file.header.noise == pytest.approx((4e-3, 3e-6), rel=1e-3)
    encode_file(paint_raw(tmp_path / "unknown.dng", 400, 444, "RGGB"), tmp_path / "unknown.sgr", engine, quality=20)
    with SgrFile(tmp_path / "unknown.sgr") as file:
        assert file.header.noise is not None
        a, b = file.header.noise
    # Painted with 2e-3 of photon noise; and texture is taken for some.
    assert 1e-3 < a + b / 0.2 < 1e-2


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded(engine: CodecEngine, raw_dng: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coded") / "photo.sgr"
    encode_file(raw_dng, path, engine, quality=QUALITY, tile=64, thumbnail=True)
    return path


@pytest.fixture(scope="module")
def written(engine: CodecEngine, coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[Format, Written]:
    folder = tmp_path_factory.mktemp("written")
    outputs = {name: folder / f"{name}{encoder.suffix}" for name, encoder in ENCODERS.items()}
    return {w.format: w for w in decode_file(coded, outputs, engine).written}


def test_dngs_hold_the_picture_and_what_the_camera_said(
    engine: CodecEngine, raw_dng: Path, coded: Path, written: Mapping[Format, Written]
) -> None:
    raw, picture = read_raw(raw_dng), picture_of(engine, coded).permute(1, 2, 0).numpy()
    codes = (picture * LEVELS + 1024).clip(0, 65535)
    with rawpy.imread(written["dng"].path) as dng:
        np.testing.assert_allclose(dng.raw_image[..., :3], codes, atol=0.6)
    mosaic = read_raw(written["cfa-dng"].path)
    assert (mosaic.cfa, mosaic.mosaic.shape, mosaic.iso) == (raw.cfa, raw.mosaic.shape, raw.iso)
    assert (mosaic.make, mosaic.model, mosaic.orientation) == (raw.make, raw.model, 6)
    np.testing.assert_allclose(mosaic.as_shot_white_balance, [2.0, 1.0, 1.5], rtol=1e-4)  # pyright: ignore
    np.testing.assert_allclose(mosaic.xyz_to_camera, MATRIX, atol=1e-4)  # pyright: ignore
    letters = np.array(list(raw.cfa)).reshape(2, 2)
    for i, j in np.ndindex(2, 2):
        # Rounded after a dither of half a step.
        np.testing.assert_allclose(mosaic.mosaic[i::2, j::2], codes[i::2, j::2, "RGB".index(letters[i, j])], atol=1.01)
    for name in ("dng", "cfa-dng"):
        assert written[name].input_sha256 == raw.sha256
        with tifffile.TiffFile(written[name].path) as file:
            assert engine.bundle.digest.encode() in file.pages[0].tags[700].value  # pyright: ignore


def test_exr_tiff_and_png_are_the_upright_picture(
    engine: CodecEngine, coded: Path, written: Mapping[Format, Written]
) -> None:
    lin_rec2020 = camera_rgb_to_balanced_lin_rec2020(
        picture_of(engine, coded), as_shot_white_balance=np.array([2.0, 1.0, 1.5]), xyz_to_camera=MATRIX
    )
    expected = np.rot90(lin_rec2020.permute(1, 2, 0).numpy(), -1)
    exr = read_exr(written["exr"].path)
    assert exr.color_space == "rec2020"
    np.testing.assert_allclose(exr.rgb, expected, rtol=2e-3, atol=1e-5)
    with Image.open(written["png"].path) as image:
        png = np.asarray(image) / 255
    tiff = tifffile.imread(written["tiff"].path) / 65535
    assert png.shape == tiff.shape == expected.shape
    np.testing.assert_allclose(png, tiff, atol=0.6 / 255)
    assert np.corrcoef(png.mean(-1).flat, expected.mean(-1).flat)[0, 1] > 0.9


def test_the_thumbnail_is_a_small_upright_jpeg(raw_dng: Path, coded: Path, written: Mapping[Format, Written]) -> None:
    with SgrFile(coded) as file:
        assert file.thumbnail is not None
        thumbnail = Image.open(io.BytesIO(file.thumbnail))
        assert file.metadata.image.orientation == 6
    raw = read_raw(raw_dng)
    assert thumbnail.format == "JPEG"
    assert thumbnail.size == (raw.height, raw.width)  # turned a quarter, and smaller than a thumbnail may be
    with Image.open(written["png"].path) as image:
        decoded = np.asarray(image.convert("L"), float)
    assert np.corrcoef(np.asarray(thumbnail.convert("L"), float).flat, decoded.flat)[0, 1] > 0.8


def test_a_file_describes_itself_without_a_bundle(engine: CodecEngine, coded: Path, tmp_path: Path) -> None:
    facts = describe_file(coded, check=True)
    assert facts["damaged_tiles"] == []
    assert (facts["height"], facts["width"], facts["cfa"], facts["quality"]) == (131, 153, "GRBG", QUALITY)
    assert facts["bpp"] == pytest.approx(bits_of(coded))
    path = damaged(coded, 5, tmp_path / "d.sgr", forged=False)
    assert describe_file(path, check=True)["damaged_tiles"] == [5]


# --- real raws --------------------------------------------------------------------------------------------------------


def checked(engine: CodecEngine, raw: Path, folder: Path, quality: int) -> Encoded:
    """Coded, decoded, and of the rate that was said."""
    path = folder / "raw.sgr"
    encoded = encode_file(raw, path, engine, quality=quality, tile=1024)
    y_hat = latents_of(engine, path)
    assert y_hat.isfinite().all()
    assert encoded.sizes.total == path.stat().st_size
    if encoded.stream_bits >= 8 * 4000:
        assert encoded.stream_bits == pytest.approx(encoded.estimated_bits, rel=0.01)
    return encoded


SMALL_RAWS = [
    "kiara_canon_eos-7d_iso00100",
    "kiara_canon_eos-7d_iso06400",
    "lebombo_samsung_nx1_iso00100",
    "lebombo_samsung_nx1_iso12800",
]


@pytest.mark.parametrize("name", SMALL_RAWS)
def test_a_raw_is_coded_at_five_qualities_for_the_bits_that_were_said(
    engine: CodecEngine, shared_data: Path, tmp_path: Path, name: str
) -> None:
    raw = shared_data / "synthetic" / f"{name}.dng"
    rates = [checked(engine, raw, tmp_path, quality).bpp for quality in QUALITIES]
    assert rates == sorted(set(rates))


@pytest.mark.parametrize(
    "name",
    ["synthetic/shop_pentax_k-5_iso00080.dng", "raw/kodak_dc50_dc0009l.kdc", "raw/canon_powershot_s40_crw_0101.crw"],
)
def test_cameras_raws_of_several_kinds_are_coded_and_decoded(
    engine: CodecEngine, shared_data: Path, tmp_path: Path, name: str
) -> None:
    raw = shared_data / name
    checked(engine, raw, tmp_path, 4)
    decoded = decode_file(tmp_path / "raw.sgr", {"cfa-dng": tmp_path / "raw.dng"}, engine)
    assert decoded.damaged_tiles == []
    before, after = read_raw(raw), read_raw(tmp_path / "raw.dng")
    assert (after.cfa, after.mosaic.shape) == (before.cfa, before.mosaic.shape)
    assert after.cfa in BAYER_PHASES


def test_a_mosaic_that_is_no_bayer_is_refused_in_words(engine: CodecEngine, shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(StillgrainError, match="X-Trans"):
        encode_file(shared_data / "synthetic/alps_fujifilm_x-e2_iso00200.dng", tmp_path / "x.sgr", engine, quality=3)
