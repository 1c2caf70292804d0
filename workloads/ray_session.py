"""A connection to Ray: the cluster this command runs on, or one started on this machine for as long as it takes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the Ray that is there (a job's cluster, RAY_ADDRESS, `ray start`), or start one here, with its dashboard.

    The dashboard matters: without it Ray Train cannot find out that a controller died, and never frees its workers' resources.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        include_dashboard=None if _cluster_is_there() else True, log_to_driver=False, logging_level=logging.WARNING
    )
    try:
        yield
    finally:
        ray.shutdown()


def _cluster_is_there() -> bool:
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
