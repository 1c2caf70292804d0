"""A bundle in the form that other programs take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from upath import UPath

from library.bundle import load_bundle
from library.errors import ConfigError
from library.export.dtmodel import DEFAULT_TILE, export_dtmodel
from library.export.golden import Exported
from library.export.onnx import export_onnx
from library.export.openvino import export_openvino

Target = Literal["onnx", "dtmodel", "openvino"]


def export_bundle(
    bundle: str | Path | UPath,
    output: str | Path | UPath,
    *,
    to: Target,
    tile: int | None = None,
    linear: str | Path | UPath | None = None,
    card: Mapping[str, str] | None = None,
    raw: str | Path | None = None,
) -> Exported:
    """Write a denoiser's bundle as an ONNX file, a package for darktable (`NAME.dtmodel`), or a folder for OpenVINO.
    What was made is run on the bundle's golden tiles first, and not written unless it reproduces them.

    tile    model input pixels a side; None: any size, and 512 for darktable, whose graphs have one
    linear  for darktable: bundle of an RGB denoiser, whose graph goes beside that of a raw denoiser
    card    for darktable: author, license and other fields of the model card that a bundle does not know
    raw     for darktable: a raw file on which what darktable makes of it must be what our engine does
    raises  BundleError for a bundle that cannot be loaded or exported; ConfigError for settings that do not fit it, or
            without the packages of the extra [export]
    """
    if to != "dtmodel" and (linear is not None or card or raw is not None):
        raise ConfigError(f"linear, card and raw belong to a package for darktable: leave them out for {to}")
    loaded = load_bundle(bundle)
    if to == "onnx":
        return export_onnx(loaded, output, tile=tile)
    if to == "openvino":
        return export_openvino(loaded, output, tile=tile)
    return export_dtmodel(
        loaded,
        output,
        linear=load_bundle(linear) if linear is not None else None,
        tile=DEFAULT_TILE if tile is None else tile,
        card=card,
        raw=raw,
    )
