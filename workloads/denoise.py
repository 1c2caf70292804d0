"""Train a denoiser: noisy packed mosaics in, camera RGB out.

stillgrain run workloads/configs/denoise_demo.yaml
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from upath import UPath

from library.bundle import load_bundle, write_bundle
from library.config import one_of
from library.datasets.batch import Batch
from library.datasets.dataset import DatasetConfig
from library.losses import LossConfig
from library.metrics import compare_camera_rgb
from library.models.blocks.image_model import ImageModel, ModelConfig
from library.training.loop import fit
from library.training.objective import Gain, Objective
from library.training.recorder import Recorder
from library.training.world import World
from workloads.launch import Host, RunResult, starting_bundle
from workloads.pictures import PictureConfig, noisy_picture, run_training, to_lin_rec2020, write_pictures


class Config(PictureConfig):
    workload: Literal["denoise"] = "denoise"
    model: one_of("library.models")  # pyright: ignore[reportInvalidTypeForm]
    gain: Gain = "absolute"
    """Who answers for brightness. absolute: the network. match_target: nobody, each output is scaled to its truth, as
    in the research code; such a bundle's output is scaled to the raw's mean when it is used. match_input: the data,
    each input is scaled to its truth."""


def run(config: Config, host: Host = Host()) -> RunResult:  # noqa: B008  (frozen)
    """Train as configured, on Ray or in this process, and return where the bundle is.

    raises  ConfigError, DataError; CheckpointError for a damaged state
    """
    return run_training(config, config.model, load_bundle, host)


def train(config: Config, prepared: str, recorder: Recorder, world: World) -> None:
    """One worker's part of the run: what `launch` calls on each."""
    torch.manual_seed(config.seed)
    model = cast(ModelConfig, config.model).build()
    if config.start_from is not None and recorder.latest_checkpoint() is None:
        model.load_state_dict(starting_bundle(config, config.model, load_bundle).model.state_dict())
    fit([Denoising(stage, model, prepared, config.run_folder) for stage in config.stages], recorder, world)


class Denoising:
    """One stage's task for the training loop (see `library.training.loop.Task`)."""

    def __init__(self, config: Config, model: ImageModel, prepared: str, run_folder: UPath) -> None:
        self.config = config
        self.model = model
        self.run_folder = run_folder
        self.objective = Objective(cast(dict[str, LossConfig], config.losses), config.transfer, config.gain)
        self.dataset = cast(DatasetConfig, config.dataset).open(prepared, config.seed)
        self._pictures: dict[str, Tensor] = {}

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
                for label, camera_rgb in (("noisy", noisy_picture(item)), ("denoised", output), ("truth", item.clean)):
                    lin_rec2020 = to_lin_rec2020(camera_rgb, item.xyz_to_camera)
                    self._pictures[f"{name.replace('/', '_')}_{label}"] = lin_rec2020
        every = {index: metrics for part in world.gather(mine) for index, metrics in part.items()}
        names = next(iter(every.values()))
        return {f"val/{name}": math.fsum(every[i][name] for i in sorted(every)) / len(every) for name in names}

    def publish(self, model: ImageModel, world: World, step: int, metrics: dict[str, float]) -> None:
        """The bundle, and the pictures that belong to its weights: linear EXR, and sRGB to look at."""
        write_pictures(self.run_folder / "images", self._pictures)
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
