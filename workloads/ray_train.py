"""Training workers on Ray: the only file that knows `ray.train`."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import ray
import ray.train
import ray.train.torch
from pydantic import Field

from library.config import Frozen
from library.errors import ConfigError, StillgrainError
from library.training.recorder import Recorder
from library.training.world import World


class Scaling(Frozen):
    """How many workers share a run, and what each gets. Changes nothing of what is computed but rounding."""

    workers: int = Field(default=1, ge=0)
    """TorchTrainer workers; 0 runs in this process, without Ray."""
    cpus_per_worker: int = Field(default=1, gt=0)
    """Also the number of threads that torch uses in a worker."""
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    """1 trains on CUDA devices, one for each worker."""
    max_failures: int = Field(default=3, ge=0)
    """How many times lost workers are replaced before the run gives up."""


WorkerFunction = Callable[[dict, Recorder, World], None]


def run_workers(function: WorkerFunction, job: dict, scaling: Scaling, run_folder: Path) -> None:
    """Run `function(job, recorder, world)` on every worker until all return.

    function    importable by name on the workers
    job         JSON
    run_folder  absolute, seen by all nodes; Ray keeps the run's checkpoints there and finds them again after any
                interruption
    raises      the worker's own error if it is one that a user can fix; ConfigError when the cluster is too small
    """
    _check_resources(scaling)
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={
            "function": f"{function.__module__}:{function.__qualname__}",
            "job": job,
            "run_folder": str(run_folder),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=scaling.gpus_per_worker > 0,
            resources_per_worker={"CPU": scaling.cpus_per_worker}
            | ({"GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=run_folder.name,
            storage_path=str(run_folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures, controller_failure_limit=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, StillgrainError):
                raise failure from None
        raise


def _check_resources(scaling: Scaling) -> None:
    """A cluster that does not grow must have what is asked for; otherwise Ray would wait for it without end."""
    have = ray.cluster_resources()
    for resource, each in (("CPU", scaling.cpus_per_worker), ("GPU", scaling.gpus_per_worker)):
        asked, there = scaling.workers * each, have.get(resource, 0)
        if asked > there:
            raise ConfigError(
                f"scaling asks for {scaling.workers} workers with {each} {resource} each, {asked} in all, but "
                f"the cluster has {there:g}: lower scaling.workers or "
                f" scaling.{resource.lower()}s_per_worker, or add nodes"
            )


def _train_worker(arguments: dict) -> None:
    module, _, name = arguments["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        wrap=ray.train.torch.prepare_model,
    )
    function(arguments["job"], RayRecorder(arguments["run_folder"], leads=world.leads), world)


class RayRecorder(Recorder):
    """Checkpoints go through `ray.train.report`: Ray stores them, drops the old ones, and knows the last."""

    def latest_checkpoint(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.path)

    def commit(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        plain = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        if not self.leads:
            ray.train.report(plain)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(plain, checkpoint=checkpoint, checkpoint_dir_name=f"checkpoint-{step:08d}")
