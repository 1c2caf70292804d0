"""Headless raw files: nothing but samples, described by a JSON file beside them.

LibRaw recognises such files by their byte count alone, and so takes a 768 x 512 16-bit crop for an 8-bit camera of
1024 x 768. A file that begins like no raw container is therefore never given to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from library.errors import RawFileError
from library.ops.cfa_letters import BAYER_PHASES, CFA_PHASES, cfa_period

_CONTAINERS = (
    (0, b"II*\0"),  # TIFF: DNG, NEF, CR2, ARW, PEF, KDC, ...
    (0, b"MM\0*"),
    (0, b"IIRO"),  # Olympus
    (0, b"IIRS"),
    (0, b"MMOR"),
    (0, b"IIU\0"),  # Panasonic, Leica
    (0, b"IIII"),  # Phase One, Leaf
    (0, b"MMMM"),
    (6, b"HEAPCCDR"),  # Canon CRW
    (4, b"ftyp"),  # Canon CR3
    (0, b"FUJIFILM"),
    (0, b"\0MRM"),  # Minolta
    (0, b"FOVb"),  # Sigma
    (0, b"\xff\xd8\xff"),  # raw samples behind a JPEG: Raspberry Pi, Casio
    (25, b"ARECOYK"),  # Contax
    (0, b"DSC-Image"),  # Rollei
    (0, b"NOKIARAW"),
    (0, b"qktk"),  # Apple QuickTake
    (0, b"qktn"),
    (0, b"ARRI"),
)


def _known_cfa(cfa: str) -> str:
    if cfa not in CFA_PHASES:
        raise ValueError(f"is none of {', '.join(BAYER_PHASES)}, nor the 36 letters of an X-Trans tile row by row")
    return cfa


_Positive = Annotated[int, Field(gt=0)]
_Level = Annotated[float, Field(ge=0, le=65535)]
_Row = Annotated[list[float], Field(min_length=3, max_length=3)]
_Multipliers = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class Sidecar(BaseModel):
    """The keys of `<file name>.json`. `black_level` is one number, or rows by CFA tile position: two of two for a Bayer
    CFA, six of six for X-Trans."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    width: _Positive
    height: _Positive
    cfa: Annotated[str, AfterValidator(_known_cfa)]
    black_level: _Level | list[list[_Level]]
    white_level: Annotated[int, Field(gt=0, le=65535)]
    bits: Literal[16] = 16
    """Bits per sample, little endian."""
    make: str = ""
    model: str = ""
    iso: Annotated[float, Field(gt=0)] | None = None
    as_shot_white_balance: _Multipliers | None = None
    xyz_to_camera: Annotated[list[_Row], Field(min_length=3, max_length=3)] | None = None
    orientation: Annotated[int, Field(ge=1, le=8)] = 1

    @model_validator(mode="after")
    def _black_level_fits_cfa(self) -> Self:
        period = cfa_period(self.cfa)
        if isinstance(self.black_level, list) and [len(row) for row in self.black_level] != [period] * period:
            raise ValueError(f"black_level must be one number or {period} rows of {period}, as the tile of its cfa")
        return self


def is_container(head: bytes) -> bool:
    """Whether these first bytes of a file (32 suffice) are those of a raw format that names its camera itself."""
    return any(head[offset:].startswith(signature) for offset, signature in _CONTAINERS)


def sidecar_path(path: Path) -> Path:
    """`DSC_1339.raw` -> `DSC_1339.raw.json`"""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path, data: bytes) -> tuple[Sidecar, np.ndarray]:
    """The description of the headless raw at `path`, whose bytes are `data`, and its uint16 (height, width) mosaic.

    raises  RawFileError: no sidecar, unknown, missing or impossible keys, or another size than the file has
    """
    place = sidecar_path(path)
    if not place.is_file():
        raise RawFileError(
            path,
            "begins like no raw format: it is another kind of file, or a headless one. If it holds nothing but "
            f"16-bit little-endian samples, describe them in {place.name} beside it, for example "
            '{"width": 768, "height": 512, "cfa": "GBRG", "black_level": 600, "white_level": 16383}',
        )
    try:
        sidecar = Sidecar.model_validate_json(place.read_bytes())
    except ValidationError as error:
        faults = "; ".join(": ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors())
        keys = ", ".join(Sidecar.model_fields)
        raise RawFileError(place, f"does not describe a raw file: {faults}. Known keys: {keys}") from error
    if len(data) != 2 * sidecar.width * sidecar.height:
        raise RawFileError(
            path,
            f"has {len(data)} bytes, but {place.name} says {sidecar.width} x {sidecar.height} samples of 16 bits, "
            f"which are {2 * sidecar.width * sidecar.height}: correct width and height",
        )
    mosaic = np.frombuffer(data, dtype="<u2").reshape(sidecar.height, sidecar.width).astype(np.uint16)
    return sidecar, mosaic
