"""Train a codec: noisy packed mosaics in, a file's bits and camera RGB out; rate + lmbda * distortion.

stillgrain run workloads/configs/compress_demo.yaml
"""

from __future__ import annotations

import logging
import math
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from upath import UPath

from library.codec_bundle import load_codec, write_codec_bundle
from library.config import one_of
from library.datasets.batch import Batch
from library.datasets.dataset import DatasetConfig
from library.entropy.tables import FrequencyTables
from library.losses import LossConfig
from library.metrics import compare_camera_rgb
from library.models.blocks.codec import NUM_QUALITIES, CodecConfig, CodecModel
from library.models.blocks.latent_coding import encode_tiles
from library.training.coding import CodecBatch, RateConfig, RateDistortion
from library.training.loop import Best, fit
from library.training.objective import Objective
from library.training.recorder import Recorder
from library.training.world import World
from workloads.launch import Host, RunResult, starting_bundle
from workloads.pictures import PictureConfig, noisy_picture, run_training, to_lin_rec2020, write_pictures

_LARGEST_RATE_GAP = 0.01
log = logging.getLogger(__name__)


class Config(PictureConfig):
    stage_keys: ClassVar[tuple[str, ...]] = (*PictureConfig.stage_keys, "rate", "rounding")

    workload: Literal["compress"] = "compress"
    model: one_of("library.codecs")  # pyright: ignore[reportInvalidTypeForm]
    rate: RateConfig = RateConfig()
    rounding: Literal["noise", "round"] = "noise"
    """What stands for rounding in the rate. noise: uniform, whose gradient is right on average. round: rounding itself,
    for the last steps, in which the tables meet what they will code."""
    best: Best = Best(metric="val/loss", mode="min")
    validation_qualities: tuple[int, ...] = Field(default=(8, 24, 40, 56), min_length=1)
    """At which a codec of many qualities is validated; the middle one's pictures are kept."""
    checked_scenes: int = Field(default=4, ge=0)
    """Validation scenes that are really coded, to compare their bytes with the rate that the loss is made of."""

    @model_validator(mode="after")
    def _qualities_fit(self) -> Config:
        asked = self.validation_qualities
        if sorted(set(asked)) != list(asked) or not 0 <= asked[0] <= asked[-1] < NUM_QUALITIES:
            raise ValueError(f"validation_qualities are {list(asked)}: give ascending numbers from 0 to 63")
        if self.model.num_qualities == 1 and isinstance(self.rate.lmbda, tuple):
            raise ValueError(
                f"rate.lmbda is {list(self.rate.lmbda)}, but codec '{self.model.kind}' has one rate: give one number"
            )
        return self

    @property
    def qualities(self) -> tuple[int, ...]:
        """Those at which this codec is validated."""
        return self.validation_qualities if self.model.num_qualities > 1 else (0,)


def run(config: Config, host: Host = Host()) -> RunResult:  # noqa: B008  (frozen)
    """Train as configured, on Ray or in this process, and return where the bundle is.

    raises  ConfigError, DataError; CheckpointError for a damaged state
    """
    return run_training(config, config.model, load_codec, host)


def train(config: Config, prepared: str, recorder: Recorder, world: World) -> None:
    """One worker's part of the run: what `launch` calls on each."""
    torch.manual_seed(config.seed)
    model = cast(CodecConfig, config.model).build()
    if config.start_from is not None and recorder.latest_checkpoint() is None:
        model.load_state_dict(starting_bundle(config, config.model, load_codec).model.state_dict())
    fit([Compression(stage, model, prepared, config.run_folder) for stage in config.stages], recorder, world)


