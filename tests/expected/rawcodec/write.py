"""Writes the golden streams of `rawcodec` beside this file, from weights that are drawn here and kept.

python -m tests.expected.rawcodec.write

Only for a new version of the stream: files that are out there decode by what stands here.

    golden.safetensors  weights, tables without their padding, and the streams of each case
    golden.json         config, digest of the tables, and of each case its size, quality and hashes
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from library.codecs import rawcodec
from library.models.blocks.codec import Conditions
from library.models.blocks.latent_coding import decode_tiles, encode_tiles

FOLDER = Path(__file__).parent
CASES = {
    # quality, tiles, height and width in latents, size of the latents
    "lowest": (0.0, 3, 8, 12, 2.0),
    "middle": (31.0, 1, 16, 16, 8.0),
    "highest": (63.0, 2, 4, 8, 40.0),
    "far": (20.0, 1, 4, 4, 3e5),
    "zero": (40.0, 1, 8, 8, 0.0),
}


def told(quality: float) -> Conditions:
    return Conditions(*(torch.tensor([value]) for value in (quality, 1.0, 2e-3, 7e-3)))


def digest(array: np.ndarray | Tensor) -> str:
    """sha256 of the numbers in order, little-endian."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def main() -> None:
    generator = torch.Generator().manual_seed(20)
    config = rawcodec.Config(width=4, latents=8, hyper_latents=4, encoder_blocks=0, decoder_blocks=0)
    model = config.build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name.endswith("layer.weight"):
                parameter.mul_(3)  # predictions that differ from place to place
    tables = model.frequency_tables()
    stored: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    inside = np.arange(tables.frequencies.shape[1]) < tables.sizes[:, None]
    stored["tables.frequencies"] = torch.from_numpy(tables.frequencies[inside].astype(np.int16))  # at most 2^14
    stored |= {f"tables.{name}": torch.from_numpy(getattr(tables, name).copy()) for name in ("smallest", "sizes")}
    cases: dict[str, Any] = {}
    for name, (quality, num_tiles, height, width, size) in CASES.items():
        y = size * torch.randn(num_tiles, model.latent_channels, height, width, generator=generator)
        y[:, :, :, width // 2 :] *= 0.1
        passes = model.encode_latents(y, told(quality))
        streams = encode_tiles(model, tables, y, told(quality)).streams
        y_hat = decode_tiles(model, tables, streams, height, width, told(quality))
        for tile, own in enumerate(streams):
            for stream, content in zip(model.streams, own, strict=True):
                stored[f"{name}.{tile}.{stream}"] = torch.tensor(list(content), dtype=torch.uint8)
        cases[name] = {
            "quality": quality,
            "tiles": num_tiles,
            "height": height,
            "width": width,
            "symbols_sha256": [digest(p.values.astype(np.int32)) for p in passes],
            "latents_sha256": digest(y_hat.numpy()),
        }
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, FOLDER / "golden.safetensors")
    manifest = {"config": config.model_dump(mode="json"), "tables_sha256": tables.digest, "cases": cases}
    (FOLDER / "golden.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
