"""A trained codec as a folder (or the same folder zipped) that proves itself on loading.

    manifest.json         what it is, as for a denoiser (library/bundle.py); `codec_digest` names weights, tables and
                          config
    model.safetensors     weights
    entropy.safetensors   frequency tables, made once from the weights: never computed again, since another machine's
                          exponential may round differently
    golden.safetensors    a picture, its streams, the latents they stand for, and the decoded picture
    README.md             model card

Loading checks every hash, decodes the golden streams to the same latents, bit for bit, and these to the same picture
within a tolerance, or refuses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from library.bundle import LEVELS, Bundle, golden_inputs, input_contract, load_bundle
from library.config import config_class
from library.entropy.symbols import CorruptStreamError
from library.entropy.tables import FrequencyTables
from library.errors import BundleError, ConfigError
from library.models.blocks.codec import CodecConfig, CodecModel, Conditions
from library.models.blocks.latent_coding import decode_tiles, encode_tiles
from library.sealed import bundle_type, check_size, pack_sealed, read_sealed, read_tensors, write_sealed

_WEIGHTS, _ENTROPY, _GOLDEN = "model.safetensors", "entropy.safetensors", "golden.safetensors"
_GOLDEN_TOLERANCE = 1e-3
"""Largest difference of the decoded picture, scene-linear, that another machine's float32 kernels may make."""
_GOLDEN_QUALITY = 32


