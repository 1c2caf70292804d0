from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One Ray of four logical CPUs for all tests here; gives its address."""
    # Ray's sockets lie in this folder, and a socket's path holds at most 107 bytes: pytest's own folders are too deep.
    folder = tempfile.mkdtemp(prefix="sg-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray would leave one in the home folder
        # Without the dashboard Ray Tune cannot free the resources of a trial that it stopped early.
        ray.init(
            num_cpus=4,
            include_dashboard=True,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
