from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterator

import boto3
import pytest
import ray
import s3fs
from moto.server import ThreadedMotoServer

BUCKET = "stillgrain"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket in an S3 on this machine's loopback; gives its URI. Credentials lie in the environment, as they do on a
    node."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # which would report every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        s3fs.S3FileSystem.clear_instance_cache()  # of clients that knew another address
        yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[str]:
    """One Ray of four logical CPUs for all tests here, whose workers know the S3; gives its address."""
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
