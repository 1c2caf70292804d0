"""Latents to bytes and back: what a codec says is to be coded, through the entropy coder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from library.entropy.coders import CODERS, FIXED_BYTES, CoderName
from library.entropy.symbols import CorruptStreamError
from library.entropy.tables import FrequencyTables
from library.models.blocks.codec import CodecModel, Conditions


@dataclass(frozen=True)
class CodedTiles:
    """Tiles of one shape, coded each by itself."""

    streams: list[tuple[bytes, ...]]
    """Of each tile, one for every name in the codec's `streams`."""
    estimated_bits: np.ndarray
    """(T, streams) float64: what the model's own probabilities say that the values cost, and what each stream costs
    whatever it holds."""


def encode_tiles(
    model: CodecModel, tables: FrequencyTables, y: Tensor, conditions: Conditions, *, coder: CoderName = "rans"
) -> CodedTiles:
    """Code latents.

    y           (T, latent_channels, h, w) as `model.analyze` gives them
    conditions  one value for all tiles, or one each
    """
    passes = model.encode_latents(y, conditions)
    num_tiles = len(y)
    flat = [(values, indices) for p in passes for values, indices in zip(p.values, p.indices, strict=True)]
    coded = CODERS[coder].encode(flat, tables)
    streams = [tuple(coded[number * num_tiles + tile] for number in range(len(passes))) for tile in range(num_tiles)]
    fixed = 8 * FIXED_BYTES * np.array([[len(stream) > 0 for stream in tile] for tile in streams])
    return CodedTiles(streams, np.stack([p.bits for p in passes], axis=1) + fixed)


def decode_tiles(
    model: CodecModel,
    tables: FrequencyTables,
    streams: Sequence[Sequence[bytes]],
    height: int,
    width: int,
    conditions: Conditions,
    *,
    coder: CoderName = "rans",
) -> Tensor:
    """Rounded latents (T, latent_channels, height, width) of tiles of one shape, the same bits on every machine.

    raises  CorruptStreamError whose `stream` is the number of the tile
    """
    remaining = iter(range(len(model.streams)))

    def read(indices: np.ndarray) -> np.ndarray:
        number = next(remaining)
        jobs = [(tile[number], own) for tile, own in zip(streams, indices, strict=True)]
        return np.stack(CODERS[coder].decode(jobs, tables))

    return model.decode_latents(len(streams), height, width, conditions, read)


__all__ = ["CodedTiles", "CorruptStreamError", "decode_tiles", "encode_tiles"]
