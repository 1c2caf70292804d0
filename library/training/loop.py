"""The training loop: knows neither Ray nor what is trained.

batch of (seed, step, slot) -> network (float32 or bfloat16) -> objective (float32) -> AdamW -> moving average -> log,
validate, publish, commit
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from library.config import Frozen, mapping_of, replaced, validate
from library.datasets.batch import Batch
from library.datasets.order import layer_seed, slots_of
from library.errors import ConfigError, StillgrainError
from library.files.atomic import whole_file
from library.metrics import direction
from library.models.blocks.trainable import Trainable
from library.training.checkpoint import BestValue, Progress, load_checkpoint, save_checkpoint
from library.training.optim import OptimConfig, Plateau, set_lr
from library.training.recorder import Recorder
from library.training.world import World


class Best(Frozen):
    """Which weights are published as the run's bundle."""

    metric: str = "val/psnr"
    mode: Literal["max", "min"] = "max"


class MovingAverage(Frozen):
    """An exponential moving average of the weights, which is validated and published in their place."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """What is kept of the average at each step; it looks back over about 1 / (1 - decay) of them."""


class EarlyStop(Frozen):
    """End the run when its best metric has had no new best for a while."""

    patience: int = Field(gt=0)
    """Optimizer steps; looked at after each validation."""


class Retention(Frozen):
    """Which checkpoints are kept. Weights of the best step are in the bundle in any case."""

    last: int = Field(default=2, ge=2)
    """The newest; two, so that a damaged one is no loss."""
    best: bool = False
    """Also that of the best step of every validation metric, for going on from there."""


class LaterStage(Frozen):
    """What a run goes on with: the same weights, optimizer state and data order, under other settings."""

    steps: int = Field(gt=0)
    """Optimizer updates of this stage; its learning rate schedule counts them from 0."""
    changes: dict[str, Any] = Field(min_length=1)
    """Dotted keys and their values from here on: {dataset.crop: 256, optim.lr: 1.0e-4, frozen: [encoder]}."""


class TrainingConfig(Frozen):
    """What every training run has, whatever it trains."""

    stage_keys: ClassVar[tuple[str, ...]] = ("optim", "frozen", "batch_size", "precision")
    """What a later stage may change, with everything below it."""

    seed: int = Field(default=0, ge=0)
    """Of the initial weights and of everything that is drawn."""
    steps: int = Field(gt=0)
    """Optimizer updates; with later stages, those of the first."""
    batch_size: int = Field(default=8, gt=0)
    """Crops in a global batch, shared by all workers."""
    optim: OptimConfig = OptimConfig()
    frozen: tuple[str, ...] = ()
    """Parts of the model that are not trained: [encoder]."""
    moving_average: MovingAverage | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network; colour and losses are float32 in any case."""
    log_every: int = Field(default=20, gt=0)
    """Steps between two lines of training loss."""
    validate_every: int = Field(default=500, gt=0)
    """Steps between validations; a multiple of log_every."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints; a multiple of log_every."""
    then: tuple[LaterStage, ...] = ()
    """Stages that follow the first `steps`, each with its changes over the one before it."""
    best: Best = Best()
    early_stop: EarlyStop | None = None
    max_skipped_steps: int = Field(default=20, ge=0)
    """Steps whose loss or gradient is no number are skipped and counted; one more than these ends the run."""
    retention: Retention = Retention()
    loggers: mapping_of("library.training.loggers") = {}  # noqa: RUF012  # pyright: ignore[reportInvalidTypeForm]
    """Besides metrics.jsonl: {tensorboard: {}, mlflow: {tracking_uri: http://host:5000}}."""

    @model_validator(mode="after")
    def _windows_end_at_checkpoints(self) -> TrainingConfig:
        for key in ("validate_every", "checkpoint_every"):
            if getattr(self, key) % self.log_every:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but must be a multiple of log_every ({self.log_every})"
                )
        return self

    @model_validator(mode="after")
    def _stages_are_valid(self) -> Self:
        for number, stage in enumerate(self.then):
            for key in stage.changes:
                if not any(key == may or key.startswith(f"{may}.") for may in self.stage_keys):
                    raise ValueError(
                        f"then.{number}.changes: '{key}' cannot change within a run; what can: "
                        + ", ".join(self.stage_keys)
                    )
        _ = self.stages
        return self

    @property
    def stages(self) -> list[Self]:
        """The settings of each stage, in order, as configs of a single stage."""
        if not self.then:
            return [self]
        data = self.model_dump(mode="json", exclude={"then"})
        stages = [data]
        for stage in self.then:
            data = {**data, "steps": stage.steps}
            for key, value in stage.changes.items():
                data = replaced(data, key, value)
            stages.append(data)
        return [validate(type(self), data, f"stage {number}") for number, data in enumerate(stages)]

    @property
    def total_steps(self) -> int:
        """Optimizer updates of all stages."""
        return self.steps + sum(stage.steps for stage in self.then)


