"""Make training data of a tree of clean and noisy raws: aligned, masked, scored, indexed. One task a scene; a run that
was stopped, however hard, goes on where it was, and new or changed files make new work.

stillgrain run workloads/configs/prepare_rawnind.yaml tree=~/RawNIND storage=~/stores
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from library.config import Frozen, Location
from library.errors import StillgrainError
from library.files.isolate import IsolatedReader
from library.pairs.index import INDEX, Failure, Pair, Row, write_index
from library.pairs.prepare import ScenePreparation, Settings, Work
from library.pairs.tree import Scene, scan_tree
from workloads.pool import run_pool
from workloads.progress import track
from workloads.ray_session import ray_session


class Scaling(Frozen):
    """How many scenes are worked on at once, and what each gets."""

    workers: int = Field(default=2, ge=0)
    """Actors at most; fewer start while the cluster has no room. 0: none, and no Ray; this process does it."""
    cpus_per_worker: int = Field(default=1, gt=0)


class Config(Frozen):
    workload: Literal["prepare"] = "prepare"
    tree: Location
    """Folder of scenes: clean raws in `SCENE/gt`, noisy ones of the same view in `SCENE`, at any depth. Every node must
    see it at the same path."""
    storage: Location = "runs"
    """Folder that holds what was prepared, which every node must see too."""
    name: str = Field(default="prepared", pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Of its folder in the storage."""
    pairs: Settings = Settings()
    """How a pair is made of two files; changing it makes every pair anew."""
    retry_failed: bool = False
    """Read files again that could not be read and have not changed since."""
    time_limit_s: float = Field(default=4 * 3600, gt=0)
    """For one scene; then its actor is replaced, and goes on after the last pair that was finished."""
    max_attempts: int = Field(default=3, gt=0)
    """For a scene whose actor dies, hangs or raises something unforeseen."""
    scaling: Scaling = Scaling()

    @model_validator(mode="after")
    def _lies_in_folders(self) -> Config:
        for key, place in (("tree", self.tree), ("storage", self.storage)):
            if "://" in place:
                raise ValueError(f"{key}: {place} is a URI, and files are mapped into memory: mount it as a folder")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.storage) / self.name


@dataclass
class Summary:
    """What `run` left in the prepared folder.

    pairs       that can be trained on; `flagged` among them, by what a person may want to look at
    failures    pairs that cannot
    unfinished  scene -> why it has to be run again
    work        what was not there before
    """

    folder: Path
    scenes: int
    pairs: int
    flagged: Counter[str]
    failures: list[Failure]
    unfinished: dict[str, str]
    work: Work
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 when a scene has to be run again. A file that is broken for good is no reason."""
        return 1 if self.unfinished else 0

    def __str__(self) -> str:
        reasons = Counter(failure.error for failure in self.failures)
        lines = [f"{reason} ({count} pairs)" for reason, count in sorted(reasons.items())]
        lines += [f"{scene}: {reason}" for scene, reason in sorted(self.unfinished.items())]
        lines += [f"{flag}: {count} pairs" for flag, count in sorted(self.flagged.items())]
        new = f"{self.work.files_read} files read, {self.work.pairs_made} pairs made in {self.seconds:.0f} s"
        came_to = f"{self.pairs} pairs of {self.scenes} scenes, {len(self.failures)} failed"
        return "\n".join([*lines, f"{self.folder / INDEX}: {came_to}; {new}"])


@dataclass
class _Progress:
    """What the scenes that were worked on came to."""

    work: Work = field(default_factory=Work)
    unfinished: dict[str, str] = field(default_factory=dict)


def run(config: Config) -> Summary:
    """Prepare what is not prepared yet, and write the index of all. Running it again does nothing, or goes on.

    raises  DataError when the tree holds no scene
    """
    start = time.monotonic()
    scenes = scan_tree(config.tree)
    todo = [scene for scene in scenes if not _preparation(config, scene).is_done]
    # The longest first, or one of them is left at the end while other workers have nothing to do.
    todo.sort(key=lambda scene: -len(scene.gt) * (len(scene.gt) + len(scene.noisy)))
    progress = _Progress()
    outcomes = _with_actors(config, todo) if config.scaling.workers and todo else _in_this_process(config, todo)
    for scene, result in track(outcomes, total=len(todo), description="preparing"):
        if isinstance(result, Work):
            progress.work += result
        else:
            progress.unfinished[scene.name] = result
    rows = [row for scene in scenes for row in _rows(config, scene, progress.unfinished.get(scene.name))]
    write_index(config.folder, rows)
    pairs = [row for row in rows if isinstance(row, Pair)]
    return Summary(
        config.folder,
        len(scenes),
        len(pairs),
        Counter(flag for pair in pairs for flag in pair.flags),
        [row for row in rows if isinstance(row, Failure)],
        progress.unfinished,
        progress.work,
        time.monotonic() - start,
    )


def _preparation(config: Config, scene: Scene) -> ScenePreparation:
    return ScenePreparation(scene, Path(config.tree), config.folder, config.pairs, retry_failed=config.retry_failed)


def _rows(config: Config, scene: Scene, reason: str | None) -> Sequence[Row]:
    preparation = _preparation(config, scene)
    return preparation.rows() if reason is None else preparation.rows(reason)


def _in_this_process(config: Config, scenes: Sequence[Scene]) -> Iterator[tuple[Scene, Work | str]]:
    torch.set_num_threads(config.scaling.cpus_per_worker)
    with IsolatedReader() as reader:
        for scene in scenes:
            try:
                yield scene, _preparation(config, scene).run(reader, threads=config.scaling.cpus_per_worker)
            except (StillgrainError, OSError) as error:
                yield scene, f"{error}"


def _with_actors(config: Config, scenes: Sequence[Scene]) -> Iterator[tuple[Scene, Work | str]]:
    with ray_session():
        outcomes = run_pool(
            Preparer,
            (config.model_dump(mode="json"),),
            scenes,
            num_workers=config.scaling.workers,
            num_cpus=config.scaling.cpus_per_worker,
            time_limit_s=config.time_limit_s,
            max_attempts=config.max_attempts,
        )
        with closing(outcomes):
            for outcome in outcomes:
                yield outcome.item, outcome.result if outcome.error is None else outcome.error


class Preparer:
    """What an actor holds: a process of its own for decoders, which a bad file may crash."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = Config.model_validate(config)
        torch.set_num_threads(self.config.scaling.cpus_per_worker)
        self.reader = IsolatedReader()

    def process(self, scene: Scene) -> Work:
        """Make what is missing of one scene."""
        return _preparation(self.config, scene).run(self.reader, threads=self.config.scaling.cpus_per_worker)
