"""A trained model as a folder (or the same folder zipped) that proves itself on loading.

    manifest.json        what it is: model, input and output, levels, training config, data digest, metrics, versions,
                         hashes of the rest
    model.safetensors    weights
    golden.safetensors   inputs and outputs of a few tiles
    README.md            model card

Loading checks every hash and reproduces the golden tiles, or refuses in words. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from upath import UPath

from library.config import config_class
from library.errors import BundleError, ConfigError
from library.files.atomic import whole_file, whole_folder
from library.files.places import place
from library.models.blocks.image_model import ImageModel, ModelConfig

FORMAT_VERSION = 1
_MANIFEST, _WEIGHTS, _GOLDEN, _CARD = "manifest.json", "model.safetensors", "golden.safetensors", "README.md"
_FILES = {_WEIGHTS, _GOLDEN, _CARD}
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

    training     the resolved config of the run
    data_digest  names the scenes it was trained on
    metrics      of the validation at `step`
    gain         scale of the model's output; the golden tiles are that output as it is
    """
    # A copy of the weights on the CPU, as they will be loaded.
    published = model.config.build()
    published.load_state_dict({key: tensor.detach().cpu() for key, tensor in model.state_dict().items()})
    published = _as_loaded(published)
    inputs = golden_inputs(model.in_channels, model.lattice)
    with whole_folder(folder, last=_MANIFEST) as temporary:
        weights = {key: tensor.contiguous() for key, tensor in published.state_dict().items()}
        safetensors.torch.save_file(weights, temporary / _WEIGHTS)
        safetensors.torch.save_file({"input": inputs, "output": _run(published, inputs)}, temporary / _GOLDEN)
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "model": model.config.model_dump(mode="json"),
            "input": _input_contract(model),
            "output": {
                "channels": 3,
                "space": "camera_rgb" if model.in_channels == 4 else "lin_rec2020",
                "scale": model.scale,
                "gain": gain,
            },
            "levels": {
                "black": "by CFA site, from the decoder",
                "white": "one level, from the decoder (LibRaw)",
                "clipped": False,
            },
            "geometry": {"halo": model.halo, "lattice": model.lattice, "reach": model.geometry.reach},
            "num_parameters": model.num_parameters,
            "macs_per_pixel": model.macs_per_pixel,
            "golden_tolerance": _GOLDEN_TOLERANCE,
            "training": dict(training),
            "data_digest": data_digest,
            "step": step,
            "metrics": dict(metrics),
            "versions": library_versions(),
            "git_commit": _git_commit(),
        }
        (temporary / _CARD).write_text(_card(manifest), encoding="utf-8")
        manifest["sha256"] = {file: _sha256((temporary / file).read_bytes()) for file in sorted(_FILES)}
        manifest["digest"] = _digest(manifest)
        (temporary / _MANIFEST).write_text(_canonical(manifest), encoding="utf-8")


def load_bundle(path: str | Path | UPath) -> Bundle:
    """Read a bundle folder or zip, check every hash, and reproduce the golden tiles.

    raises  BundleError saying what is missing, damaged, unknown, or not reproduced
    """
    files = _read(place(path))
    manifest = _parse_manifest(path, files)
    model = _build(path, manifest, files)
    golden = _tensors(path, _GOLDEN, files)
    difference = float((_run(model, golden["input"]) - golden["output"]).abs().max())
    if not difference <= manifest["golden_tolerance"]:
        raise BundleError(
            path,
            f"does not reproduce its golden tiles on this machine: they differ by {difference:.3g}, and "
            f"{manifest['golden_tolerance']:g} is allowed; results made here would not be those of the model's author",
        )
    return Bundle(str(path), manifest, model)


def pack_bundle(folder: str | Path | UPath, archive: str | Path) -> None:
    """A verified bundle as one zip file, whole or not at all. The same bundle gives the same bytes."""
    load_bundle(folder)
    files = _read(place(folder))
    with whole_file(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(files):
            target.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED)


def golden_inputs(in_channels: int, lattice: int) -> Tensor:
    """(4, in_channels, s, s): smooth colour with edges under noise at three exposures, and a clipped one; the same on
    every machine."""
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


