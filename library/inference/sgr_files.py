"""Raw files to `.sgr` files, and these to pictures: the same code with and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from library.entropy.coders import CoderName
from library.errors import ConfigError, ImageFileError
from library.files.metadata import ImageMetadata
from library.files.raw import RawImage, read_raw
from library.files.sgr.container import SgrFile
from library.inference.codec import DEFAULT_TILE, CodecEngine, Encoded
from library.inference.denoise import denoised_mosaic
from library.inference.engine import Engine
from library.inference.outputs import Format, Written, write_outputs
from library.inference.subjects import subject_of_picture, subject_of_raw
from library.ops.cfa import shift_cfa


@dataclass(frozen=True)
class Decoded:
    """Files made of an `.sgr`, and tiles that could not be decoded."""

    written: list[Written]
    damaged_tiles: list[int]

    def __str__(self) -> str:
        lines = [written.path for written in self.written]
        if self.damaged_tiles:
            lines.append(f"tiles {', '.join(map(str, self.damaged_tiles))} are damaged, and flat in the picture")
        return "\n".join(lines)


def encode_file(
    path: str | Path,
    output: str | Path,
    engine: CodecEngine,
    *,
    quality: int | None = None,
    bpp: float | None = None,
    strength: float = 1.0,
    noise: tuple[float, float] | None = None,
    tile: int = DEFAULT_TILE,
    coder: CoderName = "rans",
    thumbnail: bool = False,
    verify: bool = False,
    denoiser: Engine | None = None,
) -> Encoded:
    """Compress one raw file, or a picture (EXR, TIFF, PNG, ...) with a codec of pictures; see `CodecEngine.encode`.

    verify    read the file back and decode every tile: its checksums are of the encoder's own symbols
    denoiser  goes before the codec, which then codes its mosaic: for codecs trained on clean raws
    raises    RawFileError, ConfigError; DamagedTileError when what was written does not decode
    """
    _refuse_overwriting(path, [output])
    if engine.model.in_channels == 4:
        raw = read_raw(path)
        subject = subject_of_raw(raw if denoiser is None else denoised_mosaic(raw, denoiser), engine.side)
    else:
        subject = subject_of_picture(path, engine.side)
    encoded = engine.encode(
        subject,
        output,
        quality=quality,
        bpp=bpp,
        strength=strength,
        noise=noise,
        tile=tile,
        coder=coder,
        thumbnail=thumbnail,
    )
    if verify:
        with SgrFile(output) as file:
            engine.latents(file, range(file.header.num_tiles))
    return encoded


def encode_raw(
    raw: RawImage, output: str | Path, engine: CodecEngine, *, quality: int | None, bpp: float | None, strength: float
) -> Encoded:
    """Compress a raw that is read already; see `CodecEngine.encode`.

    raises  ConfigError for what this codec cannot do
    """
    if engine.model.in_channels != 4:
        raise ConfigError(
            f"{raw.path} is a raw, and the codec takes pictures of {engine.model.in_channels} channels: use a codec of "
            "raws"
        )
    subject = subject_of_raw(raw, engine.side)
    return engine.encode(subject, output, quality=quality, bpp=bpp, strength=strength)


@dataclass(frozen=True)
class _FileSource:
    """What an `.sgr` says for the outputs made of it."""

    cfa: str
    as_shot_white_balance: np.ndarray | None
    xyz_to_camera: np.ndarray | None
    exposure_ev: float
    levels: None = None
    """A codec does not keep a sensor's steps."""


def decode_file(
    path: str | Path,
    outputs: Mapping[Format, str | Path],
    engine: CodecEngine,
    *,
    region: tuple[int, int, int, int] | None = None,
    salvage: bool = False,
) -> Decoded:
    """Make files of one or several formats from an `.sgr`; each appears whole or not at all.

    region   top, left, height, width in photosites; left out, the whole picture. Only its tiles are read
    salvage  decode what is whole of a damaged file; the tiles that are not become flat
    raises   StreamFileError: damaged (DamagedTileError names the tile), or made by another model; ConfigError for a
             region outside of the picture, or a mosaic of what was none
    """
    _refuse_overwriting(path, outputs.values())
    with SgrFile(path, salvage=salvage) as file:
        engine.check_made_by(file)
        header, metadata = file.header, file.metadata
        if "cfa-dng" in outputs and header.layout != "mosaic":
            raise ConfigError(f"{path} holds a picture that never was a mosaic: leave --mosaic out")
        region = region or (0, 0, header.height, header.width)
        top, left, height, width = region
        if min(top, left) < 0 or min(height, width) < 1 or top + height > header.height or left + width > header.width:
            raise ConfigError(
                f"the region {','.join(map(str, region))} (top, left, height, width) is not inside the picture of "
                f"{header.height} x {header.width} photosites"
            )
        y_hat, damaged = engine.latents(file, engine.needed_tiles(file, region), salvage=salvage)
        image: ImageMetadata = metadata.image
        source = _FileSource(
            _cfa_from(header.cfa, top, left), image.as_shot_white_balance, image.xyz_to_camera, metadata.exposure_ev
        )
        patches = engine.camera_rgb(header, y_hat, region)
        written = write_outputs(patches, height, width, outputs, source, image, metadata.original_sha256)
    return Decoded(written, damaged)


_FORMATS: dict[str, Format] = {".dng": "dng", ".exr": "exr", ".tif": "tiff", ".tiff": "tiff", ".png": "png"}


def format_of(output: str | Path, *, mosaic: bool) -> Format:
    """What a file's suffix asks for. Raises `ConfigError` for one that nothing is known to be written as."""
    suffix = Path(output).suffix.lower()
    if suffix not in _FORMATS:
        raise ConfigError(f"{output}: its suffix says no format; known are {', '.join(_FORMATS)}")
    if mosaic and suffix != ".dng":
        raise ConfigError(f"{output}: only a .dng can hold a mosaic; leave --mosaic out")
    return "cfa-dng" if mosaic else _FORMATS[suffix]


def parse_region(text: str) -> tuple[int, int, int, int]:
    """ "top,left,height,width" in photosites. Raises `ConfigError`."""
    try:
        top, left, height, width = (int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"the region is '{text}', but must be four whole numbers: TOP,LEFT,HEIGHT,WIDTH") from None
    return top, left, height, width


def describe_file(path: str | Path, *, check: bool = False) -> dict[str, Any]:
    """What an `.sgr` says of itself, in plain JSON types; needs no bundle.

    check   also read every tile: `damaged_tiles`
    raises  StreamFileError
    """
    with SgrFile(path) as file:
        facts = file.to_json()
        facts["bpp"] = 8 * file.sizes.counted / (file.header.width * file.header.height)
        return facts | ({"damaged_tiles": file.damaged_tiles()} if check else {})


def _cfa_from(cfa: str, top: int, left: int) -> str:
    """The letters of a mosaic that begins at (top, left) of one with `cfa`."""
    return shift_cfa(cfa, top, left) if cfa else ""


def _refuse_overwriting(path: str | Path, outputs: Iterable[str | Path]) -> None:
    """Raises `ImageFileError` for an output that is the input. An input that is missing is for its reader to say."""
    for output in map(Path, outputs):
        if output.exists() and Path(path).exists() and output.samefile(path):
            raise ImageFileError(output, "is the file itself, which would be lost: give another name")
