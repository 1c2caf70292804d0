"""ICC profiles of RGB spaces, made from their primaries: a matrix and one curve.

An application that manages colour shows the numbers as they are meant; the name is what it shows to its user.

Source: ICC.1:2022 (profile version 4.4), sections 7, 8.3, 9.2, 10.6, 10.15, 10.18, 10.31 and annex E.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import Literal

import numpy as np

from library.ops.color import (
    ACES_WHITE,
    AP0_PRIMARIES,
    AP1_PRIMARIES,
    D65_WHITE,
    P3_PRIMARIES,
    REC2020_PRIMARIES,
    SRGB_PRIMARIES,
    adaptation_matrix,
    primaries_to_xyz_matrix,
)

Space = Literal["srgb", "rec2020", "display_p3", "aces_ap0", "aces_ap1"]
Curve = Literal["srgb", "linear"]

PRIMARIES = {
    "srgb": (SRGB_PRIMARIES, D65_WHITE),
    "rec2020": (REC2020_PRIMARIES, D65_WHITE),
    "display_p3": (P3_PRIMARIES, D65_WHITE),
    "aces_ap0": (AP0_PRIMARIES, ACES_WHITE),
    "aces_ap1": (AP1_PRIMARIES, ACES_WHITE),
}
"""CIE 1931 x, y of red, green and blue, and of white."""

_NAMES = {
    "srgb": "sRGB",
    "rec2020": "Rec. 2020",
    "display_p3": "Display P3",
    "aces_ap0": "ACES AP0",
    "aces_ap1": "ACES AP1",
}
_D50 = (0.9642, 1.0, 0.8249)  # XYZ of the profile connection space's white, section 7.2.16
_D50_WHITE = (_D50[0] / sum(_D50), _D50[1] / sum(_D50))
# IEC 61966-2-1: exponent, slope and offset of the power, slope below the threshold, threshold.
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_CREATED = (2026, 1, 1, 0, 0, 0)
"""Of all profiles: equal pictures are equal bytes."""


@functools.cache
def icc_profile(space: Space, curve: Curve) -> bytes:
    """A version 4 display profile, the same bytes every time.

    space  whose primaries and white the numbers have
    curve  srgb: encoded with sRGB's transfer function; linear: proportional to light
    """
    primaries, white = PRIMARIES[space]
    adaptation = adaptation_matrix(white, _D50_WHITE)
    columns = (adaptation @ primaries_to_xyz_matrix(primaries, white)).numpy()
    trc = _parametric_curve(_SRGB_CURVE) if curve == "srgb" else _identity_curve()
    name = (
        _NAMES[space]
        if curve == "srgb" and space in ("srgb", "display_p3")
        else (f"{_NAMES[space]}, {'linear' if curve == 'linear' else 'sRGB curve'}")
    )
    elements = {
        b"desc": _text(name),
        b"cprt": _text("No copyright, use freely"),
        b"wtpt": _xyz(_D50),
        b"chad": b"sf32" + bytes(4) + _fixed(adaptation.numpy().ravel()),
        b"rXYZ": _xyz(columns[:, 0]),
        b"gXYZ": _xyz(columns[:, 1]),
        b"bXYZ": _xyz(columns[:, 2]),
        b"rTRC": trc,
        b"gTRC": trc,
        b"bTRC": trc,
    }
    table, data = b"", b""
    places: dict[bytes, int] = {}
    start = 128 + 4 + 12 * len(elements)
    for signature, element in elements.items():
        if element not in places:  # the three curves are one
            places[element] = start + len(data)
            data += element + bytes(-len(element) % 4)
        table += signature + struct.pack(">2I", places[element], len(element))
    body = struct.pack(">I", len(elements)) + table + data
    header = (
        struct.pack(">I4sI", 128 + len(body), bytes(4), 0x04400000)
        + b"mntrRGB XYZ "
        + struct.pack(">6H", *_CREATED)
        + b"acsp"
        + bytes(28)
        + _fixed(_D50)
        + bytes(48)
    )
    identity = hashlib.md5(header + body, usedforsecurity=False).digest()  # section 7.2.18, of fields that are 0 here
    return header[:84] + identity + header[100:] + body


def _fixed(numbers: tuple[float, ...] | np.ndarray) -> bytes:
    """s15Fixed16Number."""
    return struct.pack(f">{len(numbers)}i", *(round(float(number) * 65536) for number in numbers))


def _xyz(values: tuple[float, ...] | np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _text(text: str) -> bytes:
    """multiLocalizedUnicodeType of one language."""
    data = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">2I4s2I", 1, 12, b"enUS", len(data), 28) + data


def _parametric_curve(parameters: tuple[float, ...]) -> bytes:
    return b"para" + bytes(4) + struct.pack(">2H", 3, 0) + _fixed(parameters)


def _identity_curve() -> bytes:
    return b"curv" + bytes(8)
