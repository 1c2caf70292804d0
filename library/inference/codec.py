"""A codec's bundle applied to whole pictures: what is coded to an `.sgr` file, and decoded from one.

The picture's latents are computed window by window with a halo, so that they are those of the whole picture; the tiles
of the file hold latents, each tile coded by itself. A decoder puts the latents of all tiles it needs side by side and
synthesises across their borders: there is no seam, and nothing is blended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from library.codec_bundle import CodecBundle
from library.entropy.coders import CODERS, CoderName
from library.entropy.range_coder import MissingCoderError
from library.entropy.symbols import CorruptStreamError
from library.errors import ConfigError, StreamFileError
from library.files.sgr.container import DamagedTileError, SgrFile, StreamSizes, TileRecord, fixed_size, write_sgr
from library.files.sgr.header import MAX_TILE, MIN_TILE, StreamHeader
from library.files.sgr.metadata import FileMetadata
from library.inference.subjects import Subject
from library.inference.tiled import Patch
from library.memory import keep_freed_memory
from library.models.blocks.codec import Conditions, stabilizer_offset
from library.models.blocks.latent_coding import decode_tiles, encode_tiles
from library.ops.cfa import rggb_offset
from library.ops.noise_estimate import estimate_noise
from library.ops.tiles import plan_tiles

DEFAULT_TILE = 1024
_WINDOW = 512
"""Packed pixels a side that are transformed at a time; memory grows with its square, the result stays."""
_RECORD_HEAD = 13
"""Bytes of a tile's record before the lengths of its streams (files/sgr/FORMAT.md)."""
_INTERPOLATIONS = 4
_CLOSE_ENOUGH = math.log(1.005)


@dataclass(frozen=True)
class Encoded:
    """What became of a raw."""

    path: str
    sizes: StreamSizes
    quality: int
    photosites: int
    estimated_bits: float
    """Of the streams, by the model's own probabilities."""

    @property
    def bpp(self) -> float:
        """Bits of the file per photosite; metadata and thumbnail are left out."""
        return 8 * self.sizes.counted / self.photosites

    @property
    def stream_bits(self) -> int:
        """Bits of the entropy-coded streams as they are in the file."""
        return 8 * sum(self.sizes.passes)

    def __str__(self) -> str:
        gap = self.stream_bits / max(self.estimated_bits, 1) - 1
        return (
            f"{self.path}: {self.sizes.total:,} bytes, quality {self.quality}, {self.bpp:.4f} bpp "
            f"(streams {100 * gap:+.2f} % over the model's estimate)"
        )


