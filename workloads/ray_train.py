"""Training workers on Ray: the only file that knows `ray.train`.

Ray starts the workers, notices when one is lost, and starts them anew, fewer or more of them where the config allows
it. What a run needs to go on it keeps itself (library/training/checkpoint.py): a checkpoint handed to Ray counts only
once its controller has rewritten a snapshot, in place, and a controller that is killed at that moment leaves neither.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.train
import ray.train.torch
from pydantic import Field, model_validator

from library.config import Frozen
from library.errors import ConfigError, StillgrainError
from library.memory import keep_freed_memory
from library.training.world import World

_MOST_WAITS = 1000
"""For workers to start, of up to a minute each: lost nodes may take hours to be replaced, but not for ever."""


class Scaling(Frozen):
    """How many workers share a run, and what each gets. Changes nothing of what is computed but rounding."""

    workers: int = Field(default=1, ge=0)
    """TorchTrainer workers; 0 runs in this process, without Ray."""
    min_workers: int | None = Field(default=None, ge=1)
    """Elastic: go on with as few as these while nodes are missing, and with more when they are back; left out, the run
    waits until all workers can start."""
    cpus_per_worker: int = Field(default=1, gt=0)
    """Also the number of threads that torch uses in a worker."""
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    """1 trains on CUDA devices, one for each worker."""
    max_failures: int = Field(default=10, ge=0)
    """How many times lost workers are replaced before the run gives up; nodes that announce their end do not count."""

    @property
    def most_workers(self) -> int:
        return max(1, self.workers)

    @model_validator(mode="after")
    def _fewest_are_not_more(self) -> Scaling:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers is {self.min_workers}, more than workers ({self.workers}): lower it, or leave it out"
            )
        return self


WorkerFunction = Callable[[dict[str, Any], World], None]


def run_workers(
    function: WorkerFunction, job: dict[str, Any], scaling: Scaling, callbacks: Sequence[ray.train.UserCallback] = ()
) -> None:
    """Run `function(job, world)` on every worker until all return; anew, from where it left off, when workers are lost.

    function  importable by name on the workers
    job       JSON
    callbacks told by Ray of what the workers report
    raises    the worker's own error if a user can fix it, at once; ConfigError when the cluster is too small
    """
    _check_resources(scaling)
    workers: int | tuple[int, int] = scaling.workers
    if scaling.min_workers is not None:
        workers = (scaling.min_workers, scaling.workers)
        # After a node is lost Ray still counts on it for some attempts, of a minute each unless told otherwise.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    # Ray wants a folder of its own, of which only the controller writes; nothing in it is needed again.
    with tempfile.TemporaryDirectory(prefix="stillgrain-ray-", ignore_cleanup_errors=True) as folder:
        trainer = ray.train.torch.TorchTrainer(
            _train_worker,
            train_loop_config={"function": f"{function.__module__}:{function.__qualname__}", "job": job},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=scaling.gpus_per_worker > 0,
                resources_per_worker={"CPU": scaling.cpus_per_worker}
                | ({"GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else {}),
                elastic_resize_monitor_interval_s=20,
            ),
            run_config=ray.train.RunConfig(
                name="run",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(
                    max_failures=scaling.max_failures, controller_failure_limit=_MOST_WAITS
                ),
                callbacks=[_EndAtUserErrors(), *callbacks],
            ),
        )
        try:
            trainer.fit()
        except ray.train.ControllerError as error:
            if isinstance(cause := _innermost(error), StillgrainError):
                raise cause from None
            raise


class _EndAtUserErrors(ray.train.UserCallback):
    """Ray starts workers anew after any exception; one that only a user can put right would come again each time."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(cause := _innermost(error), StillgrainError):
                raise cause


def _innermost(error: BaseException) -> BaseException:
    """What Ray has wrapped."""
    for name in ("controller_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return error


def _check_resources(scaling: Scaling) -> None:
    """A cluster that does not grow must have what is asked for; otherwise Ray would wait for it without end."""
    have = ray.cluster_resources()
    workers = scaling.min_workers or scaling.workers
    for resource, each in (("CPU", scaling.cpus_per_worker), ("GPU", scaling.gpus_per_worker)):
        asked, there = workers * each, have.get(resource, 0)
        if asked > there:
            raise ConfigError(
                f"scaling asks for {workers} workers with {each} {resource} each, {asked} in all, but "
                f"the cluster has {there:g}: lower scaling.workers or "
                f"scaling.{resource.lower()}s_per_worker, or add nodes"
            )


def _train_worker(arguments: dict[str, Any]) -> None:
    keep_freed_memory()
    module, _, name = arguments["function"].partition(":")
    function: WorkerFunction = getattr(importlib.import_module(module), name)
    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        wrap=ray.train.torch.prepare_model,
        report=_report,
    )
    function(arguments["job"], world)


def _report(step: int, metrics: Mapping[str, float]) -> None:
    """Let Ray's dashboard, and a sweep that started this run, see the numbers."""
    ray.train.report({"step": step, **{name: float(value) for name, value in metrics.items()}})