def library_versions() -> dict[str, str]:
    """Versions of what a result can depend on."""
    names = ("torch", "numpy", "safetensors", "rawpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _read(path: UPath) -> dict[str, bytes]:
    if path.is_dir():
        return {f.name: f.read_bytes() for f in path.iterdir() if f.is_file() and not f.name.startswith(".")}
    if not path.exists():
        raise BundleError(path, "does not exist; give the path of a bundle folder, or of the same folder zipped")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if any(name.endswith(".pkl") for name in archive.namelist()):
                raise BundleError(
                    path,
                    "is a pickle written by torch.save, which can run code when opened; give a bundle folder or zip",
                )
            return {name: archive.read(name) for name in archive.namelist()}
    # Besides its own errors, zipfile raises what the damage makes it take the file for: encrypted, newer, endless.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise BundleError(
            path, f"is neither a bundle folder nor a zip of one ({error}); pickled weights (.pt, .pth) are never opened"
        ) from None


def _parse_manifest(path: str | Path | UPath, files: Mapping[str, bytes]) -> dict[str, Any]:
    if _MANIFEST not in files:
        raise BundleError(
            path, f"holds no {_MANIFEST}, so it is not a bundle; a training run writes one to <storage>/<name>/bundle"
        )
    try:
        manifest = json.loads(files[_MANIFEST])
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError):
        raise BundleError(path, f"{_MANIFEST} is damaged: it is not the JSON that was written") from None
    if version != FORMAT_VERSION:
        raise BundleError(
            path,
            f"has format version {version}, and this stillgrain reads {FORMAT_VERSION}; use the version that wrote it",
        )
    if manifest.get("digest") != _digest(manifest) or files[_MANIFEST] != _canonical(manifest).encode():
        raise BundleError(
            path, f"{_MANIFEST} is not the file that was written (its digest differs); copy the bundle again"
        )
    if manifest["output"]["gain"] not in get_args(OutputGain):
        raise BundleError(
            path,
            f"has an output gain of {manifest['output']['gain']!r}, and this stillgrain knows "
            f"{' and '.join(get_args(OutputGain))}; use the version that wrote it",
        )
    missing = sorted(_FILES - files.keys())
    if missing:
        raise BundleError(path, f"{', '.join(missing)} is missing; copy the whole folder again")
    foreign = sorted(files.keys() - _FILES - {_MANIFEST})
    if foreign:
        raise BundleError(path, f"holds {', '.join(foreign)}, which the manifest does not know; remove it")
    for name in sorted(_FILES):
        if _sha256(files[name]) != manifest["sha256"].get(name):
            raise BundleError(
                path, f"{name} is not the file that was written (its SHA-256 differs); copy the bundle again"
            )
    return manifest


def _build(path: str | Path | UPath, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> ImageModel:
    try:
        config = config_class("library.models", manifest["model"]["kind"]).model_validate(manifest["model"])
        model = cast(ModelConfig, config).build()
    except (ConfigError, ValueError) as error:
        raise BundleError(path, f"is of a model that this stillgrain does not have: {error}") from None
    try:
        model.load_state_dict(_tensors(path, _WEIGHTS, files))
    except RuntimeError as error:
        raise BundleError(path, f"{_WEIGHTS} does not fit the model of the manifest: {error}") from None
    return _as_loaded(model)


def _tensors(path: str | Path | UPath, name: str, files: Mapping[str, bytes]) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(files[name])
    except SafetensorError as error:
        raise BundleError(
            path, f"{name} is not in safetensors format ({error}); pickled weights are never opened"
        ) from None


def _as_loaded(model: ImageModel) -> ImageModel:
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def _run(model: ImageModel, inputs: Tensor) -> Tensor:
    return torch.cat([model(tile[None].contiguous(memory_format=torch.channels_last)) for tile in inputs]).contiguous()


def _input_contract(model: ImageModel) -> dict[str, Any]:
    if model.in_channels == 4:
        return {
            "channels": 4,
            "planes": "R, G1, G2, B",
            "cfa": "RGGB, by mirror padding",
            "range": "(raw - black) / (white - black), unclipped",
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


def _canonical(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _digest(manifest: Mapping[str, Any]) -> str:
    return _sha256(_canonical({key: value for key, value in manifest.items() if key != "digest"}).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_commit() -> str | None:
    """Of this checkout; None when it runs from somewhere else, such as a cluster's copy of the working directory."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