class _Grid(NamedTuple):
    """Tiles of a coded picture: those of the file, the last ones stretched to what padding added."""

    rows: list[tuple[int, int]]
    columns: list[tuple[int, int]]

    @staticmethod
    def of(header: StreamHeader, height: int, width: int) -> _Grid:
        """height, width: photosites of the padded picture."""

        def spans(number: int, side: int) -> list[tuple[int, int]]:
            return [(i * header.tile, side if i == number - 1 else (i + 1) * header.tile) for i in range(number)]

        rows, columns = header.tile_grid
        return _Grid(spans(rows, height), spans(columns, width))

    def spans_of(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        row, column = divmod(index, len(self.columns))
        return self.rows[row], self.columns[column]

    def by_shape(self, indices: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        """Tiles of one shape can be coded together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index in indices:
            (top, bottom), (left, right) = self.spans_of(index)
            groups.setdefault((bottom - top, right - left), []).append(index)
        return groups


class CodecEngine:
    """A codec's bundle that codes and decodes raws.

    device  of the transforms; what must be exact is so on any
    """

    def __init__(self, bundle: CodecBundle, *, device: str = "cpu") -> None:
        keep_freed_memory()
        self.bundle = bundle
        self.model = bundle.model.to(torch.device(device))
        self.side = self.model.lattice * self.model.scale
        """Photosites that a coded picture's sides are multiples of."""

    # --- encoding ---------------------------------------------------------------------------------------------------

    def encode(
        self,
        subject: Subject,
        path: str | Path,
        *,
        quality: int | None = None,
        bpp: float | None = None,
        strength: float = 1.0,
        noise: tuple[float, float] | None = None,
        tile: int = DEFAULT_TILE,
        coder: CoderName = "rans",
        thumbnail: bool = False,
    ) -> Encoded:
        """Write a raw or a picture as `.sgr`, whole or not at all.

        subject   padded to multiples of this engine's `side`
        quality   0 to 63; or else
        bpp       bits of the file per photosite to come as near to as qualities allow, within about 3 %
        strength  0 keeps the noise as it is, 1 removes it
        noise     (a, b) of variance a * x + b; left out, what the file says of itself, or else estimated
        tile      photosites a side that can be decoded alone, a power of two
        coder     "rans", or "constriction", which whoever decodes the file must have installed too
        raises    ConfigError for what this codec cannot do
        """
        self._check(subject, quality, bpp, tile, coder)
        _check_conditions(strength, noise)
        a, b = noise or subject.noise or estimate_noise(subject.samples)
        header = StreamHeader(
            width=subject.width,
            height=subject.height,
            layout=subject.layout,
            cfa=subject.cfa,
            tile=tile,
            num_passes=len(self.model.streams),
            model_digest=self.bundle.codec_digest,
            quality=quality or 0,
            stabilizer=(float(stabilizer_offset(torch.tensor(a), torch.tensor(b))), 0.0),
            noise=(a, b),
            strength=strength,
            black_level=subject.black_level,
            white_level=subject.white_level,
            coder=coder,
        )
        photosites = subject.width * subject.height
        fixed = fixed_size(header)

        def coded(candidate: int) -> _Coded:
            return self._coded(subject.samples, dataclasses.replace(header, quality=candidate))

        if bpp is not None:
            quality, streams = _search_quality(coded, bpp, lambda found: 8 * (fixed + found.num_bytes) / photosites)
            header = dataclasses.replace(header, quality=quality)
        else:
            streams = coded(header.quality)
        metadata = FileMetadata(
            original_sha256=subject.sha256,
            original_name=subject.name,
            software="Stillgrain",
            image=dataclasses.replace(subject.image, noise_profile=None, denoised_by=self._signature(strength)),
            exposure_ev=subject.exposure_ev,
            extra={"codec": self.bundle.name, "bundle_sha256": self.bundle.digest},
        )
        records = (TileRecord(i, header.quality, streams.tiles[i]) for i in range(header.num_tiles))
        write_sgr(path, header, metadata, records, thumbnail=subject.thumbnail() if thumbnail else None)
        with SgrFile(path) as written:
            return Encoded(str(path), written.sizes, header.quality, photosites, streams.estimated_bits)

    def _check(self, subject: Subject, quality: int | None, bpp: float | None, tile: int, coder: CoderName) -> None:
        if (quality is None) == (bpp is None):
            raise ConfigError("give either a quality (0 to 63) or the bits per photosite to aim at, not both")
        if quality is not None and not 0 <= quality <= 63:
            raise ConfigError(f"quality is {quality}, but must be from 0 (smallest file) to 63")
        if bpp is not None and not 0 < bpp < math.inf:
            raise ConfigError(f"bpp is {bpp:g}, but must be above 0")
        if bpp is not None and self.model.num_qualities == 1:
            raise ConfigError(f"codec '{self.bundle.name}' has one rate, so no bpp can be aimed at: leave it out")
        least = max(self.side, MIN_TILE)
        if not least <= tile <= MAX_TILE or tile & (tile - 1):
            raise ConfigError(
                f"tile is {tile}, but must be a power of two of at least {least} and at most {MAX_TILE} photosites"
            )
        if self.model.in_channels != len(subject.samples):
            takes = "raws" if self.model.in_channels == 4 else "pictures"
            raise ConfigError(
                f"codec '{self.bundle.name}' takes {takes}, and {subject.name} is none: use another bundle"
            )
        if coder not in CODERS:
            raise ConfigError(f"coder is '{coder}', but must be one of {', '.join(CODERS)}")
        CODERS[coder].encode([], self.bundle.tables)

    def _signature(self, strength: float) -> str | None:
        return f"{self.bundle.name} sha256:{self.bundle.digest}" if strength > 0 else None

    @torch.no_grad()
    def _latents(self, samples: Tensor, conditions: Conditions) -> Tensor:
        """(1, latent_channels, h / stride, w / stride) of the whole picture, on the CPU."""
        model, stride = self.model, self.model.stride
        height, width = samples.shape[1:]
        y = torch.empty(1, model.latent_channels, height // stride, width // stride)
        halo, window = -(-model.analysis_reach // stride) * stride, _WINDOW // stride * stride
        for t in plan_tiles(height, width, tile=window, halo=halo, lattice=stride):
            x = samples[
                None, :, t.window_rows.start : t.window_rows.stop, t.window_columns.start : t.window_columns.stop
            ]
            latents = model.analyze(x.to(model.device).contiguous(memory_format=torch.channels_last), conditions).cpu()
            top, left = (
                (t.rows.start - t.window_rows.start) // stride,
                (t.columns.start - t.window_columns.start) // stride,
            )
            rows, columns = (slice(span.start // stride, span.stop // stride) for span in (t.rows, t.columns))
            y[:, :, rows, columns] = latents[
                :, :, top : top + rows.stop - rows.start, left : left + columns.stop - columns.start
            ]
        return y

    def _coded(self, samples: Tensor, header: StreamHeader) -> _Coded:
        conditions = self._conditions(header)
        y = self._latents(samples, conditions)
        unit = self.model.stride * self.model.scale
        grid = _Grid.of(header, y.shape[2] * unit, y.shape[3] * unit)
        tiles: dict[int, tuple[bytes, ...]] = {}
        bits = 0.0
        for indices in grid.by_shape(range(header.num_tiles)).values():
            for group in _groups(indices):
                cut = [
                    y[:, :, top // unit : bottom // unit, left // unit : right // unit]
                    for (top, bottom), (left, right) in map(grid.spans_of, group)
                ]
                coded = encode_tiles(
                    self.model,
                    self.bundle.tables,
                    torch.cat(cut).to(self.model.device),
                    conditions,
                    coder=header.coder,
                )
                tiles |= dict(zip(group, coded.streams, strict=True))
                bits += float(coded.estimated_bits.sum())
        return _Coded(tiles, bits)

    def _conditions(self, header: StreamHeader) -> Conditions:
        """As the file says; encoder and decoder ask the same header."""
        a = header.noise[0] if header.noise is not None else 0.0
        values = (float(header.quality), header.strength, a, header.stabilizer[0])
        return Conditions(*(torch.tensor([value], dtype=torch.float32, device=self.model.device) for value in values))

    # --- decoding ---------------------------------------------------------------------------------------------------

    def check_made_by(self, file: SgrFile) -> None:
        """Raises `StreamFileError` when another model made the file."""
        if file.header.model_digest != self.bundle.codec_digest:
            maker = file.metadata.extra.get("codec", "an unknown codec")
            raise StreamFileError(
                file.path,
                f"was made by {maker} (codec {file.header.model_digest.hex()}), and {self.bundle.path} is codec "
                f"{self.bundle.codec_digest.hex()}: give the bundle that made it",
            )
        layout = "mosaic" if self.model.in_channels == 4 else "rgb"
        if (file.header.layout, file.header.num_passes) != (layout, len(self.model.streams)):
            raise StreamFileError(
                file.path,
                f"holds a picture of layout {file.header.layout} in {file.header.num_passes} passes, which its codec "
                "does not make: it was written wrongly",
            )

    def latents(self, file: SgrFile, indices: Sequence[int], *, salvage: bool = False) -> tuple[Tensor, list[int]]:
        """(1, latent_channels, h, w) rounded latents of the whole picture, 0 outside of the tiles asked for.

        salvage  leave out tiles that are damaged instead of raising `DamagedTileError` at the first
        returns  also the tiles that were left out
        raises   StreamFileError too where the file's coder is not installed
        """
        header = file.header
        try:
            CODERS[header.coder].decode([], self.bundle.tables)
        except MissingCoderError as error:
            raise StreamFileError(file.path, f"cannot be decoded here: {error}") from None
        conditions, unit = self._conditions(header), self.model.stride * self.model.scale
        height, width = self._padded(header)
        grid = _Grid.of(header, height, width)
        y_hat = torch.zeros(1, self.model.latent_channels, height // unit, width // unit)
        damaged: list[int] = []
        for (tile_height, tile_width), members in grid.by_shape(indices).items():
            for group in _groups(members):
                found: list[tuple[int, tuple[bytes, ...]]] = []
                for index in group:
                    try:
                        found.append((index, self._passes(file, index)))
                    except DamagedTileError:
                        if not salvage:
                            raise
                        damaged.append(index)
                while found:
                    try:
                        decoded = decode_tiles(
                            self.model,
                            self.bundle.tables,
                            [passes for _, passes in found],
                            tile_height // unit,
                            tile_width // unit,
                            conditions,
                            coder=header.coder,
                        ).cpu()
                    except CorruptStreamError as error:
                        index, _ = found.pop(error.stream)
                        if not salvage:
                            raise DamagedTileError(file.path, index, f"does not decode: {error.reason}") from None
                        damaged.append(index)
                        continue
                    for (index, _), latents in zip(found, decoded, strict=True):
                        (top, bottom), (left, right) = grid.spans_of(index)
                        y_hat[0, :, top // unit : bottom // unit, left // unit : right // unit] = latents
                    break
        return y_hat, sorted(damaged)

    def _passes(self, file: SgrFile, index: int) -> tuple[bytes, ...]:
        """The streams of a tile. Its neighbours' gains are its own: tiles of other qualities are not decoded yet."""
        record = file.read_tile(index)
        if record.quality != file.header.quality:
            raise DamagedTileError(
                file.path,
                index,
                f"has quality {record.quality} in a file of quality {file.header.quality}, which this Stillgrain does "
                "not decode: use a newer one",
            )
        return record.passes

    def camera_rgb(self, header: StreamHeader, y_hat: Tensor, region: tuple[int, int, int, int]) -> Iterator[Patch]:
        """The decoded picture of a region, patch by patch, at its own origin: as `Engine.camera_rgb` gives it.

        region  top, left, height, width in the raw's own photosites
        """
        unit, reach = self.model.stride * self.model.scale, self.model.synthesis_reach
        dy, dx = _offset(header)
        top, left, height, width = region
        conditions = self._conditions(header)
        rows = (max(0, (top + dy) // unit), -(-(top + dy + height) // unit))
        columns = (max(0, (left + dx) // unit), -(-(left + dx + width) // unit))
        step = max(1, 2 * _WINDOW // unit)
        limit = y_hat.shape[2:]
        for y0 in range(rows[0], rows[1], step):
            for x0 in range(columns[0], columns[1], step):
                y1, x1 = min(y0 + step, rows[1]), min(x0 + step, columns[1])
                # Whole windows inside the picture as far as there is one: the same kernels for every patch.
                (wy0, wy1), (wx0, wx1) = (
                    _window(a, b, reach, step + 2 * reach, side)
                    for a, b, side in ((y0, y1, limit[0]), (x0, x1, limit[1]))
                )
                with torch.no_grad():
                    latents = y_hat[:, :, wy0:wy1, wx0:wx1].to(self.model.device)
                    picture = self.model.synthesize(latents.contiguous(memory_format=torch.channels_last), conditions)
                core = picture[0, :, (y0 - wy0) * unit : (y1 - wy0) * unit, (x0 - wx0) * unit : (x1 - wx0) * unit].cpu()
                at_top, at_left = y0 * unit - dy - top, x0 * unit - dx - left
                cut = core[
                    :,
                    max(0, -at_top) : min(core.shape[1], height - at_top),
                    max(0, -at_left) : min(core.shape[2], width - at_left),
                ]
                if cut.numel():
                    yield Patch(max(0, at_top), max(0, at_left), cut)

    def needed_tiles(self, file: SgrFile, region: tuple[int, int, int, int]) -> list[int]:
        """Tiles whose latents the picture of a region depends on."""
        margin = (self.model.synthesis_reach + 1) * self.model.stride * self.model.scale + 1
        top, left, height, width = region
        return file.tiles_of(top - margin, left - margin, height + 2 * margin, width + 2 * margin)

    def _padded(self, header: StreamHeader) -> tuple[int, int]:
        """Photosites of the coded picture: what a subject of this size is padded to."""
        offsets = _offset(header)
        padded = (side + offset for side, offset in zip((header.height, header.width), offsets, strict=True))
        height, width = (-(-side // self.side) * self.side for side in padded)
        return height, width


class _Coded(NamedTuple):
    tiles: dict[int, tuple[bytes, ...]]
    estimated_bits: float

    @property
    def num_bytes(self) -> int:
        """Of the tiles' records."""
        lengths = [len(stream) for tile in self.tiles.values() for stream in tile]
        varints = sum(max(1, -(-length.bit_length() // 7)) for length in lengths)
        return _RECORD_HEAD * len(self.tiles) + varints + sum(lengths)


def _window(start: int, stop: int, reach: int, size: int, side: int) -> tuple[int, int]:
    """A span that holds start ... stop with its reach, of `size` as far as the side allows."""
    size = min(max(size, stop - start + 2 * reach), side)
    first = min(max(start - reach, 0), side - size)
    return first, first + size


def _groups(indices: Sequence[int], most: int = 64) -> list[list[int]]:
    """So many tiles at once as keep NumPy busy and memory small."""
    return [list(indices[i : i + most]) for i in range(0, len(indices), most)]


def _search_quality(
    coded: Callable[[int], _Coded], wanted: float, bpp_of: Callable[[_Coded], float]
) -> tuple[int, _Coded]:
    """The quality whose file comes nearest to a rate: log size is about a line over quality (arXiv 2503.16288).

    raises  ConfigError when no quality gives it
    """
    found: dict[int, _Coded] = {}

    def gap(quality: int) -> float:
        """Logarithm of the rate over what is wanted."""
        if quality not in found:
            found[quality] = coded(quality)
        return math.log(bpp_of(found[quality]) / wanted)

    low, high, quality = 0, 63, 32
    slope = math.log(60) / 63
    while high - low > 1:
        distance = gap(quality)
        if abs(distance) < _CLOSE_ENOUGH:
            return quality, found[quality]
        if distance > 0:
            high = quality
        else:
            low = quality
        # Interpolating is quick where the line is one; halving ends in any case.
        quality = (low + high) // 2
        if len(found) < _INTERPOLATIONS:
            known = sorted(found)
            if len(known) > 1:
                slope = max(1e-3, (gap(known[-1]) - gap(known[0])) / (known[-1] - known[0]))
            nearest = min(known, key=lambda q: abs(gap(q)))
            quality = min(max(round(nearest - gap(nearest) / slope), low + 1), max(low + 1, high - 1))
    nearest = min((low, high), key=lambda q: abs(gap(q)))
    gaps = [gap(quality) for quality in found]
    if min(gaps) > math.log(1.05) or max(gaps) < -math.log(1.05):
        too_large = gaps[0] > 0
        raise ConfigError(
            f"bpp is {wanted:g}, but the {'least' if too_large else 'most'} that this codec makes of this picture is "
            f"about {bpp_of(found[nearest]):.3g}: aim {'higher' if too_large else 'lower'}"
        )
    return nearest, found[nearest]


def _check_conditions(strength: float, noise: tuple[float, float] | None) -> None:
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength is {strength:g}, but must be from 0 (keeps the noise) to 1 (removes it)")
    if noise is not None and not all(0 <= value <= 1 for value in noise):
        raise ConfigError(f"noise is {noise[0]:g}, {noise[1]:g}, but the variance is A x + B with both from 0 to 1")


def _offset(header: StreamHeader) -> tuple[int, int]:
    """Rows and columns by which a mosaic was padded to start at R."""
    return rggb_offset(header.cfa) if header.layout == "mosaic" else (0, 0)
