"""Train a denoiser: noisy packed mosaics in, camera RGB out.

stillgrain run workloads/configs/denoise_demo.yaml
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from upath import UPath

from library.bundle import write_bundle
from library.config import mapping_of, one_of
from library.datasets import synthetic
from library.datasets.batch import Batch
from library.files.atomic import whole_file
from library.files.exr import write_exr
from library.files.picture import write_png
from library.files.places import place
from library.losses import LossConfig
from library.metrics import compare_camera_rgb
from library.models.blocks.image_model import ImageModel, ModelConfig
from library.ops.cfa import unpack_cfa
from library.ops.color import camera_rgb_to_lin_rec2020, lin_rec2020_to_lin_srgb
from library.ops.demosaic import demosaic_malvar
from library.ops.transfer import srgb_encode
from library.training.loop import fit
from library.training.objective import Gain, Objective, Transfer
from library.training.recorder import Recorder
from library.training.world import World
from workloads.launch import LaunchConfig, RunResult, initial_weights, launch


class Config(LaunchConfig):
    stage_keys: ClassVar[tuple[str, ...]] = (
        *LaunchConfig.stage_keys,
        "losses",
        "transfer",
        "dataset.crop",
        "dataset.flips",
    )

    workload: Literal["denoise"] = "denoise"
    model: one_of("library.models")  # pyright: ignore[reportInvalidTypeForm]
    dataset: one_of("library.datasets")  # pyright: ignore[reportInvalidTypeForm]
    losses: mapping_of("library.losses")  # pyright: ignore[reportInvalidTypeForm]
    """Losses by kind with their weights, compared in lin_rec2020: {ms_ssim: {weight: 0.2}, l1: {weight: 0.8}}."""
    transfer: Transfer = "none"
    """Curve applied to output and truth before the losses; a curve weighs shadows as the eye does."""
    gain: Gain = "absolute"
    """Who answers for brightness. absolute: the network. match_target: nobody, each output is scaled to its truth, as
    in the research code; such a bundle's output is scaled to the raw's mean when it is used. match_input: the data,
    each input is scaled to its truth."""

    num_pictures: int = Field(default=4, ge=0)
    """Validation scenes whose pictures are written: noisy, denoised and truth, as EXR and PNG."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        if not self.losses:
            raise ValueError("losses: name at least one, for example losses.l1.weight=1")
        if self.model.in_channels != self.dataset.planes:
            raise ValueError(
                f"model.in_channels is {self.model.in_channels}, but dataset '{self.dataset.kind}' yields "
                f"{self.dataset.planes} planes: set model.in_channels to {self.dataset.planes}"
            )
        for kind, loss in self.losses.items():
            if self.dataset.crop < loss.smallest_side:
                raise ValueError(
                    f"losses.{kind} needs crops of at least {loss.smallest_side} px a side (its coarsest scale must "
                    f"hold a window), but dataset.crop is {self.dataset.crop}: raise dataset.crop, or leave out "
                    f"losses.{kind}"
                )
        parts = self.model.parts
        for key, names in (("frozen", self.frozen), ("optim.lr_multipliers", self.optim.lr_multipliers)):
            if unknown := [name for name in names if name not in parts]:
                raise ValueError(
                    f"{key} names {', '.join(unknown)}, but model '{self.model.kind}' has the parts {', '.join(parts)}"
                )
        if set(parts) <= set(self.frozen):
            raise ValueError(
                f"nothing is left to train: model '{self.model.kind}' has the parts ({', '.join(parts)}), of which "
                f"({', '.join(self.frozen)}) are frozen; leave one out of frozen, or choose another model"
            )
        side = self.model.lattice * 2
        for key in ("crop", "validation_crop"):
            value = getattr(self.dataset, key)
            if value % side:
                raise ValueError(
                    f"dataset.{key} is {value}, but model '{self.model.kind}' needs a multiple of {side} px (its "
                    f"lattice of {side // 2} packed pixels): set dataset.{key} to {value // side * side + side}"
                )
        return self


