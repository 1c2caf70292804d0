"""Functions that tests run on Ray's training workers, which import them by name."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.errors import ConfigError
from library.training.recorder import Recorder
from library.training.world import World
from workloads import denoise


def fail_as_a_user_can_mend(job: dict[str, Any], world: World) -> None:
    """Leave a mark for each attempt, and raise what no further attempt can change."""
    with open(job["attempts"], "a", encoding="utf-8") as file:
        file.write(f"{world.rank}\n")
    raise ConfigError("optim.lr is too high: lower it")


def fail_as_code_does(job: dict[str, Any], world: World) -> None:
    """Leave a mark for each attempt, and fail like a defect or a broken disk."""
    with open(job["attempts"], "a", encoding="utf-8") as file:
        file.write(f"{world.rank}\n")
    raise RuntimeError("out of luck")


class WeighingRecorder(Recorder):
    """A recorder that also notes how much memory the worker holds at each line."""

    def __init__(self, run_folder: Path) -> None:
        super().__init__(run_folder)
        self.megabytes: list[float] = []

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        super().log(step, split, metrics)
        if split == "train":
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def close(self) -> None:
        super().close()
        (Path(self.run_folder) / "megabytes.json").write_text(json.dumps(self.megabytes))


def train_and_weigh(job: dict[str, Any], world: World) -> None:
    """The real training, its resident memory noted."""
    config = denoise.Config.model_validate(job["config"])
    denoise.train(config, job["prepared"], WeighingRecorder(Path(config.run_folder)), world)
