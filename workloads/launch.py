"""A training run from its config to its folder: guards the folder, prepares the data, runs the workers, follows their
progress.

<storage>/<name>/   run.yaml  metrics.jsonl  tensorboard/  checkpoints  bundle/  images/  report.html
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, field_validator, model_validator

from library.config import Location, to_yaml
from library.errors import ConfigError
from library.files.atomic import whole_file
from library.training.loop import TrainingConfig
from library.training.recorder import Recorder, read_metrics
from library.training.world import World
from workloads import progress, ray_train, report
from workloads.ray_session import ray_session

# Where the work is done does not change what is computed, so a run may go on elsewhere.
_MAY_CHANGE = {"scaling"}
# Where Ray unpacks `--working-dir`, below its session's folder.
_JOB_COPY = "working_dir_files"


class LaunchConfig(TrainingConfig):
    """What every training workload has: a place, a name and workers."""

    workload: str
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder below storage. The same name goes on with the same run."""
    storage: Location = "runs"
    """Folder that holds the runs; every node must see it at the same path."""
    scaling: ray_train.Scaling = ray_train.Scaling()

    @property
    def run_folder(self) -> Path:
        return Path(self.storage) / self.name

    @field_validator("storage")
    @classmethod
    def _storage_is_a_path(cls, storage: str) -> str:
        if "://" in storage:
            raise ValueError(
                f"'{storage}' is a URI, and runs can only be kept in a folder so far: give a path that every node sees"
            )
        return storage

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> LaunchConfig:
        if self.batch_size % max(1, self.scaling.workers):
            raise ValueError(
                f"batch_size is {self.batch_size}, which {self.scaling.workers} workers cannot share equally: "
                "make batch_size a multiple of scaling.workers"
            )
        return self


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    bundle: Path
    """The best weights, with their manifest."""
    metrics: dict[str, float]
    """Of the last validation, with their split: `val/psnr`."""
    exit_code: int = 0

    def __str__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        lines = [
            f"{self.folder}: trained; {metrics}",
            f"bundle: {self.bundle}",
            f"report: {self.folder / 'report.html'}",
        ]
        if _JOB_COPY in self.folder.parts:
            lines.append("this lies in Ray's copy of the working directory, which Ray removes: give storage=/a/folder")
        return "\n".join(lines)


def launch(config: LaunchConfig, prepare: Callable[[], Path]) -> RunResult:
    """Run a training to its end, or go on with one that was interrupted; a finished run is left as it is.

    prepare  makes what the workers read, and returns its path
    raises   ConfigError when the run's folder belongs to another config; whatever user error stops a worker
    """
    claim(config)
    with progress.follow(config.run_folder, config.steps):
        job = {"config": config.model_dump(mode="json"), "prepared": str(prepare())}
        if config.scaling.workers == 0:
            run_worker(job, Recorder(config.run_folder), World())
        else:
            with ray_session():
                ray_train.run_workers(run_worker, job, config.scaling, config.run_folder)
    report.write_run_report(config.run_folder)
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == "val"]
    metrics = {f"val/{line['name']}": line["value"] for line in lines if line["step"] == config.steps}
    return RunResult(config.run_folder, config.run_folder / "bundle", metrics)


def run_worker(job: dict, recorder: Recorder, world: World) -> None:
    """What each worker does: the same config is validated again here, and the workload's own `train` called."""
    workload = importlib.import_module(f"workloads.{job['config']['workload']}")
    workload.train(workload.Config.model_validate(job["config"]), job["prepared"], recorder, world)


def claim(config: LaunchConfig) -> None:
    """Write the resolved config beside what the run will produce, or check that the folder is this run's.

    raises  ConfigError showing the difference when it is another's
    """
    file = config.run_folder / "run.yaml"
    resolved = to_yaml(config)
    if file.exists():
        ours, theirs = (_comparable(text) for text in (resolved, file.read_text(encoding="utf-8")))
        if ours != theirs:
            difference = "\n".join(
                line
                for line in difflib.unified_diff(theirs, ours, "there", "asked for", n=0, lineterm="")
                if line[:2] != "@@"
            )
            raise ConfigError(
                f"name: the run '{config.name}' in {config.storage} has another config:\n{difference}\n"
                "give this one another name=..., or delete that folder"
            )
    with whole_file(file) as temporary:
        temporary.write_text(resolved, encoding="utf-8")


def _comparable(text: str) -> list[str]:
    settings = {key: value for key, value in yaml.safe_load(text).items() if key not in _MAY_CHANGE}
    return yaml.safe_dump(settings, sort_keys=False).splitlines()
