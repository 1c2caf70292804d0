"""Clean scenes mosaiced and noised on the fly: display images brought back to linear light, linear images, or clean
raws.

A sample is: a crop of a scene, flipped or transposed, at a random exposure, seen by a random sensor (camera matrix,
Poisson-Gaussian noise), sampled by an RGGB mosaic, or one of any Bayer or X-Trans phase. Flips come before the mosaic,
so the CFA phase is always right.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from upath import UPath

from library.config import Component, Location
from library.datasets import order, samples
from library.datasets.batch import Batch
from library.datasets.sensors import AnySensor, ParametricSensor, Range, Sensor
from library.datasets.store import INDEX, Scene, SceneStore
from library.errors import DataError, RawFileError
from library.files.headless import sidecar_path
from library.files.markesteijn import demosaic
from library.files.picture import read_image
from library.files.places import place
from library.files.raw import read_raw
from library.ops.cfa import BAYER_PHASES, XTRANS_PHASES, pack_cfa, sample_cfa
from library.ops.cfa_planes import CFA_PLANES, pack_cfa_planes
from library.ops.color import (
    XYZ_TO_LIN_REC2020,
    camera_rgb_to_lin_rec2020,
    lin_rec2020_to_lin_srgb,
    lin_srgb_to_camera_rgb,
)
from library.ops.demosaic import demosaic_half_size
from library.ops.levels import WhiteLevel, normalize_levels
from library.ops.noise import add_poisson_gaussian
from library.ops.transfer import srgb_decode
from library.pairs.split import fraction_of

_STORE_VERSION = 1
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jxl", ".hdr", ".exr")


class Config(Component):
    kind: Literal["synthetic"] = "synthetic"
    scenes: Literal["samples"] | Location = "samples"
    """A folder (searched with its subfolders) of clean raws, linear EXR or display images; `samples` is a score of
    scenes that need no download: photographs that scikit-image ships and dead-leaves images."""
    held_out: tuple[str, ...] | Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Scenes for validation, never trained on: their names, or a fraction, chosen by a hash of the name so that a
    growing folder moves no scene from one side to the other."""
    crop: int = Field(default=128, ge=16, multiple_of=2)
    """Full-resolution pixels a side of a training crop."""
    validation_crop: int = Field(default=256, gt=160, multiple_of=2)
    """Full-resolution pixels a side of the centre crop that validation sees of each scene; MS-SSIM needs more than 160.
    """
    exposure_ev: Range = (-2.0, 0.0)
    """Stops by which a scene is brightened, at random; absolute-scale models must know every exposure."""
    flips: bool = True
    """Mirror and transpose at random."""
    sensor: AnySensor = ParametricSensor()
    """What cameras and noise to draw."""
    output: Literal["mosaic", "cfa_planes", "lin_rec2020", "demosaiced"] = "mosaic"
    """What a model sees. mosaic: packed R, G1, G2, B. cfa_planes: a mosaic of any of `cfas` at full resolution, where
    each colour is measured, and the noise's sigma. lin_rec2020: a picture in linear light, every pixel of which was
    measured in all three colours, for models that take EXR or what another program demosaiced. demosaiced: such a
    picture made of a noisy mosaic of any of `cfas`, as `denoise` makes it of a raw (Bayer by Malvar, X-Trans by
    Markesteijn)."""
    cfas: tuple[Literal["bayer", "xtrans"], ...] = Field(default=("bayer", "xtrans"), min_length=1)
    """Colour filter arrays of `cfa_planes` and `demosaiced`, equally likely, and of each every phase."""
    white_level: WhiteLevel = "decoder"
    """Which count of a clean raw is white, and so of whatever raw the trained model is given: the decoder's, the
    camera's own, or the lower one (minimum), which leaves no magenta in highlights where a decoder says too much."""

    @property
    def planes(self) -> int:
        """Channels of a noisy sample."""
        return {"mosaic": 4, "cfa_planes": CFA_PLANES, "lin_rec2020": 3, "demosaiced": 3}[self.output]

    @model_validator(mode="after")
    def _cfas_are_asked_for(self) -> Self:
        if self.output in ("mosaic", "lin_rec2020") and self.cfas != type(self).model_fields["cfas"].default:
            raise ValueError(
                f"cfas is set, but output '{self.output}' has no use for it: set output to cfa_planes or demosaiced, "
                "or leave cfas out"
            )
        return self

    def prepare(self, folder: str | Path | UPath) -> UPath:
        """Build the scene store under `folder`, or find the one made of the same sources. Returns its path.

        raises  DataError naming the folder or file that cannot be used
        """
        if self.scenes == "samples":
            digest, scenes = samples.DIGEST, samples.sample_scenes()
        else:
            files = _scene_files(self.scenes)
            digest = _digest(Path(self.scenes), files)
            if self.white_level != "decoder":  # which stores were made by before there was a choice
                digest = f"{digest} white level: {self.white_level}"
            scenes = _read_scenes(Path(self.scenes), files, self.white_level)
        store = place(folder) / f"scenes-{hashlib.sha256(f'{_STORE_VERSION} {digest}'.encode()).hexdigest()[:16]}"
        if not (store / INDEX).exists():
            SceneStore.create(store, scenes, digest)
        return store

    def open(self, store: str | Path | UPath, seed: int) -> Synthetic:
        """The data set over a prepared store; one in an object store is copied to this machine first."""
        return Synthetic(self, SceneStore(store), seed)


