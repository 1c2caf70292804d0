"""What the training benchmarks time: the demo's training in a bare torch loop, and as Stillgrain runs it.

Two things are compared by turns of a few steps, each waiting while the other works: a machine's speed drifts by more
than what is looked for, within seconds.
"""

from __future__ import annotations

import json
import threading
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
from library.files.atomic import whole_file
from library.models.blocks.image_model import ModelConfig
from library.training.objective import Objective
from library.training.recorder import Recorder
from library.training.world import World
from workloads import denoise, ray_train

CONFIGS = Path(__file__).resolve().parents[2] / "workloads" / "configs"


def training_config(storage: Path, base: str, name: str, window: int, rounds: int, *words: str) -> denoise.Config:
    """A shipped training of so many windows and one before them, logged after each, validated at the end alone."""
    steps = window * (rounds + 1)
    settings = [f"storage={storage}", f"name={name}", f"steps={steps}", f"log_every={window}"]
    settings += [f"validate_every={steps}", f"checkpoint_every={steps}", "num_pictures=0", "dataset.held_out=[coffee]"]
    data = load(CONFIGS / f"{base}.yaml")
    for word in (*settings, *words):
        data = override(data, word)
    return validate(denoise.Config, data, "benchmark")


class Bare:
    """The same model, data, objective and optimizer in a loop of torch alone, with the next batch made in a thread."""

    def __init__(self, config: denoise.Config, store: Path, *, channels_last: bool = True, threads: int = 1) -> None:
        torch.manual_seed(config.seed)
        self.config, self.threads = config, threads
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = cast(ModelConfig, config.model).build().to(memory_format=self.layout)  # pyright: ignore
        self.objective = Objective(cast(Any, config.losses), config.transfer, config.gain)
        self.dataset = cast(synthetic.Config, config.dataset).open(store, config.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr, betas=config.optim.betas)
        self.batches = self._batches()
        self.cached = next(self.batches)

    def _batches(self) -> Iterator[Batch]:
        size = self.config.batch_size

        def make(step: int) -> Batch:
            return self.dataset.batch(step, range(size), batch_size=size)

        with ThreadPoolExecutor(1) as ahead:
            step, upcoming = 0, ahead.submit(make, 0)
            while True:
                batch = upcoming.result()
                step += 1
                upcoming = ahead.submit(make, step)
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

    def window(self) -> float:
        """Seconds that `log_every` steps take, by step, waiting for their batches included."""
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        for _ in range(self.config.log_every):
            self.step(next(self.batches))
        return (time.perf_counter() - start) / self.config.log_every

    def cached_window(self) -> float:
        """Seconds a step on one batch that is there already."""
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        for _ in range(self.config.log_every):
            self.step(self.cached)
        return (time.perf_counter() - start) / self.config.log_every


def by_turns(*windows: Callable[[], float], rounds: int) -> list[list[float]]:
    """Seconds a step of each, over so many rounds; one more round comes first and is not counted."""
    times = [[window() for window in windows] for _ in range(rounds + 1)]
    return [list(column) for column in zip(*times[1:], strict=True)]


class Turn:
    """Whose turn it is, in a file that two processes see."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "turn"

    def give(self, to: str) -> None:
        with whole_file(self.file) as temporary:
            temporary.write_text(to)

    def wait(self, me: str, other_is_alive: Callable[[], bool] = lambda: True) -> None:
        while not self.file.exists() or self.file.read_text() != me:
            assert other_is_alive(), "the other has ended without giving back the turn"
            time.sleep(0.005)


class TurnTakingRecorder(Recorder):
    """A recorder that times each window, and then lets another process have its turn."""

    def __init__(self, run_folder: Path, *, leads: bool) -> None:
        super().__init__(run_folder, leads=leads)
        self.folder, self.turn = run_folder, Turn(run_folder)
        self.times: list[float] = []

    def start(self, step: int) -> None:
        super().start(step)
        if self.leads:
            self.turn.give("other")
            self.turn.wait("run")
            self.since = time.perf_counter()

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        super().log(step, split, metrics)
        if split == "train":
            self.times.append(time.perf_counter() - self.since)
            self.turn.give("other")
            self.turn.wait("run")
            self.since = time.perf_counter()

    def close(self) -> None:
        super().close()
        if self.leads:
            (self.folder / "times.json").write_text(json.dumps(self.times))


def train_by_turns(job: dict[str, Any], world: World) -> None:
    """What a worker of the benchmark does: the real training."""
    config = denoise.Config.model_validate(job["config"])
    denoise.train(config, job["prepared"], TurnTakingRecorder(Path(config.run_folder), leads=world.leads), world)


def against_ray(config: denoise.Config, store: Path, window: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Seconds a step on TorchTrainer workers and of `window` in this process, by turns; the first are left out."""
    turn = Turn(Path(config.run_folder))
    job = {"config": config.model_dump(mode="json"), "prepared": str(store)}
    training = threading.Thread(target=ray_train.run_workers, args=(train_by_turns, job, config.scaling))
    training.start()
    times = []
    for _ in range(config.steps // config.log_every + 1):
        turn.wait("other", training.is_alive)
        times.append(window())
        turn.give("run")
    training.join()
    ours = json.loads((Path(config.run_folder) / "times.json").read_text())
    # The last turn of the other comes after the last of the run.
    return [seconds / config.log_every for seconds in ours[1:]], times[1:-1]
