"""Tiles that give exactly what the whole image would: on the network's lattice, with its halo around them."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Pixels start ... stop - 1 along one axis."""

    start: int
    stop: int


class Tile(NamedTuple):
    """A rectangle of the result, and the larger one that the network must see for it."""

    rows: Span
    columns: Span
    window_rows: Span
    window_columns: Span


def plan_tiles(height: int, width: int, *, tile: int, halo: int, lattice: int) -> list[Tile]:
    """Cover an image with tiles, row by row, each pixel once.

    Every window starts on the lattice, since a network with pooling computes something else from any other origin. All
    windows of an image have one shape, tile + 2 halo or the image's own side: at the image's border, where the network
    pads as it does for the whole image, a window reaches further inwards. One shape means one choice of kernels, and
    none so small that the library takes another one, which rounds differently.

    height, width  pixels, multiples of `lattice`
    tile           pixels a side at most, a multiple of `lattice`
    halo           pixels, a multiple of `lattice`, at least the network's reach
    raises         ValueError when one of them is not such a multiple
    """
    for name, value in (("height", height), ("width", width), ("tile", tile), ("halo", halo)):
        if value % lattice:
            raise ValueError(f"{name} is {value}, which is not a multiple of the lattice {lattice}")
    if tile <= 0:
        raise ValueError(f"tile is {tile}, but must be positive")
    rows, columns = (_spans(side, tile, halo) for side in (height, width))
    return [Tile(r, c, window_r, window_c) for r, window_r in rows for c, window_c in columns]


def _spans(side: int, tile: int, halo: int) -> list[tuple[Span, Span]]:
    window = min(tile + 2 * halo, side)
    spans = []
    for start in range(0, side, tile):
        window_start = min(max(start - halo, 0), side - window)
        spans.append((Span(start, min(start + tile, side)), Span(window_start, window_start + window)))
    return spans