@dataclass(frozen=True)
class Shot:
    """The light of one exposure, and the sensor that it is about to fall on."""

    light: torch.Tensor
    """(3, H, W) camera RGB, even sides, white at 1; what is above 1 saturates."""
    xyz_to_camera: np.ndarray
    """(3, 3)."""
    a: float
    b: float
    """Noise: Var(x) = a x + b."""
    generator: torch.Generator
    """Of this shot's noise alone, so that the shots beside it do not matter."""
    cfa: str = "RGGB"
    """Of the sensor, from the top-left."""


class Synthetic:
    """Training batches and validation items as pure functions of the seed, the step and the slot."""

    def __init__(self, config: Config, store: SceneStore, seed: int) -> None:
        self.config = config
        self.store = store
        self.seed = seed
        self.training_scenes, self.validation_scenes = self._split()

    @property
    def digest(self) -> str:
        """Names the scenes this data set draws from."""
        return self.store.digest

    def batch(self, step: int, slots: Sequence[int], *, batch_size: int) -> Batch:
        """The samples of some slots of step `step`'s global batch."""
        return self._observe([self._training_shot(step, slot, batch_size) for slot in slots])

    def validation_item(self, index: int) -> tuple[str, Batch]:
        """Name and one-image batch of validation scene `index`: centre crop, sensor and noise fixed by the seed,
        exposure in the middle."""
        scene = self.validation_scenes[index]
        rng = order.validation_random(self.seed, index)
        height, width = self.store.size(scene)
        crop = self.config.validation_crop
        rgb = self.store.crop(scene, (height - crop) // 2, (width - crop) // 2, crop, crop)
        return self.store.names[scene], self._observe([self._shot(scene, rgb, sum(self.config.exposure_ev) / 2, rng)])

    def _training_shot(self, step: int, slot: int, batch_size: int) -> Shot:
        chosen = order.scene_at(self.seed, step, slot, batch_size=batch_size, num_scenes=len(self.training_scenes))
        scene = self.training_scenes[chosen]
        rng = order.training_random(self.seed, step, slot)
        height, width = self.store.size(scene)
        crop = self.config.crop
        rgb = self.store.crop(
            scene, int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1)), crop, crop
        )
        if self.config.flips:
            mirror_rows, mirror_columns, transpose = rng.integers(2, size=3)
            rgb = rgb[:: -1 if mirror_rows else 1, :: -1 if mirror_columns else 1]
            rgb = rgb.transpose(1, 0, 2) if transpose else rgb
        return self._shot(scene, rgb, rng.uniform(*self.config.exposure_ev), rng)

    def camera_rgb(self, scene: int, rgb: np.ndarray, sensor: Sensor) -> tuple[torch.Tensor, np.ndarray]:
        """A noise-free crop of a scene as a sensor sees it, and that sensor's colour matrix.

        rgb      (H, W, 3) of the store
        returns  (3, H, W) camera RGB, from 0 up, above 1 legal; (3, 3) xyz_to_camera, the scene's own if a camera took
                 it
        """
        planes = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        own = self.store.matrix(scene)
        if own is not None:
            return planes, own
        camera_rgb = lin_srgb_to_camera_rgb(planes, xyz_to_camera=torch.from_numpy(sensor.xyz_to_camera))
        # Photons are not negative, though a colour outside the camera's gamut would come out so.
        return camera_rgb.clamp_min_(0), sensor.xyz_to_camera

    def _shot(self, scene: int, rgb: np.ndarray, exposure_ev: float, rng: np.random.Generator) -> Shot:
        """A noise-free crop (H, W, 3) before a sensor drawn from `rng`."""
        sensor = self.config.sensor.draw(rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        clean, xyz_to_camera = self.camera_rgb(scene, rgb, sensor)
        cfa = self._draw_cfa(rng) if self.config.output in ("cfa_planes", "demosaiced") else "RGGB"
        return Shot(clean * 2.0**exposure_ev, xyz_to_camera, sensor.a, sensor.b, generator, cfa)

    def _draw_cfa(self, rng: np.random.Generator) -> str:
        phases = {"bayer": BAYER_PHASES, "xtrans": XTRANS_PHASES}[self.config.cfas[rng.integers(len(self.config.cfas))]]
        return phases[rng.integers(len(phases))]

    def _observe(self, shots: Sequence[Shot]) -> Batch:
        observed = {
            "mosaic": observe,
            "cfa_planes": observe_cfa_planes,
            "lin_rec2020": observe_in_full_color,
            "demosaiced": observe_demosaiced,
        }
        return observed[self.config.output](shots)

    def _split(self) -> tuple[list[int], list[int]]:
        names = self.store.names
        held_out = self.config.held_out
        if isinstance(held_out, tuple):
            unknown = sorted(set(held_out) - set(names))
            if unknown:
                raise DataError(
                    f"dataset.held_out names {', '.join(unknown)}, which are no scenes; there are: {', '.join(names)}"
                )
        else:
            held_out = tuple(sorted({name for name in names if fraction_of(name) < held_out}))
        # A photograph may lie there twice under one name, as raw and as picture.
        validation = [i for name in held_out for i, other in enumerate(names) if other == name]
        training = [i for i in range(len(names)) if i not in set(validation)]
        if not training or not validation:
            raise DataError(
                f"dataset.held_out leaves {len(training)} scenes to train on and {len(validation)} to validate on, of "
                f"{len(names)}: give it names or a fraction that leaves at least one of each"
            )
        for key, scenes in (("crop", training), ("validation_crop", validation)):
            side = getattr(self.config, key)
            small = [names[i] for i in scenes if min(self.store.size(i)) < side]
            if small:
                raise DataError(
                    f"dataset.{key} is {side} px, but these scenes are smaller: {', '.join(small)}; "
                    "lower it, or remove them"
                )
        return training, validation


def observe(shots: Sequence[Shot]) -> Batch:
    """What sensors with an RGGB mosaic make of some shots of one size.

    returns  its mask leaves out pixels that saturate in any channel
    """
    light = torch.stack([shot.light for shot in shots])
    noise = torch.tensor([(shot.a, shot.b) for shot in shots])
    a, b = noise.T[..., None, None, None]
    noisy = add_poisson_gaussian(pack_cfa(sample_cfa(light)), a, b, generator=[shot.generator for shot in shots])
    clean = light.clamp_max_(1)
    return Batch(
        noisy=noisy.clamp_max_(1),
        clean=clean,
        mask=clean.amax(dim=1, keepdim=True).lt_(1),
        xyz_to_camera=torch.from_numpy(np.stack([shot.xyz_to_camera for shot in shots])).float(),
        noise=noise,
    )


def observe_cfa_planes(shots: Sequence[Shot]) -> Batch:
    """What sensors of any CFA make of some shots of one size.

    returns  `noisy` (N, 5, H, W): mosaic, red, green, blue, sigma; its mask as for `observe`
    """
    noisy = [
        pack_cfa_planes(mosaic, shot.cfa, a=shot.a, b=shot.b)
        for shot, mosaic in zip(shots, _noisy_mosaics(shots), strict=True)
    ]
    clean = torch.stack([shot.light for shot in shots]).clamp_max_(1)
    return Batch(
        noisy=torch.stack(noisy),
        clean=clean,
        mask=clean.amax(dim=1, keepdim=True).lt_(1),
        xyz_to_camera=torch.from_numpy(np.stack([shot.xyz_to_camera for shot in shots])).float(),
        noise=torch.tensor([(shot.a, shot.b) for shot in shots]),
    )


def observe_demosaiced(shots: Sequence[Shot]) -> Batch:
    """The same demosaiced, in lin_rec2020: what a model of pictures gets of a raw.

    returns  `noisy` (N, 3, H, W), with the demosaic's artefacts and correlated noise; its camera is one whose colours
             are Rec.2020's own, as for `observe_in_full_color`
    """
    noisy = []
    for shot, mosaic in zip(shots, _noisy_mosaics(shots), strict=True):
        balance = Sensor(shot.xyz_to_camera, shot.a, shot.b).as_shot_white_balance
        noisy.append(demosaic(mosaic, cfa=shot.cfa, as_shot_white_balance=balance))
    return _in_lin_rec2020(shots, noisy)


def _noisy_mosaics(shots: Sequence[Shot]) -> list[torch.Tensor]:
    """(H, W) each, clipped at white."""
    return [
        add_poisson_gaussian(sample_cfa(shot.light, shot.cfa), shot.a, shot.b, generator=shot.generator).clamp_max_(1)
        for shot in shots
    ]


def observe_in_full_color(shots: Sequence[Shot]) -> Batch:
    """What a sensor that measures all colours everywhere makes of some shots of one size, in lin_rec2020.

    returns  `noisy` (N, 3, H, W); its camera is one whose colours are Rec.2020's own. Noise is the sensor's, so that in
             lin_rec2020 it is stronger than `noise` says by what the matrix adds
    """
    light = torch.stack([shot.light for shot in shots])
    noise = torch.tensor([(shot.a, shot.b) for shot in shots])
    a, b = noise.T[..., None, None, None]
    noisy = add_poisson_gaussian(light, a, b, generator=[shot.generator for shot in shots]).clamp_max_(1)
    return _in_lin_rec2020(shots, noisy)


def _in_lin_rec2020(shots: Sequence[Shot], noisy: Iterable[torch.Tensor]) -> Batch:
    """A batch of pictures, of noisy ones (3, H, W) in each shot's own camera RGB."""
    clean = torch.stack([shot.light for shot in shots]).clamp_max_(1)
    mask = clean.amax(dim=1, keepdim=True).lt_(1)
    noise = torch.tensor([(shot.a, shot.b) for shot in shots])
    matrices = torch.from_numpy(np.stack([shot.xyz_to_camera for shot in shots]))
    noisy, clean = (
        torch.stack([camera_rgb_to_lin_rec2020(x, xyz_to_camera=m) for x, m in zip(pictures, matrices, strict=True)])
        for pictures in (noisy, clean)
    )
    own = XYZ_TO_LIN_REC2020.float().expand(len(shots), 3, 3)
    return Batch(noisy=noisy, clean=clean, mask=mask, xyz_to_camera=own, noise=noise)


def _scene_files(folder: str) -> list[Path]:
    if not Path(folder).is_dir():
        raise DataError(
            f"dataset.scenes: {folder} is not a folder; give a folder of clean images or raws, or 'samples'"
        )
    files = sorted(
        p
        for p in Path(folder).rglob("*")
        if p.is_file() and not p.name.startswith(".") and p.suffix.lower() not in (".json", ".txt")
    )
    if not files:
        raise DataError(f"dataset.scenes: {folder} holds no files; give a folder of clean images or raws, or 'samples'")
    return files


def _digest(root: Path, files: Sequence[Path]) -> str:
    """Of the contents, in order; names count too, since they decide the split, and what a sidecar says of a file."""
    described = [path for file in files for path in (file, sidecar_path(file)) if path.is_file()]
    return hashlib.sha256(
        json.dumps(
            [[os.fspath(p.relative_to(root)), hashlib.sha256(p.read_bytes()).hexdigest()] for p in described]
        ).encode()
    ).hexdigest()


def _read_scenes(root: Path, files: Sequence[Path], white_level: WhiteLevel) -> Iterator[Scene]:
    for file in files:
        name = os.fspath(file.relative_to(root).with_suffix(""))
        yield _display_scene(name, file) if file.suffix.lower() in _PICTURES else _raw_scene(name, file, white_level)


def _display_scene(name: str, file: Path) -> Scene:
    image = read_image(file)
    if not np.isfinite(image.rgb).all():
        raise DataError(f"{file}: holds infinities or NaN, so it cannot serve as a training scene; remove it")
    rgb = torch.tensor(image.rgb).permute(2, 0, 1)
    if image.encoding == "srgb":
        rgb = srgb_decode(rgb)
    if image.color_space == "rec2020":
        rgb = lin_rec2020_to_lin_srgb(rgb)
    return Scene(name, rgb.permute(1, 2, 0).numpy(), "lin_srgb")


def _raw_scene(name: str, file: Path, white_level: WhiteLevel) -> Scene:
    """A clean raw at half size, X-Trans at a third: each block of all colours becomes one pixel, so that the truth
    holds no demosaicing artefact."""
    raw = read_raw(file).at_white_level(white_level)
    if raw.xyz_to_camera is None:
        raise RawFileError(
            file,
            "its camera's colour matrix is unknown, so it cannot serve as a training scene; remove it from the folder",
        )
    mosaic = normalize_levels(
        torch.from_numpy(raw.mosaic.astype(np.float32)), torch.from_numpy(raw.black_level), float(raw.white_level)
    )
    rgb = demosaic_half_size(mosaic, cfa=raw.cfa)
    return Scene(name, rgb.permute(1, 2, 0).numpy(), "camera_rgb", raw.xyz_to_camera)
