"""A raw file in, a denoised file out: the same code with and without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from library.errors import ImageFileError
from library.files.raw import RawImage, read_raw
from library.inference.engine import Engine
from library.inference.outputs import (
    OUTPUT_BLACK,
    OUTPUT_WHITE,
    USUAL,
    CfaDng,
    Encoding,
    Format,
    RawSource,
    Rendering,
    Written,
    paste,
    render,
    written,
)

_NOISE_LEFT = (1e-5, 1e-7)
"""Variance a * x + b that a denoised raw is said to have: about that of the lowest ISO."""


def denoise_raw(raw: RawImage, engine: Engine) -> np.ndarray:
    """The whole denoised picture in memory, for a notebook.

    returns  (H, W, 3) float32 camera RGB in the raw's own pixels: black at 0, white at 1, no white balance, not turned
             upright
    """
    picture = np.empty((raw.height, raw.width, 3), np.float32)
    for patch in engine.camera_rgb(raw):
        paste(picture, patch.top, patch.left, patch.pixels.permute(1, 2, 0).numpy())
    return picture


def denoised_mosaic(raw: RawImage, engine: Engine) -> RawImage:
    """A raw as a denoiser leaves it: the same photosites in the camera's own CFA, at 16 bits with room below black.

    For what takes raws and should get clean ones, such as a codec that does not denoise. It says that hardly any noise
    is left, so that nobody stabilises what is gone.
    """
    raw = raw.at_white_level(engine.bundle.white_level)
    source = RawSource(raw)
    source.levels = None  # all of 16 bits
    encoder = CfaDng(source, raw.metadata())
    mosaic = np.empty(raw.mosaic.shape, np.uint16)
    for patch in engine.camera_rgb(raw):
        paste(mosaic, patch.top, patch.left, encoder.encode(patch.pixels, patch.top, patch.left))
    return dataclasses.replace(
        raw,
        mosaic=mosaic,
        black_level=np.full(raw.black_level.shape, float(OUTPUT_BLACK)),
        white_level=OUTPUT_WHITE,
        camera_white_level=None,
        noise_profile=(_NOISE_LEFT,),
    )


def denoise_file(
    raw_path: str | Path, outputs: Mapping[Format, str | Path], engine: Engine, encoding: Encoding = USUAL
) -> list[Written]:
    """Denoise one raw file, in one pass, into files of one or several formats; each appears whole or not at all.

    outputs  where each format goes
    raises   RawFileError for an input that cannot be used; ImageFileError for an output that cannot be written
    """
    raw = read_raw(raw_path)
    for path in map(Path, outputs.values()):
        if path.exists() and path.samefile(raw_path):
            raise ImageFileError(path, "is the raw file itself, which would be lost: give another folder")
    return written(render_denoised(raw, outputs, engine, encoding), outputs, raw.sha256)


def render_denoised(raw: RawImage, formats: Iterable[Format], engine: Engine, encoding: Encoding = USUAL) -> Rendering:
    """A raw, denoised, as the samples of one or several formats; nothing is written yet.

    raises  RawFileError for a raw that the engine cannot use
    """
    policy = engine.bundle.white_level
    metadata = dataclasses.replace(
        raw.metadata(),
        denoised_by=f"{engine.bundle.name} sha256:{engine.bundle.digest}",
        levels=raw.describe_levels(policy),
    )
    raw = raw.at_white_level(policy)
    return render(engine.camera_rgb(raw), raw.height, raw.width, formats, RawSource(raw), metadata, encoding)
