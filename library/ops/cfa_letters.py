"""Colour filter arrays by their letters, without torch: what reads files knows them, and starts in no time.

A `cfa` is its letters read row by row from the top-left tile: 4 of a Bayer CFA, 36 of Fujifilm's X-Trans.
"""

from __future__ import annotations

BAYER_PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")
_XTRANS = "GBGGRGRGRBGBGBGGRGGRGGBGBGBRGRGRGGBG"


def cfa_period(cfa: str) -> int:
    """Photosites after which a CFA repeats itself along either axis: 2 or 6.

    ValueError for other than 4 or 36 letters R, G and B.
    """
    side = {4: 2, 36: 6}.get(len(cfa))
    if side is None or set(cfa) != set("RGB"):
        raise ValueError(f"cfa is {cfa!r}: expected the letters R, G and B of a 2x2 Bayer or a 6x6 X-Trans tile")
    return side


def shift_cfa(cfa: str, dy: int, dx: int) -> str:
    """The letters of what is left of a mosaic when `dy` lines are cut from its top and `dx` from its left; a negative
    number adds lines. Errors: `cfa_period`."""
    side = cfa_period(cfa)
    return "".join(cfa[(y + dy) % side * side + (x + dx) % side] for y in range(side) for x in range(side))


XTRANS_PHASES = tuple(dict.fromkeys(shift_cfa(_XTRANS, dy, dx) for dy in range(6) for dx in range(6)))
"""The 18 tiles that an X-Trans mosaic can begin with: its 3x3 blocks alternate, so a shift by (3, 3) changes nothing.
Mirrored and transposed, it is one of them again."""
CFA_PHASES = BAYER_PHASES + XTRANS_PHASES
