"""What a package for darktable is: `<id>.dtmodel`, for its neural restoration of raws.

    <id>/config.json         what darktable reads (`DarktableConfig`), in the first entry
    <id>/model_bayer.onnx    of a raw denoiser: (1, 4, T, T) packed R, G1, G2, B -> (1, 3, 2T, 2T) camera RGB
    <id>/model_linear.onnx   of an RGB denoiser: (1, 3, T, T) lin_rec2020 -> same, for raws that are demosaiced first
    <id>/<stem>.json         manifest of the bundle that <stem>.onnx was made of; darktable ignores it
    <id>/<stem>.md           its model card; likewise

One of the two graphs may be missing: nothing makes an RGB denoiser of a raw denoiser. Names, order and values are
darktable's contract: its src/common/ai/restore.h and src/ai/README.md, and docs/dtmodel-format.md of
darktable-ai-sdk. All text in the ZIP is UTF-8; the same bundles give the same bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from library.config import Frozen
from library.errors import BundleError

SUFFIX = ".dtmodel"
CONFIG = "config.json"
OVERLAP = 32
"""Model input pixels that darktable's tiles see beyond their own on each side."""

OutputScale = Literal["absolute", "match_gain"]


class ModelCard(Frozen):
    """What people read before they install it."""

    long_description: str
    scope: str
    author: str = "not stated"
    source: str = "not stated"
    paper: str = "not stated"
    license: str = "not stated"
    """Of the weights: an SPDX name."""
    training_data: str
    training_data_license: str = "not stated"
    notes: str


class BayerGraph(Frozen):
    """What darktable does around model_bayer.onnx."""

    input_kind: Literal["bayer_v1"] = "bayer_v1"
    bayer_orientation: Literal["force_rggb"] = "force_rggb"
    """Other phases are cropped by a line to RGGB."""
    edge_pad: Literal["mirror_cropped"] = "mirror_cropped"
    """Mirrored inside the cropped rectangle."""
    wb_norm: Literal["none"] = "none"
    output_scale: OutputScale


class LinearGraph(Frozen):
    """What darktable does around model_linear.onnx."""

    input_kind: Literal["linear_v1"] = "linear_v1"
    input_colorspace: Literal["lin_rec2020"] = "lin_rec2020"
    wb_norm: Literal["none"] = "none"
    output_scale: OutputScale
    target_mean: Literal["null"] = "null"
    """No change of exposure. A text: a missing value would mean 0.30, and JSON's null may read as missing."""


class Attributes(Frozen):
    input_sizes: tuple[int] = Field()
    """T, the sides of the graphs' inputs."""
    coreml_cpu_only: bool = False
    """True where activations can exceed what half precision holds."""
    model_bayer: BayerGraph | None = None
    model_linear: LinearGraph | None = None


class DarktableConfig(Frozen):
    """config.json of a package for the task `rawdenoise`."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the package, its only folder, and where it is installed."""
    name: str
    description: str
    task: Literal["rawdenoise"] = "rawdenoise"
    arch: str
    backend: Literal["onnx"] = "onnx"
    version: str = "1.0"
    tiling: Literal[True] = True
    coreml_format: Literal["mlprogram"] = "mlprogram"
    model_card: ModelCard
    attributes: Attributes

    def to_json(self) -> str:
        """As darktable reads it: a graph that does not exist has no entry."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False) + "\n"


class Package:
    """A package as darktable sees it.

    graphs  ONNX files by stem
    """

    def __init__(self, config: DarktableConfig, graphs: Mapping[str, bytes]) -> None:
        self.config = config
        self.graphs = graphs


def read_dtmodel(path: str | Path) -> Package:
    """A package whose archive and config are as darktable needs them.

    raises  BundleError saying what is not
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise BundleError(path, f"is no ZIP archive ({error}): make the package again") from None
    folder = next(iter(files), "").partition("/")[0]
    if not all(name.startswith(f"{folder}/") for name in files) or f"{folder}/{CONFIG}" not in files:
        raise BundleError(path, f"has not one folder with a {CONFIG} in it, named by the first entry: make it again")
    try:
        config = DarktableConfig.model_validate_json(files[f"{folder}/{CONFIG}"])
    except ValidationError as error:
        raise BundleError(path, f"has a {CONFIG} that darktable would not read: {error}") from None
    named = [stem for stem in ("model_bayer", "model_linear") if getattr(config.attributes, stem) is not None]
    missing = [f"{stem}.onnx" for stem in named if f"{folder}/{stem}.onnx" not in files]
    if config.id != folder or missing or not named:
        raise BundleError(
            path, f"is of id {config.id} in a folder {folder} and lacks {missing or 'nothing'}: make it again"
        )
    return Package(config, {stem: files[f"{folder}/{stem}.onnx"] for stem in named})
