"""A training run from its config to its folder: guards the folder, prepares the data, runs the workers, follows their
progress.

<storage>/<name>/   run.yaml  metrics.jsonl  checkpoints/  bundle/  images/  skipped/  report.html
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from pydantic import Field, model_validator
from upath import UPath

from library.bundle import Bundle
from library.codec_bundle import CodecBundle
from library.config import Component, Location, config_difference, to_yaml
from library.errors import ConfigError, StillgrainError
from library.files.atomic import whole_file
from library.files.places import place, read_text
from library.training.checkpoint import checkpoints, read_progress
from library.training.loop import TrainingConfig
from library.training.recorder import Recorder, read_metrics
from library.training.world import World
from workloads import progress, ray_train
from workloads.ray_session import ray_session, wait_for_room

# Where the work is done, where it is kept, who watches it and what people say of it does not change what is computed.
_MAY_CHANGE = {"scaling", "start_within_s", "loggers", "tags", "notes", "stores", "storage"}
_FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "read-only",
    errno.EFBIG: "a file may not be so large",
}
# Where Ray unpacks `--working-dir`, below its session's folder.
_JOB_COPY = "working_dir_files"


_Bundle = TypeVar("_Bundle", bound=Bundle | CodecBundle)


class LaunchConfig(TrainingConfig):
    """What every training workload has: a place, a name and workers."""

    workload: str
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder below storage. The same name goes on with the same run."""
    storage: Location = "runs"
    """Folder that holds the runs, which every node sees at the same path; or a URI such as s3://bucket/runs."""
    stores: Location | None = None
    """Folder for the data as training reads them, which runs share; left out, `stores` in storage."""
    start_from: Location | None = None
    """A bundle, or the folder of a run that has one: its weights are the initial ones. For fine-tuning, and for ladders
    of loss weights, each rung starting from its neighbour."""
    scaling: ray_train.Scaling = ray_train.Scaling()
    start_within_s: float = Field(default=900, gt=0)
    """How long a cluster that grows may take to have room for the workers; a queue tries again later."""
    tags: tuple[str, ...] = ()
    """Words to find the run by: `stillgrain runs list --tag good`."""
    notes: str = ""
    """What a person should know about this run."""

    @property
    def run_folder(self) -> UPath:
        return place(self.storage) / self.name

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> LaunchConfig:
        for stage in self.stages:
            if stage.batch_size < self.scaling.most_workers:
                raise ValueError(
                    f"batch_size is {stage.batch_size}, too few for {self.scaling.most_workers} workers to have an "
                    "image each: raise batch_size, or lower scaling.workers"
                )
        return self


@dataclass(frozen=True)
class Host:
    """What starts a training, where that is not a person: a sweep, whose trial it is."""

    world: World | None = None
    """The training is this worker's, in this process: nobody starts others for it."""
    callbacks: tuple[Any, ...] = ()
    """Told by Ray Train of each validation, where it does start workers."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: UPath
    bundle: UPath
    """The best weights, with their manifest."""
    metrics: dict[str, float]
    """Of the last validation, with their split: `val/psnr`."""
    stopped: str | None = None
    """Why it ended before its last step."""
    exit_code: int = 0

    def __str__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        ended = f"stopped early ({self.stopped})" if self.stopped else "trained"
        lines = [
            f"{self.folder}: {ended}; {metrics}",
            f"bundle: {self.bundle}",
            f"report: {self.folder / 'report.html'}",
        ]
        if _JOB_COPY in self.folder.parts:
            lines.append("this lies in Ray's copy of the working directory, which Ray removes: give storage=/a/folder")
        return "\n".join(lines)


def launch(config: LaunchConfig, prepare: Callable[[UPath], UPath], host: Host = Host()) -> RunResult:
    """Run a training to its end, or go on with one that was interrupted; a finished run is left as it is.

    prepare  makes what the workers read, in the folder that it is given, and returns its path
    raises   ConfigError when the run's folder belongs to another config, or start_from to another model; whatever user
             error stops a worker; StillgrainError for a storage that is full or read-only
    """
    with _storage_is_blamed(config):
        return _launch(config, prepare, host)


def _launch(config: LaunchConfig, prepare: Callable[[UPath], UPath], host: Host) -> RunResult:
    claim(config)
    folder = config.run_folder
    if not _has_ended(config):
        (folder / "report.html").unlink(missing_ok=True)
        with progress.follow(folder, config.total_steps):
            stores = place(config.stores) if config.stores else place(config.storage) / "stores"
            job = {"config": config.model_dump(mode="json"), "prepared": str(prepare(stores))}
            if host.world is not None or config.scaling.workers == 0:
                run_worker(job, host.world or World())
            else:
                scaling = config.scaling
                with ray_session():
                    each = {"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}
                    wait_for_room(scaling.min_workers or scaling.workers, each, config.start_within_s)
                    ray_train.run_workers(run_worker, job, config.scaling, host.callbacks)
    if not (folder / "report.html").exists():
        # Here, since workers draw no charts: two of the six seconds that they took to start.
        from workloads import report

        report.write_run_report(folder)
    lines = [line for line in read_metrics(folder) if line["split"] == "val"]
    metrics = {f"val/{line['name']}": line["value"] for line in lines if line["step"] == lines[-1]["step"]}
    return RunResult(folder, folder / "bundle", metrics, read_progress(checkpoints(folder)[-1]).stopped)


def run_worker(job: dict[str, Any], world: World) -> None:
    """What each worker does: the same config is validated again here, and the workload's own `train` called."""
    workload = importlib.import_module(f"workloads.{job['config']['workload']}")
    config: LaunchConfig = workload.Config.model_validate(job["config"])
    loggers = [
        logger.build(config.run_folder, config.name, job["config"]) for logger in config.loggers.values() if world.leads
    ]
    recorder = Recorder(config.run_folder, leads=world.leads, loggers=loggers)
    with _storage_is_blamed(config):
        workload.train(config, job["prepared"], recorder, world)


