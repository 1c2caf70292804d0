"""A connection to Ray: the cluster this command runs on, or one started on this machine for as long as it takes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import ray


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the Ray that is there (a job's cluster, RAY_ADDRESS, `ray start`), or start one here for the block.

    Workers' prints stay in Ray's logs: results and errors come back through return values and exceptions.
    """
    if ray.is_initialized():
        yield
        return
    # The dashboard matters where Ray is started here: without it Ray Train cannot find out that a controller died, and
    # never frees its workers' resources (ray-project/ray#54305).
    ray.init(include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