def run(config: Config) -> RunResult:
    """Train as configured, on Ray or in this process, and return where the bundle is.

    raises  ConfigError, DataError; CheckpointError for a damaged state
    """
    dataset = cast(synthetic.Config, config.dataset)
    return launch(config, prepare=lambda: dataset.prepare(place(config.storage) / "stores"))


def train(config: Config, prepared: str, recorder: Recorder, world: World) -> None:
    """One worker's part of the run: what `launch` calls on each."""
    torch.manual_seed(config.seed)
    model = cast(ModelConfig, config.model).build()
    if config.start_from is not None and recorder.latest_checkpoint() is None:
        initial_weights(config, model)
    fit([Denoising(stage, model, prepared, config.run_folder) for stage in config.stages], recorder, world)


class Denoising:
    """One stage's task for the training loop (see `library.training.loop.Task`)."""

    def __init__(self, config: Config, model: ImageModel, prepared: str, run_folder: UPath) -> None:
        self.config = config
        self.model = model
        self.run_folder = run_folder
        self.objective = Objective(cast(dict[str, LossConfig], config.losses), config.transfer, config.gain)
        self.dataset = cast(synthetic.Config, config.dataset).open(prepared, config.seed)
        self._pictures: dict[str, np.ndarray] = {}

    def batch(self, step: int, slots: range) -> Batch:
        return self.dataset.batch(step, slots, batch_size=self.config.batch_size)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.objective(network(self.objective.network_input(batch)), batch)

    @torch.no_grad()
    def validate(self, model: ImageModel, world: World) -> dict[str, float]:
        """Means over the validation scenes, which the workers share; keeps some pictures for `publish`."""
        mine: dict[int, dict[str, float]] = {}
        self._pictures = {}
        for index in range(world.rank, len(self.dataset.validation_scenes), world.size):
            name, item = self.dataset.validation_item(index)
            noisy = self.objective.network_input(item).to(world.device, memory_format=torch.channels_last)
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
                output = self.objective.settle_gain(model(noisy).float().cpu(), item)
            mine[index] = compare_camera_rgb(output, item.clean, item.mask, item.xyz_to_camera)
            if index < self.config.num_pictures:
                malvar = demosaic_malvar(unpack_cfa(item.noisy))
                for label, camera_rgb in (("noisy", malvar), ("denoised", output), ("truth", item.clean)):
                    lin_rec2020 = camera_rgb_to_lin_rec2020(camera_rgb, xyz_to_camera=item.xyz_to_camera)
                    self._pictures[f"{name.replace('/', '_')}_{label}"] = lin_rec2020[0].permute(1, 2, 0).numpy()
        every = {index: metrics for part in world.gather(mine) for index, metrics in part.items()}
        names = next(iter(every.values()))
        return {f"val/{name}": math.fsum(every[i][name] for i in sorted(every)) / len(every) for name in names}

    def publish(self, model: ImageModel, world: World, step: int, metrics: dict[str, float]) -> None:
        """The bundle, and the pictures that belong to its weights: linear EXR, and sRGB to look at."""
        for name, lin_rec2020 in self._pictures.items():
            with whole_file(self.run_folder / "images" / f"{name}.exr") as temporary:
                write_exr(temporary, lin_rec2020, chromaticities="rec2020")
            srgb = srgb_encode(lin_rec2020_to_lin_srgb(torch.from_numpy(lin_rec2020).permute(2, 0, 1)).clamp(0, 1))
            with whole_file(self.run_folder / "images" / f"{name}.png") as temporary:
                write_png(temporary, (srgb * 255).round().byte().permute(1, 2, 0).numpy())
        if world.leads:
            write_bundle(
                self.run_folder / "bundle",
                model,
                name=self.config.name,
                training=self.config.model_dump(mode="json"),
                data_digest=self.dataset.digest,
                metrics=metrics,
                step=step,
                gain=self.objective.output_gain,
            )