@contextlib.contextmanager
def _storage_is_blamed(config: LaunchConfig) -> Iterator[None]:
    """What no further attempt can mend is a user's error, which ends a run at once: Ray would try it again and again.

    raises  StillgrainError for a disk that is full, over its quota or read-only
    """
    try:
        yield
    except StillgrainError:
        raise
    except Exception as error:
        # safetensors and OpenEXR have errors of their own for whatever goes wrong with a file, with the system's words.
        number = next((n for n in _FULL if getattr(error, "errno", None) == n or os.strerror(n) in str(error)), None)
        if number is None:
            raise
        raise StillgrainError(
            f"storage: {config.run_folder} cannot be written ({_FULL[number]}): make room there, or move the run's "
            "folder into another and give that as storage=...; the same command then goes on from its last checkpoint"
        ) from error


def starting_bundle(config: LaunchConfig, model: Component, load: Callable[[UPath], _Bundle]) -> _Bundle:
    """The bundle whose weights a run begins with: what `start_from` names.

    model   config of what is trained
    load    reads a bundle of the kind that is trained
    raises  ConfigError when they are another model's; BundleError when there is none
    """
    assert config.start_from is not None
    path = place(config.start_from)
    bundle = load(path / "bundle" if (path / "run.yaml").exists() else path)
    asked, there = (x.model_dump(mode="json") for x in (model, bundle.model.config))
    if asked != there:
        differing = [
            f"model.{key} is {asked.get(key)!r} here and {there.get(key)!r} there"
            for key in sorted(asked.keys() | there.keys())
            if asked.get(key) != there.get(key)
        ]
        raise ConfigError(f"start_from: {path} is another model: {'; '.join(differing)}")
    return bundle


def claim(config: LaunchConfig) -> None:
    """Write the resolved config beside what the run will produce, or check that the folder is this run's.

    Tags and notes that were added there stay.

    raises  ConfigError showing the difference when it is another's
    """
    file = config.run_folder / "run.yaml"
    if file.exists():
        there = yaml.safe_load(read_text(file))
        if difference := config_difference(there, yaml.safe_load(to_yaml(config)), may_change=_MAY_CHANGE):
            raise ConfigError(
                f"name: the run '{config.name}' in {config.storage} has another config:\n{difference}\n"
                "give this one another name=..., or remove that run: "
                f"stillgrain runs clean {config.name} --storage {config.storage} --all --yes"
            )
        tags = dict.fromkeys((*there.get("tags", ()), *config.tags))
        config = config.model_copy(update={"tags": tuple(tags), "notes": config.notes or there.get("notes", "")})
    with whole_file(file) as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")


def _has_ended(config: LaunchConfig) -> bool:
    latest = next(reversed(checkpoints(config.run_folder)), None)
    if latest is None:
        return False
    state = read_progress(latest)
    return state.stopped is not None or state.step >= config.total_steps
