"""Noisy raws of known truth: a test suite for raw denoisers, and raw files for whoever has none.

    stillgrain run workloads/configs/simulate_demo.yaml

<output>/raws/<scene>_<n>.dng    Bayer mosaic under Poisson-Gaussian noise, each scene by another camera and CFA phase
<output>/truth/<scene>_<n>.exr   the same pixels before mosaic and noise: camera RGB, half float
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from library.config import Frozen, Location
from library.datasets import synthetic
from library.datasets.sensors import Sensor
from library.errors import ConfigError
from library.files.atomic import whole_file
from library.files.dng import write_cfa_dng
from library.files.exr import write_exr
from library.files.metadata import ImageMetadata
from library.files.places import place
from library.ops.cfa import BAYER_PHASES, sample_cfa
from library.ops.levels import denormalize_levels, quantize
from library.ops.noise import add_poisson_gaussian

_BLACK, _WHITE = 512, 16383
_ISO_PER_A = 1e6
"""A photosite of ISO 100 that holds 10,000 electrons has a = 1e-4."""
_CLAIM = "simulate.json"


class Config(Frozen):
    workload: Literal["simulate"] = "simulate"
    dataset: synthetic.Config
    """Its held-out scenes are rendered, by sensors it draws; a model trained with it has never seen them."""
    output: Location
    """Folder for raws and truth."""
    storage: Location = "runs"
    """Folder whose `stores/` keeps prepared scenes: a training's storage, so that scenes are prepared once."""
    seed: int = Field(default=0, ge=0)
    """Of sensors and noise."""
    exposure_ev: float = -1.0
    """Stops by which the scenes are brightened; what then exceeds the sensor's white saturates."""
    raws_per_scene: int = Field(default=1, gt=0)
    max_side: int = Field(default=1024, ge=16, multiple_of=2)
    """Largest side in photosites: larger scenes are cropped to their centre."""


@dataclass(frozen=True)
class Suite:
    """What `run` left in the output folder."""

    raws: Path
    truth: Path
    names: tuple[str, ...]
    """Of all pairs: paths below both folders, without suffix."""
    num_written: int
    """Pairs that were not there before."""
    exit_code: int = 0

    def __str__(self) -> str:
        return f"{self.raws}: {len(self.names)} raws of known truth, {self.num_written} of them new"


def run(config: Config) -> Suite:
    """Render the held-out scenes; pairs that are there already stay. The same config gives the same files.

    raises  ConfigError when the folder holds the suite of another config; DataError for unusable scenes
    """
    output = Path(config.output)
    _claim(config)
    dataset = config.dataset
    scenes = dataset.open(dataset.prepare(place(config.storage) / "stores"), config.seed)
    suite = {
        f"{scenes.store.names[scene]}_{number}": (scene, number, BAYER_PHASES[(position + number) % len(BAYER_PHASES)])
        for position, scene in enumerate(scenes.validation_scenes)
        for number in range(config.raws_per_scene)
    }
    num_written = 0
    for name, (scene, number, cfa) in suite.items():
        raw, truth = output / "raws" / f"{name}.dng", output / "truth" / f"{name}.exr"
        if not (raw.exists() and truth.exists()):
            _render(config, scenes, scene, number, cfa, raw, truth)
            num_written += 1
    return Suite(output / "raws", output / "truth", tuple(suite), num_written)


def _claim(config: Config) -> None:
    """Files that are skipped must be the ones this config would make."""
    file = Path(config.output) / _CLAIM
    ours = json.dumps(config.model_dump(mode="json", exclude={"output", "storage"}), indent=1) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") != ours:
        raise ConfigError(
            f"output: {config.output} holds the raws of another config (see its {_CLAIM}): give another output=..., "
            "or delete that folder"
        )
    with whole_file(file) as temporary:
        temporary.write_text(ours, encoding="utf-8")


def _render(
    config: Config, scenes: synthetic.Synthetic, scene: int, number: int, cfa: str, raw: Path, truth: Path
) -> None:
    # By the scene's name: its sensor and noise do not depend on what other scenes there are.
    rng = np.random.default_rng([config.seed, zlib.crc32(scenes.store.names[scene].encode()), number])
    sensor = scenes.config.sensor.draw(rng)
    rgb, xyz_to_camera = scenes.camera_rgb(scene, _centre(scenes, scene, config.max_side), sensor)
    clean = rgb * 2.0**config.exposure_ev
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    noisy = add_poisson_gaussian(sample_cfa(clean, cfa), sensor.a, sensor.b, generator=generator)
    black_level = torch.full((2, 2), float(_BLACK))
    mosaic = quantize(denormalize_levels(noisy.clamp_max(1), black_level, _WHITE))
    metadata = _metadata(dataclasses.replace(sensor, xyz_to_camera=xyz_to_camera))
    write_exr(truth, clean.permute(1, 2, 0).numpy(), chromaticities=None, metadata=metadata)
    write_cfa_dng(raw, mosaic.numpy(), cfa=cfa, black_level=black_level.numpy(), white_level=_WHITE, metadata=metadata)


def _centre(scenes: synthetic.Synthetic, scene: int, max_side: int) -> np.ndarray:
    """(H, W, 3) of even sides."""
    full = scenes.store.size(scene)
    height, width = (min(side, max_side) // 2 * 2 for side in full)
    return scenes.store.crop(scene, (full[0] - height) // 2, (full[1] - width) // 2, height, width)


def _metadata(sensor: Sensor) -> ImageMetadata:
    return ImageMetadata(
        make="Stillgrain",
        model="Simulated 1",
        iso=round(sensor.a * _ISO_PER_A, -2) or 100,
        xyz_to_camera=sensor.xyz_to_camera,
        as_shot_white_balance=sensor.as_shot_white_balance,
        noise_profile=((sensor.a, sensor.b),),
    )