class Compression:
    """One stage's task for the training loop (see `library.training.loop.Task`)."""

    def __init__(self, config: Config, model: CodecModel, prepared: str, run_folder: UPath) -> None:
        self.config = config
        self.model = model
        self.run_folder = run_folder
        objective = Objective(cast(dict[str, LossConfig], config.losses), config.transfer)
        self.rate_distortion = RateDistortion(objective, config.rate)
        self.dataset = cast(DatasetConfig, config.dataset).open(prepared, config.seed)
        self._pictures: dict[str, Tensor] = {}
        self._tables: FrequencyTables | None = None
        """Of the weights that were validated last; those of a codec of many priors take a second."""

    def batch(self, step: int, slots: range) -> CodecBatch:
        batch = self.dataset.batch(step, slots, batch_size=self.config.batch_size)
        return self.config.rate.draw(batch, seed=self.config.seed, step=step, slots=slots)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batch = cast(CodecBatch, batch)
        seeds = batch.seeds if self.config.rounding == "noise" else None
        return self.rate_distortion(network(batch.noisy, batch.conditions, seeds), batch)

    @torch.no_grad()
    def validate(self, model: CodecModel, world: World) -> dict[str, float]:
        """Means over the validation scenes, which the workers share, at each quality; keeps some pictures."""
        tables = self._tables = model.frequency_tables() if self.config.checked_scenes > 0 else None
        mine = {
            index: self._validate_scene(model, index, tables)
            for index in range(world.rank, len(self.dataset.validation_scenes), world.size)
        }
        every = {index: metrics for part in world.gather(mine) for index, metrics in part.items()}
        means = {}
        for name in every[0]:
            values = [metrics[name] for _, metrics in sorted(every.items()) if name in metrics]
            means[f"val/{name}"] = math.fsum(values) / len(values)
        if world.leads and abs(means.get("val/rate_gap", 0.0)) > _LARGEST_RATE_GAP:
            log.warning("coded files differ from the estimated rate by %.1f %%", 100 * means["val/rate_gap"])
        return means

    def _validate_scene(self, model: CodecModel, index: int, tables: FrequencyTables | None) -> dict[str, float]:
        name, item = self.dataset.validation_item(index)
        item = item.to(model.device)
        metrics, losses = {}, []
        for quality in self.config.qualities:
            batch = self._at_quality(item, quality)
            output = model(batch.noisy, batch.conditions, None)
            parts = self.rate_distortion(output, batch)
            losses.append(float(parts["loss"]))
            own = {"bpp": float(parts["bpp"])}
            own |= compare_camera_rgb(output.picture.cpu(), item.clean.cpu(), item.mask.cpu(), item.xyz_to_camera.cpu())
            metrics |= {_at(metric, quality, self.config.qualities): value for metric, value in own.items()}
            if quality == self.config.qualities[len(self.config.qualities) // 2]:
                if tables is not None and index < self.config.checked_scenes:
                    metrics["rate_gap"] = _rate_gap(model, tables, batch)
                if index < self.config.num_pictures:
                    self._keep(name, item, output.picture)
        return {"loss": math.fsum(losses) / len(losses), **metrics}

    def _at_quality(self, item: Batch, quality: int) -> CodecBatch:
        batch = self.config.rate.draw(item, seed=0, step=self.config.rate.warmup_steps, slots=[0])
        batch.quality.fill_(quality)
        batch.strength.fill_(1)
        return cast(CodecBatch, batch.to(item.noisy.device))

    def _keep(self, name: str, item: Batch, picture: Tensor) -> None:
        item = item.to(torch.device("cpu"))
        for label, camera_rgb in (
            ("noisy", noisy_picture(item)),
            ("decoded", picture.float().cpu()),
            ("truth", item.clean),
        ):
            self._pictures[f"{name.replace('/', '_')}_{label}"] = to_lin_rec2020(camera_rgb, item.xyz_to_camera)

    def publish(self, model: CodecModel, world: World, step: int, metrics: dict[str, float]) -> None:
        """The bundle, and the pictures that belong to its weights."""
        write_pictures(self.run_folder / "images", self._pictures)
        if world.leads:
            write_codec_bundle(
                self.run_folder / "bundle",
                model,
                name=self.config.name,
                training=self.config.model_dump(mode="json"),
                data_digest=self.dataset.digest,
                metrics=metrics,
                step=step,
                tables=self._tables,
            )


def _at(metric: str, quality: int, qualities: tuple[int, ...]) -> str:
    """A metric's name at one of several qualities: psnr.linear.q24."""
    return metric if len(qualities) == 1 else f"{metric}.q{quality}"


def _rate_gap(model: CodecModel, tables: FrequencyTables, batch: CodecBatch) -> float:
    """By how much coded bytes exceed the estimate, as a share of it."""
    conditions = batch.conditions
    coded = encode_tiles(model, tables, model.analyze(batch.noisy, conditions), conditions)
    real_bits = 8 * sum(len(stream) for tile in coded.streams for stream in tile)
    return float(real_bits / max(1.0, coded.estimated_bits.sum()) - 1)
