"""Waiting for a cluster to have room, and who waits for nothing."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from workloads.ray_session import NoRoomError, wait_for_room

ROOT = Path(__file__).resolve().parents[2]

# A node that an autoscaler has started bears the name of its type. Here nobody starts another.
OF_A_CLUSTER_THAT_GROWS = """
import sys, ray
from workloads.ray_session import NoRoomError, wait_for_room
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
         logging_level="ERROR", _temp_dir=sys.argv[1])
wait_for_room(1, {"CPU": 1}, 60)
try:
    wait_for_room(3, {"CPU": 1, "GPU": 0}, 2.5)
except NoRoomError as error:
    print(error.exit_code, error)
"""


def test_nobody_waits_where_there_is_room_or_where_no_room_will_come(ray_cluster: str) -> None:
    """On one machine what is too much is refused at once, by who asks for it and knows why."""
    start = time.monotonic()
    wait_for_room(4, {"CPU": 1, "GPU": 0}, 600)
    wait_for_room(100, {"CPU": 1}, 600)
    wait_for_room(1, {"GPU": 1}, 600)
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_cluster_that_grows_is_waited_for_and_not_without_end() -> None:
    folder = tempfile.mkdtemp(prefix="sg-", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_NODE_TYPE_NAME": "cpu_worker", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", OF_A_CLUSTER_THAT_GROWS, folder],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert f"{NoRoomError.exit_code} no room for 3 x 1 CPU within 2.5 s" in done.stdout, done.stderr
    assert "the cluster has room for 1" in done.stdout
