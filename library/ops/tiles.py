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

    A window ends at the image's own border, where the network pads as it does for the whole image; everywhere else it carries the halo.
    Every window starts on the lattice, since a network with pooling computes something else from any other origin.

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
    starts = range(0, side, tile)
    cores = [Span(start, min(start + tile, side)) for start in starts]
    return [(core, Span(max(core.start - halo, 0), min(core.stop + halo, side))) for core in cores]
