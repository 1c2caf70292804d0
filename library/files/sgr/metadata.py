"""What an `.sgr` file says of its photograph besides the samples: compressed JSON that a reader checks key by key."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from library.files.metadata import ImageMetadata

MAX_JSON: Final = 2**20
"""Bytes of JSON that a reader unpacks. Few bytes of zlib can stand for gigabytes."""

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FileMetadata:
    """Facts of the original and of the making, which no decoder needs but those who use the picture do.

    original_sha256   of the raw file that was compressed, 64 hexadecimal digits; "" when unknown
    image             camera, exposure, colour and EXIF, as outputs made of the file need them
    exposure_ev       stops by which the picture was exposed when developed
    extra             anything else, ready for JSON
    """

    original_sha256: str = ""
    original_name: str = ""
    software: str = ""
    image: ImageMetadata = field(default_factory=ImageMetadata)
    exposure_ev: float = 0.0
    extra: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All that is known, in plain JSON types. Keys of unknown values are left out."""
        return _known(self, _FILE) | ({"image": image} if (image := _known(self.image, _IMAGE)) else {})


def pack_metadata(metadata: FileMetadata) -> bytes:
    """raises  ValueError or TypeError for what is no JSON, is not finite or takes more than `MAX_JSON` bytes"""
    text = json.dumps(metadata.to_json(), allow_nan=False, separators=(",", ":"), default=_plain).encode("ascii")
    parse_json(json.loads(text))
    if len(text) > MAX_JSON:
        raise ValueError(f"metadata take {len(text)} bytes of JSON, and {MAX_JSON} are allowed: put it into a block")
    return zlib.compress(text, 9)


def unpack_metadata(data: bytes) -> FileMetadata:
    """raises  ValueError, saying what is wrong; keys that are not known are left out"""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, MAX_JSON)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"they are cut off, or longer than {MAX_JSON} bytes")
        return parse_json(json.loads(text, parse_float=_finite, parse_constant=_finite))
    except (zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"its metadata cannot be read ({error})") from None


def parse_json(values: Any) -> FileMetadata:
    """The inverse of `FileMetadata.to_json`."""
    values = _mapping(values)
    image = ImageMetadata(**_checked(_mapping(values.get("image", {})), _IMAGE))
    return FileMetadata(image=image, **_checked(values, _FILE))


# --- keys: what a value must be, and what its absence means ---------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is no text")
    return value


def _digest(value: Any) -> str:
    if not re.fullmatch("[0-9a-f]{64}", _text(value)):
        raise ValueError("is no SHA-256")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is no finite number")
    return float(value)


def _positive(value: Any) -> float:
    if not _number(value) > 0:
        raise ValueError("is not above 0")
    return float(value)


def _orientation(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 8:
        raise ValueError("is no EXIF orientation, 1 to 8")
    return value


def _list(value: Any, length: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"is no list of {length}")
    return value


def _vector(value: Any) -> np.ndarray:
    return np.array([_number(x) for x in _list(value, 3)])


def _matrix(value: Any) -> np.ndarray:
    return np.stack([_vector(row) for row in _list(value, 3)])


def _noise_profile(value: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 4:
        raise ValueError("is no list of one to four pairs")
    pairs = [_list(pair, 2) for pair in value]
    return tuple((_number(a), _number(b)) for a, b in pairs)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("are no mapping")
    return value


def _exif(value: Any) -> dict[str, Any]:
    for number in _mapping(value).values():
        for part in number if isinstance(number, list) else [number]:
            if not isinstance(part, str) or isinstance(number, list):
                _number(part)
    return value


def _dng(value: Any) -> dict[str, Any]:
    """Tags of the DNG it was made of; what is neither text nor numbers is {"base64": ...}."""
    found: dict[str, Any] = {}
    for name, tag in _mapping(value).items():
        if isinstance(tag, dict):
            found[name] = base64.b64decode(_text(tag.get("base64")), validate=True)
        elif isinstance(tag, list):
            found[name] = [part if type(part) is int else _number(part) for part in tag]
        else:
            found[name] = _text(tag)
    return found


_Key = tuple[Callable[[Any], Any], Any]

_FILE: Final[dict[str, _Key]] = {
    "original_sha256": (_digest, ""),
    "original_name": (_text, ""),
    "software": (_text, ""),
    "exposure_ev": (_number, 0.0),
    "extra": (_mapping, {}),
}
_IMAGE: Final[dict[str, _Key]] = {
    "make": (_text, ""),
    "model": (_text, ""),
    "iso": (_number, None),
    "exposure_time": (_number, None),
    "f_number": (_number, None),
    "focal_length": (_number, None),
    "timestamp": (_text, None),
    "orientation": (_orientation, 1),
    "pixel_aspect": (_positive, 1.0),
    "xyz_to_camera": (_matrix, None),
    "as_shot_white_balance": (_vector, None),
    "noise_profile": (_noise_profile, None),
    "exif": (_exif, {}),
    "cfa": (_text, ""),
    "dng": (_dng, {}),
    "original_name": (_text, ""),
    "software": (_text, ""),
    "denoised_by": (_text, None),
    "levels": (_text, None),
}


def _known(values: FileMetadata | ImageMetadata, keys: Mapping[str, _Key]) -> dict[str, Any]:
    found = {}
    for name, (_, absent) in keys.items():
        value = getattr(values, name)
        if name == "dng":
            value = _plain_dng(value)
        value = value.tolist() if isinstance(value, np.ndarray) else dict(value) if name in ("exif", "extra") else value
        if value is not None and value != absent:
            found[name] = [list(pair) for pair in value] if name == "noise_profile" else value
    return found


def _plain_dng(tags: Mapping[str, Any]) -> dict[str, Any]:
    """As `_dng` reads them. A gain map larger than all else together may be is left out."""
    return {
        name: {"base64": base64.b64encode(tag).decode()} if isinstance(tag, bytes) else tag
        for name, tag in tags.items()
        if not isinstance(tag, bytes) or len(tag) <= MAX_JSON // 4
    }


def _checked(values: Mapping[str, Any], keys: Mapping[str, _Key]) -> dict[str, Any]:
    checked = {}
    for name, (check, absent) in keys.items():
        try:
            checked[name] = check(values[name]) if name in values else dict(absent) if absent == {} else absent
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {error}") from None
    return checked


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
