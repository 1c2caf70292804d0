"""What the training benchmarks time: the demo's training in a bare torch loop, and as Stillgrain runs it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from library.config import load, override, validate
from library.datasets import synthetic
from library.datasets.batch import Batch
from library.models.blocks.image_model import ModelConfig
from library.training.objective import Objective
from library.training.recorder import Recorder
from library.training.world import World
from workloads import denoise, ray_train

WINDOW = 10
"""Steps that are timed together, and logged together."""
CONFIG = Path(__file__).resolve().parents[2] / "workloads" / "configs" / "denoise_demo.yaml"


def training_config(storage: Path, name: str, steps: int, *words: str) -> denoise.Config:
    """The demo's training, of so many steps, logged after each window, validated at the end alone."""
    settings = [f"storage={storage}", f"name={name}", f"steps={steps}", f"log_every={WINDOW}"]
    settings += [f"validate_every={steps}", f"checkpoint_every={steps}", "num_pictures=0", "dataset.held_out=[coffee]"]
    data = load(CONFIG)
    for word in (*settings, *words):
        data = override(data, word)
    return validate(denoise.Config, data, "benchmark")


class Bare:
    """The same model, data, objective and optimizer in a loop of torch alone, with the next batch made in a thread."""

    def __init__(self, config: denoise.Config, store: Path, *, channels_last: bool = True) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = cast(ModelConfig, config.model).build().to(memory_format=self.layout)  # pyright: ignore
        self.objective = Objective(cast(Any, config.losses), config.transfer, config.gain)
        self.dataset = cast(synthetic.Config, config.dataset).open(store, config.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr, betas=config.optim.betas)

    def batch(self, step: int) -> Batch:
        return self.dataset.batch(step, range(self.config.batch_size), batch_size=self.config.batch_size)

    def batches(self, steps: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(self.batch, 0)
            for step in range(steps):
                batch = upcoming.result()
                upcoming = ahead.submit(self.batch, step + 1)
                yield batch

    def step(self, batch: Batch) -> float:
        noisy = batch.noisy.contiguous(memory_format=self.layout)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.objective(self.model(noisy), batch)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def seconds(self, batches: Iterator[Batch]) -> list[float]:
        """Of a step, waiting for its batch included: the mean of each window but the first."""
        times = []
        for number, batch in enumerate(batches, start=1):
            self.step(batch)
            if number % WINDOW == 0:
                times.append(time.perf_counter())
        return [(b - a) / WINDOW for a, b in itertools.pairwise(times)]


class TimedRecorder(Recorder):
    """A recorder that also notes when each window was logged."""

    def __init__(self, run_folder: Path, *, leads: bool) -> None:
        super().__init__(run_folder, leads=leads)
        self.times: list[float] = []

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        super().log(step, split, metrics)
        if split == "train":
            self.times.append(time.perf_counter())

    def close(self) -> None:
        super().close()
        if self.leads:
            (Path(self.run_folder) / "times.json").write_text(json.dumps(self.times))


def train_with_times(job: dict[str, Any], world: World) -> None:
    """What a worker of the benchmark does: the real training, its steps timed."""
    config = denoise.Config.model_validate(job["config"])
    recorder = TimedRecorder(Path(config.run_folder), leads=world.leads)
    denoise.train(config, job["prepared"], recorder, world)


def ray_seconds(config: denoise.Config, store: Path) -> list[float]:
    """The same on TorchTrainer workers."""
    job = {"config": config.model_dump(mode="json"), "prepared": str(store)}
    ray_train.run_workers(train_with_times, job, config.scaling)
    times = json.loads((Path(config.run_folder) / "times.json").read_text())
    return [(b - a) / WINDOW for a, b in itertools.pairwise(times)]


def with_threads(count: int, measure: Callable[[], list[float]]) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)
