"""The training loop: knows neither Ray nor what is trained.

batch of (seed, step, slot) -> network (float32 or bfloat16) -> objective (float32) -> AdamW -> log, validate, publish,
commit
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from library.config import Frozen
from library.datasets.batch import Batch
from library.datasets.order import layer_seed, slots_of
from library.errors import StillgrainError
from library.models.blocks.image_model import ImageModel
from library.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from library.training.optim import OptimConfig, set_lr
from library.training.recorder import Recorder
from library.training.world import World


class Best(Frozen):
    """Which weights are published as the run's bundle."""

    metric: str = "val/psnr"
    mode: Literal["max", "min"] = "max"


class TrainingConfig(Frozen):
    """What every training run has, whatever it trains."""

    seed: int = Field(default=0, ge=0)
    """Of the initial weights and of everything that is drawn."""
    steps: int = Field(gt=0)
    """Optimizer updates in all."""
    batch_size: int = Field(default=8, gt=0)
    """Crops in a global batch, shared by all workers."""
    optim: OptimConfig = OptimConfig()
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network; colour and losses are float32 in any case."""
    log_every: int = Field(default=20, gt=0)
    """Steps between two lines of training loss."""
    validate_every: int = Field(default=500, gt=0)
    """Steps between validations; a multiple of log_every."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints; a multiple of log_every."""
    best: Best = Best()

    @model_validator(mode="after")
    def _windows_end_at_checkpoints(self) -> TrainingConfig:
        for key in ("validate_every", "checkpoint_every"):
            if getattr(self, key) % self.log_every:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but must be a multiple of log_every ({self.log_every})"
                )
        return self


class Task(Protocol):
    """What is trained: a model, its batches, its loss and its validation."""

    model: ImageModel

    def batch(self, step: int, slots: range) -> Batch:
        """The samples of some slots of a global batch. A pure function."""
        ...

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts."""
        ...

    def validate(self, world: World) -> dict[str, float]:
        """Metrics over the validation set, the same on every worker, which all call it."""
        ...

    def publish(self, world: World, step: int, metrics: dict[str, float]) -> None:
        """The weights are the best so far: write the bundle and the pictures. All workers call it."""
        ...


def fit(config: TrainingConfig, task: Task, recorder: Recorder, world: World = World()) -> Progress:  # noqa: B008  (frozen)
    """Train until `config.steps`, going on from the recorder's latest checkpoint if there is one. All workers call it.

    The same config and seed give the same weights, bit for bit on one machine and number of workers, however often the
    run was interrupted. Any number of workers sees the same global batches.
    """
    model = task.model.to(device=world.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network = world.wrap(model)
    optimizer = config.optim.build(model)
    progress = Progress()
    if (latest := recorder.latest_checkpoint()) is not None:
        progress = load_checkpoint(latest, model, optimizer)
    recorder.start(progress.step)
    window = _Window()
    for batch in _batches(task, config, world, progress.step):
        set_lr(optimizer, config.optim.lr_at(progress.step, config.steps))
        # Whatever a layer draws is a function of the step too, so that no generator's state needs keeping.
        torch.manual_seed(layer_seed(config.seed, progress.step, world.rank))
        window.add(_update(config, task, network, optimizer, batch.to(world.device), progress.step))
        progress.step += 1
        is_last = progress.step == config.steps
        if progress.step % config.log_every == 0 or is_last:
            means = world.mean(window.means())
            window = _Window()
            if world.leads:
                recorder.log(
                    progress.step, "train", {**means, "lr": config.optim.lr_at(progress.step - 1, config.steps)}
                )
        metrics = {}
        if progress.step % config.validate_every == 0 or is_last:
            metrics = _validate(config, task, recorder, world, progress)
        if metrics or progress.step % config.checkpoint_every == 0:
            recorder.commit(progress.step, metrics, lambda folder: save_checkpoint(folder, model, optimizer, progress))
    recorder.close()
    return progress


def _update(
    config: TrainingConfig, task: Task, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, step: int
) -> dict[str, float]:
    with torch.autocast(batch.noisy.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        losses = task.losses(network, batch)
    values = {name: float(value.detach()) for name, value in losses.items()}
    if not math.isfinite(values["loss"]):
        raise StillgrainError(
            f"the loss is {values['loss']} at step {step} ({values}): lower optim.lr, or look at the data of this step"
        )
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip_grad_norm)
    optimizer.step()
    return values


def _validate(
    config: TrainingConfig, task: Task, recorder: Recorder, world: World, progress: Progress
) -> dict[str, float]:
    task.model.eval()
    metrics = task.validate(world)
    if config.best.metric not in metrics:
        raise StillgrainError(f"best.metric is '{config.best.metric}', but validation gives {', '.join(metrics)}")
    if broken := {name: value for name, value in metrics.items() if not math.isfinite(value)}:
        raise StillgrainError(
            f"validation after step {progress.step} gives {broken}: lower optim.lr if it is nan; if it is inf, look "
            "for validation scenes that are white all over"
        )
    value = metrics[config.best.metric]
    sign = 1 if config.best.mode == "max" else -1
    if progress.best_value is None or sign * value > sign * progress.best_value:
        progress.best_step, progress.best_value = progress.step, value
        task.publish(world, progress.step, metrics)
    task.model.train()
    if world.leads:
        recorder.log(progress.step, "val", {name.removeprefix("val/"): v for name, v in metrics.items()})
    return metrics


def _batches(task: Task, config: TrainingConfig, world: World, first_step: int) -> Iterator[Batch]:
    """This worker's share of each step's batch, made one step ahead in a thread."""
    slots = slots_of(world.rank, world.size, config.batch_size)
    with ThreadPoolExecutor(1, "batches") as ahead:
        upcoming = ahead.submit(task.batch, first_step, slots)
        for step in range(first_step, config.steps):
            batch = upcoming.result()
            if step + 1 < config.steps:
                upcoming = ahead.submit(task.batch, step + 1, slots)
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