Model = TypeVar("Model", bound=Trainable)


class Task(Protocol[Model]):
    """What one stage of a run trains: its settings, batches, loss and validation. All stages share one model."""

    @property
    def config(self) -> TrainingConfig: ...

    @property
    def model(self) -> Model: ...

    def batch(self, step: int, slots: range) -> Batch:
        """The samples of some slots of a global batch. A pure function."""
        ...

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts: means over the batch's images."""
        ...

    def validate(self, model: Model, world: World) -> dict[str, float]:
        """Metrics over the validation set, the same on every worker, which all call it."""
        ...

    def publish(self, model: Model, world: World, step: int, metrics: dict[str, float]) -> None:
        """The weights are the best so far: write the bundle and the pictures. All workers call it."""
        ...


def fit(stages: Sequence[Task[Model]], recorder: Recorder, world: World = World()) -> Progress:  # noqa: B008  (frozen)
    """Train through all stages, going on from the recorder's latest checkpoint if there is one. All workers call it.

    The same config and seed give the same weights, bit for bit on one machine and number of workers, however often the
    run was interrupted. Any number of workers sees the same global batches.

    raises  StillgrainError when too many steps gave no number, or validation does
    """
    return _Run(stages[0], recorder, world).through(stages)


class _Run:
    """A run under way: everything that a checkpoint holds, and where it goes."""

    def __init__(self, first: Task[Any], recorder: Recorder, world: World) -> None:
        self.recorder, self.world = recorder, world
        self.model = first.model.to(device=world.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = first.config.optim.build(self.model)
        decay = first.config.moving_average
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay.decay)) if decay else None
        self.progress = Progress()
        # All workers go on from what one of them saw, lest a slow store shows them different states.
        latest = world.gather(recorder.latest_checkpoint())[0]
        if latest is not None:
            self.progress = load_checkpoint(latest, self.model, self.optimizer, self.average)
        recorder.start(self.progress.step)

    def through(self, stages: Sequence[Task[Any]]) -> Progress:
        start = 0
        for task in stages:
            if self.progress.step < start + task.config.steps and self.progress.stopped is None:
                self._train(task, start)
            start += task.config.steps
        self.recorder.close()
        return self.progress

    def _train(self, task: Task[Any], start: int) -> None:
        config, progress = task.config, self.progress
        end = start + config.steps
        network = self._enter(task, start)
        window = _Window()
        for batch in _batches(task, self.world, progress.step, end):
            lr = config.optim.lr_at(progress.step - start, config.steps, progress.lr_scale)
            set_lr(self.optimizer, lr)
            # Whatever a layer draws is a function of the step too, so that no generator's state needs keeping.
            torch.manual_seed(layer_seed(config.seed, progress.step, self.world.rank))
            values = self._update(task, network, batch)
            if values is not None:
                window.add(values)
            progress.step += 1
            is_last = progress.step == end
            if progress.step % config.log_every == 0 or is_last:
                self._log(window, len(batch), lr)
                window = _Window()
            metrics = {}
            if progress.step % config.validate_every == 0 or is_last:
                metrics = self._validate(task)
            if metrics or progress.step % config.checkpoint_every == 0:
                self._commit(config, metrics)
            if progress.stopped is not None:
                return

    def _enter(self, task: Task[Any], start: int) -> nn.Module:
        """Make the run's state that of a stage which began at `start`; returns the network as the workers share it."""
        if self.progress.step == start:
            self.progress.lr_scale, self.progress.patience_start = 1.0, start
        for part in self.model.parameter_groups():
            for parameter in part.parameters:
                parameter.requires_grad_(part.name not in task.config.frozen)
                parameter.grad = None
        state = self.optimizer.state_dict()["state"]
        self.optimizer = task.config.optim.build(self.model)
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return self.world.wrap(self.model)

    def _update(self, task: Task[Any], network: nn.Module, batch: Batch) -> dict[str, float] | None:
        """One step of the optimizer. None when it was skipped, because the loss or its gradient was no number."""
        config = task.config
        batch = batch.to(self.world.device)
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            losses = task.losses(network, batch)
        loss = losses["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        # Workers average their gradients alike, so a worker with fewer images must weigh less. A loss that is no number
        # is made a gradient that is none, which the average spreads: then all workers skip the step. It is the factor
        # that is made NaN, since a loss exchanged for NaN would have no gradient at all, which is a number.
        weight = len(batch) * self.world.size / config.batch_size
        (loss * torch.where(loss.isfinite(), weight, torch.nan)).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad_norm or math.inf)
        *values, norm = torch.stack([*(value.detach() for value in losses.values()), norm]).tolist()
        named = dict(zip(losses, values, strict=True))
        if not math.isfinite(norm):
            self._skip(config, batch, named)
            return None
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return named

    def _skip(self, config: TrainingConfig, batch: Batch, losses: dict[str, float]) -> None:
        """Count a step that changes nothing, and keep the batches that caused it."""
        progress, folder = self.progress, self.recorder.run_folder / "skipped"
        progress.skipped_steps += 1
        guilty = self.world.gather(not math.isfinite(losses["loss"]))
        if guilty[self.world.rank] or (self.world.leads and not any(guilty)):
            about = {"step": progress.step, "rank": self.world.rank, "world_size": self.world.size, "losses": losses}
            with whole_file(folder / f"step-{progress.step:08d}-rank-{self.world.rank}.safetensors") as temporary:
                save_file(batch.tensors(), temporary, metadata={"about": json.dumps(about)})
        if progress.skipped_steps > config.max_skipped_steps:
            broken = [name for name, tensor in batch.tensors().items() if not tensor.isfinite().all()]
            raise StillgrainError(
                f"step {progress.step}: the loss or its gradient is no number ({losses}), as in "
                f"{progress.skipped_steps} steps so far, more than max_skipped_steps ({config.max_skipped_steps}); "
                + (f"the data are not finite: {', '.join(broken)}; " if broken else "the data are finite: ")
                + f"look at the batches in {folder}, lower optim.lr, or choose precision fp32"
            )

    def _log(self, window: _Window, num_images: int, lr: float) -> None:
        """The means since the last line, over the workers by their share of the images."""
        parts = self.world.gather((window.means(), num_images))
        if not self.world.leads:
            return
        total = sum(n for _, n in parts)
        means = {name: math.fsum(m[name] * n for m, n in parts) / total for name in parts[0][0]}
        skipped = {"skipped_steps": float(self.progress.skipped_steps)} if self.progress.skipped_steps else {}
        self.recorder.log(self.progress.step, "train", {**means, "lr": lr, **skipped})

    def _validate(self, task: Task[Any]) -> dict[str, float]:
        config, progress = task.config, self.progress
        judged = self.average.module if self.average is not None else self.model
        judged.eval()
        metrics = task.validate(judged, self.world)
        if config.best.metric not in metrics:
            raise ConfigError(f"best.metric is '{config.best.metric}', but validation gives {', '.join(metrics)}")
        if broken := {name: value for name, value in metrics.items() if not math.isfinite(value)}:
            raise StillgrainError(
                f"validation after step {progress.step} gives {broken}: lower optim.lr if it is nan; if it is inf, "
                "look for validation scenes that are white all over"
            )
        improved = {
            name
            for name, value in metrics.items()
            if name not in progress.best or _is_better(value, progress.best[name].value, _mode(name, config.best))
        }
        progress.best |= {name: BestValue(progress.step, metrics[name]) for name in improved}
        if config.best.metric in improved:
            task.publish(judged, self.world, progress.step, metrics)
        judged.train()
        schedule = config.optim.schedule
        if isinstance(schedule, Plateau):
            schedule.after_validation(progress, improved=bool(improved))
        waited = progress.step - progress.best[config.best.metric].step
        if config.early_stop is not None and waited >= config.early_stop.patience:
            progress.stopped = f"{config.best.metric} had no new best for {waited} steps"
        if self.world.leads:
            self.recorder.log(progress.step, "val", {name.removeprefix("val/"): v for name, v in metrics.items()})
        return metrics

    def _commit(self, config: TrainingConfig, metrics: dict[str, float]) -> None:
        progress = self.progress
        best_steps = {best.step for best in progress.best.values()} if config.retention.best else set()
        self.recorder.commit(
            progress.step,
            lambda folder: save_checkpoint(folder, self.model, self.optimizer, progress, self.average),
            num_last=config.retention.last,
            keep=best_steps,
        )
        if metrics:
            self.world.report(progress.step, metrics)


def _mode(metric: str, best: Best) -> str:
    return best.mode if metric == best.metric else direction(metric)


def _is_better(value: float, than: float, mode: str) -> bool:
    return value > than if mode == "max" else value < than


def _batches(task: Task[Any], world: World, first_step: int, end: int) -> Iterator[Batch]:
    """This worker's share of each step's batch, made one step ahead in a thread."""
    slots = slots_of(world.rank, world.size, task.config.batch_size)

    def make(step: int) -> Batch:
        batch = task.batch(step, slots)
        return batch.pinned() if world.device.type == "cuda" else batch

    with ThreadPoolExecutor(1, "batches") as ahead:
        upcoming = ahead.submit(make, first_step)
        for step in range(first_step, end):
            batch = upcoming.result()
            if step + 1 < end:
                upcoming = ahead.submit(make, step + 1)
            yield batch


class _Window:
    """Means of the values since the last log line."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {name: math.fsum(values) / len(values) for name, values in self._values.items()}
