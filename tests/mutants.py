"""Image files of every kind that is read, and damaged versions of them, for tests and benchmarks of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np

from library.errors import StillgrainError
from library.files.dng import write_cfa_dng, write_linear_dng
from library.files.exr import write_exr
from library.files.isolate import IsolatedReader
from library.files.metadata import ImageMetadata
from library.files.picture import write_png, write_rgb_tiff

Kind = Literal["raw", "linear DNG", "image"]
Outcome = Literal["read", "refused", "crashed", "too long", "too much memory"]

_EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1)
_METADATA = ImageMetadata(
    make="Nobody", model="Camera", iso=800.0, as_shot_white_balance=np.array([2.0, 1.0, 1.5]), exif={"LensModel": "50"}
)


def examples(folder: Path) -> dict[Path, Kind]:
    """Small files of every kind that is written here, with the reader that is for them."""
    rng = np.random.default_rng(0)
    mosaic = rng.integers(500, 4000, (96, 130)).astype(np.uint16)
    rgb16 = rng.integers(0, 65536, (70, 90, 3)).astype(np.uint16)
    linear = rng.normal(0.5, 0.3, (70, 90, 3)).astype(np.float32)
    files: dict[Path, Kind] = {}

    def made(name: str, kind: Kind, write: Callable[[Path], Any]) -> None:
        write(folder / name)
        files[folder / name] = kind

    levels: dict[str, Any] = {"black_level": np.full((2, 2), 512.0), "white_level": 16383, "metadata": _METADATA}
    made("plain.dng", "raw", lambda path: write_cfa_dng(path, mosaic, cfa="GRBG", **levels))
    made(
        "packed.dng", "raw", lambda path: write_cfa_dng(path, mosaic, cfa="RGGB", compression="lossless-jpeg", **levels)
    )
    x_trans = "GBGGRGRGRBGBGBGGRGGRGGBGBGBRGRGRGGBG"
    made("xtrans.dng", "raw", lambda path: write_cfa_dng(path, mosaic, cfa=x_trans, **levels))
    levels = {"black_level": 1024, "white_level": 65535, "metadata": _METADATA}
    made("linear.dng", "linear DNG", lambda path: write_linear_dng(path, rgb16, **levels))
    made(
        "linear_packed.dng",
        "linear DNG",
        lambda path: write_linear_dng(path, rgb16, compression="lossless-jpeg", **levels),
    )
    for compression in ("zips", "piz", "dwaa", "none"):
        made(
            f"{compression}.exr",
            "image",
            lambda path, c=compression: write_exr(path, linear, chromaticities="rec2020", compression=c),
        )
    made("plain.tif", "image", lambda path: write_rgb_tiff(path, rgb16, space="srgb", curve="srgb"))
    made("float.tif", "image", lambda path: write_rgb_tiff(path, linear, space="rec2020", curve="linear"))
    made("plain.png", "image", lambda path: write_png(path, (rgb16 >> 8).astype(np.uint8), _METADATA))
    made("deep.png", "image", lambda path: path.write_bytes(imagecodecs.png_encode(rgb16)))
    made("plain.jxl", "image", lambda path: path.write_bytes(imagecodecs.jpegxl_encode(rgb16)))
    made("plain.jpg", "image", lambda path: path.write_bytes(imagecodecs.jpeg8_encode((rgb16 >> 8).astype(np.uint8))))
    return files


def mutant(data: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    """A damaged version of a file: flipped bits, a cut, a block of another file or its own, zeros, or sizes that lie.

    donor  another file
    """
    damaged = bytearray(data)
    # Where damage tells: half of it in the first kilobytes, which hold the directories.
    end = min(len(data), 4096) if rng.integers(2) else len(data)
    at = int(rng.integers(end))
    length = int(rng.integers(1, 1 + min(int(rng.choice([4, 64, 4096])), len(data) - at)))
    match int(rng.integers(7)):
        case 0:
            for _ in range(int(rng.integers(1, 65))):
                damaged[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
        case 1:
            del damaged[at:]
        case 2:
            start = int(rng.integers(max(1, len(donor) - length)))
            damaged[at : at + length] = donor[start : start + length]
        case 3:
            start = int(rng.integers(len(data)))
            damaged[at:at] = data[start : start + length]
        case 4:
            damaged[at : at + length] = bytes(length)
        case 5:
            del damaged[at : at + length]
        case _:
            for _ in range(int(rng.integers(1, 5))):
                place = int(rng.integers(end)) & ~1
                size = int(rng.choice([2, 4]))
                number = int(rng.choice(_EXTREMES)) & (2 ** (8 * size) - 1)
                damaged[place : place + size] = number.to_bytes(size, "little" if rng.integers(2) else "big")
    return bytes(damaged)


def outcome(reader: IsolatedReader, path: Path, kind: Kind, *, memory_bytes: int, seconds: float) -> Outcome:
    """What comes of reading a file in the child process.

    raises  AssertionError for an error that does not name the file, and whatever reading should not raise
    """
    read = {"raw": reader.read_raw, "linear DNG": reader.read_linear_dng, "image": reader.read_image}[kind]
    try:
        read(path, memory_bytes=memory_bytes, seconds=seconds)
    except StillgrainError as error:
        said = str(error)
        assert str(path) in said
        if "makes its decoder crash" in said or "had its decoder killed" in said:
            return "crashed"
        if "was not decoded within" in said:
            return "too long"
        return "too much memory" if "may take" in said else "refused"
    return "read"
