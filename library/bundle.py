"""A trained model as a folder (or the same folder zipped) that proves itself on loading.

    manifest.json        what it is: model, input and output, levels, training config, data digest, metrics, versions,
                         hashes of the rest
    model.safetensors    weights
    golden.safetensors   inputs and outputs of a few tiles
    README.md            model card

Loading checks every hash and reproduces the golden tiles, or refuses in words. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from upath import UPath

from library.config import config_class
from library.errors import BundleError, ConfigError
from library.models.blocks.image_model import ImageModel, ModelConfig
from library.ops.cfa import XTRANS_PHASES, sample_cfa
from library.ops.cfa_planes import CFA_PLANES, pack_cfa_planes
from library.ops.levels import WhiteLevel
from library.sealed import check_size, read_sealed, read_tensors, write_sealed

_WEIGHTS, _GOLDEN = "model.safetensors", "golden.safetensors"
_GOLDEN_TOLERANCE = 1e-4
"""Largest difference, scene-linear, that another machine's float32 kernels may make."""

OutputGain = Literal["absolute", "arbitrary"]
"""Scale of a model's output. absolute: that of its input, white at 1. arbitrary: the same factor all over an image, but
an unknown one; whoever uses the output takes its brightness from the input, once for the whole image."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: str
    manifest: dict[str, Any]
    model: ImageModel
    """On the CPU, in evaluation mode, channels_last."""

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def gain(self) -> OutputGain:
        """Scale of the model's output."""
        return self.manifest["output"]["gain"]

    @property
    def white_level(self) -> WhiteLevel:
        """Which count of a raw is 1 to this model."""
        policy = self.manifest["levels"]["white"]
        # Before there was a choice, the manifest said the decoder's in other words.
        return policy if policy in get_args(WhiteLevel) else "decoder"

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, and through its hashes over everything."""
        return self.manifest["digest"]


def write_bundle(
    folder: str | Path | UPath,
    model: ImageModel,
    *,
    name: str,
    training: Mapping[str, Any],
    data_digest: str,
    metrics: Mapping[str, float],
    step: int,
    gain: OutputGain = "absolute",
) -> None:
    """Write a bundle folder, whole or not at all, replacing an older one.

    training     the resolved config of the run; its data set says which white level the model knows
    data_digest  names the scenes it was trained on
    metrics      of the validation at `step`
    gain         scale of the model's output; the golden tiles are that output as it is
    """
    # A copy of the weights on the CPU, as they will be loaded.
    published = model.config.build()
    published.load_state_dict({key: tensor.detach().cpu() for key, tensor in model.state_dict().items()})
    published = _as_loaded(published)
    inputs = golden_inputs(model.in_channels, model.lattice)
    manifest = {
        "type": "denoiser",
        "name": name,
        "model": model.config.model_dump(mode="json"),
        "input": input_contract(model.in_channels),
        "output": {
            "channels": 3,
            "space": "lin_rec2020" if model.in_channels == 3 else "camera_rgb",
            "scale": model.scale,
            "gain": gain,
        },
        "levels": {**LEVELS, "white": _white_level(training)},
        "geometry": {"halo": model.halo, "lattice": model.lattice, "reach": model.geometry.reach},
        "num_parameters": model.num_parameters,
        "macs_per_pixel": model.macs_per_pixel,
        "golden_tolerance": _GOLDEN_TOLERANCE,
        "training": dict(training),
        "data_digest": data_digest,
        "step": step,
        "metrics": dict(metrics),
    }
    golden = {"input": inputs, "output": _run(published, inputs)}
    write_sealed(folder, manifest, {_WEIGHTS: published.state_dict(), _GOLDEN: golden}, _card(manifest))


def load_bundle(path: str | Path | UPath) -> Bundle:
    """Read a bundle folder or zip, check every hash, and reproduce the golden tiles.

    raises  BundleError saying what is missing, damaged, unknown, or not reproduced
    """
    manifest, files = read_sealed(path, "denoiser", (_WEIGHTS, _GOLDEN))
    if manifest["output"]["gain"] not in get_args(OutputGain):
        raise BundleError(
            path,
            f"has an output gain of {manifest['output']['gain']!r}, and this stillgrain knows "
            f"{' and '.join(get_args(OutputGain))}; use the version that wrote it",
        )
    model = _build(path, manifest, files)
    golden = read_tensors(path, _GOLDEN, files)
    difference = float((_run(model, golden["input"]) - golden["output"]).abs().max())
    if not difference <= manifest["golden_tolerance"]:
        raise BundleError(
            path,
            f"does not reproduce its golden tiles on this machine: they differ by {difference:.3g}, and "
            f"{manifest['golden_tolerance']:g} is allowed; results made here would not be those of the model's author",
        )
    return Bundle(str(path), manifest, model)


def golden_inputs(in_channels: int, lattice: int) -> Tensor:
    """(4, in_channels, s, s): smooth colour with edges under noise at three exposures, and a clipped one; the same on
    every machine. Of CFA planes, two are Bayer and two X-Trans."""
    if in_channels == CFA_PLANES:
        pictures = golden_inputs(3, lattice)
        cfas = ("RGGB", XTRANS_PHASES[0], "GBRG", XTRANS_PHASES[7])
        return torch.stack(
            [pack_cfa_planes(sample_cfa(x, cfa), cfa, a=2e-3, b=1e-5) for x, cfa in zip(pictures, cfas, strict=True)]
        )
    side = max(64, 4 * lattice) // lattice * lattice
    rows, columns = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    phases = torch.arange(in_channels)[:, None, None]
    picture = (
        0.35 + 0.25 * torch.sin(6 * rows + phases) * torch.cos(9 * columns) + 0.3 * ((rows + columns) % 0.5 > 0.25)
    )
    exposures = torch.tensor([1.0, 2**-3, 2**-6, 4.0])[:, None, None, None]
    noise = torch.randn(4, in_channels, side, side, generator=torch.Generator().manual_seed(0))
    clean = picture * exposures
    return (clean + noise * torch.sqrt(2e-3 * clean + 1e-5)).clamp_max(1)


def _build(path: str | Path | UPath, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> ImageModel:
    try:
        config = config_class("library.models", manifest["model"]["kind"]).model_validate(manifest["model"])
        weights = read_tensors(path, _WEIGHTS, files)
        check_size(path, _WEIGHTS, weights, cast(ModelConfig, config).build)
        model = cast(ModelConfig, config).build()
    except (ConfigError, ValueError) as error:
        raise BundleError(path, f"is of a model that this stillgrain does not have: {error}") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(path, f"{_WEIGHTS} does not fit the model of the manifest: {error}") from None
    return _as_loaded(model)


def _as_loaded(model: ImageModel) -> ImageModel:
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def _run(model: ImageModel, inputs: Tensor) -> Tensor:
    return torch.cat([model(tile[None].contiguous(memory_format=torch.channels_last)) for tile in inputs]).contiguous()


LEVELS = {
    "black": "by CFA site, from the decoder",
    "white": "decoder",
    "clipped": False,
}
"""How a raw's counts become a model's input; `white` is one of `library.ops.levels.WhiteLevel`."""


def _white_level(training: Mapping[str, Any]) -> WhiteLevel:
    """That of the data set a model was trained on: there is no other place to set it, so that none can disagree."""
    dataset = training.get("dataset")
    return dataset.get("white_level", "decoder") if isinstance(dataset, Mapping) else "decoder"


def input_contract(in_channels: int) -> dict[str, Any]:
    """What a manifest says of a model's input."""
    if in_channels == 4:
        return {
            "channels": 4,
            "planes": "R, G1, G2, B",
            "cfa": "RGGB, by mirror padding",
            "range": "(raw - black) / (white - black), unclipped",
            "white_balance": "none",
        }
    if in_channels == CFA_PLANES:
        return {
            "channels": CFA_PLANES,
            "planes": "mosaic, 1 where red, green and blue are measured, sigma of the noise",
            "cfa": "any Bayer or X-Trans phase",
            "range": "(raw - black) / (white - black), unclipped; sigma in the same unit",
            "white_balance": "none",
        }
    return {
        "channels": 3,
        "space": "lin_rec2020",
        "range": "scene-linear, white at 1, unclipped",
        "white_balance": "none",
    }


_SCALES: dict[OutputGain, str] = {
    "absolute": "absolute scale",
    "arbitrary": "at an arbitrary gain: brightness is to be taken from the input, once for the whole image",
}


def _card(manifest: Mapping[str, Any]) -> str:
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in manifest["metrics"].items())
    return (
        f"# {manifest['name']}\n\n"
        f"A {manifest['model']['kind']} denoiser trained by Stillgrain: {manifest['input']['channels']} channels in, "
        f"{manifest['output']['space']} out, {_SCALES[manifest['output']['gain']]}.\n"
        f"{manifest['num_parameters']:,} parameters, {manifest['macs_per_pixel']:,.0f} multiply-accumulates per pixel."
        f"\n\nValidation after {manifest['step']} steps, on scenes not trained on:\n\n"
        f"| metric | value |\n|---|---|\n{metrics}\n\n"
        "Use: `stillgrain denoise RAW -o OUT --bundle THIS_FOLDER`\n"
    )
