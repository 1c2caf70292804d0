"""Short trainings of small codecs, for tests of one process and of several workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from library.config import validate
from tests.scenes import paint_scenes
from workloads import compress
from workloads.launch import RunResult
from workloads.run import run

RAWCODEC = {"kind": "rawcodec", "width": 8, "latents": 8, "hyper_latents": 4, "encoder_blocks": 1, "decoder_blocks": 1}
MANYPRIORS = {"kind": "balle_manypriors", "hidden": 8, "latents": 8, "num_priors": 4, "revive_unused_for": 2}
FINISH = {"steps": 4, "changes": {"rounding": "round", "frozen": ["encoder", "decoder"], "optim.lr": 1e-3}}


def paint_big_scenes(folder: Path) -> Path:
    """Six painted pictures of 512 x 512: codecs see crops of whole lattices, and one shipped config large ones."""
    paint_scenes(folder)
    for path in folder.iterdir():
        with Image.open(path) as picture:
            resized = picture.resize((512, 512), Image.Resampling.BICUBIC)
        resized.save(path)
    return folder


def settings(scenes: Path, storage: Path, **changes: Any) -> dict[str, Any]:
    """A short run that uses all the state there is: stages, rates and strengths that are drawn, a moving average."""
    return {
        "workload": "compress",
        "name": "run",
        "storage": str(storage),
        "model": RAWCODEC,
        "dataset": {
            "kind": "synthetic",
            "scenes": str(scenes),
            "held_out": ["scene0", "scene3"],
            "crop": 64,
            "validation_crop": 192,
        },
        "losses": {"mse": {"weight": 1.0}},
        "transfer": "root",
        "rate": {"lmbda": [30.0, 10000.0], "warmup_steps": 4, "denoised_share": 0.5},
        "optim": {"lr": 2e-3, "schedule": {"kind": "plateau", "patience": 4, "factor_per_decay": 0.5}},
        "moving_average": {"decay": 0.9},
        "batch_size": 4,
        "steps": 8,
        "then": [FINISH],
        "log_every": 1,
        "validate_every": 4,
        "checkpoint_every": 3,
        "retention": {"last": 9},
        "validation_qualities": [8, 40],
        "checked_scenes": 1,
        "num_pictures": 1,
        "scaling": {"workers": 0},
        **changes,
    }


def one_rate(scenes: Path, storage: Path, lmbda: float = 64.0, **changes: Any) -> dict[str, Any]:
    """The same of the legacy family: one network a rate, and nothing after the first stage."""
    changes = {"model": MANYPRIORS, "rate": {"lmbda": lmbda}, "then": [], **changes}
    return settings(scenes, storage, **changes)


def checked(data: dict[str, Any]) -> compress.Config:
    return validate(compress.Config, data, "test")


def train(data: dict[str, Any]) -> RunResult:
    return run(checked(data))