@dataclass(frozen=True)
class CodecBundle:
    """A verified bundle of a codec."""

    path: str
    manifest: dict[str, Any]
    model: CodecModel
    """On the CPU, in evaluation mode, channels_last."""
    tables: FrequencyTables

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, and through its hashes over everything."""
        return self.manifest["digest"]

    @property
    def codec_digest(self) -> bytes:
        """16 bytes that name weights, tables and config: what a file must be decoded with."""
        return bytes.fromhex(self.manifest["codec_digest"])


def write_codec_bundle(
    folder: str | Path | UPath,
    model: CodecModel,
    *,
    name: str,
    training: Mapping[str, Any],
    data_digest: str,
    metrics: Mapping[str, float],
    step: int,
    tables: FrequencyTables | None = None,
) -> CodecBundle:
    """Write a bundle folder, whole or not at all, replacing an older one; returns it as loaded.

    training     the resolved config of the run
    data_digest  names the scenes it was trained on
    metrics      of the validation at `step`
    tables       the model's `frequency_tables()` where its caller has them already; left out, they are made
    """
    published = model.config.build()
    published.load_state_dict({key: tensor.detach().cpu() for key, tensor in model.state_dict().items()})
    published = _as_loaded(published)
    tables = published.frequency_tables() if tables is None else tables
    manifest = {
        "type": "codec",
        "name": name,
        "model": model.config.model_dump(mode="json"),
        "codec_digest": _codec_digest(published, tables),
        "tables_sha256": tables.digest,
        "input": input_contract(model.in_channels),
        "output": {
            "channels": 3,
            "space": "camera_rgb" if model.in_channels == 4 else "lin_rec2020",
            "scale": model.scale,
        },
        "levels": LEVELS,
        "geometry": {
            "analysis_reach": model.analysis_reach,
            "synthesis_reach": model.synthesis_reach,
            "stride": model.stride,
            "lattice": model.lattice,
        },
        "num_qualities": model.num_qualities,
        "num_parameters": model.num_parameters,
        "macs_per_pixel": dict(model.macs_per_pixel),
        "golden_tolerance": _GOLDEN_TOLERANCE,
        "training": dict(training),
        "data_digest": data_digest,
        "step": step,
        "metrics": dict(metrics),
    }
    stored = {
        _WEIGHTS: published.state_dict(),
        _ENTROPY: {
            name: torch.from_numpy(np.array(getattr(tables, name), np.int32))
            for name in ("frequencies", "smallest", "sizes")
        },
        _GOLDEN: _golden(published, tables),
    }
    write_sealed(folder, manifest, stored, _card(manifest))
    return load_codec(folder)


def load_codec(path: str | Path | UPath) -> CodecBundle:
    """Read a codec's bundle, folder or zip, check every hash, and reproduce the golden tiles.

    raises  BundleError saying what is missing (tables too), damaged, unknown, or not reproduced
    """
    manifest, files = read_sealed(path, "codec", (_WEIGHTS, _ENTROPY, _GOLDEN))
    try:
        config = config_class("library.codecs", manifest["model"]["kind"]).model_validate(manifest["model"])
        weights = read_tensors(path, _WEIGHTS, files)
        check_size(path, _WEIGHTS, weights, cast(CodecConfig, config).build)
        model = cast(CodecConfig, config).build()
    except (ConfigError, KeyError, ValueError) as error:
        raise BundleError(path, f"is of a codec that this stillgrain does not have: {error}") from None
    try:
        model.load_state_dict(weights)
        stored = {name: tensor.numpy() for name, tensor in read_tensors(path, _ENTROPY, files).items()}
        tables = FrequencyTables(**stored)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BundleError(path, f"does not hold the weights and tables of its codec: {error}") from None
    model = _as_loaded(model)
    if _codec_digest(model, tables) != manifest["codec_digest"] or tables.digest != manifest["tables_sha256"]:
        raise BundleError(path, "its weights or tables are not those of the manifest; copy the bundle again")
    _check_golden(path, model, tables, read_tensors(path, _GOLDEN, files), manifest["golden_tolerance"])
    return CodecBundle(str(path), manifest, model, tables)


def load_any(path: str | Path | UPath) -> Bundle | CodecBundle:
    """A verified bundle of either type. Raises `BundleError` as its own loader does."""
    return load_codec(path) if bundle_type(path) == "codec" else load_bundle(path)


def pack_bundle(folder: str | Path | UPath, archive: str | Path) -> None:
    """A verified bundle of either type as one zip file, whole or not at all. The same bundle gives the same bytes."""
    load_any(folder)
    pack_sealed(folder, archive)


@torch.no_grad()
def _golden(model: CodecModel, tables: FrequencyTables) -> dict[str, Tensor]:
    """A picture, what it is coded to, and what that decodes to."""
    x = golden_inputs(model.in_channels, model.lattice)[:1]
    conditions = golden_conditions()
    y = model.analyze(x.contiguous(memory_format=torch.channels_last), conditions)
    (streams,) = encode_tiles(model, tables, y, conditions).streams
    y_hat = decode_tiles(model, tables, [streams], y.shape[2], y.shape[3], conditions)
    stored = {
        f"stream.{name}": torch.frombuffer(bytearray(s or b"\0"), dtype=torch.uint8)[: len(s)]
        for name, s in _named(model, streams)
    }
    return {"input": x, "latents": y_hat, "output": model.synthesize(y_hat, conditions), **stored}


@torch.no_grad()
def _check_golden(
    path: str | Path | UPath, model: CodecModel, tables: FrequencyTables, golden: Mapping[str, Tensor], tolerance: float
) -> None:
    if missing := {"latents", "output", *(f"stream.{name}" for name in model.streams)} - golden.keys():
        raise BundleError(path, f"its golden file lacks {', '.join(sorted(missing))}; copy the bundle again")
    streams = [golden[f"stream.{name}"].numpy().tobytes() for name in model.streams]
    conditions = golden_conditions()
    try:
        height, width = golden["latents"].shape[2:]
        y_hat = decode_tiles(model, tables, [streams], height, width, conditions)
    except CorruptStreamError as error:
        raise BundleError(path, f"does not decode its golden streams on this machine ({error})") from None
    if not torch.equal(y_hat, golden["latents"]):
        raise BundleError(
            path, "decodes its golden streams to other latents on this machine; files could not be read here"
        )
    difference = float((model.synthesize(y_hat, conditions) - golden["output"]).abs().max())
    if not difference <= tolerance:
        raise BundleError(
            path,
            f"does not reproduce its golden picture on this machine: it differs by {difference:.3g}, and "
            f"{tolerance:g} is allowed",
        )


def golden_conditions() -> Conditions:
    """What the golden picture is coded under."""
    return Conditions(*(torch.tensor([value]) for value in (float(_GOLDEN_QUALITY), 1.0, 2e-3, 7e-3)))


def _named(model: CodecModel, streams: tuple[bytes, ...]) -> list[tuple[str, bytes]]:
    return list(zip(model.streams, streams, strict=True))


def _as_loaded(model: CodecModel) -> CodecModel:
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _codec_digest(model: CodecModel, tables: FrequencyTables) -> str:
    """SHA-256 over config, tables and weights by name, little-endian; its first 16 bytes, in hex."""
    digest = hashlib.sha256(json.dumps(model.config.model_dump(mode="json"), sort_keys=True).encode())
    digest.update(tables.digest.encode())
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.contiguous().numpy()
        digest.update(
            f"{name} {array.dtype.str} {array.shape}".encode() + array.astype(array.dtype.newbyteorder("<")).tobytes()
        )
    return digest.hexdigest()[:32]


def _card(manifest: Mapping[str, Any]) -> str:
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in manifest["metrics"].items())
    macs = ", ".join(f"{name} {value:,.0f}" for name, value in manifest["macs_per_pixel"].items())
    return (
        f"# {manifest['name']}\n\n"
        f"A {manifest['model']['kind']} codec trained by Stillgrain: {manifest['input']['channels']} channels in, "
        f"{manifest['output']['space']} out, {manifest['num_qualities']} qualities.\n"
        f"{manifest['num_parameters']:,} parameters; multiply-accumulates per pixel: {macs}.\n\n"
        f"Validation after {manifest['step']} steps, on scenes not trained on:\n\n"
        f"| metric | value |\n|---|---|\n{metrics}\n\n"
        "Use: `stillgrain encode RAW -o OUT.sgr --bundle THIS_FOLDER`\n"
    )
